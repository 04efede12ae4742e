//! The text of a document, before it is read as GraphQL.

use async_graphql::{ServerError, ServerResult};

use super::{DEEPEST, nested_too_deep};

/// Bytes without those of strings. What is larger holds the parser up; common clients send a few thousand.
const LONGEST: usize = 64 * 1024;

/// Refuses what is too long, and what is nested so deeply that the engine's parser, which goes into lists and objects
/// without counting, would overflow its stack.
pub(super) fn check(document: &str) -> ServerResult<()> {
    let (mut length, mut depth) = (0, 0usize);
    let mut rest = document.as_bytes();
    while let [first, after @ ..] = rest {
        rest = after;
        length += 1;
        match first {
            b'[' | b'{' | b'(' => depth += 1,
            b']' | b'}' | b')' => depth = depth.saturating_sub(1),
            b'#' => {
                let comment = after.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
                let (comment, next) = after.split_at(comment.unwrap_or(after.len()));
                length += comment.len();
                rest = next;
            }
            b'"' => {
                rest = after_string(after)
                    .ok_or_else(|| ServerError::new("a string of the document has no end", None))?;
            }
            _ => {}
        }
        if depth > DEEPEST {
            return Err(nested_too_deep());
        }
        if length > LONGEST {
            let message =
                format!("the document has more than {LONGEST} bytes besides its strings: use variables");
            return Err(ServerError::new(message, None));
        }
    }
    Ok(())
}

/// What follows a string, of which the first quote was taken; nothing if it has no end.
fn after_string(rest: &[u8]) -> Option<&[u8]> {
    if let Some(block) = rest.strip_prefix(b"\"\"") {
        return after_block_string(block);
    }
    let mut rest = rest;
    loop {
        rest = match rest {
            [b'"', after @ ..] => return Some(after),
            [b'\\', _, after @ ..] => after,
            [] | [b'\n' | b'\r', ..] => return None,
            [_, after @ ..] => after,
        };
    }
}

fn after_block_string(mut rest: &[u8]) -> Option<&[u8]> {
    loop {
        rest = match rest {
            [b'"', b'"', b'"', after @ ..] => return Some(after),
            [b'\\', b'"', b'"', b'"', after @ ..] | [_, after @ ..] => after,
            [] => return None,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(document: &str) -> Option<String> {
        check(document).err().map(|error| error.message)
    }

    #[test]
    fn nesting_is_counted_where_it_is_nesting() {
        let brackets = "[".repeat(DEEPEST + 1);
        for fine in [
            "[(a){a}]".repeat(DEEPEST),
            format!("# {brackets}\r{{ a }}"),
            format!("\"{brackets} \\\" {brackets}\" \"\" \"\\\\\""),
            format!("\"\"\"{brackets} \"\" \\\"\"\" \n {brackets} \\\"\"\"\"\"\""),
        ] {
            assert_eq!(refusal(&fine), None, "{fine}");
        }
        for deep in [
            format!("{{ a(b: {brackets}1{})}}", "]".repeat(DEEPEST + 1)),
            format!("\"a\\\\\" {brackets}"),
            format!("\"\" \"\"\"\"\"\" {brackets}"),
            format!("# a \"\n{brackets}"),
            format!("\"\"\"a\\ \"\"\" {brackets}"),
            "{a".repeat(DEEPEST + 1),
        ] {
            assert_eq!(refusal(&deep), Some("the document is nested more than 100 levels deep".to_owned()));
        }
    }

    #[test]
    fn strings_have_an_end() {
        // The parser would take the second for an empty string, another one, and a list.
        for endless in ["\"a\n\"", "\"\"\"a\" [1]", "\"\\", "\"a\\\""] {
            assert!(refusal(endless).is_some_and(|message| message.contains("no end")), "{endless}");
        }
    }

    #[test]
    fn length_is_that_without_strings() {
        let long = "a".repeat(LONGEST);
        assert_eq!(refusal(&long), None);
        assert_eq!(refusal(&format!("\"{long}\" \"\"\"{long}\"\"\"")), None);
        for document in [format!("{long} "), format!("#{long}")] {
            let message = refusal(&document).expect("is too long");
            assert!(message.contains("65536 bytes"), "{message}");
        }
    }
}

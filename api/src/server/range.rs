//! Which bytes of a file a request wants: one range of `Range` (RFC 9110, section 14), or all.

use axum::http::{HeaderMap, HeaderValue, header};

/// What is wanted. What asks for several ranges, or is no range at all, gets the whole, as the standard allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    Whole,
    /// From the first byte to the last, or to the end.
    From(u64, Option<u64>),
    /// So many at the end.
    Last(u64),
}

impl Wanted {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        // Files have no validators here, so a condition on the range never holds.
        if headers.contains_key(header::IF_RANGE) {
            return Self::Whole;
        }
        let text = headers.get(header::RANGE).and_then(|value| value.to_str().ok());
        text.and_then(Self::parse).unwrap_or(Self::Whole)
    }

    fn parse(text: &str) -> Option<Self> {
        let (unit, range) = text.trim().split_once('=')?;
        if !unit.trim().eq_ignore_ascii_case("bytes") {
            return None;
        }
        let (first, last) = range.trim().split_once('-')?;
        match (number(first), number(last)) {
            (Some(first), Some(last)) => (first <= last).then_some(Self::From(first, Some(last))),
            (Some(first), None) if last.is_empty() => Some(Self::From(first, None)),
            (None, Some(count)) if first.is_empty() => Some(Self::Last(count)),
            _ => None,
        }
    }
}

fn number(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// A part of a file, not empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    first: u64,
    last: u64,
    size: u64,
}

impl Part {
    /// What there is, in a file of `size` bytes, from `first` to `last` or to the end.
    pub(super) fn of(size: u64, first: u64, last: Option<u64>) -> Option<Self> {
        let end = size.checked_sub(1)?;
        (first <= end).then(|| Self { first, last: last.map_or(end, |last| last.min(end)), size })
    }

    pub(super) fn length(self) -> u64 {
        self.last - self.first + 1
    }

    pub(super) fn content_range(self) -> HeaderValue {
        let text = format!("bytes {}-{}/{}", self.first, self.last, self.size);
        HeaderValue::try_from(text).expect("digits are fit for a header")
    }
}

/// What says, when there is no such part, how large the file is.
pub(super) fn unsatisfied(size: u64) -> HeaderValue {
    HeaderValue::try_from(format!("bytes */{size}")).expect("digits are fit for a header")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        for (text, wanted) in [
            ("bytes=0-0", Some(Wanted::From(0, Some(0)))),
            ("bytes=5-", Some(Wanted::From(5, None))),
            (" Bytes = 5-9 ", Some(Wanted::From(5, Some(9)))),
            ("bytes=-3", Some(Wanted::Last(3))),
            ("bytes=-", None),
            ("bytes=9-5", None),
            ("bytes=0-1,3-4", None),
            ("bytes=+1-2", None),
            ("bytes=1-99999999999999999999", None),
            ("lines=0-1", None),
            ("", None),
        ] {
            assert_eq!(Wanted::parse(text), wanted, "{text}");
        }
    }

    #[test]
    fn a_condition_never_holds() {
        let mut headers = HeaderMap::new();
        headers.insert(header::RANGE, HeaderValue::from_static("bytes=0-0"));
        assert_eq!(Wanted::of(&headers), Wanted::From(0, Some(0)));
        headers.insert(header::IF_RANGE, HeaderValue::from_static("\"tag\""));
        assert_eq!(Wanted::of(&headers), Wanted::Whole);
    }

    #[test]
    fn parts_end_with_the_file() {
        let part = Part::of(10, 4, Some(99)).expect("is there");
        assert_eq!((part.length(), part.content_range()), (6, HeaderValue::from_static("bytes 4-9/10")));
        assert_eq!(Part::of(10, 10, None), None);
        assert_eq!(Part::of(0, 0, None), None);
        assert_eq!(unsatisfied(10), "bytes */10");
    }
}

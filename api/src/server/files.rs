//! `GET` and `PUT /files/{capsule}?path=…`: the content of files in capsules, streamed.
//!
//! Nothing is held as a whole: what is read flows only as fast as the client takes it, what is written only as fast
//! as the capsule does. A client that goes away ends the reading, or the writing without a trace.

use std::sync::Arc;

use axum::{
    Extension, Json,
    body::Body,
    extract::{
        Path, Query, State,
        rejection::{PathRejection, QueryRejection},
    },
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use secrecy::SecretString;
use serde::Deserialize;
use wrenn_schema::{
    Error, FileEntry,
    access::{Caller, RequestId, authenticate},
    transfer::{self, Direction, Place, Reading, WriteOptions},
};

use super::{
    app::App,
    range::{Part, Wanted, unsatisfied},
    refusal::Refusal,
};
use crate::{credentials, cutoff::Cutoff};

/// The file's absolute path, percent-encoded.
pub(super) const X_WRENN_PATH: HeaderName = HeaderName::from_static("x-wrenn-path");

/// What follows the `?`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Parameters {
    path: Option<String>,
    user: Option<String>,
    /// Octal; only of `PUT`.
    mode: Option<String>,
    /// Make missing directories above it; only of `PUT`.
    parents: Option<bool>,
    /// Of a URL from `createFileUrl`; nothing that was not signed with it may stand beside it.
    wrenn_token: Option<SecretString>,
}

/// Sends a file, or one range of it.
pub(super) async fn download(
    State(app): State<Arc<App>>,
    Extension(id): Extension<RequestId>,
    capsule: Result<Path<String>, PathRejection>,
    parameters: Result<Query<Parameters>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let refuse = |error: Error| Refusal::from_schema(&error, &id);
    let (caller, place, _) = accept(&app, &id, &headers, capsule, parameters, Direction::Read).await?;
    let open = async |first, length| {
        transfer::read(&app.services, &caller, &id, place.clone(), first, length).await.map_err(refuse)
    };
    let (first, last) = match Wanted::of(&headers) {
        Wanted::Whole => return Ok(whole(open(0, None).await?)),
        Wanted::From(first, last) => (first, last),
        Wanted::Last(count) => {
            let size = open(0, Some(0)).await?.entry.size.0;
            // Of nothing at the end there is no first byte.
            (if count == 0 { size } else { size.saturating_sub(count) }, None)
        }
    };
    let length = last.map(|last| (last - first).saturating_add(1));
    let reading = open(first, length).await?;
    let size = reading.entry.size.0;
    let Some(part) = Part::of(size, first, last) else {
        let message = format!("the file has {size} bytes; the range begins after its end");
        let refused = Refusal::invalid(StatusCode::RANGE_NOT_SATISFIABLE, &id, message);
        return Ok(([(header::CONTENT_RANGE, unsatisfied(size))], refused).into_response());
    };
    let mut response = answer(reading, Some(part.length()));
    *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    response.headers_mut().insert(header::CONTENT_RANGE, part.content_range());
    Ok(response)
}

/// A size of zero says nothing: files of the kernel have it, and are read to their end.
fn whole(reading: Reading) -> Response {
    let size = reading.entry.size.0;
    answer(reading, (size > 0).then_some(size))
}

fn answer(reading: Reading, length: Option<u64>) -> Response {
    let Reading { entry, content, withdrawn } = reading;
    let mut response = Response::new(Body::from_stream(exactly(content, length)));
    response.extensions_mut().insert(Cutoff::new(withdrawn));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if let Some(length) = length {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    for (name, value) in described(&entry) {
        // A text that does not fit into a header is not worth failing for.
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(name, value);
        }
    }
    response
}

fn described(entry: &FileEntry) -> [(HeaderName, String); 3] {
    [
        (X_WRENN_PATH, percent_encoded(&entry.path)),
        (header::LAST_MODIFIED, entry.modified_at.format("%a, %d %b %Y %H:%M:%S GMT").to_string()),
        // Never shown as a page of this server's.
        (header::CONTENT_DISPOSITION, format!("attachment; filename*=UTF-8''{}", file_name(&entry.name))),
    ]
}

fn file_name(name: &str) -> String {
    percent_encoded(name).replace('/', "%2F")
}

/// All but letters, digits and `-._~/` as `%XX`.
fn percent_encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                char::from(byte).to_string()
            }
            other => format!("%{other:02X}"),
        })
        .collect()
}

/// As many bytes as were announced: a file may grow or shrink while it is read. One that ends too soon breaks the
/// answer off, so that nobody takes it for whole.
fn exactly(
    content: impl Stream<Item = Result<Bytes, Error>> + Send + Unpin + 'static,
    length: Option<u64>,
) -> impl Stream<Item = Result<Bytes, Error>> + Send + 'static {
    stream::try_unfold((content, length), |(mut content, left)| async move {
        if left == Some(0) {
            return Ok(None);
        }
        let mut data = match content.next().await.transpose() {
            Ok(Some(data)) => data,
            Ok(None) if left.is_none() => return Ok(None),
            Ok(None) => return Err(broken_off(Error::unavailable("the file became shorter"))),
            Err(error) => return Err(broken_off(error)),
        };
        let left = left.map(|left| {
            data.truncate(usize::try_from(left).unwrap_or(usize::MAX));
            left - data.len() as u64
        });
        Ok(Some((data, (content, left))))
    })
}

fn broken_off(error: Error) -> Error {
    tracing::warn!(error = %error.chain(), "a download broke off");
    error
}

/// Writes a file, whole or not at all.
pub(super) async fn upload(
    State(app): State<Arc<App>>,
    Extension(id): Extension<RequestId>,
    capsule: Result<Path<String>, PathRejection>,
    parameters: Result<Query<Parameters>, QueryRejection>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let (caller, place, options) = accept(&app, &id, &headers, capsule, parameters, Direction::Write).await?;
    let written = transfer::write(&app.services, &caller, &id, place, options, body.into_data_stream()).await;
    let entry = written.map_err(|error| Refusal::from_schema(&error, &id))?;
    Ok(Json(serde_json::json!({ "entry": entry })).into_response())
}

/// Who asks for what. A signature stands for the key that made it, for this file and this direction alone.
async fn accept(
    app: &App,
    id: &RequestId,
    headers: &HeaderMap,
    capsule: Result<Path<String>, PathRejection>,
    parameters: Result<Query<Parameters>, QueryRejection>,
    direction: Direction,
) -> Result<(Caller, Place, WriteOptions), Refusal> {
    let refuse = |error: Error| Refusal::from_schema(&error, id);
    let unreadable = |why: String| Refusal::invalid(StatusCode::BAD_REQUEST, id, why);
    // Who asks is looked at first, but for a signature what is asked has to be known.
    let asked = capsule.map_err(|rejection| rejection.body_text()).and_then(|Path(capsule)| {
        let Query(parameters) = parameters.map_err(|rejection| rejection.body_text())?;
        Ok((capsule, parameters))
    });
    let (asked, token) = match asked {
        Ok((capsule, mut parameters)) => {
            let token = parameters.wrenn_token.take();
            (Ok((capsule, parameters)), token)
        }
        Err(why) => (Err(why), None),
    };
    let caller = match token {
        Some(_) => None,
        None => Some(authenticate(&app.services, &credentials::from_headers(headers)).await.map_err(refuse)?),
    };
    let (capsule, parameters) = asked.map_err(unreadable)?;
    let path = parameters.path.ok_or_else(|| refuse(Error::invalid("path", "`path` is missing")))?;
    let place = Place { capsule, path, user: parameters.user };
    let mode = parameters.mode.as_deref().map(octal).transpose().map_err(refuse)?;
    let options = WriteOptions { mode, make_parents: parameters.parents.unwrap_or(false) };
    let caller = match (caller, token) {
        (Some(caller), _) => caller,
        (None, Some(_)) if parameters.mode.is_some() || parameters.parents.is_some() => {
            return Err(unreadable("a signed URL has neither `mode` nor `parents`".to_owned()));
        }
        (None, Some(token)) => {
            transfer::signer(&app.services, &place, direction, &token).await.map_err(refuse)?
        }
        (None, None) => Caller::Anonymous,
    };
    Ok((caller, place, options))
}

fn octal(text: &str) -> Result<u32, Error> {
    let digits = (1..=5).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    u32::from_str_radix(text, 8).ok().filter(|_| digits).ok_or_else(|| {
        let shown = text.chars().take(16).collect::<String>();
        Error::invalid("mode", format!("`mode` is permission bits in octal, as 644, not `{shown}`"))
    })
}

#[cfg(test)]
mod tests {
    use futures_util::TryStreamExt;

    use super::*;

    #[test]
    fn names_are_encoded() {
        assert_eq!(percent_encoded("/a b/ä\n\"%"), "/a%20b/%C3%A4%0A%22%25");
        assert_eq!(file_name("a/b"), "a%2Fb");
    }

    #[test]
    fn modes_are_octal() {
        assert_eq!(octal("0644").expect("is one"), 0o644);
        for bad in ["", "8", "+7", "-1", "rw", "0o644", "123456"] {
            assert_eq!(octal(bad).err().as_ref().and_then(Error::field), Some("mode"), "{bad}");
        }
    }

    async fn sent(parts: &[&'static str], length: Option<u64>) -> Result<String, Error> {
        let parts: Vec<_> = parts.iter().map(|part| Ok(Bytes::from(*part))).collect();
        let sent: Vec<Bytes> = exactly(stream::iter(parts), length).try_collect().await?;
        Ok(String::from_utf8(sent.concat()).expect("text"))
    }

    #[tokio::test]
    async fn as_much_is_sent_as_was_announced() {
        assert_eq!(sent(&["ab", "cd"], None).await.expect("is whole"), "abcd");
        assert_eq!(sent(&["ab", "cd"], Some(4)).await.expect("is whole"), "abcd");
        assert_eq!(sent(&["ab", "cd", "ef"], Some(3)).await.expect("it grew"), "abc");
        assert!(sent(&["ab"], Some(3)).await.is_err(), "it shrank");
    }
}

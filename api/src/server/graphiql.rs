//! GraphiQL, with all that it needs: nothing is loaded from anywhere else.

use std::sync::Arc;

use axum::{
    Extension,
    extract::{Path, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use wrenn_schema::access::RequestId;

use super::{app::App, refusal};

/// The editor puts its styles into the page as it goes, and its fonts are in its style sheet.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; font-src 'self' data:; \
     img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; connect-src 'self'";

/// A file of the page, compressed where that is worth it.
struct Asset {
    name: &'static str,
    content_type: &'static str,
    content: &'static [u8],
    gzip: bool,
}

const JAVASCRIPT: &str = "text/javascript; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";

macro_rules! asset {
    ($name:literal, $type:expr) => {
        Asset {
            name: $name,
            content_type: $type,
            content: include_bytes!(concat!("../../assets/graphiql/", $name)),
            gzip: false,
        }
    };
    ($name:literal, $type:expr, gzip) => {
        Asset {
            name: $name,
            content_type: $type,
            content: include_bytes!(concat!("../../assets/graphiql/", $name, ".gz")),
            gzip: true,
        }
    };
}

const PAGE: Asset = asset!("index.html", "text/html; charset=utf-8");
const ASSETS: [Asset; 6] = [
    asset!("page.css", CSS),
    asset!("page.js", JAVASCRIPT),
    asset!("graphiql.css", CSS, gzip),
    asset!("graphiql.js", JAVASCRIPT, gzip),
    asset!("react.js", JAVASCRIPT, gzip),
    asset!("react-dom.js", JAVASCRIPT, gzip),
];

/// The page. Where the schema may not be asked for, it would be of no use.
pub(super) async fn page(
    State(app): State<Arc<App>>,
    id: Extension<RequestId>,
    headers: HeaderMap,
) -> Response {
    if app.sdl.is_none() {
        return refusal::not_found(id).await.into_response();
    }
    let mut response = answer(&PAGE);
    // Not every browser takes a WebSocket to the page's own host for the same origin.
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let host =
        host.filter(|host| host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".:-[]".contains(&byte)));
    let scheme = if app.public_url.is_https() { "wss" } else { "ws" };
    let policy = host.map_or(POLICY.to_owned(), |host| format!("{POLICY} {scheme}://{host}"));
    if let Ok(policy) = HeaderValue::try_from(policy) {
        response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    response
}

/// What the page loads.
pub(super) async fn asset(
    State(app): State<Arc<App>>,
    id: Extension<RequestId>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Response {
    let found = ASSETS.iter().find(|asset| asset.name == name).filter(|_| app.sdl.is_some());
    let Some(found) = found else { return refusal::not_found(id).await.into_response() };
    if found.gzip && !takes_gzip(&headers) {
        let message = "this file is there in gzip only";
        return refusal::Refusal::invalid(StatusCode::NOT_ACCEPTABLE, &id, message).into_response();
    }
    let mut response = answer(found);
    // The names stay when the version changes.
    let hour = HeaderValue::from_static("public, max-age=3600");
    response.headers_mut().insert(header::CACHE_CONTROL, hour);
    response
}

fn answer(asset: &Asset) -> Response {
    let mut response = ([(header::CONTENT_TYPE, asset.content_type)], asset.content).into_response();
    if asset.gzip {
        response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    response
}

/// Every browser does.
fn takes_gzip(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|coding| {
        let (name, quality) = coding.split_once(';').unwrap_or((coding, ""));
        ["gzip", "*"].contains(&name.trim()) && !["q=0", "q=0.0"].contains(&quality.trim())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gzip_goes_to_who_takes_it() {
        for (accepted, takes) in [
            ("gzip, deflate, br", true),
            ("*", true),
            ("br;q=1, gzip;q=0.5", true),
            ("gzip;q=0", false),
            ("br", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static(accepted));
            assert_eq!(takes_gzip(&headers), takes, "{accepted}");
        }
        assert!(!takes_gzip(&HeaderMap::new()));
    }
}

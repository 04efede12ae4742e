//! Web origins: who may call this server from a page.

use std::{fmt, net::SocketAddr, str::FromStr};

use axum::http::{HeaderMap, HeaderValue, Uri, header, uri::Authority};

/// `scheme://host[:port]`, as browsers send it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    text: String,
    authority: Authority,
}

impl Origin {
    pub fn as_str(&self) -> &str {
        &self.text
    }

    pub fn is_https(&self) -> bool {
        self.text.starts_with("https://")
    }

    /// Without a port.
    pub fn host(&self) -> &str {
        self.authority.host()
    }

    /// Where a listener without a configured address is reached.
    pub fn of_listener(listen: SocketAddr) -> Self {
        let authority = listen.to_string();
        Self {
            text: format!("http://{authority}"),
            authority: Authority::try_from(authority).expect("a socket address is an authority"),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

/// Why a text is no origin.
#[derive(Debug, thiserror::Error)]
#[error("is not of the form http(s)://host[:port]")]
pub struct NotAnOrigin;

impl FromStr for Origin {
    type Err = NotAnOrigin;

    fn from_str(text: &str) -> Result<Self, NotAnOrigin> {
        let uri: Uri = text.trim_end_matches('/').parse().map_err(|_| NotAnOrigin)?;
        let parts = uri.into_parts();
        let scheme = parts.scheme.filter(|it| ["http", "https"].contains(&it.as_str())).ok_or(NotAnOrigin)?;
        let bare = parts.path_and_query.is_none_or(|path| path == "/");
        let authority = parts.authority.filter(|it| bare && !it.as_str().contains('@')).ok_or(NotAnOrigin)?;
        let text = format!("{scheme}://{authority}").to_ascii_lowercase();
        Ok(Self { text, authority })
    }
}

/// Whether an upgrade with these headers may go on.
///
/// Browsers do not ask before they open a WebSocket, they only say where the page came from. No `Origin`:
/// not a browser. Otherwise it must be this server's own (by the public address or by the host that was
/// asked for) or one of the list.
pub fn may_upgrade(headers: &HeaderMap, public_url: &Origin, allowed: &[Origin]) -> bool {
    let Some(value) = headers.get(header::ORIGIN) else { return true };
    let Some(origin) = value.to_str().ok().and_then(|text| text.parse::<Origin>().ok()) else {
        return false;
    };
    let same_host = headers
        .get(header::HOST)
        .map(HeaderValue::as_bytes)
        .is_some_and(|host| host.eq_ignore_ascii_case(origin.authority.as_str().as_bytes()));
    same_host || origin == *public_url || allowed.contains(&origin)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upgrade(origin: Option<&'static str>) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, HeaderValue::from_static("api.example:8080"));
        if let Some(origin) = origin {
            headers.insert(header::ORIGIN, HeaderValue::from_static(origin));
        }
        let allowed = ["https://dashboard.example".parse().unwrap()];
        may_upgrade(&headers, &"https://wrenn.example".parse().unwrap(), &allowed)
    }

    #[test]
    fn only_known_pages_may_upgrade() {
        for origin in [
            None,
            Some("http://api.example:8080"),
            Some("https://wrenn.example"),
            Some("https://dashboard.example"),
        ] {
            assert!(upgrade(origin), "{origin:?}");
        }
        for origin in ["null", "", "https://evil.example", "http://api.example", "http://dashboard.example"] {
            assert!(!upgrade(Some(origin)), "{origin}");
        }
    }

    #[test]
    fn origins_have_neither_path_nor_user() {
        for text in ["a.example", "ftp://a.example", "http://a.example/x", "http://u@a.example", "http://"] {
            assert!(text.parse::<Origin>().is_err(), "{text}");
        }
        assert_eq!("HTTPS://A.example/".parse::<Origin>().unwrap().as_str(), "https://a.example");
    }
}

//! Which port of which capsule a request is for: by the name of the host, or by the path.

use std::{fmt, str::FromStr};

use axum::{
    extract::Request,
    http::{HeaderMap, header, uri::Authority},
};
use wrenn_schema::{Error, gateway::Target};

/// What begins the path of a request to a capsule.
const PATHS: &str = "/proxy/";

/// `capsules.example[:port]`: the domain below which capsules have their names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Domain(Authority);

/// Why a text is no domain.
#[derive(Debug, thiserror::Error)]
#[error("is not of the form domain[:port]")]
pub struct NotADomain;

impl Domain {
    fn name(&self) -> &str {
        self.0.host()
    }

    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// What stands before the domain in the name of a host that is below it; nothing for the domain itself.
    pub(crate) fn label<'a>(&self, host: &'a str) -> Option<&'a str> {
        let at = host.len().checked_sub(self.name().len())?;
        let (before, domain) = host.split_at_checked(at)?;
        if !domain.eq_ignore_ascii_case(self.name()) {
            return None;
        }
        if before.is_empty() { Some("") } else { before.strip_suffix('.') }
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

impl FromStr for Domain {
    type Err = NotADomain;

    fn from_str(text: &str) -> Result<Self, NotADomain> {
        let authority: Authority = text.to_ascii_lowercase().parse().map_err(|_| NotADomain)?;
        let name = authority.host();
        let letter = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        let fits = name.split('.').all(|label| !label.is_empty() && label.bytes().all(letter));
        // A number at the end is an address, below which there are no names.
        let named =
            name.rsplit('.').next().is_some_and(|last| !last.bytes().all(|byte| byte.is_ascii_digit()));
        let bare = !authority.as_str().contains('@') && !authority.as_str().ends_with(':');
        if fits && named && bare { Ok(Self(authority)) } else { Err(NotADomain) }
    }
}

/// What a request is for.
pub(crate) struct Asked {
    pub(super) target: Result<Target, Error>,
    /// Path and query as the capsule is to see them.
    pub(super) path: String,
    /// What was taken from the path: nothing where the capsule has a name of its own.
    pub(super) prefix: String,
    /// By path, without the slash at the end without which nothing relative on the page would work.
    pub(super) no_slash: bool,
}

/// The host that a request asks for, without a port.
fn host(headers: &HeaderMap) -> Option<&str> {
    let host = headers.get(header::HOST)?.to_str().ok()?;
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => Some(name),
        _ => Some(host),
    }
}

pub(super) fn asked(request: &Request, domain: Option<&Domain>, paths: bool) -> Option<Asked> {
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    if let Some(label) = domain.and_then(|domain| domain.label(host(request.headers())?)) {
        return Some(by_name(label, path));
    }
    let rest = request.uri().path().strip_prefix(PATHS).filter(|_| paths)?;
    Some(by_path(rest, path))
}

fn by_name(label: &str, path: &str) -> Asked {
    let target = match label.to_ascii_lowercase().split_once('-') {
        Some((port, capsule)) => Target::parse(capsule, port),
        None => Err(Error::not_found("the name of a port of a capsule is <port>-<capsule id>")),
    };
    Asked { target, path: path.to_owned(), prefix: String::new(), no_slash: false }
}

/// `rest`: what follows [`PATHS`] in the path alone.
fn by_path(rest: &str, path: &str) -> Asked {
    let mut parts = rest.splitn(3, '/');
    let (capsule, port, below) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""), parts.next());
    let prefix = format!("{PATHS}{capsule}/{port}");
    let inner = path.get(prefix.len()..).unwrap_or_default();
    Asked {
        target: Target::parse(capsule, port),
        // Without the slash there is at most a query.
        path: if inner.starts_with('/') { inner.to_owned() } else { format!("/{inner}") },
        prefix,
        no_slash: below.is_none(),
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use wrenn_schema::Code;

    use super::*;

    const ID: &str = "cl-0000000000000000000000001";

    fn ask(host: &str, path: &str, paths: bool) -> Option<Asked> {
        let request = Request::builder().uri(path).header("host", host).body(Body::empty()).unwrap();
        asked(&request, Some(&"capsules.example:8080".parse().unwrap()), paths)
    }

    #[test]
    fn by_the_name_of_the_host() {
        for host in [format!("3000-{ID}.capsules.example"), format!("3000-{ID}.CAPSULES.example:81")] {
            let asked = ask(&host, "/proxy/x//y/?a=%20b", true).expect("is for a capsule");
            let target = asked.target.expect("is a target");
            assert_eq!((target.capsule().as_str(), target.port()), (ID, 3000));
            assert_eq!((asked.path.as_str(), asked.prefix.as_str()), ("/proxy/x//y/?a=%20b", ""));
        }
        for (host, code) in [
            ("capsules.example", Code::NotFound),
            ("x.capsules.example", Code::NotFound),
            ("3000-cl-1.capsules.example", Code::InvalidInput),
            (&format!("49983-{ID}.capsules.example"), Code::Forbidden),
            (&format!("0-{ID}.capsules.example"), Code::InvalidInput),
        ] {
            let asked = ask(host, "/graphql", true).expect("is not this server's own");
            assert_eq!(asked.target.map_err(|error| error.code()), Err(code), "{host}");
        }
        for host in ["example", "xcapsules.example", "capsules.example.org", "api.example", ""] {
            assert!(ask(host, "/graphql", true).is_none(), "{host}");
        }
    }

    #[test]
    fn by_the_path() {
        for (path, inner, no_slash) in [
            ("/proxy/ID/3000/a/b/?c=d/e", "/a/b/?c=d/e", false),
            ("/proxy/ID/3000/", "/", false),
            ("/proxy/ID/3000//", "//", false),
            ("/proxy/ID/3000?a", "/?a", true),
            ("/proxy/ID/3000", "/", true),
        ] {
            let asked = ask("api.example", &path.replace("ID", ID), true).expect("is for a capsule");
            assert_eq!(asked.target.expect("is a target").port(), 3000);
            assert_eq!((asked.path.as_str(), asked.no_slash), (inner, no_slash), "{path}");
            assert_eq!(asked.prefix, format!("/proxy/{ID}/3000"));
        }
        for path in
            ["/proxy/", "/proxy/x", "/proxy/x/80/", &format!("/proxy/{ID}/"), &format!("/proxy/{ID}/a/")]
        {
            assert!(ask("api.example", path, true).expect("is no page of ours").target.is_err(), "{path}");
        }
        assert!(ask("api.example", &format!("/proxy/{ID}/3000/"), false).is_none(), "turned off");
        assert!(ask("api.example", "/proxyx", true).is_none());
    }

    #[test]
    fn domains_have_names_below_them() {
        for good in ["capsules.localhost", "A.example:8080", "localhost"] {
            assert_eq!(good.parse::<Domain>().expect(good).as_str(), good.to_ascii_lowercase());
        }
        for bad in
            ["", ".a", "a.", "a..b", "a b", "127.0.0.1", "[::1]", "u@a", "a/b", "http://a", "a:", "a_b"]
        {
            assert!(bad.parse::<Domain>().is_err(), "{bad}");
        }
    }
}

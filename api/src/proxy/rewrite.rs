//! A capsule's answers as they have to be outside: where it redirects to, for which paths it sets cookies, and what it
//! may not say for the origin that it shares.

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use wrenn_schema::gateway::Target;

use super::{Domain, visitor};

/// What a guest calls itself, besides what it was called: any of these with one of its ports.
const SELVES: [&str; 6] = ["localhost", "127.0.0.1", "0.0.0.0", "[::1]", "[::]", "169.254.0.21"];

/// What a page says for its whole origin, which by path is this server's: for which paths its service workers may
/// answer, that cookies and storage be deleted, how the origin is to be reached from now on, and to whom all its
/// requests are to be reported. Without `Service-Worker-Allowed` browsers keep a worker below the path of its script.
const OF_THE_ORIGIN: [HeaderName; 7] = [
    HeaderName::from_static("service-worker-allowed"),
    HeaderName::from_static("clear-site-data"),
    header::STRICT_TRANSPORT_SECURITY,
    header::PUBLIC_KEY_PINS,
    header::ALT_SVC,
    HeaderName::from_static("nel"),
    HeaderName::from_static("report-to"),
];

/// How what was asked is seen from outside and from inside.
pub(super) struct Outside<'a> {
    pub(super) target: Target,
    /// Nothing where the capsule has a name of its own.
    pub(super) prefix: &'a str,
    /// As the capsule was told.
    pub(super) host: &'a str,
    /// `http` or `https`.
    pub(super) scheme: &'a str,
    pub(super) domain: Option<&'a Domain>,
}

impl Outside<'_> {
    pub(super) fn rewrite(&self, headers: &mut HeaderMap) {
        if !self.prefix.is_empty() {
            for name in &OF_THE_ORIGIN {
                headers.remove(name);
            }
        }
        let location = headers.get(header::LOCATION).and_then(|value| self.location(value.to_str().ok()?));
        if let Some(location) = location.and_then(|location| HeaderValue::try_from(location).ok()) {
            headers.insert(header::LOCATION, location);
        }
        if !headers.contains_key(header::SET_COOKIE) {
            return;
        }
        let cookies: Vec<HeaderValue> = headers.get_all(header::SET_COOKIE).iter().cloned().collect();
        headers.remove(header::SET_COOKIE);
        for cookie in cookies {
            let rewritten = match cookie.to_str() {
                Ok(text) if visitor::sets_our_cookie(text) => None,
                Ok(text) => HeaderValue::try_from(self.cookie(text)).ok(),
                // One that is no text has no attributes that could be told.
                Err(_) => None,
            };
            if let Some(cookie) = rewritten {
                headers.append(header::SET_COOKIE, cookie);
            }
        }
    }

    /// Where a redirect leads from outside, if that is somewhere else than it says.
    fn location(&self, location: &str) -> Option<String> {
        let (scheme, rest) = match location.split_once("://") {
            Some((scheme, rest))
                if !scheme.is_empty() && scheme.bytes().all(|byte| byte.is_ascii_alphabetic()) =>
            {
                (Some(scheme), rest)
            }
            _ => match location.strip_prefix("//") {
                Some(rest) => (None, rest),
                None if location.starts_with('/') => return self.below_prefix(location),
                None => return None,
            },
        };
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        if authority.eq_ignore_ascii_case(self.host) {
            // What is behind TLS here says `http` there.
            let other = scheme.is_some_and(|scheme| !scheme.eq_ignore_ascii_case(self.scheme));
            return self.below_prefix(&path).or_else(|| other.then_some(path));
        }
        let port = own_port(authority, scheme.unwrap_or(self.scheme))?;
        if port == self.target.port() {
            return Some(self.below_prefix(&path).unwrap_or(path));
        }
        let beside = self.target.beside(port)?;
        let capsule = beside.capsule();
        match self.domain.filter(|_| self.prefix.is_empty()) {
            None => Some(format!("/proxy/{capsule}/{port}{path}")),
            Some(domain) => {
                // The same port of ours as was asked for.
                let own = self.host.rsplit_once(':').map_or(String::new(), |(_, port)| format!(":{port}"));
                let domain = domain.as_str().split(':').next().unwrap_or_default();
                Some(format!("{}://{port}-{capsule}.{domain}{own}{path}", self.scheme))
            }
        }
    }

    /// A path of the capsule's as it is outside. One that knows of its prefix has it already.
    fn below_prefix(&self, path: &str) -> Option<String> {
        let known =
            path.strip_prefix(self.prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        (!known).then(|| format!("{}{path}", self.prefix))
    }

    /// A cookie for this port of this capsule only, whatever domain it was meant for.
    fn cookie(&self, cookie: &str) -> String {
        let mut parts = cookie.split(';').map(str::trim);
        let mut rewritten = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            match name.trim().to_ascii_lowercase().as_str() {
                "domain" => continue,
                "path" if value.trim().starts_with('/') => {
                    let path = self.below_prefix(value.trim());
                    let path = path.as_deref().unwrap_or(value.trim());
                    rewritten.push_str("; Path=");
                    rewritten.push_str(path);
                }
                _ => {
                    rewritten.push_str("; ");
                    rewritten.push_str(part);
                }
            }
        }
        rewritten
    }
}

/// The port of an address that is the guest's own.
fn own_port(authority: &str, scheme: &str) -> Option<u16> {
    let default = if scheme.eq_ignore_ascii_case("https") { 443 } else { 80 };
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port.parse().ok()?),
        _ => (authority, default),
    };
    SELVES.iter().any(|own| own.eq_ignore_ascii_case(host)).then_some(port)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "cl-0000000000000000000000001";

    fn by_path<'a>(prefix: &'a str) -> Outside<'a> {
        let target = Target::parse(ID, "3000").unwrap();
        Outside { target, prefix, host: "api.example", scheme: "https", domain: None }
    }

    #[test]
    fn redirects_by_path_get_the_prefix() {
        let prefix = format!("/proxy/{ID}/3000");
        let outside = by_path(&prefix);
        for (said, seen) in [
            ("/a?b#c", Some("PREFIX/a?b#c")),
            ("/", Some("PREFIX/")),
            ("http://localhost:3000/a/", Some("PREFIX/a/")),
            ("http://127.0.0.1:3000", Some("PREFIX/")),
            ("http://[::1]:3000?x", Some("PREFIX/?x")),
            ("http://api.example/a", Some("PREFIX/a")),
            ("//localhost:3000/a", Some("PREFIX/a")),
            ("http://localhost:8888/a", Some("/proxy/ID/8888/a")),
            ("http://localhost/a", Some("/proxy/ID/80/a")),
            ("https://[::1]/a", Some("/proxy/ID/443/a")),
            ("http://localhost:49983/a", None),
            ("PREFIX/a", None),
            ("PREFIX", None),
            ("a/b", None),
            ("?a=http://localhost:3000/", None),
            ("https://other.example/a", None),
            ("mailto:x", None),
        ] {
            let said = said.replace("PREFIX", &prefix);
            let seen = seen.map(|seen| seen.replace("PREFIX", &prefix).replace("ID", ID));
            assert_eq!(outside.location(&said), seen, "{said}");
        }
    }

    #[test]
    fn redirects_by_name_have_no_prefix() {
        let host = format!("3000-{ID}.c.example:8080");
        let domain: Domain = "c.example".parse().unwrap();
        let outside =
            Outside { prefix: "", host: &host, scheme: "http", domain: Some(&domain), ..by_path("") };
        for (said, seen) in [
            ("/a", None),
            ("http://HOST/a", None),
            ("http://localhost:3000/a", Some("/a")),
            ("http://0.0.0.0:81/a", Some("http://81-ID.c.example:8080/a")),
        ] {
            let seen = seen.map(|seen| seen.replace("ID", ID));
            assert_eq!(outside.location(&said.replace("HOST", &host)), seen, "{said}");
        }
        assert_eq!(outside.cookie("a=b; Path=/x; Domain=c.example; Secure"), "a=b; Path=/x; Secure");
        let behind_tls = Outside { scheme: "https", ..outside };
        for (said, seen) in [("http://HOST/a?b", Some("/a?b")), ("https://HOST/a", None), ("//HOST/a", None)]
        {
            assert_eq!(behind_tls.location(&said.replace("HOST", &host)).as_deref(), seen, "{said}");
        }
    }

    #[test]
    fn nobody_speaks_for_an_origin_that_is_not_theirs() {
        let said = || {
            let named = OF_THE_ORIGIN.into_iter().map(|name| (name, HeaderValue::from_static("x")));
            named.chain([(header::ETAG, HeaderValue::from_static("y"))]).collect::<HeaderMap>()
        };
        let prefix = format!("/proxy/{ID}/3000");
        let mut headers = said();
        by_path(&prefix).rewrite(&mut headers);
        assert_eq!(headers.keys().collect::<Vec<_>>(), [header::ETAG]);
        let mut headers = said();
        by_path("").rewrite(&mut headers);
        assert_eq!(headers, said(), "by name a capsule has an origin of its own");
    }

    #[test]
    fn cookies_stay_where_they_belong() {
        let prefix = format!("/proxy/{ID}/3000");
        let outside = by_path(&prefix);
        let mut headers = HeaderMap::new();
        for cookie in ["a=b; path=/; HttpOnly", "c=d;Path=/x;domain=localhost", "wrenn_preview=x", "e=f"] {
            headers.append(header::SET_COOKIE, HeaderValue::from_static(cookie));
        }
        outside.rewrite(&mut headers);
        let seen: Vec<_> =
            headers.get_all(header::SET_COOKIE).iter().map(|it| it.to_str().unwrap()).collect();
        assert_eq!(
            seen,
            [&format!("a=b; Path={prefix}/; HttpOnly"), &format!("c=d; Path={prefix}/x"), "e=f"]
        );
    }
}

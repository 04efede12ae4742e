//! The head of a message: what of it belongs to one hop only, and what the next one is told of this one.

use std::net::IpAddr;

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};

/// What begins so is between us and the host.
const OURS: &str = "x-wrenn-";
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_PREFIX: HeaderName = HeaderName::from_static("x-forwarded-prefix");

/// RFC 9110, 7.6.1, and two that are older than it.
const HOP_BY_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// The protocol that a message wants to go on with, if it does.
pub(super) fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let asked = tokens(headers).any(|token| token.eq_ignore_ascii_case("upgrade"));
    headers.get(header::UPGRADE).filter(|_| asked).cloned()
}

/// Leaves what goes on to the other side. A message that upgrades says so anew.
pub(super) fn pass_on(headers: &mut HeaderMap, upgrade: Option<HeaderValue>) {
    let named: Vec<HeaderName> = tokens(headers).filter_map(|token| token.parse().ok()).collect();
    let trailers = headers.get(header::TE).is_some_and(|te| te.as_bytes().eq_ignore_ascii_case(b"trailers"));
    let ours: Vec<HeaderName> =
        headers.keys().filter(|name| name.as_str().starts_with(OURS)).cloned().collect();
    for name in HOP_BY_HOP.iter().chain(&named).chain(&ours) {
        headers.remove(name);
    }
    if trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    if let Some(protocol) = upgrade {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, protocol);
    }
}

/// What `Connection` names.
fn tokens(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let values = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|token| !token.is_empty())
}

/// Says where a request came from: who asked is added to those that are said to have asked before, the rest is ours to
/// say.
pub(super) fn forwarded(headers: &mut HeaderMap, peer: Option<IpAddr>, https: bool, prefix: &str) {
    let before = headers.get_all(&FORWARDED_FOR).iter().filter_map(|value| value.to_str().ok());
    let all: Vec<String> = before.map(str::to_owned).chain(peer.map(|peer| peer.to_string())).collect();
    headers.remove(header::FORWARDED);
    let host = headers.get(header::HOST).cloned();
    let proto = Some(HeaderValue::from_static(if https { "https" } else { "http" }));
    let prefix =
        Some(prefix).filter(|prefix| !prefix.is_empty()).and_then(|it| HeaderValue::from_str(it).ok());
    for (name, value) in [
        (FORWARDED_FOR, HeaderValue::try_from(all.join(", ")).ok().filter(|_| !all.is_empty())),
        (FORWARDED_HOST, host),
        (FORWARDED_PROTO, proto),
        (FORWARDED_PREFIX, prefix),
    ] {
        match value {
            Some(value) => drop(headers.insert(name, value)),
            None => drop(headers.remove(name)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .fold(HeaderMap::new(), |mut map, (name, value)| {
                map.append(name, value);
                map
            })
    }

    #[test]
    fn what_belongs_to_one_hop_is_not_passed_on() {
        let mut head = headers(&[
            ("host", "x"),
            ("connection", "keep-alive, X-Private"),
            ("keep-alive", "timeout=5"),
            ("x-private", "1"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("x-wrenn-capsule", "cl"),
            ("cookie", "a=b"),
        ]);
        assert_eq!(upgrade(&head), None, "not asked for in `Connection`");
        pass_on(&mut head, None);
        assert_eq!(head, headers(&[("host", "x"), ("cookie", "a=b")]));

        let mut head = headers(&[("connection", "Upgrade"), ("upgrade", "websocket"), ("te", "trailers")]);
        let protocol = upgrade(&head);
        pass_on(&mut head, protocol);
        let expected = headers(&[("connection", "upgrade"), ("upgrade", "websocket"), ("te", "trailers")]);
        assert_eq!(head, expected);
    }

    #[test]
    fn the_next_hop_learns_of_this_one() {
        let mut head = headers(&[
            ("host", "a.example"),
            ("x-forwarded-for", "10.0.0.1"),
            ("x-forwarded-host", "evil.example"),
            ("x-forwarded-prefix", "/evil"),
            ("forwarded", "for=evil"),
        ]);
        forwarded(&mut head, Some(IpAddr::from([10, 0, 0, 2])), true, "");
        let expected = headers(&[
            ("host", "a.example"),
            ("x-forwarded-for", "10.0.0.1, 10.0.0.2"),
            ("x-forwarded-host", "a.example"),
            ("x-forwarded-proto", "https"),
        ]);
        assert_eq!(head, expected);
        forwarded(&mut head, None, false, "/proxy/x/80");
        assert_eq!(head["x-forwarded-prefix"], "/proxy/x/80");
        assert_eq!(head["x-forwarded-proto"], "http");
    }
}

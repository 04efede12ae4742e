//! The head of a message: whom it is for, and what of it belongs to one hop only.

use hyper::header::{
    CONNECTION, HeaderMap, HeaderName, HeaderValue, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE,
    TRANSFER_ENCODING, UPGRADE,
};
use wrenn_proto::ENVD_PORT;

use super::refusal::Refusal;
use super::{CAPSULE, PORT};
use crate::capsule::parse_capsule_id;
use crate::ids::CapsuleId;

/// What begins so is between the control plane and this host.
const OURS: &str = "x-wrenn-";
/// RFC 9110, 7.6.1, and two that are older than it.
const HOP_BY_HOP: [HeaderName; 8] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// Whom a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    pub capsule: CapsuleId,
    pub port: u16,
}

impl Target {
    pub fn of(headers: &HeaderMap) -> Result<Self, Refusal> {
        let capsule = parse_capsule_id(only(headers, CAPSULE)?)?;
        let port = only(headers, PORT)?;
        let number = port.parse::<u16>().ok().filter(|number| *number != 0);
        let port = number.ok_or_else(|| {
            Refusal::Invalid(format!(
                "{PORT}: a port from 1 to 65535 is wanted, not `{}`",
                port.escape_debug()
            ))
        })?;
        if port == ENVD_PORT { Err(Refusal::Reserved(port)) } else { Ok(Self { capsule, port }) }
    }
}

fn only<'a>(headers: &'a HeaderMap, name: &str) -> Result<&'a str, Refusal> {
    let mut values = headers.get_all(name).iter();
    match (values.next().and_then(|value| value.to_str().ok()), values.next()) {
        (Some(value), None) => Ok(value),
        _ => Err(Refusal::Invalid(format!("the header {name} is wanted once"))),
    }
}

/// The protocol that a message wants to go on with, if it does.
pub fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let asked = tokens(headers).any(|token| token.eq_ignore_ascii_case("upgrade"));
    headers.get(UPGRADE).filter(|_| asked).cloned()
}

/// Leaves what goes on to the other side. A message that upgrades says so anew.
pub fn pass_on(headers: &mut HeaderMap, upgrade: Option<HeaderValue>) {
    let named: Vec<HeaderName> = tokens(headers).filter_map(|token| token.parse().ok()).collect();
    // `TE: trailers` is the one that a proxy may say for itself, and this one passes trailers on.
    let trailers = headers.get(TE).is_some_and(|te| te.as_bytes().eq_ignore_ascii_case(b"trailers"));
    let ours: Vec<HeaderName> =
        headers.keys().filter(|name| name.as_str().starts_with(OURS)).cloned().collect();
    for name in HOP_BY_HOP.iter().chain(&named).chain(&ours) {
        headers.remove(name);
    }
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    if let Some(protocol) = upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, protocol);
    }
}

/// What `Connection` names.
fn tokens(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let values = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|token| !token.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap()))
            .fold(HeaderMap::new(), |mut map, (name, value)| {
                map.append(name, value);
                map
            })
    }

    #[test]
    fn a_target_is_a_capsule_and_a_port_that_is_not_envds() {
        let capsule = CapsuleId::from_u128(1);
        let id = capsule.to_string();
        let of = |port: &str| Target::of(&headers(&[(CAPSULE, &id), (PORT, port)]));
        assert_eq!(of("8080").unwrap(), Target { capsule, port: 8080 });
        assert!(matches!(of("49983"), Err(Refusal::Reserved(49983))));
        for port in ["0", "65536", "-1", "http", ""] {
            assert!(matches!(of(port), Err(Refusal::Invalid(_))), "{port}");
        }
        assert!(matches!(Target::of(&headers(&[(PORT, "80")])), Err(Refusal::Invalid(_))));
        let twice = headers(&[(CAPSULE, &id), (PORT, "80"), (PORT, "81")]);
        assert!(matches!(Target::of(&twice), Err(Refusal::Invalid(_))));
        let other = headers(&[(CAPSULE, "tpl-1"), (PORT, "80")]);
        assert!(matches!(Target::of(&other), Err(Refusal::Capsule(_))));
    }

    #[test]
    fn what_belongs_to_one_hop_is_not_passed_on() {
        let mut head = headers(&[
            ("host", "x"),
            ("connection", "keep-alive, X-Private"),
            ("connection", "close"),
            ("keep-alive", "timeout=5"),
            ("x-private", "1"),
            ("te", "gzip"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            (CAPSULE, "cl"),
            ("x-wrenn-token", "t"),
            ("trailer", "x-digest"),
            ("cookie", "a=b"),
            ("x-forwarded-for", "10.0.0.1"),
        ]);
        assert_eq!(upgrade(&head), None, "not asked for in `Connection`");
        pass_on(&mut head, None);
        let expected =
            [("host", "x"), ("trailer", "x-digest"), ("cookie", "a=b"), ("x-forwarded-for", "10.0.0.1")];
        assert_eq!(head, headers(&expected));
    }

    #[test]
    fn an_upgrade_and_trailers_are_said_anew() {
        let mut head = headers(&[
            ("connection", "Upgrade, TE"),
            ("upgrade", "websocket"),
            ("te", "trailers"),
            ("sec-websocket-key", "k"),
        ]);
        let protocol = upgrade(&head);
        assert_eq!(protocol.as_ref().unwrap(), "websocket");
        pass_on(&mut head, protocol);
        let expected = headers(&[
            ("connection", "upgrade"),
            ("upgrade", "websocket"),
            ("te", "trailers"),
            ("sec-websocket-key", "k"),
        ]);
        assert_eq!(head, expected);
    }
}

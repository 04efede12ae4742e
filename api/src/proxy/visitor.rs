//! What a visitor shows, taken out of the request so that no capsule ever sees it.

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use secrecy::SecretString;
use wrenn_schema::gateway::{Shown, TOKEN, is_ours};

const API_KEY: HeaderName = HeaderName::from_static("x-api-key");
/// The cookie that goes on for the token of a URL.
pub(super) const COOKIE: &str = "wrenn_preview";
/// Cookies of ours, of whatever kind.
const OUR_COOKIES: [&str; 3] = ["wrenn_", "__Host-wrenn_", "__Secure-wrenn_"];

/// Who comes, and how.
pub(super) struct Visitor {
    pub(super) shown: Shown,
    /// The token stood in the URL.
    pub(super) by_url: Option<String>,
    /// A browser sent the token by itself, whoever made it send the request.
    pub(super) by_cookie: bool,
}

impl Visitor {
    /// Takes what is ours out of the headers and the path.
    pub(super) fn take(headers: &mut HeaderMap, path: &mut String) -> Self {
        let api_key = take_api_key(headers);
        let by_url = take_token(path);
        let cookie = take_cookie(headers);
        if headers.get(header::REFERER).is_some_and(|referer| contains(referer, TOKEN)) {
            headers.remove(header::REFERER);
        }
        let by_cookie = api_key.is_none() && by_url.is_none() && cookie.is_some();
        let token = by_url.clone().or(cookie).map(SecretString::from);
        Self { shown: Shown { api_key, token }, by_url, by_cookie }
    }
}

fn contains(value: &HeaderValue, text: &str) -> bool {
    value.as_bytes().windows(text.len()).any(|window| window == text.as_bytes())
}

/// A key of ours is known by how it begins: other keys are the capsule's business.
fn take_api_key(headers: &mut HeaderMap) -> Option<SecretString> {
    let key = take_ours(headers, &API_KEY, |text| text);
    let bearer = take_ours(headers, &header::AUTHORIZATION, |text| match text.split_once(' ') {
        Some((scheme, key)) if scheme.eq_ignore_ascii_case("bearer") => key.trim(),
        _ => "",
    });
    key.or(bearer)
}

/// Takes what holds a secret of ours out of all values of a header, also out of those that somebody on the way has
/// joined with commas. The first of the secrets counts.
fn take_ours(
    headers: &mut HeaderMap,
    name: &HeaderName,
    secret: impl Fn(&str) -> &str,
) -> Option<SecretString> {
    let (mut found, mut kept) = (None, Vec::new());
    for value in headers.get_all(name) {
        let Ok(text) = value.to_str() else {
            kept.push(value.clone());
            continue;
        };
        let is_others = |part: &&str| {
            let ours = Some(secret(part.trim())).filter(|secret| is_ours(secret));
            found = found.take().or(ours.map(SecretString::from));
            ours.is_none()
        };
        let parts: Vec<&str> = text.split(',').filter(is_others).collect();
        // What is not ours stays as it is.
        kept.extend(HeaderValue::try_from(parts.join(",").trim()).ok().filter(|_| !parts.is_empty()));
    }
    if found.is_some() {
        headers.remove(name);
        for value in kept {
            headers.append(name, value);
        }
    }
    found
}

/// Takes the parameter with the token out of the query.
fn take_token(path: &mut String) -> Option<String> {
    let (before, query) = path.split_once('?')?;
    let mut token = None;
    let mut rest = Vec::new();
    for pair in query.split('&') {
        match pair.split_once('=') {
            Some((TOKEN, value)) => token = Some(value.to_owned()),
            _ => rest.push(pair),
        }
    }
    let token = token?;
    *path = if rest.is_empty() { before.to_owned() } else { format!("{before}?{}", rest.join("&")) };
    Some(token)
}

fn is_our_cookie(name: &str) -> bool {
    OUR_COOKIES.iter().any(|prefix| name.starts_with(prefix))
}

/// Takes our cookies out; the value of the one that goes on for a token.
fn take_cookie(headers: &mut HeaderMap) -> Option<String> {
    let mut token = None;
    let mut kept = Vec::new();
    for value in headers.get_all(header::COOKIE) {
        // Cookies need not be text; those of ours are.
        for pair in value.as_bytes().split(|byte| *byte == b';') {
            let pair = pair.trim_ascii();
            match std::str::from_utf8(pair).ok().and_then(|pair| pair.split_once('=')) {
                Some((COOKIE, value)) => token = Some(value.to_owned()),
                Some((name, _)) if is_our_cookie(name) => {}
                _ => kept.push(pair.to_vec()),
            }
        }
    }
    kept.retain(|pair| !pair.is_empty());
    headers.remove(header::COOKIE);
    if let Ok(value) = HeaderValue::from_bytes(&kept.join(&b"; "[..]))
        && !kept.is_empty()
    {
        headers.insert(header::COOKIE, value);
    }
    token
}

/// Whether a capsule tries to set a cookie of ours.
pub(super) fn sets_our_cookie(set_cookie: &str) -> bool {
    is_our_cookie(set_cookie.split(['=', ';']).next().unwrap_or_default().trim())
}

/// The cookie with which a browser goes on, for this port of this capsule only.
pub(super) fn cookie(
    token: &str,
    prefix: &str,
    expires: chrono::DateTime<chrono::Utc>,
    secure: bool,
) -> Option<HeaderValue> {
    let seconds = (expires - chrono::Utc::now()).num_seconds().max(0);
    let secure = if secure { "; Secure" } else { "" };
    let text = format!("{COOKIE}={token}; Path={prefix}/; Max-Age={seconds}; HttpOnly; SameSite=Lax{secure}");
    HeaderValue::try_from(text).ok()
}

/// Whether a page of another site may have made a browser send this. Only where the browser itself adds what opens the
/// port does that matter.
pub(super) fn is_foreign(headers: &HeaderMap) -> bool {
    let Some(origin) = headers.get(header::ORIGIN) else { return false };
    let authority = origin.to_str().ok().and_then(|origin| origin.split_once("://")).map(|(_, rest)| rest);
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    match (authority, host) {
        (Some(authority), Some(host)) => !authority.eq_ignore_ascii_case(host),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

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

    fn key(visitor: &Visitor) -> Option<&str> {
        visitor.shown.api_key.as_ref().map(ExposeSecret::expose_secret)
    }

    fn token(visitor: &Visitor) -> Option<&str> {
        visitor.shown.token.as_ref().map(ExposeSecret::expose_secret)
    }

    #[test]
    fn what_is_ours_is_taken_and_what_is_not_stays() {
        let mut path = "/".to_owned();
        let mut given =
            headers(&[("x-api-key", "wrn_a"), ("authorization", "Bearer wrn_b"), ("accept", "*/*")]);
        let visitor = Visitor::take(&mut given, &mut path);
        assert_eq!((key(&visitor), given), (Some("wrn_a"), headers(&[("accept", "*/*")])));
        let mut given = headers(&[("authorization", "bearer wrn_b")]);
        assert_eq!(key(&Visitor::take(&mut given, &mut path)), Some("wrn_b"));
        assert!(given.is_empty());
        let theirs = headers(&[("x-api-key", "sk-1"), ("authorization", "token abc"), ("cookie", "a=b")]);
        let mut given = theirs.clone();
        assert_eq!(key(&Visitor::take(&mut given, &mut path)), None);
        assert_eq!(given, theirs);
    }

    #[test]
    fn not_one_of_several_keys_of_ours_is_passed_on() {
        let mut path = "/".to_owned();
        let mut given = headers(&[
            ("x-api-key", "sk-1"),
            ("x-api-key", "wrn_a"),
            ("x-api-key", " wrn_b, sk-2,wrnhost_c"),
            ("x-api-key", "wrn_d"),
            ("authorization", "Digest realm=\"a, b\", uri=\"/\""),
            ("authorization", "Bearer wrn_e, Bearer sk-3"),
            ("authorization", "bearer  wrn_f"),
        ]);
        assert_eq!(key(&Visitor::take(&mut given, &mut path)), Some("wrn_a"));
        let theirs = headers(&[
            ("x-api-key", "sk-1"),
            ("x-api-key", "sk-2"),
            ("authorization", "Digest realm=\"a, b\", uri=\"/\""),
            ("authorization", "Bearer sk-3"),
        ]);
        assert_eq!(given, theirs);
    }

    #[test]
    fn tokens_come_in_the_url_or_in_a_cookie() {
        for (path, rest, found) in [
            ("/a?wrenn_token=t", "/a", Some("t")),
            ("/a?b=c&wrenn_token=t&d", "/a?b=c&d", Some("t")),
            ("/a?wrenn_token_=t&wrenn_token", "/a?wrenn_token_=t&wrenn_token", None),
            ("/a", "/a", None),
        ] {
            let mut left = path.to_owned();
            let visitor = Visitor::take(&mut HeaderMap::new(), &mut left);
            assert_eq!((left.as_str(), token(&visitor)), (rest, found));
            assert!(!visitor.by_cookie);
        }
        let mut path = "/".to_owned();
        let mut given = headers(&[
            ("cookie", "a=b; wrenn_preview=t;c"),
            ("cookie", "wrenn_session=s; d=e; __Host-wrenn_x=y"),
            ("referer", "http://x/?wrenn_token=t"),
        ]);
        let visitor = Visitor::take(&mut given, &mut path);
        assert_eq!((token(&visitor), visitor.by_cookie), (Some("t"), true));
        assert_eq!(given, headers(&[("cookie", "a=b; c; d=e")]));
        let mut given = headers(&[("cookie", "wrenn_preview=t")]);
        let mut path = "/?wrenn_token=u".to_owned();
        let visitor = Visitor::take(&mut given, &mut path);
        assert_eq!((token(&visitor), visitor.by_cookie), (Some("u"), false));
        assert!(given.is_empty());
    }

    #[test]
    fn other_sites_are_foreign() {
        for (origin, foreign) in
            [("http://a.example:80", false), ("http://b.example:80", true), ("null", true)]
        {
            assert_eq!(is_foreign(&headers(&[("host", "a.example:80"), ("origin", origin)])), foreign);
        }
        assert!(!is_foreign(&headers(&[("host", "a.example")])));
    }

    #[test]
    fn capsules_do_not_set_our_cookies() {
        assert!(sets_our_cookie("wrenn_preview=x; Path=/"));
        assert!(!sets_our_cookie("wrenn=x"));
        let cookie = cookie("t", "/proxy/x/80", chrono::Utc::now(), true).expect("is text");
        let expected = "wrenn_preview=t; Path=/proxy/x/80/; Max-Age=0; HttpOnly; SameSite=Lax; Secure";
        assert_eq!(cookie, expected);
    }
}

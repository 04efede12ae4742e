//! Where services in capsules are reached from outside.

use wrenn_entities::CapsuleId;
use wrenn_proto::ENVD_PORT;

use crate::{Error, SchemaConfig};

/// The parameter of a URL that holds a signature.
pub const TOKEN: &str = "wrenn_token";

/// A port of a capsule, from 1 to 65535 and not envd's own.
pub(crate) fn port(field: &str, number: i32) -> Result<u16, Error> {
    match u16::try_from(number) {
        Ok(ENVD_PORT) => {
            Err(Error::forbidden(format!("port {ENVD_PORT} is not for others")).with_field(field))
        }
        Ok(port @ 1..) => Ok(port),
        _ => Err(Error::invalid(field, format!("`{field}` is from 1 to 65535, not {number}"))),
    }
}

/// The root of what listens there.
pub(crate) fn of_port(config: &SchemaConfig, capsule: CapsuleId, port: u16) -> String {
    let base = &config.public_url;
    let Some(domain) = &config.proxy_domain else {
        return format!("{base}/proxy/{capsule}/{port}/");
    };
    let (scheme, authority) = base.split_once("://").unwrap_or(("http", base));
    let own_port = authority.rsplit_once(':').filter(|(_, port)| port.bytes().all(|it| it.is_ascii_digit()));
    match own_port {
        Some((_, own_port)) if !domain.contains(':') => {
            format!("{scheme}://{port}-{capsule}.{domain}:{own_port}/")
        }
        _ => format!("{scheme}://{port}-{capsule}.{domain}/"),
    }
}

/// The content of a file.
pub(crate) fn of_file(
    config: &SchemaConfig,
    capsule: CapsuleId,
    path: &str,
    user: &str,
    token: &str,
) -> String {
    let mut url = format!("{}/files/{capsule}?path={}", config.public_url, encoded(path));
    if !user.is_empty() {
        url.push_str("&user=");
        url.push_str(&encoded(user));
    }
    format!("{url}&{TOKEN}={token}")
}

/// All but letters, digits and `-._~/` as `%XX`.
fn encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                char::from(byte).to_string()
            }
            other => format!("%{other:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn config(public_url: &str, domain: Option<&str>) -> SchemaConfig {
        let mut config = SchemaConfig::new("/nowhere");
        config.public_url = public_url.to_owned();
        config.proxy_domain = domain.map(str::to_owned);
        config
    }

    #[test]
    fn ports_have_urls() {
        let capsule = CapsuleId(Uuid::nil());
        for (public_url, domain, url) in [
            ("https://w.example", None, "https://w.example/proxy/ID/3000/"),
            ("https://w.example", Some("c.example"), "https://3000-ID.c.example/"),
            ("http://127.0.0.1:8080", Some("c.localhost"), "http://3000-ID.c.localhost:8080/"),
            ("http://[::1]:8080", Some("c.localhost"), "http://3000-ID.c.localhost:8080/"),
            ("http://[::1]", Some("c.localhost"), "http://3000-ID.c.localhost/"),
            ("https://w.example", Some("c.example:444"), "https://3000-ID.c.example:444/"),
        ] {
            let url = url.replace("ID", &capsule.to_string());
            assert_eq!(of_port(&config(public_url, domain), capsule, 3000), url);
        }
    }

    #[test]
    fn files_have_urls() {
        let config = config("https://w.example", None);
        let capsule = CapsuleId(Uuid::nil());
        assert_eq!(
            of_file(&config, capsule, "/a b/ä&c", "x", "t"),
            format!("https://w.example/files/{capsule}?path=/a%20b/%C3%A4%26c&user=x&wrenn_token=t")
        );
        assert!(!of_file(&config, capsule, "/a", "", "t").contains("user"));
    }

    #[test]
    fn envds_port_is_nobodys() {
        assert_eq!(port("port", 65_535).expect("is one"), 65_535);
        for bad in [0, -1, 65_536] {
            assert_eq!(port("port", bad).err().as_ref().and_then(Error::field), Some("port"));
        }
        assert_eq!(port("port", 49_983).map_err(|error| error.code()), Err(crate::Code::Forbidden));
    }
}

//! The name servers that guests are given when none are configured: the host's own, as far as a guest can reach
//! them.

use std::net::Ipv4Addr;

/// Where the host's name servers are written; the first file that names a usable one counts. The second is
/// what stands behind a resolver of the host's own on loopback.
const FILES: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];
/// As many as the guest's resolver looks at.
const MOST: usize = 3;

/// Empty when the host has none that a guest could ask.
pub fn host_name_servers() -> Vec<Ipv4Addr> {
    FILES
        .iter()
        .filter_map(|file| std::fs::read_to_string(file).ok())
        .map(|text| parse(&text))
        .find(|servers| !servers.is_empty())
        .unwrap_or_default()
}

fn parse(text: &str) -> Vec<Ipv4Addr> {
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"))
        .filter_map(|rest| rest.trim().parse::<Ipv4Addr>().ok())
        .filter(|server| !server.is_loopback() && !server.is_unspecified())
        .take(MOST)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_guest_cannot_reach_is_left_out() {
        let text =
            "# local\nnameserver 127.0.0.53\nnameserver 10.0.0.2\nnameserver fe80::1\n nameserver 9.9.9.9\n";
        assert_eq!(parse(text), [Ipv4Addr::new(10, 0, 0, 2), Ipv4Addr::new(9, 9, 9, 9)]);
    }
}

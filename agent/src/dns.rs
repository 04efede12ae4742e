//! The name servers that guests are given when none are configured: the host's own, as far as a guest can reach
//! them.

use std::net::Ipv4Addr;

use nix::ifaddrs::getifaddrs;

/// Where the host's name servers are written; the first file that names a usable one counts. The second is
/// what stands behind a resolver of the host's own.
const FILES: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];
/// As many as the guest's resolver looks at.
const MOST: usize = 3;

/// Empty when the host has none that a guest could ask.
pub fn host_name_servers() -> Vec<Ipv4Addr> {
    let own = own_addresses();
    let servers = FILES
        .iter()
        .filter_map(|file| std::fs::read_to_string(file).ok())
        .map(|text| parse(&text, &own))
        .find(|servers| !servers.is_empty())
        .unwrap_or_default();
    if servers.is_empty() {
        tracing::warn!("this host names no name server that capsules could ask: set WRENN_DNS");
    }
    servers
}

/// A guest reaches nothing of its host's, whatever the address.
fn own_addresses() -> Vec<Ipv4Addr> {
    let addresses = getifaddrs().inspect_err(|error| {
        tracing::warn!(%error, "looking for the host's own addresses");
    });
    let addresses = addresses.into_iter().flatten().filter_map(|interface| interface.address);
    addresses.filter_map(|address| Some(address.as_sockaddr_in()?.ip())).collect()
}

fn parse(text: &str, own: &[Ipv4Addr]) -> Vec<Ipv4Addr> {
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"))
        .filter_map(|rest| rest.trim().parse::<Ipv4Addr>().ok())
        .filter(|server| !server.is_loopback() && !server.is_unspecified() && !own.contains(server))
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
        let [local, elsewhere] = [Ipv4Addr::new(10, 0, 0, 2), Ipv4Addr::new(9, 9, 9, 9)];
        assert_eq!(parse(text, &[]), [local, elsewhere]);
        assert_eq!(parse(text, &[local]), [elsewhere], "the host answers itself");
    }

    #[test]
    fn the_hosts_own_addresses_are_known() {
        assert!(own_addresses().contains(&Ipv4Addr::LOCALHOST));
    }
}

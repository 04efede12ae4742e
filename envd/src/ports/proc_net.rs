//! Who listens, from `/proc/net/tcp` and `tcp6`.
//!
//! The kernel writes them, but what is in them a guest program decides; whatever the bytes are, reading them ends and
//! yields listeners that are possible.

use std::fs::File;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::ControlFlow;
use std::path::Path;

/// `TCP_LISTEN` of linux/tcp_states.h, as the files spell it.
const LISTEN: &[u8] = b"0A";
/// Listeners read at most.
const MOST: usize = 16 * 1024;
/// Bytes read at once.
const PIECE: usize = 16 * 1024;
/// The longest row that is waited for, in bytes; the kernel's have 150.
const LONGEST_ROW: usize = 4096;

/// One listening socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listener {
    /// A v4 address is never in its v6 form.
    pub address: IpAddr,
    pub port: u16,
    /// Tells this socket from every other that lives.
    pub inode: u64,
}

/// All listeners of this thread's network, of both families.
///
/// # Errors
/// `/proc` cannot be read. A kernel without one of the families is no error.
pub fn listeners() -> io::Result<Vec<Listener>> {
    let mut found = Vec::new();
    for path in ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"] {
        match read(Path::new(path), &mut found) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => result?,
        }
    }
    Ok(found)
}

/// Reads a table only as far as it lists listeners: they come first, and a table of ten thousand connections need not
/// be made by the kernel every second.
fn read(path: &Path, found: &mut Vec<Listener>) -> io::Result<()> {
    let mut file = File::open(path)?;
    let mut text: Vec<u8> = Vec::with_capacity(PIECE);
    loop {
        let got = file.by_ref().take(PIECE as u64).read_to_end(&mut text)?;
        let whole = text.iter().rposition(|&it| it == b'\n').map_or(0, |it| it + 1);
        let rest = text.split_off(whole);
        if parse(&text, found).is_break() || got == 0 || rest.len() > LONGEST_ROW {
            return Ok(());
        }
        text = rest;
    }
}

/// Adds the listeners of whole rows. Breaks at the first row of another state, or when there are too many. A row that
/// makes no sense, like the heading, is passed over.
pub fn parse(text: &[u8], found: &mut Vec<Listener>) -> ControlFlow<()> {
    for row in text.split(|&it| it == b'\n') {
        let mut fields = row.split(u8::is_ascii_whitespace).filter(|it| !it.is_empty());
        // sl local remote st queues timer retransmits uid timeout inode
        let (Some(local), Some(state)) = (fields.nth(1), fields.nth(1)) else { continue };
        let Some((address, port)) = endpoint(local) else { continue };
        if state != LISTEN {
            return ControlFlow::Break(());
        }
        let inode = fields.nth(5).and_then(|it| std::str::from_utf8(it).ok()?.parse().ok());
        // A socket that is being closed has inode 0.
        let Some(inode) = inode.filter(|&it| it != 0) else { continue };
        if found.len() >= MOST {
            return ControlFlow::Break(());
        }
        found.push(Listener { address, port, inode });
    }
    ControlFlow::Continue(())
}

/// `0100007F:1F90`: the address in words of the machine's own byte order, the port as a number.
fn endpoint(text: &[u8]) -> Option<(IpAddr, u16)> {
    let text = std::str::from_utf8(text).ok()?;
    let (address, port) = text.split_once(':')?;
    if port.len() != 4 {
        return None;
    }
    let port = u16::try_from(hex(port)?).ok().filter(|&it| it != 0)?;
    let address = match address.len() {
        8 => IpAddr::V4(Ipv4Addr::from(hex(address)?.to_ne_bytes())),
        32 => {
            let mut bytes = [0; 16];
            for (to, word) in bytes.chunks_exact_mut(4).zip(address.as_bytes().chunks_exact(8)) {
                to.copy_from_slice(&hex(std::str::from_utf8(word).ok()?)?.to_ne_bytes());
            }
            Ipv6Addr::from(bytes).to_canonical()
        }
        _ => return None,
    };
    Some((address, port))
}

/// Digits only: the standard library would take a sign as well.
fn hex(text: &str) -> Option<u32> {
    let digits = text.bytes().all(|it| it.is_ascii_hexdigit());
    u32::from_str_radix(text, 16).ok().filter(|_| digits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEADING: &str =
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";

    fn row(local: &str, state: &str, inode: u64) -> String {
        format!(
            "   0: {local} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000  1000        0 {inode} 1 \
             0000000000000000 100 0 0 10 0\n"
        )
    }

    fn parsed(text: &str) -> Vec<Listener> {
        let mut found = Vec::new();
        let _ = parse(text.as_bytes(), &mut found);
        found
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn listeners_of_both_families() {
        let text = [
            HEADING,
            &row("0100007F:1F90", "0A", 11),
            &row("00000000:0016", "0A", 12),
            &row("00000000000000000000000001000000:1F91", "0A", 13),
            &row("0000000000000000FFFF00000100007F:1F92", "0A", 14),
            &row("0100007F:1F93", "0A", 0),
            &row("0100007F:9999", "01", 15),
            &row("0100007F:9998", "0A", 16),
        ]
        .concat();
        let expected =
            [("127.0.0.1", 8080, 11), ("0.0.0.0", 22, 12), ("::1", 8081, 13), ("127.0.0.1", 8082, 14)];
        let expected = expected.map(|(address, port, inode)| Listener {
            address: address.parse().expect("an address"),
            port,
            inode,
        });
        assert_eq!(parsed(&text), expected, "and nothing after the first that does not listen");
    }

    #[test]
    fn a_real_listener_is_found() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = socket.local_addr().expect("an address");
        let found = listeners().expect("the tables");
        assert!(found.iter().any(|it| (it.address, it.port) == (address.ip(), address.port())));
    }

    #[test]
    fn nonsense_is_passed_over() {
        for text in
            ["", "\n\n", HEADING, "a b c d", "0: zzzzzzzz:0016 x 0A", "0: +100007F:1F90 0:0 0A 0 0 0 0 0 1"]
        {
            assert_eq!(parsed(text), [], "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_to_an_end(text in proptest::collection::vec(any::<u8>(), 0..4096)) {
            let mut found = Vec::new();
            let _ = parse(&text, &mut found);
            prop_assert!(found.iter().all(|it| it.port != 0 && it.inode != 0));
        }

        #[test]
        fn what_the_kernel_writes_is_read_back(address: [u8; 4], port in 1u16.., inode in 1u64..) {
            let local = format!("{:08X}:{port:04X}", u32::from_ne_bytes(address));
            let expected = Listener { address: Ipv4Addr::from(address).into(), port, inode };
            prop_assert_eq!(parsed(&(HEADING.to_owned() + &row(&local, "0A", inode))), vec![expected]);
        }
    }
}

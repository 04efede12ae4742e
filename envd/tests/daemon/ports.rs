//! Ports and relays, each test in a network of its own that has the guest's address.

use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::timeout;
use tonic::Streaming;
use wrenn_envd::ports::GUEST_ADDRESS;
use wrenn_proto::envd::v1 as pb;
use wrenn_proto::envd::v1::port_event::Event;

use crate::restore;
use crate::stand::{Client, DEADLINE, Stand, until, with_token};

/// How long relays stay away after a preparation when no snapshot comes.
const SHORT_REST: Duration = Duration::from_secs(2);

/// Runs a test on a thread of its own, whose network no other test sees.
pub fn in_own_network<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    let thread = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network of its own needs root");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        set_up_loopback().expect("loopback");
        runtime.block_on(test());
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Brings loopback up, with the guest's address beside its own.
fn set_up_loopback() -> io::Result<()> {
    let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let request = |name: &str| {
        // SAFETY: `ifreq` is plain data for which all zeroes is a valid value.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from.cast_signed();
        }
        request
    };
    let ioctl = |number, request: &libc::ifreq| {
        // SAFETY: both requests read one `ifreq`.
        match unsafe { libc::ioctl(socket.as_raw_fd(), number, std::ptr::from_ref(request)) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    };
    let mut up = request("lo");
    up.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    ioctl(libc::SIOCSIFFLAGS, &up)?;
    let mut address = request("lo:1");
    let inet = libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: 0,
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(GUEST_ADDRESS.octets()) },
        sin_zero: [0; 8],
    };
    // SAFETY: both are plain data of one size; the kernel reads the general one by its family.
    address.ifr_ifru.ifru_addr = unsafe { std::mem::transmute::<libc::sockaddr_in, libc::sockaddr>(inet) };
    ioctl(libc::SIOCSIFADDR, &address)
}

/// A listener that can have the port of one that was just closed.
fn listen(address: &str) -> TcpListener {
    let address: SocketAddr = address.parse().expect("an address");
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.expect("a socket");
    socket.set_reuseaddr(true).expect("reuse");
    if address.is_ipv6() {
        let only: libc::c_int = 1;
        let size = libc::socklen_t::try_from(size_of_val(&only)).expect("a small number");
        // SAFETY: the kernel reads one int.
        let result = unsafe {
            let value = (&raw const only).cast();
            libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, value, size)
        };
        assert_eq!(result, 0, "v6 only");
    }
    socket.bind(address).expect("a free port");
    socket.listen(16).expect("listen")
}

/// Where the host reaches a listener.
fn outside(listener: &TcpListener) -> SocketAddr {
    (GUEST_ADDRESS, listener.local_addr().expect("an address").port()).into()
}

/// A connection from outside, once there is a relay, and its other end.
async fn reach(listener: &TcpListener) -> (TcpStream, TcpStream) {
    let address = outside(listener);
    let near = until("the port is reached", async || TcpStream::connect(address).await.ok()).await;
    let (far, _) = timeout(DEADLINE, listener.accept()).await.expect("in time").expect("accept");
    (near, far)
}

async fn passes(from: &mut TcpStream, to: &mut TcpStream, bytes: &[u8]) {
    let mut got = vec![0; bytes.len()];
    let both = async { tokio::join!(from.write_all(bytes), to.read_exact(&mut got)) };
    let (written, read) = timeout(DEADLINE, both).await.expect("in time");
    written.expect("write");
    read.expect("read");
    assert!(got == bytes);
}

struct Watcher(Streaming<pb::PortEvent>);

impl Watcher {
    async fn start(client: &mut Client) -> Self {
        Self(client.ports.watch(with_token(pb::WatchPortsRequest {})).await.expect("watch").into_inner())
    }

    async fn next(&mut self) -> Event {
        let message = timeout(DEADLINE, self.0.message()).await.expect("an event in time");
        message.expect("an event").expect("not the end").event.expect("an event")
    }

    async fn opened(&mut self) -> pb::Port {
        match self.next().await {
            Event::Opened(port) => port,
            other => panic!("expected a port, got {other:?}"),
        }
    }
}

async fn list(client: &mut Client) -> Vec<u32> {
    let answer = client.ports.list(with_token(pb::ListPortsRequest {})).await.expect("list").into_inner();
    answer.ports.iter().map(|it| it.number).collect()
}

#[test]
fn ports_are_told_as_they_open_and_close() {
    in_own_network(async || {
        let stand = Stand::start().await;
        let mut client = stand.client().await;
        let open = [listen("0.0.0.0:2001"), listen("127.0.0.1:2002")];
        assert_eq!(list(&mut client).await, [2001, 2002], "all but envd's own");
        let mut watcher = Watcher::start(&mut client).await;
        let first = watcher.opened().await;
        let own = std::fs::read_to_string("/proc/self/comm").expect("comm");
        assert_eq!((first.number, first.process.as_deref()), (2001, Some(own.trim_end())));
        assert!(first.since_ns > 1_577_836_800_000_000_000);
        assert_eq!(watcher.opened().await.number, 2002);
        assert_eq!(watcher.next().await, Event::Synced(pb::PortsSynced {}));

        let late = listen("[::1]:2003");
        assert_eq!(watcher.opened().await.number, 2003);
        drop(late);
        assert_eq!(watcher.next().await, Event::Closed(2003));
        // Another listener, although the number was never free at a scan.
        let [wide, narrow] = open;
        drop(wide);
        let again = listen("0.0.0.0:2001");
        assert_eq!(watcher.next().await, Event::Closed(2001));
        assert_eq!(watcher.opened().await.number, 2001);
        drop((again, narrow));
        let mut closed = [watcher.next().await, watcher.next().await].map(|it| match it {
            Event::Closed(number) => number,
            other => panic!("expected the end of a port, got {other:?}"),
        });
        closed.sort_unstable();
        assert_eq!(closed, [2001, 2002]);
        assert!(list(&mut client).await.is_empty());
    });
}

#[test]
fn what_listens_on_loopback_is_reached_although_nobody_asks() {
    in_own_network(async || {
        let stand = Stand::start().await;
        // The token, and nothing else.
        drop(stand.client().await);
        for address in ["127.0.0.1:2001", "127.0.0.53:2002", "[::1]:2003", "[::]:2004", "0.0.0.0:2005"] {
            let listener = listen(address);
            let (mut near, mut far) = reach(&listener).await;
            passes(&mut near, &mut far, b"a question").await;
            // More than fits into all buffers on the way.
            let much: Vec<u8> = (0..8_000_000_u32).map(|it| (it % 251) as u8).collect();
            passes(&mut far, &mut near, &much).await;
            // One side may end while the other goes on.
            near.shutdown().await.expect("shutdown");
            assert_eq!(far.read(&mut [0; 1]).await.expect("the end"), 0, "{address}");
            passes(&mut far, &mut near, b"an answer").await;
            drop(far);
            assert_eq!(near.read(&mut [0; 1]).await.expect("the end"), 0, "{address}");
        }
        let silent = listen("127.0.0.1:2006");
        let (near, far) = reach(&silent).await;
        let address = outside(&silent);
        drop(silent);
        until("nothing is left of the port", async || TcpStream::connect(address).await.err()).await;
        drop((near, far));
    });
}

#[test]
fn relays_end_before_a_snapshot_and_begin_again_after_it() {
    in_own_network(async || {
        let stand = Stand::start().await;
        let mut client = stand.client().await;
        let listener = listen("127.0.0.1:2001");
        for round in 0..2 {
            let (mut near, mut far) = reach(&listener).await;
            passes(&mut near, &mut far, b"before").await;
            // Again if they may have begun again before the port was tried.
            until("the port is tried while relays rest", async || {
                let begun = Instant::now();
                let request = with_token(pb::PrepareSnapshotRequest {});
                client.guest.prepare_snapshot(request).await.expect("prepare");
                let refused = TcpStream::connect(outside(&listener)).await.is_err();
                assert!(refused || begun.elapsed() > SHORT_REST, "no relay is left");
                refused.then_some(())
            })
            .await;
            for end in [&mut near, &mut far] {
                let read = timeout(DEADLINE, end.read(&mut [0; 1])).await.expect("in time");
                assert!(matches!(read, Ok(0) | Err(_)), "the connection has ended");
            }
            assert_eq!(list(&mut client).await, [2001], "it is open all the same");
            if round == 0 {
                // No snapshot comes.
                let (mut near, mut far) = reach(&listener).await;
                passes(&mut near, &mut far, b"after all").await;
            } else {
                client.guest.post_restore(with_token(restore::request())).await.expect("post restore");
                let (mut near, mut far) = reach(&listener).await;
                passes(&mut near, &mut far, b"another life").await;
            }
        }
    });
}

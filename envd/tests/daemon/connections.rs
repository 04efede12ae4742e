//! The end of connections to outside, in a network where another address of loopback stands for another machine.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::timeout;
use wrenn_envd::ports::GUEST_ADDRESS;
use wrenn_envd::sock_diag::end_connections;

use crate::ports::in_own_network;
use crate::stand::DEADLINE;

const OTHER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// Both ends of a connection.
async fn connect(from: IpAddr, to: Ipv4Addr) -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((to, 0)).await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let (socket, to) = match from {
        IpAddr::V4(_) => (TcpSocket::new_v4(), IpAddr::V4(to)),
        IpAddr::V6(_) => (TcpSocket::new_v6(), IpAddr::V6(to.to_ipv6_mapped())),
    };
    let socket = socket.expect("a socket");
    socket.bind(SocketAddr::new(from, 0)).expect("bind");
    let begun = timeout(DEADLINE, socket.connect(SocketAddr::new(to, port))).await.expect("in time");
    let accepted = timeout(DEADLINE, listener.accept()).await.expect("in time");
    (begun.expect("connect"), accepted.expect("accept").0)
}

async fn goes_on((one, two): &mut (TcpStream, TcpStream)) {
    passes(one, two).await;
    passes(two, one).await;
}

async fn passes(from: &mut TcpStream, to: &mut TcpStream) {
    from.write_all(b"x").await.expect("write");
    timeout(DEADLINE, to.read_exact(&mut [0])).await.expect("in time").expect("read");
}

#[test]
fn connections_to_outside_are_aborted_and_no_others() {
    in_own_network(async || {
        let own = IpAddr::from(GUEST_ADDRESS);
        let mapped = IpAddr::from(GUEST_ADDRESS.to_ipv6_mapped());
        let [begun, of_v6] = [connect(own, OTHER).await, connect(mapped, OTHER).await];
        let taken = connect(OTHER.into(), GUEST_ADDRESS).await;
        let mut spared = connect(OTHER.into(), GUEST_ADDRESS).await;
        let mut within = connect(own, GUEST_ADDRESS).await;
        let mut loopback = connect(Ipv4Addr::LOCALHOST.into(), Ipv4Addr::LOCALHOST).await;

        let port = spared.1.local_addr().expect("an address").port();
        end_connections(GUEST_ADDRESS, port).expect("the kernel can");
        let (taken, began) = taken;
        for (mut here, mut there) in [begun, of_v6, (began, taken)] {
            let read = timeout(DEADLINE, here.read(&mut [0])).await.expect("in time");
            assert_eq!(read.expect_err("aborted").kind(), ErrorKind::ConnectionAborted);
            let read = timeout(DEADLINE, there.read(&mut [0])).await.expect("in time");
            assert_eq!(read.expect_err("reset").kind(), ErrorKind::ConnectionReset);
        }
        for pair in [&mut spared, &mut within, &mut loopback] {
            goes_on(pair).await;
        }
        end_connections(GUEST_ADDRESS, port).expect("again, with nothing to end");
    });
}

//! Addresses, and what stays out of reach whatever a policy says.

use std::net::{Ipv4Addr, TcpStream, UdpSocket};

use wrenn_vmm::network::{EgressPolicy, NAMESPACE_ADDRESS};

use crate::{
    allocator, end, guest, policy, wait_for,
    world::{HOST, METADATA, NAME_SERVER, OTHER_METADATA, PATIENCE, PRIVATE, REFUSAL, WEB, beside, serve},
    zone::{look_up, outside},
};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_allowed_goes_before_what_is_denied() {
    let slots = allocator("31160-31160", 0, &[]).await;
    let policy =
        policy(false, &["203.0.113.10", "203.0.113.128/25"], &["203.0.113.0/24", "203.0.113.200/32"]);
    let guest = guest(&slots, &policy).await;
    guest.assert_reaches(outside(10), WEB);
    guest.assert_reaches(outside(200), WEB);
    guest.assert_reaches(Ipv4Addr::new(198, 51, 100, 7), WEB);
    guest.assert_refused(outside(11), WEB);
    // The name server lies in a denied range, and only all being denied denies it.
    assert_eq!(look_up(&guest, "other.test.").addresses, [outside(15)]);
    end(slots, [guest]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_all_is_denied_only_what_is_allowed_is_left() {
    let slots = allocator("31161-31161", 0, &[]).await;
    let guest = guest(&slots, &policy(true, &["203.0.113.10"], &[])).await;
    guest.assert_reaches(outside(10), WEB);
    guest.assert_refused(outside(11), WEB);
    guest.assert_refused(NAME_SERVER, 53);
    assert!(
        guest.ask(NAME_SERVER, &crate::zone::question("a.test.", hickory_proto::rr::RecordType::A)).is_err()
    );
    end(slots, [guest]).await;
}

/// Host, neighbours, private networks and metadata: with no policy, and with the most permissive one.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_is_forbidden_to_all_can_be_allowed() {
    const ENVD: u16 = 49983;
    const ON_HOST: u16 = 28311;
    let slots = allocator("31162-31164", 0, &[]).await;
    let everything = policy(true, &["0.0.0.0/0", "metadata.test"], &[]);
    let guests = [guest(&slots, &EgressPolicy::default()).await, guest(&slots, &everything).await];
    serve(ON_HOST);
    for guest in &guests {
        guest.run(|| serve(ENVD));
        let own = (guest.number.guest_address(), ENVD);
        TcpStream::connect(own).expect("the host reaches its guests");
    }
    // A service in the namespace itself, where a guest's packets come through.
    beside(guests[1].number, || serve(ENVD));
    assert_eq!(look_up(&guests[1], "metadata.test.").addresses, [METADATA]);

    for (guest, neighbour) in [(&guests[0], &guests[1]), (&guests[1], &guests[0])] {
        guest.assert_reaches(outside(10), WEB);
        for metadata_or_private in [METADATA, PRIVATE].into_iter().chain(OTHER_METADATA) {
            guest.assert_cut_off(metadata_or_private, WEB);
        }
        for host in [guest.number.host_address(), HOST] {
            guest.assert_cut_off(host, ON_HOST);
        }
        for address in [guest.number.guest_address(), NAMESPACE_ADDRESS, guest.number.namespace_address()] {
            guest.assert_cut_off(address, ENVD);
        }
        for address in [neighbour.number.guest_address(), neighbour.number.namespace_address()] {
            guest.assert_cut_off(address, ENVD);
        }
    }
    end(slots, guests).await;
}

/// The same without connections: datagrams and echo requests, there and back.
#[tokio::test(flavor = "multi_thread")]
async fn neither_datagrams_nor_pings_reach_host_or_neighbour() {
    let slots = allocator("31190-31191", 0, &[]).await;
    let open = EgressPolicy::default();
    let (one, other) = (guest(&slots, &open).await, guest(&slots, &open).await);
    let listen = || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        socket.set_read_timeout(Some(REFUSAL)).unwrap();
        let port = socket.local_addr().unwrap().port();
        (socket, port)
    };
    let (host, host_port) = listen();
    let (neighbour, neighbour_port) = other.run(listen);
    let heard = |socket: &UdpSocket| socket.recv(&mut [0; 8]).is_ok();
    wait_for("the host reaching it", || {
        host.send_to(b"here", (other.number.guest_address(), neighbour_port)).unwrap();
        heard(&neighbour)
    })
    .await;
    while heard(&neighbour) {}
    one.assert_reaches(outside(10), WEB);
    assert!(one.pings(outside(10), PATIENCE), "what is outside answers");

    let links = [one.number.host_address(), other.number.host_address(), HOST];
    let neighbours = [other.number.guest_address(), other.number.namespace_address()];
    for address in links {
        one.tell(address, host_port);
    }
    assert!(!heard(&host));
    for address in neighbours {
        one.tell(address, neighbour_port);
    }
    assert!(!heard(&neighbour));
    for address in links.into_iter().chain(neighbours).chain([one.number.namespace_address()]) {
        assert!(!one.pings(address, REFUSAL), "{address}");
    }
    end(slots, [one, other]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_from_the_pool_has_no_policy_of_an_earlier_guest() {
    // One slot is all there is: the second guest gets the first one's.
    let slots = allocator("31165-31165", 1, &[]).await;
    let strict = policy(true, &["www.example.com"], &[]);
    let first = guest(&slots, &strict).await;
    assert_eq!(look_up(&first, "www.example.com.").addresses, [outside(10)]);
    first.assert_reaches(outside(10), WEB);
    first.assert_refused(outside(15), WEB);
    slots.release(first.unplug()).await.unwrap();

    let second = guest(&slots, &EgressPolicy::default()).await;
    second.assert_reaches(outside(15), WEB);
    assert_eq!(look_up(&second, "other.test.").addresses, [outside(15)]);
    slots.release(second.unplug()).await.unwrap();

    // What the first one had looked up is not known to the third.
    let third = guest(&slots, &strict).await;
    third.assert_refused(outside(10), WEB);
    end(slots, [third]).await;
}

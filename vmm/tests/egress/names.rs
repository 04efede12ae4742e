//! Host names: what may be looked up, and what may be reached because of it.

use std::io::Write as _;

use hickory_proto::{op::ResponseCode, rr::RecordType};
use proptest::{
    prelude::any,
    strategy::{Strategy as _, ValueTree as _},
    test_runner::TestRunner,
};
use wrenn_vmm::network::GUEST_ADDRESS;

use crate::{
    allocator, end, guest, policy,
    world::{NAME_SERVER, Outside, WEB, beside, frame, open_tap},
    zone::{look_up, look_up_by_stream, look_up_kind, outside, question},
};

#[tokio::test(flavor = "multi_thread")]
async fn an_allowed_name_is_reached_once_it_was_looked_up() {
    let slots = allocator("31170-31170", 0, &[]).await;
    let guest = guest(&slots, &policy(true, &["WWW.example.com", "*.wild.test"], &[])).await;
    guest.assert_refused(outside(10), WEB);
    assert_eq!(look_up(&guest, "www.EXAMPLE.com.").addresses, [outside(10)]);
    guest.assert_reaches(outside(10), WEB);

    // Whoever is asked, and however.
    guest.assert_refused(outside(14), WEB);
    let question = question("a.b.wild.test.", RecordType::A);
    guest.ask_by_stream(outside(99), &question).unwrap();
    guest.assert_reaches(outside(14), WEB);
    assert_eq!(look_up(&guest, "no.wild.test.").code, ResponseCode::NXDomain);
    end(slots, [guest]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_allowed_name_is_followed_to_what_it_stands_for_and_no_further() {
    let slots = allocator("31171-31171", 0, &[]).await;
    let guest = guest(&slots, &policy(true, &["*.example.com"], &[])).await;
    assert_eq!(look_up(&guest, "alias.example.com.").addresses, [outside(11)]);
    guest.assert_reaches(outside(11), WEB);
    // The record of another name that came along is neither told nor let in.
    assert_eq!(look_up(&guest, "smuggled.example.com.").addresses, [outside(12)]);
    guest.assert_reaches(outside(12), WEB);
    guest.assert_refused(outside(13), WEB);
    end(slots, [guest]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_all_is_denied_no_other_name_leaves_the_host() {
    let slots = allocator("31172-31172", 0, &[]).await;
    let guest = guest(&slots, &policy(true, &["*.example.com"], &[])).await;
    for secret in ["c2VjcmV0.tunnel.test.", "example.com."] {
        for kind in [RecordType::A, RecordType::AAAA, RecordType::TXT, RecordType::PTR] {
            assert_eq!(look_up_kind(&guest, secret, kind).code, ResponseCode::Refused, "{secret} {kind}");
        }
        assert_eq!(look_up_by_stream(&guest, secret).code, ResponseCode::Refused);
        assert!(!Outside::get().asked.contains(secret), "{secret} was asked for");
    }
    // No address of a kind that guests do not speak, and none that comes beside the question.
    for kind in [RecordType::AAAA, RecordType::HTTPS] {
        let told = look_up_kind(&guest, "www.example.com.", kind);
        assert_eq!((told.code, told.addresses.len()), (ResponseCode::NoError, 0), "{kind}");
    }
    assert_eq!(look_up_kind(&guest, "www.example.com.", RecordType::AXFR).code, ResponseCode::Refused);
    end(slots, [guest]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_denied_name_is_not_resolved_by_any_way() {
    let slots = allocator("31173-31173", 0, &[]).await;
    let guest = guest(&slots, &policy(false, &["198.51.100.1"], &["bad.test", "198.51.100.0/24"])).await;
    assert_eq!(look_up(&guest, "bad.test.").code, ResponseCode::Refused);
    let around = look_up(&guest, "around.test.");
    assert_eq!((around.code, around.addresses.len()), (ResponseCode::Refused, 0));
    assert_eq!(look_up(&guest, "other.test.").addresses, [outside(15)]);
    guest.assert_reaches(outside(15), WEB);
    guest.assert_reaches([198, 51, 100, 1], WEB);
    guest.assert_refused([198, 51, 100, 2], WEB);
    end(slots, [guest]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_too_long_for_a_datagram_comes_by_a_connection() {
    let slots = allocator("31174-31174", 0, &[]).await;
    let guest = guest(&slots, &policy(true, &["big.test"], &[])).await;
    let cut = look_up(&guest, "big.test.");
    assert_eq!((cut.truncated, cut.addresses.len()), (true, 0));
    let whole = look_up_by_stream(&guest, "big.test.");
    assert_eq!((whole.truncated, whole.addresses.len()), (false, 64), "as many as are let in");
    for told in [&whole.addresses[0], &whole.addresses[63]] {
        guest.assert_reaches(*told, WEB);
    }
    guest.assert_refused([198, 51, 100, crate::zone::BIG], WEB);
    end(slots, [guest]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rubbish_does_not_stop_the_answers() {
    let slots = allocator("31175-31175", 0, &[]).await;
    let guest = guest(&slots, &policy(true, &["www.example.com"], &[])).await;
    let mut runner = TestRunner::deterministic();
    let bytes = proptest::collection::vec(any::<u8>(), 0..600);
    let mut rubbish: Vec<Vec<u8>> =
        (0..400).map(|_| bytes.new_tree(&mut runner).unwrap().current()).collect();
    rubbish.push(vec![0; 65000]);
    guest.run(|| {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        for message in &rubbish {
            socket.send_to(message, (NAME_SERVER, 53)).unwrap();
        }
    });
    for message in rubbish.iter().take(40) {
        // Answered with an error, or the connection ends; never is anything told.
        let _refusal = guest.ask_by_stream(NAME_SERVER, &message[..message.len().min(12)]);
    }
    // More connections than there is room for, none of which says anything.
    let idle: Vec<_> =
        guest.run(|| (0..64).filter_map(|_| std::net::TcpStream::connect((NAME_SERVER, 53)).ok()).collect());
    assert!(idle.len() > 16);
    assert_eq!(look_up(&guest, "www.example.com.").addresses, [outside(10)]);
    drop(idle);
    end(slots, [guest]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_goes_to_no_address_that_a_guest_invents() {
    let slots = allocator("31178-31178", 0, &[]).await;
    let mut slot = slots.acquire().await.unwrap();
    slot.restrict(&policy(true, &["www.example.com"], &[]), &[NAME_SERVER]).await.unwrap();
    let refused = question("c2VjcmV0.tunnel.test.", RecordType::A);
    let tracked = beside(slot.number(), || {
        let mut tap = open_tap("tap0");
        let own = frame(GUEST_ADDRESS, NAME_SERVER, 53, &refused);
        let invented = frame(outside(99), NAME_SERVER, 53, &refused);
        for datagram in [own, invented] {
            tap.write_all(&datagram).unwrap();
        }
        std::fs::read_to_string("/proc/thread-self/net/nf_conntrack").unwrap()
    });
    assert!(tracked.contains(&format!("src={GUEST_ADDRESS} dst={NAME_SERVER}")), "{tracked}");
    assert!(!tracked.contains(&outside(99).to_string()), "{tracked}");
    slots.release(slot).await.unwrap();
    slots.shutdown().await.unwrap();
}

//! The process that holds the slots ends and another one takes up.

use std::process::Command;

use wrenn_vmm::network::EgressPolicy;

use crate::{
    allocator, end, guest, policy, wait_for,
    world::{Guest, NAME_SERVER, WEB, beside},
    zone::{look_up, outside, question},
};

#[tokio::test(flavor = "multi_thread")]
async fn rules_outlive_the_process_and_names_are_answered_again() {
    let before = allocator("31176-31177", 0, &[]).await;
    let strict = policy(true, &["*.example.com"], &[]);
    let mut guests = [guest(&before, &strict).await, guest(&before, &EgressPolicy::default()).await];
    assert_eq!(look_up(&guests[0], "www.example.com.").addresses, [outside(10)]);
    guests[0].assert_reaches(outside(10), WEB);

    // The guests go on without anybody.
    guests.iter_mut().for_each(Guest::abandon);
    drop(before);
    let asked = question("unknown.example.com.", hickory_proto::rr::RecordType::A);
    wait_for("falling silent", || guests[0].ask(NAME_SERVER, &asked).is_err()).await;
    guests[0].assert_reaches(outside(10), WEB);
    guests[0].assert_refused(outside(11), WEB);

    let after = allocator("31176-31177", 0, &[guests[0].number, guests[1].number]).await;
    for (guest, policy) in guests.iter_mut().zip([&strict, &EgressPolicy::default()]) {
        let mut slot = after.claim(guest.number).await.unwrap();
        slot.restrict(policy, &[NAME_SERVER]).await.unwrap();
        guest.hold(slot);
    }
    guests[0].assert_reaches(outside(10), WEB);
    assert_eq!(look_up(&guests[0], "alias.example.com.").addresses, [outside(11)]);
    guests[0].assert_reaches(outside(11), WEB);
    guests[0].assert_refused(outside(15), WEB);
    guests[1].assert_reaches(outside(15), WEB);
    end(after, guests).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_made_by_an_earlier_version_gets_the_rules_of_today() {
    let before = allocator("31192-31192", 0, &[]).await;
    let number = before.acquire().await.unwrap().number();
    drop(before);
    let nft = |arguments: &[&str]| {
        let ended = beside(number, || Command::new("nft").args(arguments).output().unwrap());
        assert!(ended.status.success(), "{ended:?}");
        String::from_utf8(ended.stdout).unwrap()
    };
    let today = nft(&["list", "ruleset"]);
    for family in ["ip", "netdev"] {
        nft(&["flush", "table", family, "wrenn"]);
    }

    for what in ["put in place", "replaced"] {
        let after = allocator("31192-31192", 0, &[number]).await;
        after.claim(number).await.unwrap();
        assert_eq!(nft(&["list", "ruleset"]), today, "{what}");
    }
    allocator("31192-31192", 0, &[]).await.shutdown().await.unwrap();
}

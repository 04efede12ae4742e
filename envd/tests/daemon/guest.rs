//! What the guest tells of itself.

use wrenn_proto::envd::v1 as pb;

use crate::stand::{Stand, with_token};

#[tokio::test]
async fn metrics_are_those_of_this_machine() {
    let stand = Stand::start().await;
    let mut client = stand.client().await;
    let mut ask =
        async || client.guest.metrics(with_token(pb::MetricsRequest {})).await.expect("metrics").into_inner();
    let first = ask().await;
    assert!(first.cpus > 0 && first.cpu_used_ns > 0);
    assert!((1..=first.memory_total_bytes).contains(&first.memory_available_bytes));
    assert!((1..=first.disk_total_bytes).contains(&first.disk_used_bytes));
    assert!(first.load_1m >= 0.0);
    let second = ask().await;
    assert!(second.cpu_used_ns >= first.cpu_used_ns);
    assert_eq!(second.memory_total_bytes, first.memory_total_bytes);
}

#[tokio::test]
async fn the_disk_is_grown_as_often_as_it_is_asked() {
    let stand = Stand::start().await;
    let mut client = stand.client().await;
    for _ in 0..2 {
        let grown =
            client.guest.grow_disk(with_token(pb::GrowDiskRequest {})).await.expect("grow").into_inner();
        let metrics =
            client.guest.metrics(with_token(pb::MetricsRequest {})).await.expect("metrics").into_inner();
        assert_eq!(grown.disk_total_bytes, metrics.disk_total_bytes);
    }
    assert_eq!(stand.system.told(), ["grow", "grow"]);
}

//! Golden snapshots and their budget.

use std::collections::BTreeSet;

use wrenn_proto::agent::v1 as agent;

use super::site;
use super::support::calls::{capsule, create, new_id, run, until};
use super::support::names;

#[tokio::test(flavor = "multi_thread")]
async fn beyond_the_budget_the_least_recently_used_go_and_their_capsules_stay() {
    let (_turn, site) = site().await;
    let (agent, mut client) = site.start(&[("WRENN_GOLDEN_BUDGET_MIB", "1")]).await;
    let golden = || names(&names(&site.directory.join("data/golden"))[0]);
    let (first, second) = (new_id(), new_id());
    client.create_capsule(create(&first)).await.unwrap();
    until("only the one used last is left", async || golden().len() == 1).await;
    let before = golden();
    let larger = agent::CreateCapsuleRequest { memory_mib: 288, ..create(&second) };
    client.create_capsule(larger).await.unwrap();
    until("the other one is gone", async || golden().len() == 1).await;
    assert_ne!(golden(), before);

    client.pause_capsule(capsule(&first)).await.unwrap();
    client.resume_capsule(capsule(&first)).await.unwrap();
    for id in [&first, &second] {
        let (output, _) = run(&mut client, id, "hostname").await;
        assert_eq!(output, format!("{id}\n"));
        client.destroy_capsule(capsule(id)).await.unwrap();
    }
    agent.stop().await;
    assert_eq!(site.leftovers(), BTreeSet::new());
    site.close().await;
}

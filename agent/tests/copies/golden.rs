//! Golden snapshots and their budget.

use std::collections::BTreeSet;

use wrenn_proto::agent::v1 as agent;

use super::support::calls::{capsule, create, new_id, run, until};
use super::support::names;
use super::{Client, new_template, site};

#[tokio::test(flavor = "multi_thread")]
async fn beyond_the_budget_the_least_recently_used_go_and_their_capsules_stay() {
    let (_turn, site) = site().await;
    let (agent, mut client) = site.start(&[("WRENN_GOLDEN_BUDGET_MIB", "1")]).await;
    let golden = || names(&names(&site.directory.join("data/golden"))[0]);
    let (first, second) = (new_id(), new_id());
    let status = async |client: &mut Client, template: &str| {
        let request = agent::GoldenStatusRequest { template_id: template.to_owned() };
        client.golden_status(request).await.unwrap().into_inner()
    };
    client.create_capsule(create(&first)).await.unwrap();
    until("only the one used last is left", async || golden().len() == 1).await;
    let before = golden();
    let told = status(&mut client, "").await;
    let [one] = told.goldens.as_slice() else { panic!("{told:?}") };
    assert_eq!((one.vcpus, one.memory_mib, one.disk_mib), (1, 256, 1024));
    assert_eq!((one.state(), &one.template_id), (agent::GoldenState::Ready, &create(&first).template_id));
    assert!(before[0].to_str().unwrap().contains(&one.vmm) && !one.vmm.is_empty(), "{one:?}");
    assert_eq!((told.total_bytes, told.budget_bytes), (one.allocated_bytes, 1 << 20));
    assert!(one.allocated_bytes > 1 << 20 && one.used_at_ns > 0, "{one:?}");
    assert_eq!(status(&mut client, &one.template_id).await, told);
    let of_another = status(&mut client, &new_template()).await;
    assert!(of_another.goldens.is_empty() && of_another.total_bytes == told.total_bytes, "{of_another:?}");
    let wrong = agent::GoldenStatusRequest { template_id: "minimal".into() };
    assert_eq!(client.golden_status(wrong).await.unwrap_err().code(), tonic::Code::InvalidArgument);
    let larger = agent::CreateCapsuleRequest { memory_mib: 288, ..create(&second) };
    let mut watching = client.clone();
    let (created, ()) = tokio::join!(
        client.create_capsule(larger),
        until("it is told while it is made", async || {
            let told = status(&mut watching, "").await;
            let making = told.goldens.iter().find(|golden| golden.state() == agent::GoldenState::Making);
            making.is_some_and(|golden| golden.memory_mib == 288 && golden.allocated_bytes == 0)
        })
    );
    created.unwrap();
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

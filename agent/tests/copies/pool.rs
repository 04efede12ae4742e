//! Machines that are made ahead.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use wrenn_proto::agent::v1 as agent;
use wrenn_proto::agent::v1::CapsuleState;

use super::support::calls::{capsule, capsules, create, new_id, only, run, until};
use super::support::{Site, end, names};
use super::{Client, nature, site};

fn members(site: &Site) -> Vec<PathBuf> {
    let homes = names(&site.directory.join("data/capsules")).into_iter();
    homes.filter(|home| home.file_name().unwrap().to_str().unwrap().starts_with("pool-")).collect()
}

/// Waits until one is ready, and answers with the memory that its machine has: nobody else's is this file.
async fn ready(site: &Site) -> u64 {
    // Of all that run in this process, which is one.
    let metrics = wrenn_agent::http::recorder().unwrap();
    until("a member is ready", async || {
        metrics.render().lines().any(|line| line == "wrenn_warm_pool_members 1")
    })
    .await;
    inode(&members(site)[0].join("disk.ext4"))
}

/// VMMs of this agent that no record claims.
fn pool_vmms(site: &Site) -> Vec<i32> {
    let claimed = site.vmms();
    site.processes().into_iter().filter(|pid| !claimed.contains(pid)).collect()
}

/// An agent of its own process, which ends with the test.
struct AgentProcess(std::process::Child);

impl AgentProcess {
    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for AgentProcess {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _waited = self.0.wait();
    }
}

/// An agent that can be killed without the test.
async fn start_process(site: &Site, settings: &[(&str, &str)]) -> (AgentProcess, Client) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    // Where these tests are run without what they were built with.
    let elsewhere = std::env::var_os("WRENN_BIN_DIR").map(|bin| Path::new(&bin).join("wrenn-agent"));
    let program = elsewhere.unwrap_or_else(|| env!("CARGO_BIN_EXE_wrenn-agent").into());
    let process = std::process::Command::new(program)
        .arg("serve")
        .envs(site.environment(settings))
        .env("WRENN_AGENT_LISTEN", address.to_string())
        .spawn()
        .unwrap();
    let mut process = AgentProcess(process);
    let mut client = None;
    until("the agent serves", async || {
        assert!(process.0.try_wait().unwrap().is_none(), "it ended");
        client = site.connect(address).await.ok();
        client.is_some()
    })
    .await;
    (process, client.unwrap())
}

fn inode(path: &std::path::Path) -> u64 {
    std::fs::metadata(path).unwrap().ino()
}

async fn created(client: &mut Client, site: &Site, id: &str) -> u64 {
    let made = client.create_capsule(create(id)).await.unwrap().into_inner();
    assert_eq!(made.state(), CapsuleState::Running);
    inode(&site.directory.join("data/capsules").join(id).join("disk.ext4"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_capsule_that_was_made_ahead_is_like_any_other() {
    let (_turn, site) = site().await;
    let (agent, mut client) = site.start(&[("WRENN_WARM_POOL", "1")]).await;
    let [first, second, third] = [new_id(), new_id(), new_id()];
    created(&mut client, &site, &first).await;
    let ahead = ready(&site).await;
    assert_eq!(created(&mut client, &site, &second).await, ahead, "it was taken");
    let ahead = ready(&site).await;
    assert_eq!(created(&mut client, &site, &third).await, ahead, "and the next one, too");

    let listed = only(client.list_processes(capsules(&[&second])).await).await.processes;
    assert!(listed.is_empty(), "nobody ran anything in it: {listed:?}");
    let (one, other) = (nature(&mut client, &second).await, nature(&mut client, &third).await);
    assert_eq!((&one.hostname, &one.capsule_id), (&second, &second));
    assert_eq!((&other.hostname, &other.capsule_id), (&third, &third));
    assert_ne!(one.machine_id, other.machine_id);
    assert_ne!(one.random, other.random);
    let (output, _) = run(&mut client, &second, "echo $GREETING").await;
    assert_eq!(output, "hello\n");
    let now = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let asked = now();
    let (time, _) = run(&mut client, &second, "date +%s").await;
    let (time, told) = (time.trim().parse::<u64>().unwrap(), now());
    assert!((asked - 1..=told + 1).contains(&time), "{time}, between {asked} and {told}");

    ready(&site).await;
    agent.stop().await;
    assert_eq!(members(&site), Vec::<PathBuf>::new(), "they end with their agent");
    assert_eq!(site.processes().len(), 3, "its capsules do not");
    let (agent, mut client) = site.start(&[]).await;
    for id in [&first, &second, &third] {
        let adopted = client.get_capsule(capsule(id)).await.unwrap().into_inner();
        assert_eq!(adopted.state(), CapsuleState::Running);
        client.pause_capsule(capsule(id)).await.unwrap();
        client.resume_capsule(capsule(id)).await.unwrap();
        assert_eq!(run(&mut client, id, "hostname").await.0, format!("{id}\n"));
        client.destroy_capsule(capsule(id)).await.unwrap();
    }
    agent.stop().await;
    assert_eq!(site.leftovers(), BTreeSet::new());
    site.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_agent_had_made_ahead_is_swept() {
    let (_turn, site) = site().await;
    let (mut process, mut client) = start_process(&site, &[("WRENN_WARM_POOL", "2")]).await;
    let id = new_id();
    created(&mut client, &site, &id).await;
    until("both members are there", async || pool_vmms(&site).len() == 2).await;
    process.kill();
    assert_eq!(site.processes().len(), 3, "VMMs outlive their agent");

    let (agent, mut client) = site.start(&[]).await;
    assert_eq!(site.processes(), site.vmms(), "only what a record claims runs on");
    assert_eq!(members(&site), Vec::<PathBuf>::new());
    assert_eq!(run(&mut client, &id, "hostname").await.0, format!("{id}\n"));
    client.destroy_capsule(capsule(&id)).await.unwrap();
    agent.stop().await;
    assert_eq!(site.leftovers(), BTreeSet::new());
    site.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_made_ahead_gives_way_before_a_create_is_refused() {
    let (_turn, site) = site().await;
    let (agent, mut client) = site.start(&[("WRENN_WARM_POOL", "1")]).await;
    let [first, refused] = [new_id(), new_id()];
    created(&mut client, &site, &first).await;
    ready(&site).await;
    let info = client.info(agent::InfoRequest {}).await.unwrap().into_inner();
    // More than this host has free, whatever goes.
    let memory_mib = u32::try_from(info.memory_mib).unwrap();
    let all = agent::CreateCapsuleRequest { memory_mib, ..create(&refused) };
    let status = client.create_capsule(all).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::ResourceExhausted, "{status:?}");
    assert!(status.message().contains("not enough memory"), "{status:?}");
    assert!(status.message().contains(&format!("{} MiB wanted", memory_mib + 96)), "{status:?}");
    assert_eq!(pool_vmms(&site), Vec::<i32>::new());
    assert_eq!(members(&site), Vec::<PathBuf>::new());
    assert_eq!(site.records().len(), 1, "nothing is left of what was refused");
    let told = client.get_capsule(capsule(&refused)).await.unwrap().into_inner();
    assert_eq!((told.state(), told.cause.unwrap().code.as_str()), (CapsuleState::Stopped, "CREATE_FAILED"));
    assert_eq!(run(&mut client, &first, "hostname").await.0, format!("{first}\n"));
    client.destroy_capsule(capsule(&first)).await.unwrap();
    agent.stop().await;
    assert_eq!(site.leftovers(), BTreeSet::new());
    site.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_died_or_is_in_the_way_costs_nobody_a_capsule() {
    let (_turn, site) = site().await;
    let settings = [("WRENN_WARM_POOL", "1"), ("WRENN_SLOTS", "30141-30143"), ("WRENN_SLOT_POOL", "0")];
    let (agent, mut client) = site.start(&settings).await;
    let [first, second, third] = [new_id(), new_id(), new_id()];
    created(&mut client, &site, &first).await;
    ready(&site).await;
    let dead = pool_vmms(&site)[0];
    end(dead).unwrap();
    created(&mut client, &site, &second).await;
    assert!(!site.vmms().contains(&dead));

    // Of three slots two are capsules': the third may be a member's, but it gives way.
    let larger = agent::CreateCapsuleRequest { memory_mib: 288, ..create(&third) };
    client.create_capsule(larger).await.unwrap();
    for id in [&first, &second, &third] {
        assert_eq!(run(&mut client, id, "hostname").await.0, format!("{id}\n"));
        client.destroy_capsule(capsule(id)).await.unwrap();
    }
    agent.stop().await;
    assert_eq!(site.leftovers(), BTreeSet::new());
    site.close().await;
}

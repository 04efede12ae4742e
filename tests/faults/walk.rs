//! Every failpoint of the agent, with an error and with a kill.
//!
//! The list comes from the agent's binary: a failpoint that is added is walked, and one that its operation does not pass
//! fails the walk. `WRENN_TEST_FAILPOINT=NAME` walks one of them.
//!
//! ```text
//!  a victim as the operation wants it ─▶ order ─▶ operation ─▶ (the agent is started again) ─▶ rows settled
//!       ─▶ the victim is one thing or the other, whole ─▶ it is destroyed ─▶ a fresh capsule works ─▶ the host as before
//! ```
//! Beside it a capsule counts all the time, and another one is paused and must resume with what it had. What a killed agent
//! had under way is settled once nobody drives it any more, a quarter of a minute later: the kills of one operation
//! are done one after the other, then looked at together.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use tokio::process::Command;
use wrenn_tests::agent::Agent;
use wrenn_tests::counter::Counter;
use wrenn_tests::graphql::{Capsule, Client};
use wrenn_tests::inventory::{HostInventory, Kind};
use wrenn_tests::stack::{Failpoint, Stack};
use wrenn_tests::wait;

use super::api::settled;
use super::churn::{POOLED, at_rest, comparable};

const PATIENCE: Duration = Duration::from_secs(60);

/// Disk of the first template size of its own; each golden snapshot to be made gets another.
const FIRST_DISK_MIB: usize = 6000;

const MERGE: &str = "merge";

/// A team that has no other images.
const IMAGES_OF: &str = "team-0000000000000000000000007";

/// Only where machines are made ahead.
const WARM: &str = "warm";

/// Only where disks are mapped devices.
const MAPPING: [&str; 2] = ["attach", "detach"];

/// Pauses within which the generations of a memory are merged, with some to spare.
const PAUSES_TO_A_MERGE: usize = 12;

pub async fn every_failpoint(stack: &Stack) -> Result<()> {
    walk(stack, |operation| ![MERGE, WARM].contains(&operation) && !MAPPING.contains(&operation)).await
}

/// Those of a merge, which there is only where files share no blocks.
pub async fn every_failpoint_of_a_merge(stack: &Stack) -> Result<()> {
    walk(stack, |operation| operation == MERGE).await
}

/// Those of a disk that becomes a device, or ceases to be one.
pub async fn every_failpoint_of_a_mapping(stack: &Stack) -> Result<()> {
    walk(stack, |operation| MAPPING.contains(&operation)).await
}

/// Those of a create that takes a machine which was made ahead.
pub async fn every_failpoint_of_a_warm_start(stack: &Stack) -> Result<()> {
    walk(stack, |operation| operation == WARM).await
}

async fn walk(stack: &Stack, here: impl Fn(&str) -> bool) -> Result<()> {
    let only = std::env::var("WRENN_TEST_FAILPOINT").ok();
    let mut points = stack.host().failpoints().await?;
    points.retain(|point| only.as_ref().is_none_or(|only| *only == point.name));
    ensure!(!points.is_empty(), "there is no failpoint {only:?}");
    let operations: BTreeSet<&str> =
        points.iter().flat_map(|point| point.operations.iter().map(String::as_str)).collect();
    let operations = operations.into_iter().filter(|operation| here(operation));

    let mut walk = Walk::begin(stack).await?;
    for operation in operations {
        let passing = |action: &str| -> Vec<&Failpoint> {
            let concerned = |point: &&Failpoint| {
                point.operations.iter().any(|name| name == operation)
                    && point.actions.iter().any(|name| name == action)
            };
            points.iter().filter(concerned).collect()
        };
        for point in passing("error") {
            let outcome = walk.with_error(operation, &point.name).await;
            walk.note(operation, &point.name, "error", outcome);
        }
        let outcome = walk.with_kills(operation, &passing("kill")).await;
        walk.note(operation, "all its failpoints", "kill", outcome);
    }
    walk.verdict()
}

/// The stage, and what went wrong on it.
struct Walk<'a> {
    stack: &'a Stack,
    client: &'a Client,
    /// Runs all the time, in this VMM.
    bystander: String,
    vmm: Option<u32>,
    counter: Counter,
    /// Is paused all the time but for being looked at.
    sleeper: String,
    before: HostInventory,
    passages: usize,
    failed: Vec<String>,
}

/// One operation that was done with a failpoint in its way.
struct Passage {
    what: String,
    /// What it was done to, unless it was to make something.
    victim: Option<String>,
    /// What it made, in whatever state.
    made: Vec<String>,
    /// The name of a template that it may have made.
    template: String,
    /// The id of a template whose image it may have made.
    image: Option<String>,
    failed: bool,
}

impl<'a> Walk<'a> {
    async fn begin(stack: &'a Stack) -> Result<Self> {
        let client = stack.client();
        stack.host().order("")?;
        let bystander = client.create(json!({})).await?.id;
        let counter = Counter::start(client, &bystander).await?;
        let sleeper = marked(client).await?;
        client.pause(&sleeper).await?;
        let mut walk = Self {
            stack,
            client,
            vmm: stack.vmm_of(&bystander),
            bystander,
            counter,
            sleeper,
            before: HostInventory::default(),
            passages: 0,
            failed: Vec::new(),
        };
        walk.before = at_rest(stack).await?;
        Ok(walk)
    }

    fn note(&mut self, operation: &str, point: &str, action: &str, outcome: Result<()>) {
        match outcome {
            Ok(()) => eprintln!("walked: {operation}, {point}, {action}"),
            Err(error) => {
                eprintln!("FAILED: {operation}, {point}, {action}: {error:#}");
                self.failed.push(format!("{operation}, {point}, {action}: {error:#}"));
            }
        }
    }

    fn verdict(self) -> Result<()> {
        eprintln!("{} passages of failpoints, {} with something to say", self.passages, self.failed.len());
        ensure!(self.failed.is_empty(), "{}", self.failed.join("\n"));
        Ok(())
    }

    async fn with_error(&mut self, operation: &str, point: &str) -> Result<()> {
        let host = self.stack.host();
        let victim = self.stage(operation).await?;
        let before = host.passed(point)?;
        host.order(&order(operation, point, "error*1"))?;
        let passage = self.perform(operation, point, victim).await;
        let passed =
            wait::until_true(format!("{point} passed"), PATIENCE, async || Ok(host.passed(point)? > before))
                .await;
        host.order("")?;
        let passage = passage?;
        passed?;
        ensure!(
            passage.failed || !must_fail(operation, point),
            "{operation} succeeded in spite of an error at {point}"
        );
        self.look_around(vec![passage]).await
    }

    async fn with_kills(&mut self, operation: &str, points: &[&Failpoint]) -> Result<()> {
        let mut passages = Vec::new();
        let mut outcome = Ok(());
        for point in points {
            let killed = self.with_kill(operation, &point.name).await;
            match killed.with_context(|| point.name.clone()) {
                Ok(passage) => passages.push(passage),
                // What else was done is looked at all the same.
                Err(error) => {
                    outcome = Err(error);
                    break;
                }
            }
        }
        self.look_around(passages).await.and(outcome)
    }

    async fn with_kill(&mut self, operation: &str, point: &str) -> Result<Passage> {
        let host = self.stack.host();
        let victim = self.stage(operation).await?;
        host.order(&order(operation, point, "kill"))?;
        let passage = self.perform(operation, point, victim).await;
        let died = host.died(PATIENCE).await;
        host.order("")?;
        if died.is_ok() {
            host.start(None).await?;
            self.in_service().await?;
        }
        died.with_context(|| format!("{operation} does not pass {point}"))?;
        self.nobody_else_noticed().await?;
        passage
    }

    /// A victim in the state in which the operation finds it.
    async fn stage(&mut self, operation: &str) -> Result<Option<String>> {
        self.passages += 1;
        match operation {
            "golden" | "create" | "attach" => return Ok(None),
            WARM => return self.member_made().await.map(|()| None),
            "pause" | "thaw" | "resume" | "destroy" | "snapshot" | "flatten" | "fork" | "merge"
            | "detach" => {}
            other => bail!("nothing here does {other:?}: the walk must learn it"),
        }
        let id = marked(self.client).await?;
        if operation == "resume" {
            self.client.pause(&id).await?;
        }
        Ok(Some(id))
    }

    /// Waits for a machine that was made ahead. An agent that was just started makes none before somebody creates a
    /// capsule.
    async fn member_made(&self) -> Result<()> {
        let id = self.client.create(json!({})).await?.id;
        self.client.destroy(&id).await?;
        wait::until_true("a machine made ahead", PATIENCE, async || {
            Ok(self.stack.host().warm_members().await? > 0)
        })
        .await
    }

    /// Does the operation. That it may come to nothing is what this is about.
    async fn perform(&self, operation: &str, point: &str, victim: Option<String>) -> Result<Passage> {
        let client = self.client;
        let known = self.ids().await?;
        let id = victim.as_deref().unwrap_or_default();
        let template = format!("walked-{}", self.passages);
        let outcome = match operation {
            "create" | "attach" | WARM => client.create(json!({})).await.map(drop),
            "golden" => {
                let disk_mib = FIRST_DISK_MIB + self.passages;
                client.create(json!({ "diskMib": disk_mib })).await.map(drop)
            }
            "pause" | "thaw" => client.pause(id).await.map(drop),
            "resume" => client.resume(id).await.map(drop),
            "destroy" | "detach" => client.destroy(id).await.map(drop),
            "snapshot" => client.snapshot(id, &template).await.map(drop),
            "flatten" => self.flatten(id).await,
            "fork" => client.fork(id, 2).await.map(drop),
            _ => pause_again_and_again(client, id).await,
        };
        let now = self.ids_in_time().await?;
        let made = now.difference(&known).cloned().collect();
        let what = format!("{operation} at {point}");
        let image = (operation == "flatten").then(|| self.image());
        Ok(Passage { what, victim, made, template, image, failed: outcome.is_err() })
    }

    /// Nobody can ask the control plane for it: builds of templates will.
    async fn flatten(&self, capsule: &str) -> Result<()> {
        self.agent().await?.flatten(capsule, &self.image(), IMAGES_OF).await
    }

    /// The template that an image is made for on this passage.
    fn image(&self) -> String {
        format!("tpl-{:025}", self.passages)
    }

    async fn agent(&self) -> Result<Agent> {
        let host = self.stack.host();
        Agent::connect(&self.stack.authority(), host.id(), host.address()).await
    }

    async fn ids(&self) -> Result<BTreeSet<String>> {
        Ok(self.client.capsules(json!({})).await?.into_iter().map(|capsule| capsule.id).collect())
    }

    /// The control plane answers also while its host is dead.
    async fn ids_in_time(&self) -> Result<BTreeSet<String>> {
        wait::until("the list of capsules", PATIENCE, async || self.ids().await.map(Some)).await
    }

    async fn in_service(&self) -> Result<()> {
        wait::until_true("the host in service again", PATIENCE, async || {
            Ok(self.client.sh(&self.bystander, "echo here").await? == "here")
        })
        .await
    }

    /// The bystander counts on in the same VMM, the sleeper wakes up with what it had.
    async fn nobody_else_noticed(&mut self) -> Result<()> {
        ensure!(self.stack.vmm_of(&self.bystander) == self.vmm, "the bystander has another VMM");
        self.counter.goes_on(self.client, &self.bystander).await.context("the bystander")?;
        self.client.resume(&self.sleeper).await.context("the sleeper")?;
        let kept = has_mark(self.client, &self.sleeper).await.context("the sleeper");
        self.client.pause(&self.sleeper).await.context("the sleeper")?;
        kept
    }

    /// Everything that must hold after whatever was done.
    async fn look_around(&mut self, passages: Vec<Passage>) -> Result<()> {
        settled(self.stack).await?;
        self.nobody_else_noticed().await?;
        let mut outcome = Ok(());
        for passage in &passages {
            outcome = outcome.and(self.look_at(passage).await.with_context(|| passage.what.clone()));
        }
        self.remove_what_is_left().await?;
        let fresh = marked(self.client).await.context("a fresh capsule afterwards")?;
        self.client.destroy(&fresh).await?;
        outcome.and(self.nothing_left().await)
    }

    /// A victim, and what was made of it, is the one thing or the other, and whole.
    async fn look_at(&self, passage: &Passage) -> Result<()> {
        let client = self.client;
        if let Some(id) = &passage.victim {
            let capsule = client.capsule(id).await?.context("the victim's row is gone")?;
            match (capsule.state.as_str(), passage.what.split(' ').next()) {
                (_, Some("destroy" | "detach")) => {}
                ("RUNNING", _) => has_mark(client, id).await?,
                ("PAUSED", _) => {
                    client.resume(id).await?;
                    has_mark(client, id).await?;
                }
                _ => bail!("the victim is lost: {capsule:?}"),
            }
        }
        let made = self.capsules(&passage.made).await?;
        let running: Vec<&Capsule> = made.iter().filter(|capsule| capsule.state == "RUNNING").collect();
        for capsule in &running {
            if passage.victim.is_some() {
                has_mark(client, &capsule.id).await?;
            } else {
                ensure!(client.sh(&capsule.id, "echo here").await? == "here");
            }
        }
        if passage.what.starts_with("fork") {
            ensure!([0, 2].contains(&running.len()), "half of the copies: {made:?}");
        }
        if let Some(template) = client.template(&passage.template).await? {
            let id = client.create(json!({ "template": template.id })).await?.id;
            has_mark(client, &id).await.context("a capsule of the snapshot")?;
        }
        match &passage.image {
            Some(image) => self.look_at_image(image, passage.failed).await,
            None => Ok(()),
        }
    }

    /// There is a whole one or none, and it goes with its template.
    async fn look_at_image(&self, template: &str, failed: bool) -> Result<()> {
        let images = self.stack.host().dir().join("images/teams").join(IMAGES_OF);
        let image = images.join(template).join("rootfs.ext4");
        ensure!(failed || image.exists(), "no image was made");
        if image.exists() {
            let checked = Command::new("e2fsck").args(["-f", "-n"]).arg(&image).output().await?;
            ensure!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
            let asked = Command::new("debugfs").args(["-R", "cat /root/mark"]).arg(&image).output().await?;
            ensure!(asked.stdout == b"kept\n", "the image has {:?}", String::from_utf8_lossy(&asked.stdout));
        }
        self.agent().await?.delete_template(template).await?;
        // Of others there may be some that are yet to be looked at.
        let of_it = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().starts_with(template);
        let left: Vec<_> = fs::read_dir(&images).into_iter().flatten().flatten().filter(of_it).collect();
        ensure!(left.is_empty(), "left of an image: {left:?}");
        Ok(())
    }

    async fn capsules(&self, ids: &[String]) -> Result<Vec<Capsule>> {
        let all = self.client.capsules(json!({})).await?;
        Ok(all.into_iter().filter(|capsule| ids.contains(&capsule.id)).collect())
    }

    /// Also what could not be destroyed at first is destroyed at last.
    async fn remove_what_is_left(&self) -> Result<()> {
        for id in self.ids().await?.iter().filter(|id| ![&self.bystander, &self.sleeper].contains(id)) {
            let destroyed = self.client.destroy(id).await?;
            ensure!(destroyed.state == "STOPPED", "{destroyed:?}");
        }
        Ok(())
    }

    async fn nothing_left(&self) -> Result<()> {
        wait::until_true("the host as it was", PATIENCE, async || {
            let now = HostInventory::take(self.stack.scope())?;
            self.lasting(&self.before).difference(&self.lasting(&now)).into_result("left")?;
            for kind in POOLED.into_iter().chain([Kind::Process, Kind::ControlGroup]) {
                let (was, is) = (self.before.count(kind), now.count(kind));
                ensure!(was == is, "{was} times {kind} before, {is} now");
            }
            let (members, ahead) = (homes_of_members(now), self.stack.warm_pool());
            ensure!(members == ahead, "homes of {members} machines made ahead instead of {ahead}");
            Ok(true)
        })
        .await
    }

    /// Without what comes and goes rightly: the agent's process, the sleeper's snapshot, whole templates, and where images
    /// of a team are.
    fn lasting(&self, inventory: &HostInventory) -> HostInventory {
        let passing = |path: &str| {
            let kept = ["data/golden/", "data/templates/"].iter().any(|folder| path.contains(folder));
            path.contains(&self.sleeper) || path.ends_with(IMAGES_OF) || kept && !path.contains(".partial")
        };
        let lasting = comparable(inventory).without(Kind::Process).without_items(Kind::File, passing);
        // Of machines made ahead there is always another one: they are counted.
        let lasting = if self.stack.warm_pool() > 0 { lasting.without(Kind::ControlGroup) } else { lasting };
        [Kind::File, Kind::RuntimeFile, Kind::Socket]
            .into_iter()
            .fold(lasting, |lasting, kind| lasting.without_items(kind, is_of_a_member))
    }
}

/// What is to happen at a failpoint, and what else must for the operation to come there.
fn order(operation: &str, point: &str, action: &str) -> String {
    let before = if operation == "thaw" { "pause.committed=error*1;" } else { "" };
    format!("{before}{point}={action}")
}

/// A machine made ahead, and what is in its home, is called so.
fn is_of_a_member(path: &str) -> bool {
    path.split('/').any(|part| part.starts_with("pool-"))
}

fn homes_of_members(inventory: HostInventory) -> usize {
    let other = |path: &str| {
        let home = path.rsplit_once('/').is_some_and(|(folder, _)| folder.ends_with("data/capsules"));
        !(home && is_of_a_member(path))
    };
    inventory.without_items(Kind::File, other).count(Kind::File)
}

/// Whether an error there must be told to whoever asked. Not where a machine is taken apart after its capsule is safe,
/// nor where a spare slot is made, nor where a merge may be done at any time.
fn must_fail(operation: &str, point: &str) -> bool {
    match operation {
        "destroy" => true,
        "merge" => false,
        // A capsule is restored instead.
        WARM => false,
        _ => !point.starts_with("dismantle.") && !point.starts_with("slot."),
    }
}

async fn pause_again_and_again(client: &Client, id: &str) -> Result<()> {
    for _ in 0..PAUSES_TO_A_MERGE {
        client.pause(id).await?;
        client.resume(id).await?;
    }
    Ok(())
}

/// A running capsule with something to remember, in its memory and on its disk.
async fn marked(client: &Client) -> Result<String> {
    let id = client.create(json!({})).await?.id;
    client.sh(&id, "echo kept > /run/mark; echo kept > /root/mark").await?;
    Ok(id)
}

async fn has_mark(client: &Client, id: &str) -> Result<()> {
    let said = client.sh(id, "cat /run/mark /root/mark").await?;
    ensure!(said == "kept\nkept", "{id} remembers {said:?}");
    Ok(())
}

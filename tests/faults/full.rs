//! A host whose disk is full.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::statvfs::statvfs;
use serde_json::json;
use wrenn_tests::stack::Stack;
use wrenn_tests::wait;

use super::agent::back_in_service;
use super::pauses::has_the_right_time;
use super::silence::start_impatient;

const PATIENCE: Duration = Duration::from_secs(60);
/// What is left, and what a guest writes.
const ROOM: u64 = 24 << 20;
const FLOOD_MIB: u64 = 64;
/// How long a guest stands still: far more than its clock may be wrong afterwards.
const STILL: Duration = Duration::from_secs(5);

const STANDS_STILL: &str = "the host has no room for what the guest writes";

pub async fn stops_a_guest_until_there_is_room_again(stack: &Stack) -> Result<()> {
    let client = stack.client();
    let id = client.create(json!({})).await?.id;
    client.sh(&id, "true").await?;
    let ballast = Ballast::fill(&stack.host().dir().join("data"))?;
    let line = writes("first");
    let (said, made) = tokio::join!(client.sh(&id, &line), make_room(stack, ballast, 1));
    made?;
    ensure!(said?.contains("written"), "it was not written");
    // It is told by a call of its own.
    wait::until("the right time", PATIENCE, async || has_the_right_time(client, &id, 0).await.map(Some))
        .await?;
    client.sh(&id, &reads("first")).await.map(drop)
}

pub async fn stops_a_guest_over_the_end_of_its_agent(stack: &Stack) -> Result<()> {
    let client = stack.client();
    let id = client.create(json!({})).await?.id;
    let vmm = stack.vmm_of(&id);
    let ballast = Ballast::fill(&stack.host().dir().join("data"))?;
    client.sh(&id, &format!("({}) > /root/log 2>&1 < /dev/null &", writes("second"))).await?;
    wait::until_true("the guest to stand still", PATIENCE, async || stands_still(stack, 1)).await?;
    stack.host().kill9().await?;
    start_impatient(stack.host()).await?;
    make_room(stack, ballast, 2).await?;
    back_in_service(client, &id).await?;
    ensure!(stack.vmm_of(&id) == vmm, "the capsule was replaced");
    // It is told by a call of its own.
    wait::until("the right time", PATIENCE, async || has_the_right_time(client, &id, 0).await.map(Some))
        .await?;
    client.sh(&id, "while ! grep written /root/log; do sleep 0.1; done").await?;
    client.sh(&id, &reads("second")).await.map(drop)
}

/// Once the guest has stood still for the `times`th time, and not at once.
async fn make_room(stack: &Stack, ballast: Ballast, times: usize) -> Result<()> {
    wait::until_true("the guest to stand still", PATIENCE, async || stands_still(stack, times)).await?;
    tokio::time::sleep(STILL).await;
    drop(ballast);
    Ok(())
}

fn stands_still(stack: &Stack, times: usize) -> Result<bool> {
    let log = fs::read_to_string(stack.host().log()).context("reading the agent's log")?;
    Ok(log.matches(STANDS_STILL).count() >= times)
}

fn writes(name: &str) -> String {
    format!("yes {name} | head -c {FLOOD_MIB}M > /root/{name}; sync; echo written")
}

/// From the disk.
fn reads(name: &str) -> String {
    format!("echo 3 > /proc/sys/vm/drop_caches; yes {name} | head -c {FLOOD_MIB}M | cmp - /root/{name}")
}

/// Takes all room of a file system but some.
struct Ballast(PathBuf);

impl Ballast {
    fn fill(directory: &Path) -> Result<Self> {
        let path = directory.join("ballast");
        let free = statvfs(directory)?;
        let bytes = free.blocks_available() * free.fragment_size();
        ensure!(bytes > ROOM && bytes < 100 << 30, "{bytes} bytes are free");
        fallocate(&File::create(&path)?, FallocateFlags::empty(), 0, (bytes - ROOM).cast_signed())?;
        Ok(Self(path))
    }
}

impl Drop for Ballast {
    fn drop(&mut self) {
        let _gone = fs::remove_file(&self.0);
    }
}

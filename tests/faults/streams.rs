//! Clients that are killed in the midst of a flow, and everything else between them and the process: what arrives in
//! the end is what was written.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use sha2::{Digest, Sha256};
use wrenn_tests::graphql::{Client, Exec, Failure, OutputHash, ProcessEvent, ProcessStream};
use wrenn_tests::stack::Stack;
use wrenn_tests::wait;

/// The longest anything may be silent, or take to come back.
const PATIENCE: Duration = Duration::from_secs(60);

/// How much flows, in MiB, unless `WRENN_TEST_FLOW_MIB` says otherwise.
const FLOW_MIB: u64 = 200;

/// How often the client is killed.
const KILLS: u64 = 100;

fn flow_mib() -> Result<u64> {
    match std::env::var("WRENN_TEST_FLOW_MIB") {
        Ok(text) => text.parse().context("WRENN_TEST_FLOW_MIB"),
        Err(_) => Ok(FLOW_MIB),
    }
}

/// A process that writes, and who reads it, life after life.
struct Flow {
    id: String,
    tag: String,
    hash: OutputHash,
    expected: String,
    /// Bytes in all.
    length: u64,
    random: u64,
}

impl Flow {
    /// A random MiB, again and again with a number between: any byte that is lost, doubled or out of order changes the
    /// hash.
    async fn start(client: &Client) -> Result<Self> {
        let id = client.create(json!({})).await?.id;
        let block = client.exec(Exec::shell(&id, "head -c 1048576 /dev/urandom | tee /run/block")).await?;
        let (block, mib) = (block.stdout()?, flow_mib()?);
        let (mut hash, mut length) = (Sha256::new(), 0);
        for number in 0..mib {
            let line = format!("block {number}\n");
            length += (line.len() + block.len()) as u64;
            hash.update(line);
            hash.update(&block);
        }
        let expected = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        let line = format!(
            "read go; i=0; while [ $i -lt {mib} ]; do echo block $i; cat /run/block; i=$((i+1)); done"
        );
        let (_, tag) = client.start(Exec::shell(&id, &line)).await?;
        let seed = u64::from_le_bytes(block[..8].try_into().context("a block")?);
        eprintln!("{length} bytes flow; random from {seed}");
        Ok(Self { id, tag, hash: OutputHash::default(), expected, length, random: seed | 1 })
    }

    /// A number below `bound` (xorshift64, Marsaglia 2003).
    fn random(&mut self, bound: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % bound
    }

    /// Follows from where the last life ended, once that is possible again.
    async fn follow(&self, client: &Client) -> Result<ProcessStream> {
        wait::until("the flow to be had", PATIENCE, async || {
            let mut stream = client.process_output(&self.id, &self.tag, Some(self.hash.length)).await?;
            stream.started().await?;
            Ok(Some(stream))
        })
        .await
    }

    /// Reads so many bytes, or to the end: then true.
    async fn read(&mut self, stream: &mut ProcessStream, bytes: u64) -> Result<bool> {
        let until = self.hash.length + bytes;
        while self.hash.length < until {
            match stream.next_within(PATIENCE).await?.context("a stream that ended without an exit")? {
                ProcessEvent::Output { sequence, data, .. } => self.hash.take(sequence, &data)?,
                ProcessEvent::Exited { exit_code: Some(0), .. } => return Ok(true),
                other => bail!("{other:?} at {} of {}", self.hash.length, self.length),
            }
        }
        Ok(false)
    }

    fn finish(self) -> Result<()> {
        ensure!(self.hash.length == self.length, "{} bytes of {}", self.hash.length, self.length);
        ensure!(self.hash.finish() == self.expected, "the hash differs");
        Ok(())
    }
}

/// A hundred times the client is gone without a word, and another reads on, through one control plane or the other.
pub async fn a_client_killed_a_hundred_times_misses_nothing(stack: &Stack) -> Result<()> {
    let clients: Vec<&Client> = stack.apis().iter().map(wrenn_tests::stack::ControlPlane::client).collect();
    let mut flow = Flow::start(clients[0]).await?;
    let mut stream = flow.follow(clients[0]).await?;
    clients[0].write_stdin(&flow.id, &flow.tag, 0, b"go\n").await?;
    let begun = Instant::now();
    // Random places; on average the last one is near the end.
    let step = 2 * flow.length / (KILLS + 2);
    for kill in 1..=KILLS {
        let bytes = 1 + flow.random(step);
        if flow.read(&mut stream, bytes).await? {
            return flow.finish();
        }
        // Some stop reading a while before they die: what is under way to them is as much as can be.
        if kill.is_multiple_of(10) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        drop(stream);
        stream = flow.follow(clients[kill as usize % clients.len()]).await?;
    }
    ensure!(flow.read(&mut stream, u64::MAX / 2).await?, "no end");
    eprintln!("{KILLS} lives of a client in {:?}", begun.elapsed());
    flow.finish()
}

/// Now and then the control plane or the agent dies instead, without warning.
pub async fn a_flow_goes_on_over_kills_of_api_and_agent(stack: &Stack) -> Result<()> {
    const DEATHS: u64 = 6;
    let client = stack.client();
    let mut flow = Flow::start(client).await?;
    let vmm = stack.vmm_of(&flow.id);
    let mut stream = flow.follow(client).await?;
    client.write_stdin(&flow.id, &flow.tag, 0, b"go\n").await?;
    for death in 0..DEATHS {
        let bytes = flow.length / (DEATHS + 2) / 2 + flow.random(flow.length / (DEATHS + 2) / 2);
        ensure!(!flow.read(&mut stream, bytes).await?, "over before the {death}th death");
        if death.is_multiple_of(2) {
            stack.kill9_api().await?;
            read_out(&mut flow, &mut stream).await?;
            stack.start_api().await?;
        } else {
            stack.host().kill9().await?;
            read_out(&mut flow, &mut stream).await?;
            stack.host().start(None).await?;
        }
        stream = flow.follow(client).await?;
    }
    ensure!(flow.read(&mut stream, u64::MAX / 2).await?, "no end");
    ensure!(stack.vmm_of(&flow.id) == vmm, "the capsule was replaced");
    flow.finish()
}

/// What had been sent still arrives; then the stream breaks off, with a cause if there is still somebody to tell it.
async fn read_out(flow: &mut Flow, stream: &mut ProcessStream) -> Result<()> {
    loop {
        match stream.next_within(PATIENCE).await {
            Ok(Some(ProcessEvent::Output { sequence, data, .. })) => flow.hash.take(sequence, &data)?,
            Ok(other) => bail!("{other:?} of a process that nobody killed"),
            Err(error) => match error.downcast_ref::<Failure>() {
                Some(failure) if failure.first().code() != "UNAVAILABLE" => return Err(error),
                _ => return Ok(()),
            },
        }
    }
}

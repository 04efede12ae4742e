//! The content of files over HTTP, beside a bare TCP copy between the host and a file of the same guest.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures_util::stream;
use reqwest::{Body, Method};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use wrenn_tests::graphql::Exec;
use wrenn_tests::stack::{CapsuleRecord, Stack};
use wrenn_tests::wait;

use crate::table::{Promise, Row};

/// Copies between a connection and a file: from port 9001 into it, and from it to port 9002.
const COPIER: &str = r#"
use IO::Socket::INET; $SIG{CHLD} = "IGNORE"; my ($path, $out) = @ARGV;
my $s = IO::Socket::INET->new(LocalPort => $out ? 9002 : 9001, Listen => 8, ReuseAddr => 1) or die "listen: $@";
while (my $c = $s->accept) {
  open(my $file, $out ? "<" : ">", $path) or die "$path: $!"; my $block;
  my ($from, $to) = $out ? ($file, $c) : ($c, $file);
  while (sysread $from, $block, 131072) {
    for (my $done = 0; $done < length $block; ) { $done += syswrite($to, $block, length($block) - $done, $done) || die; }
  }
  close $file or die; syswrite $c, "." unless $out; close $c;
}
"#;
const INTO: u16 = 9001;
const OUT_OF: u16 = 9002;

/// Bytes of a file, and of one in a quick run; the guest has memory for it, so that no disk is measured.
const FILE: u64 = 256 << 20;
const QUICK_FILE: u64 = 64 << 20;
const MEMORY_MIB: u64 = 1024;
/// Copies of each kind: they are long and vary little.
const COPIES: usize = 5;

/// What is given to a connection at a time.
static CHUNK: [u8; 128 << 10] = [b'x'; 128 << 10];

/// For a server under emulation to be there, and for a copy.
const PATIENCE: Duration = Duration::from_secs(120);

const PATH: &str = "/root/copied";

struct Bench<'a> {
    stack: &'a Stack,
    capsule: String,
    address: std::net::Ipv4Addr,
    bytes: u64,
}

pub async fn measure(stack: &Stack, samples: usize, quick: bool) -> Result<Vec<Row>> {
    let mut put = Row::of_rates("`PUT` of a file", "bare TCP copy into the same file", Promise::Share(0.9));
    let mut get = Row::of_rates("`GET` of a file", "bare TCP copy of the same file", Promise::Share(0.9));
    let client = stack.client();
    let capsule = client.create(json!({ "memoryMib": MEMORY_MIB })).await?.id;
    let record = CapsuleRecord::read(&stack.host_of(&capsule)?.record_path(&capsule))?;
    for direction in ["", "out"] {
        client.start(Exec::argv(&capsule, &["perl", "-e", COPIER, PATH, direction])).await?;
    }
    let bytes = if quick { QUICK_FILE } else { FILE };
    let bench = Bench { stack, capsule, address: record.guest_address(), bytes };
    wait::until("the copier in the guest", PATIENCE, async || bench.bare_put().await.map(Some)).await?;
    wait::until("the other copier", PATIENCE, async || bench.bare_get().await.map(Some)).await?;
    // Once each before it counts, as the copiers did: an emulated guest translates the code at its first use.
    bench.put().await?;
    bench.get().await?;

    let rounds = samples.min(COPIES);
    for round in 0..rounds {
        eprint!("\rround {} of {rounds}", round + 1);
        for bare in [round.is_multiple_of(2), !round.is_multiple_of(2)] {
            bench.settle().await?;
            let took = if bare { bench.bare_put().await? } else { bench.put().await? };
            let row = if bare { &mut put.baseline } else { &mut put.wrenn };
            row.push_rate(bytes, took);
        }
        for bare in [round.is_multiple_of(2), !round.is_multiple_of(2)] {
            let took = if bare { bench.bare_get().await? } else { bench.get().await? };
            let row = if bare { &mut get.baseline } else { &mut get.wrenn };
            row.push_rate(bytes, took);
        }
    }
    eprintln!();
    client.destroy(&bench.capsule).await?;
    Ok(vec![put, get])
}

impl Bench<'_> {
    /// Nothing is left to be written or freed of the file before.
    async fn settle(&self) -> Result<()> {
        self.stack.client().sh(&self.capsule, &format!("rm -f {PATH}; sync")).await.map(drop)
    }

    fn chunks(&self) -> u64 {
        self.bytes / CHUNK.len() as u64
    }

    async fn put(&self) -> Result<Duration> {
        let begun = Instant::now();
        let chunks = (0..self.chunks()).map(|_| Ok::<_, std::io::Error>(&CHUNK[..]));
        let request = self.stack.client().file_request(Method::PUT, &self.capsule, PATH)?.timeout(PATIENCE);
        let answer = request.body(Body::wrap_stream(stream::iter(chunks))).send().await?;
        let status = answer.status();
        ensure!(status.is_success(), "PUT: {status}: {}", answer.text().await?);
        Ok(begun.elapsed())
    }

    async fn bare_put(&self) -> Result<Duration> {
        let begun = Instant::now();
        let mut stream = TcpStream::connect((self.address, INTO)).await.context("connecting")?;
        for _ in 0..self.chunks() {
            stream.write_all(&CHUNK).await?;
        }
        stream.shutdown().await?;
        stream.read_u8().await.context("no word that it is written")?;
        Ok(begun.elapsed())
    }

    async fn get(&self) -> Result<Duration> {
        let begun = Instant::now();
        let request = self.stack.client().file_request(Method::GET, &self.capsule, PATH)?.timeout(PATIENCE);
        let mut answer = request.send().await?.error_for_status()?;
        let mut got = 0;
        while let Some(chunk) = answer.chunk().await? {
            got += chunk.len() as u64;
        }
        ensure!(got == self.bytes, "GET: {got} bytes of {}", self.bytes);
        Ok(begun.elapsed())
    }

    async fn bare_get(&self) -> Result<Duration> {
        let begun = Instant::now();
        let mut stream = TcpStream::connect((self.address, OUT_OF)).await.context("connecting")?;
        let (mut got, mut buffer) = (0, vec![0; CHUNK.len()]);
        loop {
            match stream.read(&mut buffer).await? {
                0 => break,
                bytes => got += bytes as u64,
            }
        }
        ensure!(got == self.bytes, "bare: {got} bytes of {}", self.bytes);
        Ok(begun.elapsed())
    }
}

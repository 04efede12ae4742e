//! Services in a capsule: through control plane and agent, and at the guest's own address.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use reqwest::{Client as Http, RequestBuilder};
use serde_json::json;
use tokio::task::JoinHandle;
use wrenn_tests::graphql::Exec;
use wrenn_tests::stack::{CapsuleRecord, Stack};
use wrenn_tests::wait;

use crate::echo::{KEYSTROKES, p99};
use crate::table::{Promise, Row};
use crate::terminal::Terminal;

/// A web server in Perl, of which the smallest image has enough: one process a connection; `/n` are n bytes.
const SERVER: &str = r#"
use IO::Socket::INET; $SIG{CHLD} = "IGNORE"; my $block = "x" x 131072;
my $s = IO::Socket::INET->new(LocalPort => $ARGV[0], Listen => 64, ReuseAddr => 1) or die "listen: $@";
while (my $c = $s->accept) {
  next if fork;
  while (defined(my $line = <$c>)) {
    while (defined(my $h = <$c>)) { last if $h eq "\r\n"; }
    my ($left) = $line =~ m{^GET /(\d+) } or exit;
    my $out = "HTTP/1.1 200 OK\r\nContent-Length: $left\r\n\r\n";
    if ($left <= 1024) { $out .= substr $block, 0, $left; $left = 0; }
    syswrite $c, $out or exit;
    while ($left > 0) { $left -= syswrite($c, $block, $left < length $block ? $left : length $block) || exit; }
  }
  exit;
}
"#;
const PORT: u16 = 8000;

/// For a server under emulation to be there, and for a download.
const PATIENCE: Duration = Duration::from_secs(120);

/// Bytes of a small answer.
const SMALL: u64 = 64;
/// Small requests of each round.
const REQUESTS: usize = 20;
/// Bytes of a download, and of one in a quick run.
const LARGE: u64 = 128 << 20;
const QUICK_LARGE: u64 = 32 << 20;
/// Downloads: they are long and vary little.
const DOWNLOADS: usize = 10;

/// Bytes of a flood that have passed before it counts as one.
const FLOODED: u64 = 8 << 20;

/// One way to the server. Connections are kept.
struct Way {
    http: Http,
    url: String,
    key: Option<String>,
}

impl Way {
    fn new(url: String, key: Option<&str>) -> Result<Self> {
        let http = Http::builder().no_proxy().build().context("making an HTTP client")?;
        Ok(Self { http, url, key: key.map(str::to_owned) })
    }

    fn request(&self, bytes: u64) -> RequestBuilder {
        let request = self.http.get(format!("{}{bytes}", self.url));
        self.key.iter().fold(request, |request, key| request.header("X-API-Key", key))
    }

    async fn get(&self, bytes: u64) -> Result<Duration> {
        let begun = Instant::now();
        let mut answer = self.request(bytes).send().await?.error_for_status()?;
        let mut got = 0;
        while let Some(chunk) = answer.chunk().await? {
            got += chunk.len() as u64;
        }
        ensure!(got == bytes, "{got} bytes of {bytes}");
        Ok(begun.elapsed())
    }

    /// Downloads without end, from when the flood is one.
    async fn flood(&self) -> Result<JoinHandle<()>> {
        let mut answer = self.request(u64::from(u32::MAX) << 16).send().await?.error_for_status()?;
        let mut flooded = 0;
        while flooded < FLOODED {
            flooded += answer.chunk().await?.context("the flood has ended")?.len() as u64;
        }
        Ok(tokio::spawn(async move { while let Ok(Some(_)) = answer.chunk().await {} }))
    }
}

/// The same server in both ways.
struct Ways {
    direct: Way,
    proxied: Way,
}

impl Ways {
    async fn open(stack: &Stack, capsule: &str) -> Result<Self> {
        let client = stack.client();
        client.start(Exec::argv(capsule, &["perl", "-e", SERVER, &PORT.to_string()])).await?;
        let record = CapsuleRecord::read(&stack.host_of(capsule)?.record_path(capsule))?;
        let ways = Self {
            direct: Way::new(format!("http://{}:{PORT}/", record.guest_address()), None)?,
            proxied: Way::new(client.port_url(capsule, PORT, "/"), client.key())?,
        };
        for way in [&ways.direct, &ways.proxied] {
            wait::until("the server in the guest", PATIENCE, async || way.get(SMALL).await.map(Some)).await?;
        }
        Ok(ways)
    }

    /// Both, taking turns in who begins.
    fn in_turn(&self, round: usize) -> [&Way; 2] {
        let [first, second] = [&self.direct, &self.proxied];
        if round.is_multiple_of(2) { [first, second] } else { [second, first] }
    }

    fn is_direct(&self, way: &Way) -> bool {
        std::ptr::eq(way, &self.direct)
    }
}

pub async fn measure(stack: &Stack, samples: usize, quick: bool) -> Result<Vec<Row>> {
    let client = stack.client();
    let (id, loud) = (client.create(json!({})).await?.id, client.create(json!({})).await?.id);
    let ways = Ways::open(stack, &loud).await?;
    let mut rows = http(&ways, samples, quick).await?;
    rows.extend(terminal(stack, &id, &ways, samples).await?);
    client.destroy(&id).await?;
    client.destroy(&loud).await?;
    Ok(rows)
}

async fn http(ways: &Ways, samples: usize, quick: bool) -> Result<Vec<Row>> {
    let guest = "the guest's address, from the host";
    let mut latency = Row::new("proxied `GET` of 64 bytes on a kept connection", guest, Promise::Plus(1.0));
    let mut rate = Row::of_rates("proxied download", guest, Promise::Share(0.9));
    let bytes = if quick { QUICK_LARGE } else { LARGE };
    for round in 0..samples {
        eprint!("\rround {} of {samples}", round + 1);
        for request in 0..REQUESTS {
            for way in ways.in_turn(request) {
                let row = if ways.is_direct(way) { &mut latency.baseline } else { &mut latency.wrenn };
                row.push(way.get(SMALL).await?);
            }
        }
        for way in ways.in_turn(round).into_iter().filter(|_| round < DOWNLOADS) {
            let row = if ways.is_direct(way) { &mut rate.baseline } else { &mut rate.wrenn };
            row.push_rate(bytes, way.get(bytes).await?);
        }
    }
    eprintln!();
    Ok(vec![latency, rate])
}

/// Keystrokes in one capsule, while another one's port is downloaded from in either way.
async fn terminal(stack: &Stack, id: &str, loud: &Ways, samples: usize) -> Result<Vec<Row>> {
    let (alone, direct) = ("without the flood", "beside the same flood from the guest's address");
    let mut echo = Row::new("echo of a keystroke beside a proxied flood", alone, Promise::Times(2.0));
    let mut tail = Row::new("p99 of that echo", alone, Promise::None);
    let mut machine = Row::new("that echo, for what the machine has left", direct, Promise::None);
    for round in 0..samples {
        eprint!("\rround {} of {samples}", round + 1);
        let mut terminal = Terminal::open(stack, id).await?;
        let mut quiet = echoes(&mut terminal, None).await?;
        let past = echoes(&mut terminal, Some(&loud.direct)).await?;
        let mut beside = echoes(&mut terminal, Some(&loud.proxied)).await?;
        quiet.iter().for_each(|took| echo.baseline.push(*took));
        past.iter().for_each(|took| machine.baseline.push(*took));
        for took in &beside {
            echo.wrenn.push(*took);
            machine.wrenn.push(*took);
        }
        tail.baseline.push(p99(&mut quiet)?);
        tail.wrenn.push(p99(&mut beside)?);
    }
    eprintln!();
    Ok(vec![echo, tail, machine])
}

async fn echoes(terminal: &mut Terminal, beside: Option<&Way>) -> Result<Vec<Duration>> {
    let flood = match beside {
        Some(way) => Some(way.flood().await?),
        None => None,
    };
    let mut echoes = Vec::new();
    for _ in 0..KEYSTROKES {
        echoes.push(terminal.echo(b"x").await?);
    }
    if let Some(flood) = flood {
        ensure!(!flood.is_finished(), "the flood ended before the echoes");
        flood.abort();
    }
    Ok(echoes)
}

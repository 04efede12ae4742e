//! What the daemon takes of a guest, as the program itself in a process of its own: memory after much of everything, and
//! time when there is nothing to do.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use wrenn_envd::output::budget::{LEAST, LIMIT};
use wrenn_envd::ports::GUEST_ADDRESS;
use wrenn_proto::envd::v1 as pb;
use wrenn_proto::envd::v1::process_event::Event;

use crate::files::room;
use crate::output::read_counted;
use crate::ports::in_own_network;
use crate::stand::{Client, Counted, DEADLINE, configuration, from_stdout, shell, until, with_token};

/// What the daemon promises, in KiB, less the size of the guest's own build of it: this one's is many times larger.
const PROMISE: u64 = (15 - 3) * 1024;
const MIB: usize = 1 << 20;

/// The program; ended when dropped.
struct Envd {
    process: Child,
    address: SocketAddr,
}

impl Envd {
    fn start() -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_wrenn-envd"))
            .args(["--listen", "127.0.0.1:0", "--peer", "127.0.0.1"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let mut line = String::new();
        BufReader::new(process.stdout.take().expect("a pipe")).read_line(&mut line).expect("a line");
        let address =
            line.trim().strip_prefix("listening on ").expect("an address").parse().expect("an address");
        Self { process, address }
    }

    /// A row of its `/proc/PID/status`, in KiB.
    fn occupies(&self, row: &str) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/status", self.process.id())).expect("it lives");
        let value = text.lines().find_map(|it| it.strip_prefix(row)).expect("a row");
        value.split_whitespace().next().expect("a number").parse().expect("a number")
    }
}

impl Envd {
    /// How often one of its threads was given a processor because something had happened.
    fn wake_ups(&self) -> u64 {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.process.id())).expect("it lives");
        let of_each = tasks.map(|task| {
            let text = fs::read_to_string(task.expect("a thread").path().join("status")).unwrap_or_default();
            let count = text.lines().find_map(|it| it.strip_prefix("voluntary_ctxt_switches:"));
            count.map_or(0, |it| it.trim().parse().expect("a number"))
        });
        of_each.sum::<u64>()
    }
}

impl Drop for Envd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

async fn write(client: &mut Client, path: &Path, bytes: usize) {
    let start = pb::WriteStart { path: path.to_str().expect("text").into(), ..Default::default() };
    client.write_file(start, &vec![7; bytes]).await.expect("write");
}

async fn read(client: &mut Client, path: &Path) -> usize {
    let request = pb::ReadRequest { path: path.to_str().expect("text").into(), ..Default::default() };
    client.cat(request).await.expect("read").1.len()
}

#[test]
fn an_idle_guest_is_woken_once_a_second_at_most() {
    in_own_network(async || {
        const WATCHED: Duration = Duration::from_secs(10);
        let envd = Envd::start();
        let mut client = Client::connect(envd.address);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let before = envd.wake_ups();
        tokio::time::sleep(WATCHED).await;
        assert_eq!(envd.wake_ups(), before, "nobody has told it anything yet");

        client.guest.configure(with_token(configuration())).await.expect("configure");
        let told = client.exec(shell("echo one that was there")).await.expect("exec").rest().await;
        assert_eq!(told.code(), Some(0));
        tokio::time::sleep(Duration::from_secs(3)).await;
        let before = envd.wake_ups();
        tokio::time::sleep(WATCHED).await;
        let woken = envd.wake_ups() - before;
        // One period may begin before and end after.
        assert!((1..=WATCHED.as_secs() + 1).contains(&woken), "woken {woken} times in {WATCHED:?}");
    });
}

#[test]
fn it_stays_small_whatever_it_has_done() {
    in_own_network(async || {
        let envd = Envd::start();
        let mut client = Client::connect(envd.address);
        client.guest.configure(with_token(configuration())).await.expect("configure");
        let stage = |after: &str| {
            let [all, own, most] = ["VmRSS:", "RssAnon:", "VmHWM:"].map(|it| envd.occupies(it));
            println!("after {after}: {own} KiB of its own, {all} KiB in all, {most} KiB at most");
            own
        };
        stage("its start");
        let room = room();

        for _ in 0..20 {
            // What is remembered of more than this has a bound of its own, which is the table's.
            let told = client.exec(shell("head -c 100000 /dev/zero")).await.expect("exec").rest().await;
            assert_eq!(told.stdout.len(), 100_000);
        }
        stage("programs");
        // More than leave a trail.
        let first = client.start(shell("true")).await.expect("start").pid;
        for _ in 0..44 {
            let mut others = vec![client.clone(); 25];
            let execs =
                others.iter_mut().map(async |it| it.exec(shell("true")).await.expect("exec").rest().await);
            futures_util::future::join_all(execs).await;
        }
        let refused = client.follow(first, from_stdout(0)).await.err().expect("forgotten");
        assert_eq!(refused.code(), tonic::Code::NotFound);
        stage("many programs");
        let file = room.path().join("file");
        for _ in 0..3 {
            let mut others = [client.clone(), client.clone(), client.clone(), client.clone()];
            futures_util::future::join_all(others.iter_mut().enumerate().map(|(index, it)| {
                let path = room.path().join(format!("file{index}"));
                async move { write(it, &path, 8 * MIB).await }
            }))
            .await;
            write(&mut client, &file, 8 * MIB).await;
            let read = futures_util::future::join_all(others.iter_mut().map(|it| read(it, &file))).await;
            assert_eq!(read, [8 * MIB; 4]);
        }
        stage("reads and writes");
        let many = room.path().join("many");
        for number in 0..2000 {
            fs::create_dir_all(many.join(format!("{number}/below"))).expect("mkdir");
        }
        let path = room.path().to_str().expect("text").to_owned();
        let request = pb::WatchRequest { path: path.clone(), recursive: true, ..Default::default() };
        let mut watch = client.files.watch(with_token(request)).await.expect("watch").into_inner();
        let ready = timeout(DEADLINE, watch.message()).await.expect("in time");
        ready.expect("ready").expect("ready");
        stage("watching 4000 directories");
        for _ in 0..5 {
            let request = pb::ListDirectoryRequest { path: path.clone(), depth: 16, ..Default::default() };
            let listing = client.files.list_directory(with_token(request)).await.expect("list").into_inner();
            // Five files, and the directory with all that is in it.
            assert_eq!(listing.entries.len(), 6);
        }
        stage("listings");
        let listener = TcpListener::bind("127.0.0.1:2001").await.expect("a free port");
        let outside = SocketAddr::from((GUEST_ADDRESS, 2001));
        let mut connections =
            vec![until("there is a relay", async || TcpStream::connect(outside).await.ok()).await];
        for _ in 0..100 {
            let begun = timeout(DEADLINE, TcpStream::connect(outside)).await.expect("in time");
            let accepted = timeout(DEADLINE, listener.accept()).await.expect("in time");
            connections.extend([begun.expect("connect"), accepted.expect("accept").0]);
        }

        stage("a hundred connections through a relay");
        let crowd = crowd(&mut client).await;
        let own = stage("the output of a crowd");
        assert!(own < PROMISE, "{own} KiB of {PROMISE}");
        for pid in crowd {
            client.signal(pid, "SIGKILL").await.expect("kill");
        }
        drop((watch, connections));
    });
}

/// Bytes that each of a crowd writes.
const EACH: u64 = 4 << 20;

/// Starts many processes that write much and then sleep, with nobody to read it.
async fn crowd(client: &mut Client) -> Vec<u32> {
    let line = format!("{} | head -c {EACH}; exec sleep 100", Counted::line(1_000_001));
    let mut pids = Vec::new();
    for _ in 0..40 {
        pids.push(client.start(shell(&line)).await.expect("start").pid);
    }
    for pid in &pids {
        let name = format!("/proc/{pid}/comm");
        until("it sleeps", async || (fs::read_to_string(&name).ok()? == "sleep\n").then_some(())).await;
    }
    pids
}

/// How much is held of the output of one of the crowd, every byte checked.
async fn tail(client: &mut Client, pid: u32) -> usize {
    let mut reader = client.follow(pid, from_stdout(0)).await.expect("follow");
    reader.started().await;
    let Some(Event::Gap(gap)) = reader.next().await.expect("event") else { panic!("nothing is lost") };
    assert_eq!(gap.from, 0);
    let mut offset = gap.to;
    while offset < EACH {
        let Some(Event::Output(output)) = reader.next().await.expect("event") else { panic!("no output") };
        assert_eq!(output.sequence, offset);
        Counted::check(offset, &output.data);
        offset += output.data.len() as u64;
    }
    (EACH - gap.to) as usize
}

#[tokio::test]
async fn a_crowd_shares_what_is_kept_and_who_is_read_misses_nothing() {
    let envd = Envd::start();
    let mut client = Client::connect(envd.address);
    client.guest.configure(with_token(configuration())).await.expect("configure");
    let mut others = [client.clone(), client.clone(), client.clone(), client.clone()];
    let floods = others.iter_mut().map(|it| async {
        let mut reader = it.exec(shell(&Counted::line(2 << 20))).await.expect("exec");
        read_counted(&mut reader, 0).await
    });
    let (pids, read) = tokio::join!(crowd(&mut client), futures_util::future::join_all(floods));
    assert_eq!(read, [(2 << 20) * Counted::LINE; 4]);

    let mut kept = Vec::new();
    for pid in pids {
        kept.push(tail(&mut client, pid).await);
        client.signal(pid, "SIGKILL").await.expect("kill");
    }
    assert!(kept.iter().all(|it| *it >= LEAST) && kept.iter().sum::<usize>() <= LIMIT, "{kept:?}");
}

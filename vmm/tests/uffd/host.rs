//! A page server and a guest, each in its process.

use std::{
    fs::File,
    io::{self, BufRead as _, BufReader, Write as _},
    path::PathBuf,
    process::{Child, Command, ExitCode, Stdio},
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;
use wrenn_vmm::{
    memory::{BlockAt, Generations},
    uffd::{
        MemorySource, PageServer, PageServerConfig, PageServerFailure, PageServerHandle, PageServerRecord,
        PageSource, Stats,
    },
};

use super::region::{is_hole, memory_file, scramble};

pub const SERVER: &str = "page-server";
pub const GUEST: &str = "guest";
/// Whatever is waited for comes within this time, or never.
pub const DEADLINE: Duration = Duration::from_secs(60);
/// 16 MiB.
pub const PAGES: u64 = 4096;

/// The page server's process: how it reads, and its configuration.
pub fn serve(arguments: &[String]) -> ExitCode {
    let [how, config] = arguments else { panic!("{arguments:?}") };
    let result = if how == "well" {
        wrenn_vmm::uffd::run(config)
    } else {
        let config: PageServerConfig = serde_json::from_str(config).unwrap();
        let source = Strange { memory: config.memory.open().unwrap(), how: how.clone() };
        PageServer::bind_with(config, Arc::new(source)).and_then(|server| {
            println!("listening");
            if how == "later" {
                signal(std::process::id().cast_signed(), Signal::SIGSTOP);
            }
            server.serve()
        })
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:?}");
            ExitCode::FAILURE
        }
    }
}

/// A disk of which the second half is slow, hangs, or is broken.
struct Strange {
    memory: Generations,
    how: String,
}

impl PageSource for Strange {
    fn blocks(&self) -> u64 {
        self.memory.blocks()
    }

    fn block(&self, index: u64) -> BlockAt {
        self.memory.block(index)
    }

    fn read(&self, first: u64, count: u64, into: &mut [u8]) -> io::Result<()> {
        PageSource::read(&self.memory, first, count, into)?;
        match &self.how[..] {
            // Long enough for pages to be given back meanwhile.
            "slowly" => thread::sleep(Duration::from_micros(scramble(first) % 300)),
            "never" if first >= self.blocks() / 2 => loop {
                thread::park();
            },
            "badly" if first >= self.blocks() / 2 => return Err(io::Error::other("the disk is broken")),
            _ => {}
        }
        Ok(())
    }
}

/// A directory with a snapshot's memory, and what is told to servers of it.
pub struct Host {
    pub directory: TempDir,
    pub config: PageServerConfig,
    pub how: &'static str,
}

impl Host {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        memory_file(&at("memory"), PAGES, is_hole);
        let config = PageServerConfig {
            socket: at("vmm.sock"),
            control: at("control.sock"),
            memory: MemorySource::Flat { file: at("memory") },
            prefetch: None,
            record: None,
            user: None,
            accept_within: DEADLINE,
            record_for: DEADLINE * 60,
            workers: 4,
        };
        Self { directory, config, how: "well" }
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub async fn server(&self) -> Result<Server, PageServerFailure> {
        let program = std::env::current_exe().unwrap();
        let log = self.at("log");
        let arguments = [SERVER.into(), self.how.into()];
        let log = File::options().create(true).append(true).open(log).unwrap();
        PageServerHandle::spawn(&program, &arguments, &self.config, log)
            .await
            .map(|handle| Server(Some(handle)))
    }

    pub fn guest(&self, kind: &str) -> Guest {
        self.guest_of(kind, PAGES)
    }

    pub fn guest_of(&self, kind: &str, pages: u64) -> Guest {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.arg(GUEST).arg(&self.config.socket).args([&pages.to_string(), kind]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (sender, answers) = mpsc::channel();
        thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| sender.send(line)));
        let guest = Guest { child, answers };
        assert_eq!(guest.answer(), "connected");
        guest
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.at("log")).unwrap()
    }
}

/// Ends with this value, also when a test fails.
pub struct Server(Option<PageServerHandle>);

impl Server {
    pub fn adopt(record: &PageServerRecord) -> Self {
        Self(Some(PageServerHandle::adopt(record).unwrap()))
    }

    pub async fn stats(&self) -> Stats {
        ask(async || self.handle().stats(DEADLINE).await).await.unwrap()
    }

    pub async fn ready(&self) -> Result<u64, PageServerFailure> {
        ask(async || self.handle().ready().await).await
    }

    /// Waits until the counts are as expected.
    pub async fn until(&self, what: impl Fn(&Stats) -> bool) -> Stats {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let stats = self.stats().await;
            if what(&stats) {
                return stats;
            }
            assert!(Instant::now() < deadline, "still {stats:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// A stop takes effect on one thread after the other; until it has on all, one may still answer.
    pub fn until_stopped(&self) {
        let tasks = format!("/proc/{}/task", self.handle().process().identity().pid);
        let stopped = |task: io::Result<std::fs::DirEntry>| {
            let stat = std::fs::read_to_string(task.unwrap().path().join("stat")).unwrap();
            stat.rsplit_once(") ").unwrap().1.starts_with('T')
        };
        let deadline = Instant::now() + DEADLINE;
        while !std::fs::read_dir(&tasks).unwrap().all(stopped) {
            assert!(Instant::now() < deadline, "it does not stop");
            thread::sleep(Duration::from_millis(1));
        }
    }

    pub fn handle(&self) -> &PageServerHandle {
        self.0.as_ref().unwrap()
    }

    pub async fn end(mut self) {
        self.0.take().unwrap().end().await.unwrap();
    }
}

/// On a busy machine the server hangs up on a caller that is late with its question: it is asked again.
async fn ask<T>(question: impl AsyncFn() -> Result<T, PageServerFailure>) -> Result<T, PageServerFailure> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        match question().await {
            Err(PageServerFailure::Silent(_)) if Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            answer => return answer,
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(handle) = &self.0
            && handle.process().has_exited().is_none()
        {
            // It may just be ending with its guest.
            let _ = kill(Pid::from_raw(handle.process().identity().pid), Signal::SIGKILL);
        }
    }
}

pub fn signal(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap();
}

/// Ends with this value.
pub struct Guest {
    child: Child,
    answers: mpsc::Receiver<String>,
}

impl Guest {
    pub fn tell(&mut self, line: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    pub fn answer(&self) -> String {
        self.answers.recv_timeout(DEADLINE).expect("the guest says nothing")
    }

    /// Has it do something that must be found right.
    pub fn does(&mut self, line: &str) {
        self.tell(line);
        assert_eq!(self.answer(), "right", "{line}");
    }

    pub fn has_answered(&self) -> bool {
        self.answers.try_recv().is_ok()
    }

    /// Waits until it sleeps for a page.
    pub fn until_asleep(&self) {
        let path = format!("/proc/{}/wchan", self.child.id());
        let deadline = Instant::now() + DEADLINE;
        while std::fs::read_to_string(&path).unwrap() != "handle_userfault" {
            assert!(Instant::now() < deadline, "it does not sleep for a page");
            thread::sleep(Duration::from_millis(1));
        }
    }

    pub fn end(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.end();
    }
}

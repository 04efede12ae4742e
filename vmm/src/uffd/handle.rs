//! A page server as the program that drives the VMM sees it. Killing the VMM and restoring again when the
//! server fails is that program's business: this notices it.

use std::{
    ffi::OsString,
    fs::File,
    io,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixStream, unix::pipe},
    time::{Instant, sleep, timeout},
};

use super::{
    config::PageServerConfig,
    control::{self, Answer, LONGEST_LINE, Request, Stats},
    serve::{FAILED, LISTENING},
};
use crate::{
    failure::{Doing as _, Failure, Failures, Teardown},
    process::{ProcessError, ProcessExit, ProcessIdentity, VmmProcess},
};

/// A server opens its files and sockets before it says that it is there; no more than that.
const START: Duration = Duration::from_secs(10);
/// Recording a working set is one sync of a small file, on a disk that may be busy.
const RECORDING: Duration = Duration::from_secs(30);

#[derive(Debug, thiserror::Error)]
pub enum PageServerFailure {
    #[error("the page server did not start: {0}")]
    Start(String),
    #[error("the page server gives no answer")]
    Silent(#[source] io::Error),
    #[error("the page server refused: {0}")]
    Refused(String),
    #[error(transparent)]
    Process(#[from] ProcessError),
    #[error(transparent)]
    Io(#[from] Failure),
}

/// Why a VMM hangs, or will.
#[derive(Debug)]
pub enum Trouble {
    /// The process is no longer there. That is how it should be only if the VMM has ended.
    Exited(ProcessExit),
    /// It does not answer, or has been at one fault for too long.
    Hangs(String),
}

/// Enough to take a server up in another life of the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageServerRecord {
    pub process: ProcessIdentity,
    pub socket: PathBuf,
    pub control: PathBuf,
}

/// A process that has not said yet that it is there; it ends with this value.
struct Starting(Option<Child>);

impl Starting {
    /// The first line it says.
    async fn announcement(&mut self) -> io::Result<String> {
        let output =
            self.0.as_mut().and_then(|child| child.stdout.take()).ok_or(io::ErrorKind::BrokenPipe)?;
        let output = pipe::Receiver::from_owned_fd(output.into())?;
        let mut line = String::new();
        BufReader::new(output.take(LONGEST_LINE)).read_line(&mut line).await?;
        Ok(line)
    }

    /// From here on it lives on its own, and its watch reaps it.
    fn take_charge(mut self) -> Result<VmmProcess, PageServerFailure> {
        let pid = self.0.as_ref().map_or(0, Child::id);
        let process = VmmProcess::of_child(pid.cast_signed());
        if let Err(ProcessError::Gone(_)) = process
            && let Some(Ok(status)) = self.0.as_mut().map(Child::wait)
        {
            let why = format!("it ended as soon as it was there ({status}); maybe its log says why");
            return Err(PageServerFailure::Start(why));
        }
        let process = process?;
        self.0 = None;
        Ok(process)
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0
            && let Err(error) = child.kill().and_then(|()| child.wait())
        {
            tracing::warn!(pid = child.id(), %error, "ending a page server that did not start");
        }
    }
}

/// A page server's process. Dropping this leaves it running, as it must be when the agent ends.
#[derive(Clone, Debug)]
pub struct PageServerHandle {
    process: VmmProcess,
    socket: PathBuf,
    control: PathBuf,
}

impl PageServerHandle {
    /// Starts `program`, which must call [`super::run`] with the last of its arguments; `arguments` come
    /// before that. Answers when the VMM may connect. What it logs goes to `log`. A future that is dropped
    /// leaves no process.
    pub async fn spawn(
        program: &Path,
        arguments: &[OsString],
        config: &PageServerConfig,
        log: File,
    ) -> Result<Self, PageServerFailure> {
        let doing = || format!("starting a page server by {}", program.display());
        let json = serde_json::to_string(config).doing(doing)?;
        let mut command = Command::new(program);
        // What it inherits is for the VMM's user to read.
        command.env_clear();
        command.args(arguments).arg(json).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        // A signal from the agent's terminal is not meant for it.
        command.process_group(0);
        let mut starting = Starting(Some(command.spawn().doing(doing)?));
        let line = timeout(START, starting.announcement()).await.doing(doing)?.doing(doing)?;
        match line.trim_end() {
            LISTENING => {
                let process = starting.take_charge()?;
                Ok(Self { process, socket: config.socket.clone(), control: config.control.clone() })
            }
            "" => Err(PageServerFailure::Start("it ended and said nothing, but maybe in its log".to_owned())),
            line => Err(PageServerFailure::Start(line.strip_prefix(FAILED).unwrap_or(line).to_owned())),
        }
    }

    pub fn record(&self) -> PageServerRecord {
        let process = self.process.identity().clone();
        PageServerRecord { process, socket: self.socket.clone(), control: self.control.clone() }
    }

    /// Takes up a server that an earlier life of this program started.
    pub fn adopt(record: &PageServerRecord) -> Result<Self, ProcessError> {
        let process = VmmProcess::adopt(&record.process)?;
        Ok(Self { process, socket: record.socket.clone(), control: record.control.clone() })
    }

    pub fn process(&self) -> &VmmProcess {
        &self.process
    }

    /// Tells it that the restore is complete: what that needed is recorded now, and so many pages are on disk
    /// when this answers. Again is fine.
    pub async fn ready(&self) -> Result<u64, PageServerFailure> {
        match self.ask(&Request::Ready, RECORDING).await? {
            Answer::Recorded(pages) => Ok(pages),
            Answer::Failed(why) => Err(PageServerFailure::Refused(why)),
            Answer::Stats(_) => Err(nonsense()),
        }
    }

    /// Fails if there is no answer within `patience`.
    pub async fn stats(&self, patience: Duration) -> Result<Stats, PageServerFailure> {
        match self.ask(&Request::Stats, patience).await? {
            Answer::Stats(stats) => Ok(stats),
            Answer::Failed(why) => Err(PageServerFailure::Refused(why)),
            Answer::Recorded(_) => Err(nonsense()),
        }
    }

    /// Waits for the end of the process.
    pub async fn exited(&self) -> ProcessExit {
        self.process.exited().await
    }

    /// Answers when something is wrong: the process ended, gave no answer for as long as `patience`, or one of
    /// its threads has been at one thing for longer than that. Asks four times in that time; while a restore is
    /// under way a few seconds are right, afterwards more.
    pub async fn trouble(&self, patience: Duration) -> Trouble {
        let watch = async {
            let mut failing_since = None;
            loop {
                match self.stats(patience).await {
                    Ok(stats) if u128::from(stats.busy_ms) > patience.as_millis() => {
                        return format!("a thread has been at one thing for {} ms", stats.busy_ms);
                    }
                    Ok(_) => failing_since = None,
                    Err(PageServerFailure::Silent(error)) if error.kind() == io::ErrorKind::TimedOut => {
                        return format!("it has given no answer for {} ms", patience.as_millis());
                    }
                    // On a busy machine the server takes a caller that is late with its question for one that has none.
                    // Also its socket is closed a moment before its end can be seen.
                    Err(error) => {
                        let since = failing_since.get_or_insert_with(Instant::now);
                        if since.elapsed() >= patience {
                            return failed(&error);
                        }
                    }
                }
                sleep(patience / 4).await;
            }
        };
        tokio::select! {
            // The end of the process explains why it gives no answer.
            biased;
            exit = self.exited() => Trouble::Exited(exit),
            why = watch => Trouble::Hangs(why),
        }
    }

    /// Kills it and removes its sockets. A VMM it was serving hangs from then on: end that first. Fine if
    /// it has ended already.
    pub async fn end(self) -> Result<(), Failures> {
        let mut teardown = Teardown::default();
        if let Err(error) = self.process.kill().await {
            teardown.failed(Failure::new("ending a page server", io::Error::other(error)));
        }
        for path in [&self.socket, &self.control] {
            teardown.step(|| format!("removing {}", path.display()), std::fs::remove_file(path));
        }
        teardown.finish()
    }

    async fn ask(&self, request: &Request, patience: Duration) -> Result<Answer, PageServerFailure> {
        let exchange = async {
            let mut stream = UnixStream::connect(&self.control).await?;
            stream.write_all(control::line(request)?.as_bytes()).await?;
            let mut line = String::new();
            BufReader::new(stream.take(LONGEST_LINE)).read_line(&mut line).await?;
            control::parse(&line)
        };
        let answer = timeout(patience, exchange).await;
        answer.unwrap_or(Err(io::ErrorKind::TimedOut.into())).map_err(PageServerFailure::Silent)
    }
}

fn failed(error: &PageServerFailure) -> String {
    match error {
        PageServerFailure::Silent(cause) => format!("{error}: {cause}"),
        error => error.to_string(),
    }
}

fn nonsense() -> PageServerFailure {
    PageServerFailure::Silent(io::Error::other("it answered another question"))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

    use tokio::net::UnixListener;

    use super::*;
    use crate::uffd::MemorySource;

    const PATIENCE: Duration = Duration::from_millis(400);

    /// A process that is not asked anything, and a socket at which somebody else answers for it.
    struct Stage {
        handle: PageServerHandle,
        socket: UnixListener,
        _directory: tempfile::TempDir,
    }

    impl Stage {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let control = directory.path().join("control");
            let pid = Command::new("sleep").arg("600").spawn().unwrap().id();
            let process = VmmProcess::of_child(pid.cast_signed()).unwrap();
            let socket = UnixListener::bind(&control).unwrap();
            let handle = PageServerHandle { process, socket: directory.path().join("pages"), control };
            Self { handle, socket, _directory: directory }
        }

        async fn end(self) {
            self.handle.process.kill().await.unwrap();
        }
    }

    async fn answer(stream: UnixStream) {
        let mut stream = BufReader::new(stream);
        // What is closed before it was read loses the answer, too.
        stream.read_line(&mut String::new()).await.unwrap();
        let answer = control::line(&Answer::Stats(Stats::default())).unwrap();
        stream.write_all(answer.as_bytes()).await.unwrap();
    }

    #[tokio::test]
    async fn one_that_ends_as_soon_as_it_is_there_is_said_to() {
        let config = PageServerConfig {
            socket: "/nowhere/vmm.sock".into(),
            control: "/nowhere/control.sock".into(),
            memory: MemorySource::Flat { file: "/nowhere/memory".into() },
            prefetch: None,
            record: None,
            user: None,
            accept_within: PATIENCE,
            record_for: PATIENCE,
            workers: 1,
        };
        // The line is whole only when the process has ended.
        let arguments = ["-c".into(), format!("printf {LISTENING}; exit 3").into()];
        let log = tempfile::tempfile().unwrap();
        let started = PageServerHandle::spawn(Path::new("/bin/sh"), &arguments, &config, log).await;
        let error = started.unwrap_err().to_string();
        assert!(error.contains("as soon as it was there (exit status: 3)"), "{error}");
    }

    #[tokio::test]
    async fn a_question_that_came_to_nothing_is_asked_again() {
        let stage = Stage::new();
        let answered = AtomicU32::new(0);
        let server = async {
            while answered.load(Relaxed) < 5 {
                drop(stage.socket.accept().await.unwrap());
                let (stream, _) = stage.socket.accept().await.unwrap();
                answer(stream).await;
                answered.fetch_add(1, Relaxed);
            }
        };
        tokio::select! {
            biased;
            () = server => {}
            trouble = stage.handle.trouble(PATIENCE) => panic!("{trouble:?}"),
        }
        stage.end().await;
    }

    #[tokio::test]
    async fn one_that_never_answers_is_in_trouble() {
        let stage = Stage::new();
        let deaf = async {
            loop {
                drop(stage.socket.accept().await.unwrap());
            }
        };
        let trouble = tokio::select! {
            trouble = stage.handle.trouble(PATIENCE) => trouble,
            () = deaf => unreachable!(),
        };
        assert!(matches!(&trouble, Trouble::Hangs(why) if why.contains("gives no answer: ")), "{trouble:?}");
        let silent = stage.handle.trouble(PATIENCE).await;
        assert!(matches!(&silent, Trouble::Hangs(why) if why.contains("400 ms")), "{silent:?}");
        stage.handle.process.kill().await.unwrap();
        let ended = stage.handle.trouble(PATIENCE).await;
        assert!(matches!(ended, Trouble::Exited(ProcessExit::Signal(9))), "{ended:?}");
        stage.end().await;
    }
}

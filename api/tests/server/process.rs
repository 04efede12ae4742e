//! The binary, as it is started by hand and by service managers.

use std::{
    path::Path,
    process::{Output, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStderr, Command},
    time::timeout,
};

use crate::harness::{DEADLINE, VIEWER};

fn wrenn_api(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wrenn-api"));
    command.env_clear().env("WRENN_DIR", dir).env("WRENN_API_LISTEN", "127.0.0.1:0").kill_on_drop(true);
    command
}

async fn output(command: &mut Command) -> Output {
    timeout(DEADLINE, command.output()).await.expect("it does not end").unwrap()
}

struct Serving {
    child: Child,
    stderr: Lines<BufReader<ChildStderr>>,
    url: String,
}

impl Serving {
    async fn start(dir: &Path) -> Self {
        Self::of(&mut wrenn_api(dir)).await
    }

    async fn of(program: &mut Command) -> Self {
        let mut child = program.stderr(Stdio::piped()).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut serving = Self { child, stderr, url: String::new() };
        let line = serving.logged("listening").await;
        let address = line.split_once("address=").unwrap().1.split(' ').next().unwrap();
        serving.url = format!("http://{address}");
        serving
    }

    /// Waits for a line of the log.
    async fn logged(&mut self, what: &str) -> String {
        loop {
            let line = timeout(DEADLINE, self.stderr.next_line()).await.expect("it says nothing").unwrap();
            let line = line.unwrap_or_else(|| panic!("it ended before it said {what}"));
            if line.contains(what) {
                return line;
            }
        }
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id().expect("it runs")).unwrap();
        kill(Pid::from_raw(pid), signal).unwrap();
    }

    async fn viewer(&self, key: &str) -> Value {
        let request = reqwest::Client::new().post(format!("{}/graphql", self.url)).header("x-api-key", key);
        request.json(&json!({ "query": VIEWER })).send().await.unwrap().json().await.unwrap()
    }
}

async fn bootstrap(dir: &Path) -> Value {
    let output = output(wrenn_api(dir).args(["bootstrap", "--key-name", "make-up"])).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert_eq!(stdout.lines().count(), 1, "{stdout}");
    serde_json::from_str(&stdout).unwrap()
}

#[tokio::test]
async fn a_wrong_value_is_one_line_and_status_2() {
    let dir = TempDir::new().unwrap();
    for (name, value) in
        [("WRENN_API_LISTEN", "here"), ("WRENN_REDIS_URL", "http://x"), ("WRENN_CONFIG", "/none")]
    {
        let output = output(wrenn_api(dir.path()).env(name, value)).await;
        assert_eq!(output.status.code(), Some(2));
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        assert!(stderr.starts_with(&format!("wrenn-api: {name}: ")), "{stderr}");
    }
}

#[tokio::test]
async fn a_file_configures_and_the_environment_wins_over_it() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("wrenn.toml");
    std::fs::write(&file, "WRENN_LOG = 'loud'\n").unwrap();
    let from_file = output(wrenn_api(dir.path()).arg("migrate").env("WRENN_CONFIG", &file)).await;
    assert_eq!(from_file.status.code(), Some(2));
    let overridden =
        output(wrenn_api(dir.path()).arg("migrate").env("WRENN_CONFIG", &file).env("WRENN_LOG", "warn"))
            .await;
    assert!(overridden.status.success(), "{}", String::from_utf8_lossy(&overridden.stderr));
    assert!(dir.path().join("wrenn.db").exists());
}

#[tokio::test]
async fn help_lists_the_configuration_and_schema_prints_the_sdl() {
    let dir = TempDir::new().unwrap();
    let help = String::from_utf8(output(wrenn_api(dir.path()).arg("--help")).await.stdout).unwrap();
    for part in ["WRENN_API_LISTEN", "127.0.0.1:8080", "address and port to listen on", "bootstrap"] {
        assert!(help.contains(part), "{help}");
    }
    let sdl = output(wrenn_api(dir.path()).arg("schema")).await;
    assert_eq!(String::from_utf8(sdl.stdout).unwrap(), wrenn_schema::sdl());
}

#[tokio::test]
async fn a_port_that_is_taken_is_said() {
    let dir = TempDir::new().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = output(wrenn_api(dir.path()).env("WRENN_API_LISTEN", &address)).await;
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains(&format!("WRENN_API_LISTEN: cannot listen on {address}")), "{stderr}");
}

#[tokio::test]
async fn bootstrap_makes_keys_once_and_replaces_them_when_run_again() {
    let dir = TempDir::new().unwrap();
    let first = bootstrap(dir.path()).await;
    let second = bootstrap(dir.path()).await;
    assert_eq!(first["teamId"], second["teamId"]);
    let mut serving = Serving::start(dir.path()).await;
    let key = |keys: &Value, name: &str| keys[name].as_str().unwrap().to_owned();
    let team = |answer: &Value| answer["data"]["viewer"]["team"]["id"].as_str().map(str::to_owned);
    let team_id = second["teamId"].as_str().map(str::to_owned);
    assert_eq!(team(&serving.viewer(&key(&second, "apiKey")).await), team_id);
    let platform = team(&serving.viewer(&key(&second, "adminKey")).await);
    assert!(platform.is_some() && platform != team_id);
    for replaced in ["apiKey", "adminKey"] {
        let answer = serving.viewer(&key(&first, replaced)).await;
        assert_eq!(answer["errors"][0]["extensions"]["code"], "UNAUTHENTICATED", "{answer}");
    }
    serving.signal(Signal::SIGTERM);
    assert!(timeout(DEADLINE, serving.child.wait()).await.unwrap().unwrap().success());
}

#[tokio::test]
async fn it_takes_as_many_open_files_as_it_may_have() {
    let dir = TempDir::new().unwrap();
    let mut program = Command::new("sh");
    program.args(["-c", "ulimit -Sn 256 && exec \"$0\"", env!("CARGO_BIN_EXE_wrenn-api")]);
    program.env_clear().env("WRENN_DIR", dir.path()).env("WRENN_API_LISTEN", "127.0.0.1:0");
    let mut serving = Serving::of(program.kill_on_drop(true)).await;
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", serving.child.id().unwrap())).unwrap();
    let files = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    let [soft, hard] = [0, 1].map(|place| files.split_whitespace().nth(place).unwrap());
    assert_eq!(soft, hard);
    serving.signal(Signal::SIGTERM);
    assert!(timeout(DEADLINE, serving.child.wait()).await.unwrap().unwrap().success());
}

#[tokio::test]
async fn signals_reopen_the_log_and_end_the_process_in_order() {
    let dir = TempDir::new().unwrap();
    let mut serving = Serving::start(dir.path()).await;
    let log = dir.path().join("logs").join("api.log");
    std::fs::rename(&log, dir.path().join("rotated")).unwrap();
    serving.signal(Signal::SIGHUP);
    serving.logged("reopened the log file").await;
    serving.signal(Signal::SIGINT);
    serving.logged("stopped").await;
    assert!(timeout(DEADLINE, serving.child.wait()).await.unwrap().unwrap().success());
    let lines = std::fs::read_to_string(&log).unwrap();
    let last: Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
    assert_eq!(last["fields"]["message"], "stopped");
}

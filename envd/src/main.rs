//! `wrenn-envd`: reads its few settings, prepares its process, serves.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::net::TcpListener;
use wrenn_envd::daemon::{Config, Daemon};
use wrenn_envd::files::actor::WORKERS;
use wrenn_envd::system::ThisMachine;

/// One setting: flag, environment variable, default, meaning.
struct Setting {
    flag: &'static str,
    variable: &'static str,
    default: &'static str,
    meaning: &'static str,
}

const LISTEN: Setting = Setting {
    flag: "--listen",
    variable: "WRENN_ENVD_LISTEN",
    default: "0.0.0.0:49983",
    meaning: "address and port; port 0 takes a free one",
};
const PEER: Setting = Setting {
    flag: "--peer",
    variable: "WRENN_ENVD_PEER",
    default: "169.254.0.22",
    meaning: "the only address that may connect",
};
const RECONNECT_GRACE: Setting = Setting {
    flag: "--reconnect-grace-ms",
    variable: "WRENN_ENVD_RECONNECT_GRACE_MS",
    default: "30000",
    meaning: "how long a process waits for a reader that went away",
};
const TERMINAL_IDLE: Setting = Setting {
    flag: "--terminal-idle-ms",
    variable: "WRENN_ENVD_TERMINAL_IDLE_MS",
    default: "120000",
    meaning: "after how long without reader and output a terminal is hung up that asks for it",
};
const SETTINGS: [Setting; 4] = [LISTEN, PEER, RECONNECT_GRACE, TERMINAL_IDLE];

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|it| it == "--help") {
        print(&help());
        return Ok(());
    }
    for pair in arguments.chunks(2) {
        if !matches!(pair, [flag, _] if SETTINGS.iter().any(|it| it.flag == flag)) {
            bail!("unknown or incomplete argument `{}`; see --help", pair.first().map_or("", |it| it));
        }
    }
    let listen: SocketAddr = setting(&arguments, &LISTEN)?;
    let peer: IpAddr = setting(&arguments, &PEER)?;
    let grace: u64 = setting(&arguments, &RECONNECT_GRACE)?;
    let terminal_idle: u64 = setting(&arguments, &TERMINAL_IDLE)?;

    tame_process();
    let config = Config {
        peer,
        reconnect_grace: Duration::from_millis(grace),
        terminal_idle: Duration::from_millis(terminal_idle),
        expendable_children: protect_from_oom_killer(),
        accounts: PathBuf::from("/etc"),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        // Work on files, of which any may be held up for ever; and a sync, a disk that grows, a walk through
        // /proc, which must not be held up by it.
        .max_blocking_threads(WORKERS + 3)
        .thread_stack_size(128 * 1024)
        .thread_keep_alive(Duration::from_secs(1))
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(async {
        let listener =
            TcpListener::bind(listen).await.with_context(|| format!("cannot listen on {listen}"))?;
        if let Ok(address) = listener.local_addr() {
            print(&format!("listening on {address}\n"));
        }
        match Daemon::new(config, Arc::new(ThisMachine)).serve(listener).await {}
    })
}

/// The flag's value, else the variable's, else the default.
fn setting<T: std::str::FromStr>(arguments: &[String], setting: &Setting) -> anyhow::Result<T> {
    let given = arguments.chunks(2).rev().find_map(|pair| match pair {
        [flag, value] if flag == setting.flag => Some((setting.flag, value.clone())),
        _ => None,
    });
    let from_environment = || Some((setting.variable, std::env::var(setting.variable).ok()?));
    let (source, value) =
        given.or_else(from_environment).unwrap_or_else(|| (setting.flag, setting.default.to_owned()));
    match value.parse() {
        Ok(value) => Ok(value),
        Err(_) => bail!("{source}: `{value}` cannot be used ({})", setting.meaning),
    }
}

fn help() -> String {
    let mut text = String::from("wrenn-envd: the guest daemon of a Wrenn capsule\n\n");
    for Setting { flag, variable, default, meaning } in SETTINGS {
        let _ = writeln!(text, "  {flag:<22} {variable:<31} {meaning} [{default}]");
    }
    text
}

/// Unlike `print!`, does not end the process when the console is gone.
fn print(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

/// Takes back what the starter may have set and keeps memory small.
fn tame_process() {
    // SAFETY: neither call has preconditions. If SIGCHLD were ignored, exit codes would be lost.
    unsafe {
        libc::signal(libc::SIGCHLD, libc::SIG_DFL);
        // One heap for all threads; and large rings go back to the kernel when they are freed, but not what is
        // smaller, which would be asked for anew each time.
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 2 * wrenn_proto::PIECE as libc::c_int);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 8 * wrenn_proto::PIECE as libc::c_int);
    }
}

/// Whether it worked; on a host without the right to it, envd is as mortal as the rest.
fn protect_from_oom_killer() -> bool {
    std::fs::write("/proc/self/oom_score_adj", "-1000").is_ok()
}

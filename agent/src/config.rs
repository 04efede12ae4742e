//! Configuration: environment variables `WRENN_*`, and a TOML file with the same names that they override.
//!
//! [`SETTINGS`] is the one table of them: `--help` prints it, the loader reads by it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use figment::Figment;
use figment::providers::{Format, Serialized, Toml};
use figment::value::{Dict, Value};
use reqwest::Url;
use tracing_subscriber::EnvFilter;
use wrenn_vmm::disk::DiskStoreChoice;
use wrenn_vmm::driver::VmmChoice;
use wrenn_vmm::firecracker::RestoreChoice;
use wrenn_vmm::kvm::KvmPolicy;
use wrenn_vmm::network::SlotRange;
use wrenn_vmm::process::cgroup::CgroupOptions;

use crate::size::Size;

/// One variable.
pub struct Setting {
    pub name: &'static str,
    pub default: &'static str,
    pub meaning: &'static str,
}

const fn setting(name: &'static str, default: &'static str, meaning: &'static str) -> Setting {
    Setting { name, default, meaning }
}

/// Every variable the agent knows, in the order of `--help`.
pub const SETTINGS: &[Setting] = &[
    setting("WRENN_CONFIG", "", "TOML file with these same names; the environment wins"),
    setting("WRENN_DIR", "/var/lib/wrenn", "everything the agent keeps"),
    setting("WRENN_API_URL", "http://127.0.0.1:8080", "the control plane"),
    setting("WRENN_AGENT_LISTEN", "127.0.0.1:7070", "gRPC for the control plane, mutual TLS"),
    setting(
        "WRENN_AGENT_ADVERTISE",
        "",
        "address the control plane reaches that at; the listen address if empty",
    ),
    setting("WRENN_AGENT_HTTP_LISTEN", "127.0.0.1:7071", "plain HTTP: /health and /metrics"),
    setting("WRENN_SLOTS", "1-999", "network slots this agent may use, within 1-32767"),
    setting("WRENN_SLOT_POOL", "2", "network slots kept ready"),
    setting(
        "WRENN_DNS",
        "",
        "name servers of capsules, IPv4, by commas; if empty the host's, without its own addresses",
    ),
    setting(
        "WRENN_VMM",
        "auto",
        "auto (Firecracker where it is there and KVM is sound), qemu or firecracker",
    ),
    setting(
        "WRENN_FIRECRACKER_BIN",
        "",
        "a static firecracker, 1.13 or later; from the search path if empty",
    ),
    setting(
        "WRENN_RESTORE",
        "auto",
        "how Firecracker gets a snapshot's memory: uffd (page server), file (mapped) or auto",
    ),
    setting("WRENN_KVM", "auto", "auto (use it where it is sound), force or off"),
    setting("WRENN_DISK_STORE", "auto", "auto, reflink, dm-snapshot or copy"),
    setting(
        "WRENN_STORE_SIZE",
        "",
        "size of the XFS file made where the file system cannot reflink; 64Gi or what fits",
    ),
    setting("WRENN_DEFAULT_ROOTFS_SIZE", "5Gi", "disk of a capsule that asks for no size"),
    setting("WRENN_CGROUPS", "auto", "limits of capsules by cgroup v2: auto (as far as the host can) or off"),
    setting(
        "WRENN_CPUS_PER_VCPU",
        "1.5",
        "host CPUs a vCPU may use, the VMM's own work included; 0 for no bound",
    ),
    setting("WRENN_WARM_POOL", "0", "capsules kept ready of each template used lately"),
    setting(
        "WRENN_GOLDEN_BUDGET_MIB",
        "",
        "disk that golden snapshots may take; a quarter of the data file system if empty",
    ),
    setting("WRENN_GOLDEN_TIMEOUT", "120", "seconds a template may take to boot once"),
    setting(
        "WRENN_RECONNECT_GRACE",
        "10",
        "seconds a capsule may take to answer after a restore; an adopted one 60 times as long",
    ),
    setting("WRENN_ON_STOP", "keep", "capsules at SIGTERM: keep (leave them running) or pause"),
    setting("WRENN_LOG", "info", "log filter, as `info,wrenn_agent=debug`"),
];

/// What happens to running capsules when the agent is told to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnStop {
    Keep,
    Pause,
}

#[derive(Debug, Clone)]
pub struct Config {
    pub dir: PathBuf,
    pub api_url: Url,
    pub listen: SocketAddr,
    /// `host:port`, as the control plane is told.
    pub advertise: Option<String>,
    pub http_listen: SocketAddr,
    pub slots: SlotRange,
    pub slot_pool: usize,
    /// Empty: the host's own.
    pub dns: Vec<Ipv4Addr>,
    pub vmm: VmmChoice,
    /// None: from the search path.
    pub firecracker_binary: Option<PathBuf>,
    pub restore: RestoreChoice,
    pub kvm: KvmPolicy,
    pub disk_store: DiskStoreChoice,
    /// None: as large as the disk has room for.
    pub store_size: Option<Size>,
    pub default_rootfs_size: Size,
    pub cgroups: CgroupOptions,
    /// Of each golden snapshot used lately.
    pub warm_pool: usize,
    /// None: a quarter of the data file system.
    pub golden_budget_mib: Option<u64>,
    pub golden_timeout: Duration,
    pub reconnect_grace: Duration,
    pub on_stop: OnStop,
    pub log: String,
    /// Settings of the file that are not the agent's. The file may be shared with the control plane, whose settings
    /// begin with `WRENN_` too.
    pub ignored: Vec<String>,
}

/// One line: which setting is wrong, and why.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("WRENN_CONFIG: {0}")]
    File(String),
    #[error("{0} in the configuration file is not a setting of wrenn-agent")]
    Unknown(String),
    #[error("{name}={value}: {reason}")]
    Value { name: &'static str, value: String, reason: String },
}

impl Config {
    /// From the process's environment and the file it names.
    pub fn load() -> Result<Self, ConfigError> {
        Self::from_environment(std::env::vars().collect())
    }

    /// From the given environment and the file it names. An empty variable is an absent one.
    pub fn from_environment(environment: BTreeMap<String, String>) -> Result<Self, ConfigError> {
        let known = |name: &String| SETTINGS.iter().any(|s| s.name == name);
        let environment: BTreeMap<String, String> =
            environment.into_iter().filter(|(name, value)| known(name) && !value.is_empty()).collect();
        let mut figment = Figment::new();
        if let Some(path) = environment.get("WRENN_CONFIG") {
            figment = figment.merge(Toml::file_exact(path));
        }
        let values: Dict = figment
            .merge(Serialized::defaults(&environment))
            .extract()
            .map_err(|error| ConfigError::File(one_line(&error.to_string())))?;
        let ignored: Vec<String> = values.keys().filter(|name| !known(name)).cloned().collect();
        if let Some(name) = ignored.iter().find(|name| !name.starts_with("WRENN_")) {
            return Err(ConfigError::Unknown(name.clone()));
        }
        Ok(Self { ignored, ..Self::from_values(&Values(values))? })
    }

    fn from_values(values: &Values) -> Result<Self, ConfigError> {
        Ok(Self {
            dir: values.get("WRENN_DIR", absolute)?,
            api_url: values.get("WRENN_API_URL", url)?,
            listen: values.parse("WRENN_AGENT_LISTEN", "an address such as 127.0.0.1:7070 is wanted")?,
            advertise: values.get("WRENN_AGENT_ADVERTISE", advertised)?,
            http_listen: values
                .parse("WRENN_AGENT_HTTP_LISTEN", "an address such as 127.0.0.1:7071 is wanted")?,
            slots: values.parse("WRENN_SLOTS", "a range within 1-32767 is wanted, such as 1-999")?,
            slot_pool: values.parse("WRENN_SLOT_POOL", "a whole number is wanted")?,
            dns: values.get("WRENN_DNS", addresses)?,
            vmm: values.parse("WRENN_VMM", "one of auto, firecracker, qemu is wanted")?,
            firecracker_binary: values.get("WRENN_FIRECRACKER_BIN", optional_path)?,
            restore: values.parse("WRENN_RESTORE", "one of auto, uffd, file is wanted")?,
            kvm: values.parse("WRENN_KVM", "one of auto, force, off is wanted")?,
            disk_store: values
                .parse("WRENN_DISK_STORE", "one of auto, reflink, dm-snapshot, copy is wanted")?,
            store_size: values.get("WRENN_STORE_SIZE", optional_size)?,
            default_rootfs_size: values.get("WRENN_DEFAULT_ROOTFS_SIZE", size)?,
            cgroups: CgroupOptions {
                policy: values.parse("WRENN_CGROUPS", "one of auto, off is wanted")?,
                cpus_per_vcpu: values.get("WRENN_CPUS_PER_VCPU", factor)?,
            },
            warm_pool: values.parse("WRENN_WARM_POOL", "a whole number is wanted")?,
            golden_budget_mib: values.get("WRENN_GOLDEN_BUDGET_MIB", optional_number)?,
            golden_timeout: values.get("WRENN_GOLDEN_TIMEOUT", seconds)?,
            reconnect_grace: values.get("WRENN_RECONNECT_GRACE", seconds)?,
            on_stop: values.one_of("WRENN_ON_STOP", &[("keep", OnStop::Keep), ("pause", OnStop::Pause)])?,
            log: values.get("WRENN_LOG", filter)?,
            ignored: Vec::new(),
        })
    }

    /// Where the control plane reaches the gRPC service that listens at `bound`.
    pub fn advertised(&self, bound: SocketAddr) -> String {
        self.advertise.clone().unwrap_or_else(|| bound.to_string())
    }
}

/// The table of settings, as `--help` prints it.
pub fn table() -> String {
    let name = SETTINGS.iter().map(|s| s.name.len()).max().unwrap_or(0);
    let default = SETTINGS.iter().map(|s| s.default.len()).max().unwrap_or(0);
    let mut text = String::new();
    for s in SETTINGS {
        let shown = if s.default.is_empty() { "-" } else { s.default };
        let _ = writeln!(text, "  {:name$}  {shown:default$}  {}", s.name, s.meaning);
    }
    text
}

struct Values(Dict);

impl Values {
    fn text(&self, name: &'static str) -> String {
        let default = || SETTINGS.iter().find(|s| s.name == name).map_or("", |s| s.default).to_owned();
        match self.0.get(name) {
            None => default(),
            Some(Value::String(_, text)) => text.clone(),
            Some(Value::Array(_, items)) => items.iter().map(scalar).collect::<Vec<_>>().join(","),
            Some(value) => scalar(value),
        }
    }

    fn get<T>(
        &self,
        name: &'static str,
        read: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<T, ConfigError> {
        let value = self.text(name);
        read(&value).map_err(|reason| ConfigError::Value { name, value, reason })
    }

    fn parse<T: FromStr>(&self, name: &'static str, wanted: &str) -> Result<T, ConfigError> {
        self.get(name, |text| text.parse().map_err(|_| wanted.to_owned()))
    }

    fn one_of<T: Copy>(&self, name: &'static str, choices: &[(&str, T)]) -> Result<T, ConfigError> {
        self.get(name, |text| {
            choices.iter().find(|(choice, _)| *choice == text).map(|(_, value)| *value).ok_or_else(|| {
                let names: Vec<&str> = choices.iter().map(|(choice, _)| *choice).collect();
                format!("one of {} is wanted", names.join(", "))
            })
        })
    }
}

fn scalar(value: &Value) -> String {
    match value {
        Value::String(_, text) => text.clone(),
        Value::Bool(_, flag) => flag.to_string(),
        Value::Num(_, number) => number
            .to_i128()
            .map_or_else(|| number.to_f64().map(|n| n.to_string()).unwrap_or_default(), |n| n.to_string()),
        _ => String::new(),
    }
}

fn absolute(text: &str) -> Result<PathBuf, String> {
    std::path::absolute(text).map_err(|error| error.to_string())
}

fn optional_path(text: &str) -> Result<Option<PathBuf>, String> {
    if text.is_empty() { Ok(None) } else { absolute(text).map(Some) }
}

fn url(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|error| error.to_string())?;
    match url.scheme() {
        "http" | "https" => Ok(url),
        _ => Err("an http:// or https:// URL is wanted".into()),
    }
}

fn advertised(text: &str) -> Result<Option<String>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let whole =
        text.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    if whole { Ok(Some(text.to_owned())) } else { Err("host:port is wanted".into()) }
}

fn addresses(text: &str) -> Result<Vec<Ipv4Addr>, String> {
    text.split(',')
        .map(str::trim)
        .filter(|item| !item.is_empty())
        .map(|item| match item.parse() {
            Ok(IpAddr::V4(address)) => Ok(address),
            _ => Err(format!("`{item}` is not an IPv4 address")),
        })
        .collect()
}

fn size(text: &str) -> Result<Size, String> {
    text.parse().map_err(|error: crate::size::SizeError| error.to_string())
}

fn optional_size(text: &str) -> Result<Option<Size>, String> {
    if text.is_empty() { Ok(None) } else { size(text).map(Some) }
}

fn optional_number(text: &str) -> Result<Option<u64>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| "a whole number is wanted".into())
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<u64>() {
        Ok(n) if n > 0 => Ok(Duration::from_secs(n)),
        _ => Err("a whole number of seconds above 0 is wanted".into()),
    }
}

fn factor(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(factor) if (0.0..=1000.0).contains(&factor) => Ok(factor),
        _ => Err("a number from 0 to 1000 is wanted, such as 1.5".into()),
    }
}

fn filter(text: &str) -> Result<String, String> {
    EnvFilter::try_new(text).map(|_| text.to_owned()).map_err(|error| one_line(&error.to_string()))
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
        Config::from_environment(variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    }

    #[test]
    fn the_defaults_of_the_table_are_a_whole_configuration() {
        let config = load(&[]).unwrap();
        assert_eq!(config.dir, PathBuf::from("/var/lib/wrenn"));
        assert_eq!(config.slots.len(), 999);
        assert_eq!(config.default_rootfs_size.mib_ceil(), 5120);
        assert_eq!(config.advertised(config.listen), "127.0.0.1:7070");
        assert_eq!(config.on_stop, OnStop::Keep);
        assert_eq!((config.warm_pool, config.golden_budget_mib), (0, None));
    }

    #[test]
    fn a_wrong_value_is_one_line_that_names_it() {
        for (name, value) in [
            ("WRENN_SLOTS", "0-9"),
            ("WRENN_SLOTS", "9-1"),
            ("WRENN_SLOTS", "1-40000"),
            ("WRENN_AGENT_LISTEN", "localhost"),
            ("WRENN_AGENT_ADVERTISE", "here"),
            ("WRENN_API_URL", "ftp://x"),
            ("WRENN_VMM", "xen"),
            ("WRENN_RESTORE", "mmap"),
            ("WRENN_DNS", "1.1.1.1,::1"),
            ("WRENN_STORE_SIZE", "big"),
            ("WRENN_CGROUPS", "v1"),
            ("WRENN_CPUS_PER_VCPU", "-1"),
            ("WRENN_CPUS_PER_VCPU", "NaN"),
            ("WRENN_GOLDEN_TIMEOUT", "0"),
            ("WRENN_WARM_POOL", "-1"),
            ("WRENN_GOLDEN_BUDGET_MIB", "10Gi"),
            ("WRENN_ON_STOP", "never"),
            ("WRENN_LOG", "a=b=c"),
        ] {
            let line = load(&[(name, value)]).unwrap_err().to_string();
            assert!(line.starts_with(&format!("{name}={value}: ")), "{line}");
            assert!(!line.contains('\n'), "{line}");
        }
    }

    #[test]
    fn the_environment_wins_over_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.toml");
        std::fs::write(
            &path,
            "WRENN_SLOTS = \"5-9\"\nWRENN_SLOT_POOL = 4\nWRENN_DNS = [\"9.9.9.9\", \"1.1.1.1\"]\n",
        )
        .unwrap();
        let config = load(&[("WRENN_CONFIG", path.to_str().unwrap()), ("WRENN_SLOTS", "7-8")]).unwrap();
        assert_eq!(config.slots.len(), 2);
        assert_eq!(config.slot_pool, 4);
        assert_eq!(config.dns, [Ipv4Addr::new(9, 9, 9, 9), Ipv4Addr::new(1, 1, 1, 1)]);
    }

    #[test]
    fn the_file_may_be_shared_with_the_control_plane_but_hold_settings_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.toml");
        std::fs::write(&path, "WRENN_SLOT_POOL = 4\nWRENN_DATABASE_URL = \"sqlite:x\"\n").unwrap();
        let config = load(&[("WRENN_CONFIG", path.to_str().unwrap())]).unwrap();
        assert_eq!((config.slot_pool, config.ignored), (4, vec!["WRENN_DATABASE_URL".to_owned()]));
        std::fs::write(&path, "SLOTS = 4\n").unwrap();
        let error = load(&[("WRENN_CONFIG", path.to_str().unwrap())]).unwrap_err();
        assert!(error.to_string().starts_with("SLOTS "), "{error}");
        let error = load(&[("WRENN_CONFIG", "/nonexistent.toml")]).unwrap_err();
        assert!(!error.to_string().contains('\n'), "{error}");
    }
}

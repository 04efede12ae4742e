//! What a stack has made on the host, so that it can be shown that nothing of it is left.
//!
//! Only what belongs to the given [`Scope`] is listed: several stacks, and whatever else runs on the machine,
//! do not see each other.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::procfs;

/// What is one stack's own: its directory, where its agents keep their sockets, and the network slots they
/// may use.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Scope {
    pub directory: PathBuf,
    pub runtime: Vec<PathBuf>,
    pub slots: RangeInclusive<u16>,
}

impl Scope {
    fn holds_path(&self, path: &str) -> bool {
        std::iter::once(&self.directory).chain(&self.runtime).any(|own| Path::new(path).starts_with(own))
    }

    /// Whether a name as `wrenn-veth-17` or `wrenn-ns-17` is one of the scope's slots.
    fn holds_name(&self, name: &str) -> bool {
        let Some(rest) = name.strip_prefix("wrenn-") else { return false };
        rest.rsplit_once('-').is_some_and(|(_, number)| number.parse().is_ok_and(|n| self.slots.contains(&n)))
    }

    /// Whether a line of text (a rule, a route) names one of the scope's slots.
    fn holds_line(&self, line: &str) -> bool {
        line.split(|c: char| c.is_whitespace() || c == '"' || c == ',' || c == '@')
            .any(|word| self.holds_name(word))
    }
}

/// The kinds of things a stack makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Process,
    Namespace,
    Link,
    Route,
    FirewallRule,
    /// The host's table of all agents on it, once there is no other agent and no other agent's capsule.
    FirewallTable,
    LoopDevice,
    /// A disk by device-mapper.
    MappedDevice,
    Mount,
    Socket,
    File,
    /// Beside the sockets, outside the stack's directory.
    RuntimeFile,
    ControlGroup,
    /// That the host's kernel remembers of a slot that has no network any more.
    Connection,
}

impl fmt::Display for Kind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Process => "process",
            Self::Namespace => "network namespace",
            Self::Link => "network link",
            Self::Route => "route",
            Self::FirewallRule => "firewall rule or set",
            Self::FirewallTable => "firewall table",
            Self::LoopDevice => "loop device",
            Self::MappedDevice => "mapped device",
            Self::Mount => "mount",
            Self::Socket => "socket",
            Self::File => "file",
            Self::RuntimeFile => "file beside the sockets",
            Self::ControlGroup => "control group",
            Self::Connection => "tracked connection",
        })
    }
}

/// As `nft list ruleset` begins the table that agents share.
const FIREWALL_TABLE: &str = "table ip wrenn";

/// The kernel's short name of an agent's process.
const AGENT: &str = "wrenn-agent";

/// Where control groups are mounted, one hierarchy or several.
const CONTROL_GROUPS: &str = "/sys/fs/cgroup";

/// The rate of the host's clock as an agent measured it, kept for its next life until the machine is started anew.
const CLOCK_RATE: &str = "tsc.json";

/// Everything of a scope that the host holds at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostInventory(BTreeMap<Kind, BTreeSet<String>>);

impl HostInventory {
    pub fn take(scope: &Scope) -> Result<Self> {
        let mut inventory = Self::default();
        inventory.put(Kind::Process, processes(scope));
        inventory.put(Kind::Namespace, names_in("/run/netns", scope));
        inventory.put(Kind::Link, names_in("/sys/class/net", scope));
        let routes = text_of(&["ip", "-4", "route", "show", "table", "all"])?;
        inventory.put(Kind::Route, lines_of(&routes, scope));
        let ruleset = text_of(&["nft", "list", "ruleset"])?;
        inventory.put(Kind::FirewallRule, lines_of(&ruleset, scope));
        // Looked at again once nobody else is there: it may have been of an agent that ended meanwhile.
        if has_table(&ruleset)
            && !others_on_this_host(scope)
            && has_table(&text_of(&["nft", "list", "ruleset"])?)
        {
            inventory.put(Kind::FirewallTable, [FIREWALL_TABLE.to_owned()]);
        }
        inventory.put(Kind::ControlGroup, control_groups(scope));
        inventory.put(Kind::Connection, connections(scope)?);
        inventory.put(Kind::LoopDevice, loop_devices(scope)?);
        inventory.put(Kind::MappedDevice, mapped_devices(scope)?);
        inventory.put(Kind::Mount, mounts(scope)?);
        inventory.put(Kind::Socket, sockets(scope)?);
        inventory.put(Kind::File, files(&scope.directory)?);
        for runtime in &scope.runtime {
            inventory.put(Kind::RuntimeFile, files(runtime)?.into_iter().filter(|name| name != CLOCK_RATE));
        }
        Ok(inventory)
    }

    fn put(&mut self, kind: Kind, items: impl IntoIterator<Item = String>) {
        let items: BTreeSet<String> = items.into_iter().collect();
        if !items.is_empty() {
            self.0.entry(kind).or_default().extend(items);
        }
    }

    /// The same without one kind of things.
    pub fn without(mut self, kind: Kind) -> Self {
        self.0.remove(&kind);
        self
    }

    /// The same without some things of one kind.
    pub fn without_items(mut self, kind: Kind, skip: impl Fn(&str) -> bool) -> Self {
        if let Some(items) = self.0.get_mut(&kind) {
            items.retain(|item| !skip(item));
        }
        self
    }

    pub fn count(&self, kind: Kind) -> usize {
        self.0.get(&kind).map_or(0, BTreeSet::len)
    }

    /// What `later` has that `self` has not, and the other way round.
    pub fn difference(&self, later: &Self) -> Difference {
        let entries = |from: &Self, without: &Self| -> Vec<(Kind, String)> {
            let missing =
                |kind: &Kind, item: &String| !without.0.get(kind).is_some_and(|items| items.contains(item));
            from.0
                .iter()
                .flat_map(|(kind, items)| items.iter().map(move |item| (*kind, item.clone())))
                .filter(|(kind, item)| missing(kind, item))
                .collect()
        };
        let mut vanished = entries(self, later);
        // What an earlier run left there ends by itself, or with the next use of its slot.
        vanished.retain(|(kind, _)| *kind != Kind::Connection);
        Difference { appeared: entries(later, self), vanished }
    }
}

/// Two inventories compared, for people to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    pub appeared: Vec<(Kind, String)>,
    pub vanished: Vec<(Kind, String)>,
}

impl Difference {
    pub fn is_empty(&self) -> bool {
        self.appeared.is_empty() && self.vanished.is_empty()
    }

    /// An error that lists everything, unless there is nothing.
    pub fn into_result(self, what: &str) -> Result<()> {
        ensure!(self.is_empty(), "{what}:\n{self}");
        Ok(())
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (sign, entries) in [('+', &self.appeared), ('-', &self.vanished)] {
            for (kind, item) in entries {
                writeln!(out, "  {sign} {kind}: {item}")?;
            }
        }
        Ok(())
    }
}

fn processes(scope: &Scope) -> Vec<String> {
    procfs::processes_of(&scope.directory.to_string_lossy())
        .into_iter()
        .map(|pid| format!("{pid} {}", procfs::name(pid).unwrap_or_default()))
        .collect()
}

fn names_in(directory: &str, scope: &Scope) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| scope.holds_name(name))
        .collect()
}

/// What a command prints.
fn text_of(command: &[&str]) -> Result<String> {
    let output = Command::new(command[0])
        .args(&command[1..])
        .output()
        .with_context(|| format!("running {}", command.join(" ")))?;
    ensure!(
        output.status.success(),
        "{} needs root: {}",
        command.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn lines_of(text: &str, scope: &Scope) -> Vec<String> {
    text.lines().map(|line| line.trim().to_owned()).filter(|line| scope.holds_line(line)).collect()
}

fn has_table(ruleset: &str) -> bool {
    ruleset.lines().any(|line| line.trim_start().starts_with(FIREWALL_TABLE))
}

/// Whether somebody else has an agent on this host, or capsules of one that is not there at the moment: the host's
/// table of rules is theirs as well.
fn others_on_this_host(scope: &Scope) -> bool {
    let own = scope.directory.to_string_lossy();
    let agents = procfs::pids()
        .into_iter()
        .filter(|pid| procfs::name(*pid).as_deref() == Some(AGENT) && !procfs::is_zombie(*pid));
    let links = fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    let links = links.map(|entry| entry.file_name().to_string_lossy().into_owned());
    agents.into_iter().any(|pid| !procfs::mentions(pid, &own))
        || links.into_iter().any(|name| name.starts_with("wrenn-veth-") && !scope.holds_name(&name))
}

/// Control groups below one called `wrenn`, in every hierarchy, that are the scope's: by the name of its agents'
/// runtime directory, or by the number of a slot.
fn control_groups(scope: &Scope) -> Vec<String> {
    let runtime: Vec<_> = scope.runtime.iter().filter_map(|path| path.file_name()?.to_str()).collect();
    let own = |path: &str| path.split('/').any(|part| runtime.contains(&part) || scope.holds_name(part));
    let hierarchies = fs::read_dir(CONTROL_GROUPS).into_iter().flatten().flatten();
    let roots = hierarchies.map(|entry| entry.path()).chain([PathBuf::from(CONTROL_GROUPS)]);
    let mut found = Vec::new();
    for root in roots.map(|root| root.join("wrenn")).filter(|root| root.is_dir()) {
        let mut left = vec![root];
        while let Some(group) = left.pop() {
            let below = fs::read_dir(&group).into_iter().flatten().flatten();
            left.extend(below.map(|entry| entry.path()).filter(|path| path.is_dir()));
            found.push(group.to_string_lossy().into_owned());
        }
    }
    found.retain(|path| own(path));
    found
}

/// Those that began in a slot, or on the host's end of its link. A kernel that does not show its table has none.
fn connections(scope: &Scope) -> Result<Vec<String>> {
    let table = match fs::read_to_string("/proc/net/nf_conntrack") {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        table => table.context("reading /proc/net/nf_conntrack")?,
    };
    let of_nobody = |slot: &u16| {
        scope.slots.contains(slot) && !Path::new(&format!("/run/netns/wrenn-ns-{slot}")).exists()
    };
    let of_nobody = |line: &&str| slot_of_connection(line).as_ref().is_some_and(of_nobody);
    // Without what changes: counters and the time that is left.
    let ends = |line: &str| {
        line.split_whitespace().filter(|word| word.contains('=')).take(4).collect::<Vec<_>>().join(" ")
    };
    Ok(table.lines().filter(of_nobody).map(ends).collect())
}

/// The slot that a line of the table is about: of the two addresses 10.12.x.y of slot N the first is 2·N.
fn slot_of_connection(line: &str) -> Option<u16> {
    let source = line.split_whitespace().find_map(|word| word.strip_prefix("src="))?;
    match source.parse::<Ipv4Addr>().ok()?.octets() {
        [10, 12, high, low] => Some(u16::from_be_bytes([high, low]) / 2),
        _ => None,
    }
}

fn loop_devices(scope: &Scope) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/sys/block").context("reading /sys/block")?.flatten() {
        if let Ok(backing) = fs::read_to_string(entry.path().join("loop/backing_file"))
            && scope.holds_path(backing.trim_end())
        {
            found.push(format!("{} of {}", entry.file_name().to_string_lossy(), backing.trim_end()));
        }
    }
    Ok(found)
}

/// By the name of an agent's runtime directory in theirs.
fn mapped_devices(scope: &Scope) -> Result<Vec<String>> {
    let agents = scope.runtime.iter().filter_map(|path| path.file_name());
    let prefixes: Vec<_> = agents.map(|agent| format!("wrenn-{}-", agent.to_string_lossy())).collect();
    let devices = fs::read_dir("/sys/block").context("reading /sys/block")?.flatten();
    let names = devices.filter_map(|device| fs::read_to_string(device.path().join("dm/name")).ok());
    let names = names.map(|name| name.trim_end().to_owned());
    Ok(names.filter(|name| prefixes.iter().any(|prefix| name.starts_with(prefix))).collect())
}

fn mounts(scope: &Scope) -> Result<Vec<String>> {
    Ok(mount_points()?.into_iter().filter(|point| scope.holds_path(point)).collect())
}

/// Where something is mounted, in the order of mounting.
pub fn mount_points() -> Result<Vec<String>> {
    let table = fs::read_to_string("/proc/self/mountinfo").context("reading /proc/self/mountinfo")?;
    // Field 5 of proc_pid_mountinfo(5).
    Ok(table.lines().filter_map(|line| line.split(' ').nth(4)).map(str::to_owned).collect())
}

fn sockets(scope: &Scope) -> Result<Vec<String>> {
    let table = fs::read_to_string("/proc/net/unix").context("reading /proc/net/unix")?;
    let own =
        |line: &str| line.split_whitespace().nth(7).filter(|path| scope.holds_path(path)).map(str::to_owned);
    Ok(table.lines().filter_map(own).collect())
}

fn files(directory: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let mut left = vec![directory.to_owned()];
    while let Some(dir) = left.pop() {
        // Capsules come and go while this walks.
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for entry in entries.flatten() {
            let path = entry.path();
            found.push(path.strip_prefix(directory)?.to_string_lossy().into_owned());
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                left.push(path);
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope() -> Scope {
        Scope { directory: "/tmp/wrenn-1".into(), runtime: vec!["/run/wrenn/a1".into()], slots: 20..=29 }
    }

    fn inventory(items: &[(Kind, &str)]) -> HostInventory {
        let mut inventory = HostInventory::default();
        for (kind, item) in items {
            inventory.0.entry(*kind).or_default().insert((*item).to_owned());
        }
        inventory
    }

    #[test]
    fn a_scope_holds_its_own_names_and_paths_only() {
        assert!(scope().holds_name("wrenn-veth-20") && scope().holds_name("wrenn-ns-29"));
        assert!(!scope().holds_name("wrenn-veth-2") && !scope().holds_name("wrenn-veth-30"));
        assert!(!scope().holds_name("eth-20") && !scope().holds_name("wrenn-"));
        assert!(scope().holds_path("/run/wrenn/a1/qmp.sock") && !scope().holds_path("/run/wrenn/a2"));
        assert!(scope().holds_path("/tmp/wrenn-1/data") && !scope().holds_path("/tmp/wrenn-10/data"));
        assert!(scope().holds_line("10.11.0.20 via 10.12.0.41 dev wrenn-veth-20 proto static"));
        assert!(scope().holds_line("iifname \"wrenn-veth-21\" accept"));
        assert!(!scope().holds_line("10.11.0.20 dev wrenn-veth-200"));
    }

    #[test]
    fn a_connection_is_of_the_slot_it_began_in() {
        let line = |source: &str| {
            format!("ipv4 2 tcp 6 119 TIME_WAIT src={source} dst=10.11.0.20 sport=1 dport=2 src=10.11.0.20")
        };
        assert_eq!(slot_of_connection(&line("10.12.0.40")), Some(20));
        assert_eq!(slot_of_connection(&line("10.12.0.41")), Some(20));
        assert_eq!(slot_of_connection(&line("10.13.0.41")), None);
        assert_eq!(slot_of_connection("ipv6 10 udp 17 src=fe80::1 dst=fe80::2"), None);
    }

    #[test]
    fn the_difference_names_what_came_and_what_went() {
        let before = inventory(&[(Kind::Namespace, "wrenn-ns-20"), (Kind::Mount, "/tmp/wrenn-1/data")]);
        let after = inventory(&[(Kind::Namespace, "wrenn-ns-21"), (Kind::Mount, "/tmp/wrenn-1/data")]);
        let difference = before.difference(&after);
        assert_eq!(
            difference.to_string(),
            "  + network namespace: wrenn-ns-21\n  - network namespace: wrenn-ns-20\n"
        );
        assert!(before.difference(&before).is_empty());
        let error = difference.into_result("after churn").expect_err("a difference").to_string();
        assert!(error.starts_with("after churn:\n  + network"), "{error}");
    }

    #[test]
    fn a_kind_can_be_left_out() {
        let one = inventory(&[(Kind::File, "a"), (Kind::Process, "1 x")]);
        assert_eq!(one.count(Kind::File), 1);
        assert_eq!(one.without(Kind::File), inventory(&[(Kind::Process, "1 x")]));
    }

    #[test]
    fn files_are_listed_relative_to_the_scope() {
        let root = tempfile::tempdir().expect("a directory");
        fs::create_dir(root.path().join("a")).expect("made");
        fs::write(root.path().join("a/b"), "").expect("written");
        let mut found = files(root.path()).expect("listed");
        found.sort();
        assert_eq!(found, ["a", "a/b"]);
    }
}

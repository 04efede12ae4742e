//! Removing by force what is a stack's or a server's own: after a failed teardown, and after a test run that was
//! killed.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::inventory::{Scope, mount_points};
use crate::procfs;
use crate::stack::run;

/// What the folders of stacks, and of the servers they use, begin with.
pub(crate) const STACK: &str = "wrenn-stack-";
pub(crate) const CLUSTER: &str = "wrenn-postgres-";
pub(crate) const REDIS: &str = "wrenn-redis-";

/// In each of them: whose it is.
const OWNER: &str = "owner.json";

/// A scope and the process that answers for it.
#[derive(Serialize, Deserialize)]
struct Owner {
    pid: u32,
    start_time: Option<u64>,
    scope: Scope,
}

impl Owner {
    fn is_alive(&self) -> bool {
        self.start_time.is_some()
            && procfs::start_time(self.pid) == self.start_time
            && !procfs::is_zombie(self.pid)
    }
}

/// Notes that the scope is this process's.
pub(crate) fn sign(scope: &Scope) -> Result<()> {
    let pid = std::process::id();
    let owner = Owner { pid, start_time: procfs::start_time(pid), scope: scope.clone() };
    let path = scope.directory.join(OWNER);
    fs::write(&path, serde_json::to_vec(&owner)?).with_context(|| format!("writing {}", path.display()))
}

/// Removes what test runs left that ended without taking it down.
pub(crate) fn orphans() -> Result<()> {
    for entry in fs::read_dir(std::env::temp_dir())?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let ours = [STACK, CLUSTER, REDIS].iter().any(|prefix| name.starts_with(prefix));
        let Ok(text) = fs::read(entry.path().join(OWNER)) else { continue };
        let Ok(owner) = serde_json::from_slice::<Owner>(&text) else { continue };
        if ours && owner.scope.directory == entry.path() && !owner.is_alive() {
            eprintln!("removing {}, left by an earlier test run", entry.path().display());
            sweep(&owner.scope)?;
        }
    }
    Ok(())
}

/// Ends the processes, removes namespaces, mounts and files. Not an error if there is nothing.
pub(crate) fn sweep(scope: &Scope) -> Result<()> {
    for pid in procfs::processes_of(&scope.directory.to_string_lossy()) {
        // Gone meanwhile is as good.
        let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
    }
    for slot in scope.slots.clone() {
        for namespace in [format!("wrenn-ns-{slot}"), crate::outside::namespace(slot)] {
            if Path::new("/run/netns").join(&namespace).exists() {
                run("ip", &["netns", "del", &namespace])?;
            }
        }
    }
    let mut mounted = mount_points()?;
    mounted.reverse();
    for point in mounted.iter().filter(|point| Path::new(point).starts_with(&scope.directory)) {
        run("umount", &["--lazy", point])?;
    }
    for directory in scope.runtime.iter().chain([&scope.directory]) {
        if directory.exists() {
            fs::remove_dir_all(directory).with_context(|| format!("removing {}", directory.display()))?;
        }
    }
    Ok(())
}

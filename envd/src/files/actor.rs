//! Who a file call acts as: work on files is done by threads that become the guest's user for its duration.
//!
//! What a user may not do is then decided by the kernel, at the very moment of each operation: there is no
//! check that a link exchanged in between could get around. The effective ids of one thread are changed by
//! direct system calls (libc would change them in all threads). Leaving effective id 0 clears every effective
//! capability of the thread, and coming back restores them. Real and saved ids stay root's, so that no process
//! of the user may signal or trace envd meanwhile.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::accounts::Account;
use crate::files::error::FileError;
use crate::launch::{Surroundings, find_user, user_credentials};
use crate::spawn::Credentials;

/// File work that may be in the kernel at once. A file system that a guest program serves can hold a thread
/// up for ever; the others go on.
pub const WORKERS: usize = 8;
/// How long a call waits for a free worker.
const PATIENCE: Duration = Duration::from_secs(10);
/// "No change" to the kernel's calls that set ids.
const KEEP: u32 = u32::MAX;

/// The threads that work on files.
#[derive(Debug, Clone)]
pub struct Workers {
    permits: Arc<Semaphore>,
    own: Arc<Own>,
    etc: Arc<Path>,
}

/// What a thread goes back to.
#[derive(Debug)]
struct Own {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
}

/// One user of the guest, for the calls of one request.
#[derive(Debug, Clone)]
pub struct Actor {
    account: Arc<Account>,
    /// Absent: envd's own user.
    credentials: Option<Arc<Credentials>>,
    workers: Workers,
}

impl Workers {
    /// `etc` is where `passwd` and `group` lie.
    pub fn new(etc: PathBuf) -> Self {
        let groups = nix::unistd::getgroups().unwrap_or_default();
        let own = Own {
            uid: nix::unistd::geteuid().as_raw(),
            gid: nix::unistd::getegid().as_raw(),
            groups: groups.into_iter().map(nix::unistd::Gid::as_raw).collect(),
        };
        Self { permits: Arc::new(Semaphore::new(WORKERS)), own: Arc::new(own), etc: etc.into() }
    }

    /// The user of a request.
    ///
    /// # Errors
    /// There is no such user, or envd cannot become it.
    pub async fn actor(&self, user: String, surroundings: Surroundings) -> Result<Actor, FileError> {
        let etc = Arc::clone(&self.etc);
        let look_up = move || {
            let account = find_user(&user, &surroundings, &etc)?;
            let credentials = user_credentials(&account)?;
            Ok((account, credentials))
        };
        let (account, credentials) = self.work(look_up).await?;
        let foreign = credentials.filter(|it| it.uid != self.own.uid);
        Ok(Actor { account: Arc::new(account), credentials: foreign.map(Arc::new), workers: self.clone() })
    }

    async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, FileError> + Send + 'static,
    ) -> Result<T, FileError> {
        let permit = timeout(PATIENCE, Arc::clone(&self.permits).acquire_owned()).await;
        let permit = permit.ok().and_then(Result::ok).ok_or(FileError::Busy)?;
        let counted = move || {
            let _until_done = permit;
            work()
        };
        tokio::task::spawn_blocking(counted).await.map_err(FileError::Lost)?
    }
}

impl Actor {
    pub fn home(&self) -> &str {
        &self.account.home
    }

    /// Where the names of users and groups are read.
    pub fn etc(&self) -> Arc<Path> {
        Arc::clone(&self.workers.etc)
    }

    /// Does work on files as this user. It is done to its end even when nobody waits for it any more.
    ///
    /// # Errors
    /// That of the work; or no thread could do it.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, FileError> + Send + 'static,
    ) -> Result<T, FileError> {
        let Some(credentials) = self.credentials.clone() else { return self.workers.work(work).await };
        let own = Arc::clone(&self.workers.own);
        let disguised = move || {
            let disguise = Disguise::put_on(&credentials, &own).map_err(FileError::Become)?;
            let result = work();
            drop(disguise);
            result
        };
        self.workers.work(disguised).await
    }
}

/// While it lives, this thread is another user.
struct Disguise<'a> {
    own: &'a Own,
}

impl<'a> Disguise<'a> {
    fn put_on(user: &Credentials, own: &'a Own) -> io::Result<Self> {
        let disguise = Self { own };
        set_groups(&user.groups)?;
        set_effective_gid(user.gid)?;
        // Last: it takes away the right to the two before.
        set_effective_uid(user.uid)?;
        Ok(disguise)
    }
}

impl Drop for Disguise<'_> {
    fn drop(&mut self) {
        let back = set_effective_uid(self.own.uid)
            .and_then(|()| set_effective_gid(self.own.gid))
            .and_then(|()| set_groups(&self.own.groups));
        if back.is_err() {
            // The saved ids allow it always. If not, this thread must never work for anybody again.
            loop {
                std::thread::park();
            }
        }
    }
}

fn set_groups(groups: &[u32]) -> io::Result<()> {
    // SAFETY: the kernel reads as many ids as the slice has; affects this thread only.
    checked(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) })
}

fn set_effective_gid(gid: u32) -> io::Result<()> {
    // SAFETY: takes numbers only; affects this thread only.
    checked(unsafe { libc::syscall(libc::SYS_setresgid, KEEP, gid, KEEP) })
}

fn set_effective_uid(uid: u32) -> io::Result<()> {
    // SAFETY: takes numbers only; affects this thread only.
    checked(unsafe { libc::syscall(libc::SYS_setresuid, KEEP, uid, KEEP) })
}

fn checked(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn effective() -> (u32, u32, Vec<u32>) {
        let status = std::fs::read_to_string("/proc/thread-self/status").expect("status");
        let field = |name: &str| {
            let line = status.lines().find(|it| it.starts_with(name)).expect("a field");
            line.split_whitespace().skip(1).map(|it| it.parse().expect("a number")).collect::<Vec<u32>>()
        };
        (field("Uid:")[1], field("Gid:")[1], field("Groups:"))
    }

    fn capabilities() -> String {
        let status = std::fs::read_to_string("/proc/thread-self/status").expect("status");
        status.lines().find(|it| it.starts_with("CapEff:")).expect("a field").to_owned()
    }

    #[test]
    fn a_disguise_is_this_thread_s_alone_and_comes_off() {
        assert!(nix::unistd::geteuid().is_root(), "needs root");
        let own = Workers::new("/etc".into()).own;
        let (before, able) = (effective(), capabilities());
        let user = Credentials { uid: 12345, gid: 23456, groups: vec![23456, 34567] };
        let disguise = Disguise::put_on(&user, &own).expect("root may");
        assert_eq!(effective(), (12345, 23456, vec![23456, 34567]));
        assert!(capabilities().trim_end().ends_with("0000000000000000"));
        let leader = std::fs::read_to_string("/proc/self/status").expect("status");
        assert!(leader.contains(&format!("Uid:\t0\t{}", before.0)), "{leader}");
        drop(disguise);
        assert_eq!((effective(), capabilities()), (before, able));
    }
}

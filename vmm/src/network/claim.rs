//! Whose slots are whose, where several agents share a host: two with the same ones would take each other's machines for
//! strays. A byte of a file stands for each slot, and is locked for as long as its agent lives.

use std::{fs::File, path::Path};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, fcntl},
};

use super::{
    NetworkError, SlotRange,
    presence::{DIRECTORY, lock_file},
};
use crate::failure::{Doing as _, Failure};

const FILE: &str = "slots.lock";

/// Slots that no other agent of this host has. The kernel lets go of them with the process.
#[derive(Debug)]
pub struct SlotClaim(File);

impl SlotClaim {
    /// To be had before anything is done to what is found in these slots.
    pub fn take(slots: &SlotRange) -> Result<Self, NetworkError> {
        Self::within(Path::new(DIRECTORY), slots)
    }

    fn within(directory: &Path, slots: &SlotRange) -> Result<Self, NetworkError> {
        let claim = Self(lock_file(&directory.join(FILE))?);
        claim.extend(slots)?;
        Ok(claim)
    }

    /// As well: capsules of an earlier agent may run in slots that were its own and are not this one's.
    pub fn extend(&self, slots: &SlotRange) -> Result<(), NetworkError> {
        let doing = || format!("locking slots {slots}");
        let wanted = bytes(slots);
        match fcntl(&self.0, FcntlArg::F_OFD_SETLK(&wanted)) {
            Ok(_) => Ok(()),
            Err(Errno::EAGAIN | Errno::EACCES) => {
                let mut held = wanted;
                fcntl(&self.0, FcntlArg::F_OFD_GETLK(&mut held)).doing(doing)?;
                Err(NetworkError::ClaimedByAnother { slots: *slots, taken: range(&held).unwrap_or(*slots) })
            }
            Err(errno) => Err(Failure::new(doing(), errno).into()),
        }
    }
}

fn bytes(slots: &SlotRange) -> libc::flock {
    libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: (*slots.numbers().start()).into(),
        l_len: i64::try_from(slots.len()).unwrap_or(i64::MAX),
        l_pid: 0,
    }
}

/// The slots of a lock that is held; none if it has gone meanwhile.
fn range(held: &libc::flock) -> Option<SlotRange> {
    let taken = i32::from(held.l_type) == libc::F_WRLCK;
    let text = format!("{}-{}", held.l_start, held.l_start + held.l_len - 1);
    taken.then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_one_agents_until_it_ends() {
        let directory = tempfile::tempdir().unwrap();
        let claim = |slots: &str| SlotClaim::within(directory.path(), &slots.parse().unwrap());
        let first = claim("1-999").unwrap();
        let beside = claim("1000-1999").unwrap();
        for (wanted, taken) in [("1-999", "1-999"), ("999-1000", "1-999"), ("1500-32767", "1000-1999")] {
            let error = claim(wanted).unwrap_err().to_string();
            assert!(error.contains(wanted) && error.contains(taken), "{error}");
        }
        claim("2000-32767").unwrap();
        first.extend(&"3000-3000".parse().unwrap()).unwrap();
        first.extend(&"500-3000".parse().unwrap()).unwrap_err();
        let error = claim("2000-32767").unwrap_err().to_string();
        assert!(error.contains("3000-3000"), "{error}");
        drop(first);
        claim("1-999").unwrap();
        drop(beside);
        claim("1-32767").unwrap();
    }
}

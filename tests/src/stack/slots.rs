//! Network slots are the machine's, not the stack's: every stack takes a range that no other one has.

use std::fs::{self, File};
use std::ops::RangeInclusive;
use std::sync::Mutex;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// Slots are given out in blocks of this many.
const BLOCK: u16 = 60;

/// The first block begins behind the range that an agent uses unless it is told otherwise (1-999).
const FIRST: u16 = 1000;

/// Slots are numbered up to here.
const LAST: u16 = 32767;

/// Where test runs on one machine tell each other which blocks are taken.
const LOCKS: &str = "/run/lock/wrenn-tests";

/// Held until the process ends: locks of files go with it, however it ends.
static HELD: Mutex<Vec<Flock<File>>> = Mutex::new(Vec::new());

/// Takes `count` neighbouring slots for the rest of this process.
pub fn take(count: u16) -> Result<RangeInclusive<u16>> {
    fs::create_dir_all(LOCKS).with_context(|| format!("making {LOCKS}"))?;
    let wanted = count.div_ceil(BLOCK);
    let mut first = FIRST;
    while first + wanted * BLOCK <= LAST {
        if let Some(locks) = lock_blocks(first, wanted)? {
            HELD.lock().unwrap_or_else(std::sync::PoisonError::into_inner).extend(locks);
            return Ok(first..=first + count - 1);
        }
        first += BLOCK;
    }
    bail!("every range of {count} network slots is taken by another test run")
}

/// Counted from 0: in which block a slot lies.
pub fn block_number(slot: u16) -> u16 {
    slot.saturating_sub(FIRST) / BLOCK
}

fn lock_blocks(first: u16, count: u16) -> Result<Option<Vec<Flock<File>>>> {
    let mut locks = Vec::new();
    for block in 0..count {
        let path = format!("{LOCKS}/slots-{}", first + block * BLOCK);
        let file = File::create(&path).with_context(|| format!("making {path}"))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => locks.push(lock),
            Err((_, Errno::EWOULDBLOCK)) => return Ok(None),
            Err((_, errno)) => return Err(errno).with_context(|| format!("locking {path}")),
        }
    }
    Ok(Some(locks))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_stacks_never_share_a_slot() {
        let (one, two) = (take(120).expect("slots"), take(60).expect("slots"));
        assert_eq!(one.len(), 120);
        assert_eq!(two.len(), 60);
        assert!(one.end() < two.start() || two.end() < one.start(), "{one:?} {two:?}");
    }
}

//! Whether there is room for one more life, by what is really free.
//!
//! A restored machine takes its memory little by little, so what was promised and not yet taken by the
//! operations under way is counted as well.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::error::CapsuleError;
use crate::host::{self, HostProbe};

/// What a VMM needs besides the guest's memory: mostly its translation buffer.
const VMM_OVERHEAD_MIB: u64 = 96;
/// Disk left to what already runs.
const DISK_RESERVE_MIB: u64 = 256;

#[derive(Debug)]
pub struct Admission {
    probe: Arc<HostProbe>,
    promised_mib: Arc<AtomicU64>,
}

/// Memory promised to an operation under way; given back when it is dropped.
#[derive(Debug)]
pub struct Promise {
    mib: u64,
    promised_mib: Arc<AtomicU64>,
}

impl Admission {
    pub fn new(probe: Arc<HostProbe>) -> Self {
        Self { probe, promised_mib: Arc::default() }
    }

    /// Room for so many lives with this much memory each. `disk_mib`: what they will at once really take of the
    /// disk.
    pub fn admit(&self, lives: u32, memory_mib: u32, disk_mib: u64) -> Result<Promise, CapsuleError> {
        let memory = u64::from(lives) * u64::from(memory_mib);
        let wanted = memory + u64::from(lives) * VMM_OVERHEAD_MIB;
        let before = self.promised_mib.fetch_add(wanted, Ordering::Relaxed);
        let promise = Promise { mib: wanted, promised_mib: self.promised_mib.clone() };
        let free = host::memory().available_mib.saturating_sub(before);
        exhausted("memory", wanted, free)?;
        // Their memory goes to disk when they are paused.
        self.admit_to_disk(disk_mib + memory)?;
        Ok(promise)
    }

    /// Room for so much more on the disk.
    pub fn admit_to_disk(&self, mib: u64) -> Result<(), CapsuleError> {
        let (_, free) = self.probe.disk();
        exhausted("disk", mib + DISK_RESERVE_MIB, free)
    }
}

fn exhausted(resource: &'static str, wanted: u64, free: u64) -> Result<(), CapsuleError> {
    if wanted <= free {
        return Ok(());
    }
    Err(CapsuleError::Exhausted { resource, wanted: format!("{wanted} MiB"), free: format!("{free} MiB") })
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.promised_mib.fetch_sub(self.mib, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admission() -> Admission {
        let probe = HostProbe { rooms: vec!["/".into()], vmm: String::new(), disk_store: String::new() };
        Admission::new(Arc::new(probe))
    }

    #[test]
    fn what_is_promised_is_not_promised_twice() {
        let admission = admission();
        let most = u32::try_from(host::memory().available_mib * 2 / 3).unwrap();
        // The disk may be the tighter one on the machine this runs on.
        let Ok(first) = admission.admit(1, most / 64, 0) else {
            panic!("no room for a sixty-fourth of the memory")
        };
        admission.promised_mib.fetch_add(u64::from(most), Ordering::Relaxed);
        match admission.admit(1, most, 0) {
            Err(CapsuleError::Exhausted { resource, .. }) => assert_eq!(resource, "memory"),
            other => panic!("{other:?}"),
        }
        drop(first);
        assert_eq!(admission.promised_mib.load(Ordering::Relaxed), u64::from(most));
    }

    #[test]
    fn several_lives_want_room_for_all_of_them() {
        let admission = admission();
        let most = u32::try_from(host::memory().available_mib / 2).unwrap();
        match admission.admit(3, most, 0) {
            Err(CapsuleError::Exhausted { resource, wanted, .. }) => {
                let all = 3 * (u64::from(most) + VMM_OVERHEAD_MIB);
                assert_eq!((resource, wanted), ("memory", format!("{all} MiB")));
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(admission.promised_mib.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_full_disk_is_named() {
        match admission().admit(1, 128, u64::MAX / 2) {
            Err(CapsuleError::Exhausted { resource, .. }) => assert_eq!(resource, "disk"),
            other => panic!("{other:?}"),
        }
    }
}

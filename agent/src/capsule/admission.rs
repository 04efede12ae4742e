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

/// Memory promised to an operation under way.
#[derive(Debug)]
pub struct Promise {
    mib: u64,
    promised_mib: Arc<AtomicU64>,
}

impl Admission {
    pub fn new(probe: Arc<HostProbe>) -> Self {
        Self { probe, promised_mib: Arc::default() }
    }

    /// Room for a life with this much memory. `disk_mib`: what it will at once really take of the disk.
    pub fn admit(&self, memory_mib: u32, disk_mib: u64) -> Result<Promise, CapsuleError> {
        let wanted = u64::from(memory_mib) + VMM_OVERHEAD_MIB;
        let before = self.promised_mib.fetch_add(wanted, Ordering::Relaxed);
        let promise = Promise { mib: wanted, promised_mib: self.promised_mib.clone() };
        let free = host::memory().available_mib.saturating_sub(before);
        exhausted("memory", wanted, free)?;
        // Its memory goes to disk when it is paused.
        let (_, free) = self.probe.disk();
        exhausted("disk", disk_mib + u64::from(memory_mib) + DISK_RESERVE_MIB, free)?;
        Ok(promise)
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
        let Ok(first) = admission.admit(most / 64, 0) else {
            panic!("no room for a sixty-fourth of the memory")
        };
        admission.promised_mib.fetch_add(u64::from(most), Ordering::Relaxed);
        match admission.admit(most, 0) {
            Err(CapsuleError::Exhausted { resource, .. }) => assert_eq!(resource, "memory"),
            other => panic!("{other:?}"),
        }
        drop(first);
        assert_eq!(admission.promised_mib.load(Ordering::Relaxed), u64::from(most));
    }

    #[test]
    fn a_full_disk_is_named() {
        match admission().admit(128, u64::MAX / 2) {
            Err(CapsuleError::Exhausted { resource, .. }) => assert_eq!(resource, "disk"),
            other => panic!("{other:?}"),
        }
    }
}

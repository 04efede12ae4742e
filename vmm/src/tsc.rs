//! The rate of the time-stamp counter. A guest under software emulation sees the host's counter and has
//! nothing to measure it by, so it must be told.

use std::{arch::x86_64::_rdtsc, fs, path::Path, thread, time::Duration};

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::{
    failure::{Doing as _, Failure},
    paths::{create_directory, write_atomically},
    process::boot_id,
};

/// Long enough for a few parts per million.
const WINDOW: Duration = Duration::from_millis(200);

/// A measurement; it holds until the machine starts again.
#[derive(Serialize, Deserialize)]
struct Measured {
    boot_id: String,
    khz: u64,
}

/// Measures once for each start of the machine; blocks for a fifth of a second then.
pub fn khz(run: &Path) -> Result<u64, Failure> {
    let path = run.join("tsc.json");
    let boot_id = boot_id()?;
    let known = fs::read(&path).ok().and_then(|text| serde_json::from_slice::<Measured>(&text).ok());
    if let Some(known) = known.filter(|known| known.boot_id == boot_id) {
        return Ok(known.khz);
    }
    let khz = measure()?;
    let measured = serde_json::json!({ "boot_id": boot_id, "khz": khz }).to_string();
    create_directory(run, 0o700)?;
    write_atomically(&path, measured.as_bytes()).doing(|| format!("writing {}", path.display()))?;
    Ok(khz)
}

fn measure() -> Result<u64, Failure> {
    let (first_count, first_time) = sample()?;
    thread::sleep(WINDOW);
    let (last_count, last_time) = sample()?;
    let elapsed = (last_time - first_time).as_nanos().max(1);
    Ok((u128::from(last_count - first_count) * 1_000_000 / elapsed) as u64)
}

/// Counter and clock of one moment: of several attempts the one least interrupted.
fn sample() -> Result<(u64, Duration), Failure> {
    let mut best = None;
    for _ in 0..20 {
        // SAFETY: reads a register that user space may read.
        let before = unsafe { _rdtsc() };
        let time = clock_gettime(ClockId::CLOCK_MONOTONIC_RAW).doing(|| "reading the clock")?;
        // SAFETY: as above.
        let after = unsafe { _rdtsc() };
        let took = after - before;
        if best.is_none_or(|(least, _, _)| took < least) {
            best = Some((took, before + took / 2, Duration::from(time)));
        }
    }
    let (_, count, time) = best.unwrap_or_default();
    Ok((count, time))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_measurements_agree_and_one_is_remembered() {
        let run = tempfile::tempdir().unwrap();
        let first = khz(run.path()).unwrap();
        let again = measure().unwrap();
        assert!(first.abs_diff(again) * 10_000 < first, "{first} kHz, then {again} kHz");
        assert_eq!(khz(run.path()).unwrap(), first);
    }

    #[test]
    fn a_measurement_of_another_life_of_the_machine_is_not_used() {
        let run = tempfile::tempdir().unwrap();
        fs::write(run.path().join("tsc.json"), r#"{"boot_id": "another", "khz": 1}"#).unwrap();
        assert_ne!(khz(run.path()).unwrap(), 1);
    }
}

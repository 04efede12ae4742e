//! Named points between the steps of what must survive a crash. Tests end the process at one of them, or make it fail
//! there; otherwise they do nothing.
//!
//! `WRENN_FAILPOINTS` lists them, separated by commas: `memory.merge.synced=kill` ends the process the first time it
//! gets there, `snapshot.synced=error` makes that step fail, and `#7=kill` ends it at the seventh point it comes to,
//! whichever that is. A test that walks `#1`, `#2`, … until the process lives on has been everywhere.

use std::{
    collections::BTreeMap,
    env, io,
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const VARIABLE: &str = "WRENN_FAILPOINTS";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    Kill,
    Error,
}

/// Says that the process has come to the point `name`. An error is to be treated as one of the step before it.
pub fn reach(name: &str) -> io::Result<()> {
    static WANTED: OnceLock<BTreeMap<String, Effect>> = OnceLock::new();
    static REACHED: AtomicUsize = AtomicUsize::new(0);
    let wanted = WANTED.get_or_init(|| parse(&env::var(VARIABLE).unwrap_or_default()));
    if wanted.is_empty() {
        return Ok(());
    }
    let number = REACHED.fetch_add(1, Ordering::SeqCst) + 1;
    match wanted.get(name).or_else(|| wanted.get(&format!("#{number}"))) {
        None => Ok(()),
        Some(Effect::Error) => Err(io::Error::other(format!("failpoint {name}"))),
        Some(Effect::Kill) => {
            // As by a power failure: nothing is unwound, nothing flushed.
            kill(Pid::this(), Signal::SIGKILL)?;
            loop {
                std::thread::park();
            }
        }
    }
}

/// What cannot be understood is left out with a warning: a test that waits for it will say so.
fn parse(text: &str) -> BTreeMap<String, Effect> {
    let mut wanted = BTreeMap::new();
    for point in text.split(',').filter(|point| !point.is_empty()) {
        match point.split_once('=') {
            Some((name, "kill")) => drop(wanted.insert(name.to_owned(), Effect::Kill)),
            Some((name, "error")) => drop(wanted.insert(name.to_owned(), Effect::Error)),
            _ => tracing::warn!(point, "{VARIABLE} wants <name>=kill or <name>=error"),
        }
    }
    wanted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_named_or_counted() {
        let wanted = parse("memory.merge.synced=kill,#7=error,nonsense,x=y");
        let expected = [("memory.merge.synced", Effect::Kill), ("#7", Effect::Error)];
        assert_eq!(wanted, expected.map(|(name, effect)| (name.to_owned(), effect)).into());
        assert_eq!(parse(""), BTreeMap::new());
    }
}

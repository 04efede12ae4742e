//! The programs that go into the guest: found, and checked to be able to run there.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use crate::{
    elf::Elf,
    error::{At, Error, Result},
};

/// Where cargo puts them, under its target directory.
const BUILT: &str = "x86_64-unknown-linux-gnu/guest";

/// The guest's daemon: the given one, else the one built with this program.
pub fn envd(given: Option<PathBuf>) -> Result<PathBuf> {
    find("wrenn-envd", "envd", given)
}

/// The guest's init: the given one, else the one built with this program.
pub fn init(given: Option<PathBuf>) -> Result<PathBuf> {
    find("wrenn-init", "init", given)
}

fn find(name: &'static str, option: &'static str, given: Option<PathBuf>) -> Result<PathBuf> {
    let path = match given {
        Some(path) => path,
        None => {
            let candidates = candidates(name);
            let looked_for =
                || candidates.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ");
            let found = candidates.iter().find(|path| path.exists()).cloned();
            found.ok_or_else(|| Error::NotBuilt { name, option, looked_for: looked_for() })?
        }
    };
    check(&path)?;
    Ok(path)
}

/// The guest's build first: beside this program there may be one that was built for the host.
fn candidates(name: &str) -> Vec<PathBuf> {
    let mut candidates = vec![Path::new("target").join(BUILT).join(name)];
    if let Some(here) = env::current_exe().ok().as_deref().and_then(Path::parent) {
        candidates.insert(0, here.join("..").join(BUILT).join(name));
        candidates.push(here.join(name));
    }
    candidates
}

fn check(path: &Path) -> Result<()> {
    let bytes = fs::read(path).at("read", path)?;
    match Elf::parse(&bytes).and_then(|elf| elf.needs_loader()) {
        Some(false) => Ok(()),
        Some(true) => Err(Error::NotStatic { path: path.to_owned() }),
        None => Err(Error::NotElf { path: path.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_static_programs_are_taken() {
        let this_test = env::current_exe().unwrap();
        assert!(matches!(envd(Some(this_test)), Err(Error::NotStatic { .. })));
        assert!(matches!(init(Some("/etc/passwd".into())), Err(Error::NotElf { .. })));
        assert!(matches!(init(Some("/nonexistent".into())), Err(Error::File { .. })));
    }
}

//! The base system: Debian packages as a tar archive, made by mmdebstrap and kept.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{
    digest,
    error::{At, Error, Result},
    image::recipe::Recipe,
    progress::step,
    publish,
    tool::Tool,
};

/// Signs Debian's repositories; on every Debian, and in every image that has apt.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Left by the tools of the build, different each time, and of no use afterwards.
const REMOVED: &str = "rm -rf \"$1\"/var/cache/ldconfig/aux-cache \"$1\"/var/cache/apt/*.bin \
                       \"$1\"/var/log/apt/* \"$1\"/var/log/dpkg.log \"$1\"/var/log/alternatives.log \
                       \"$1\"/var/log/bootstrap.log";

pub struct Base {
    pub tar: PathBuf,
    pub sha256: String,
}

/// The base system of a recipe, from the cache unless it is not there or `refresh` is asked for.
pub fn make(cache: &Path, recipe: &Recipe, refresh: bool) -> Result<Base> {
    fs::create_dir_all(cache).at("make", cache)?;
    let tar = cache.join(format!("{}-{}.tar", recipe.name, &recipe.key()[..16]));
    if refresh || !tar.exists() {
        step("packages", || publish::write_file(&tar, |staged| bootstrap(recipe, staged)))?;
        remove_others(cache, recipe, &tar)?;
    }
    let sha256 = digest::of_file(&tar)?;
    Ok(Base { tar, sha256 })
}

fn bootstrap(recipe: &Recipe, tar: &Path) -> Result<()> {
    let sources = sources(recipe.suite)?;
    Tool::new("mmdebstrap")
        .args(["--mode=root", "--variant=minbase", "--format=tar", "--quiet"])
        .arg(format!("--include={}", recipe.packages.join(",")))
        .args(recipe.excluded.iter().map(|pattern| format!("--dpkgopt=path-exclude={pattern}")))
        .args(recipe.included.iter().map(|pattern| format!("--dpkgopt=path-include={pattern}")))
        .arg(format!("--customize-hook={REMOVED}"))
        .arg(recipe.suite)
        .arg(tar)
        .args(sources)
        .env("SOURCE_DATE_EPOCH", &recipe.epoch.to_string())
        .run()
        .map(drop)
}

/// One-line apt sources: the host's own repositories of this suite, not those of third parties.
fn sources(suite: &'static str) -> Result<Vec<String>> {
    let targets = Tool::new("apt-get")
        .args(["indextargets", "--format", "$(ORIGIN) $(CODENAME) $(REPO_URI) $(RELEASE) $(COMPONENT)"])
        .args(["Created-By: Packages", "Origin: Debian"])
        .text()?;
    let sources = parse_sources(&targets, suite);
    if sources.is_empty() { Err(Error::NoRepository { suite }) } else { Ok(sources) }
}

fn parse_sources(targets: &str, suite: &str) -> Vec<String> {
    let of_suite = |codename: &str| {
        codename == suite
            || codename.strip_prefix(suite).is_some_and(|rest| matches!(rest, "-updates" | "-security"))
    };
    let mut sources: Vec<_> = targets
        .lines()
        .filter_map(|line| {
            let fields: Vec<_> = line.split(' ').collect();
            let ["Debian", codename, uri, release, "main"] = fields[..] else { return None };
            of_suite(codename).then(|| format!("deb [signed-by={KEYRING}] {uri} {release} main"))
        })
        .collect();
    // One target for each architecture; the order in apt's files says nothing.
    sources.sort();
    sources.dedup();
    sources
}

/// Earlier versions of the same base.
fn remove_others(cache: &Path, recipe: &Recipe, tar: &Path) -> Result<()> {
    for entry in fs::read_dir(cache).at("list", cache)? {
        let path = entry.at("list", cache)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path != tar && name.starts_with(&format!("{}-", recipe.name)) {
            fs::remove_file(&path).at("remove", &path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_debians_own_repositories_of_the_suite_are_used() {
        let targets = "\
Debian bookworm https://mirror.test/debian/ bookworm main
Debian bookworm https://mirror.test/debian/ bookworm main
Debian bookworm-security https://mirror.test/security/ stable-security main
Debian bookworm-backports https://mirror.test/debian/ bookworm-backports main
Debian bookworm https://mirror.test/debian/ bookworm contrib
Debian trixie https://mirror.test/debian/ trixie main
Somebody bookworm https://elsewhere.test/ bookworm main
";
        assert_eq!(
            parse_sources(targets, "bookworm"),
            [
                format!("deb [signed-by={KEYRING}] https://mirror.test/debian/ bookworm main"),
                format!("deb [signed-by={KEYRING}] https://mirror.test/security/ stable-security main"),
            ]
        );
    }
}

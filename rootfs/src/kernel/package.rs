//! The distribution's kernel package: which it is, and getting it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use nix::unistd::{User, chown};

use crate::{
    digest,
    error::{At, Error, Result},
    publish,
    tool::Tool,
};

/// Depends on the newest concrete kernel for virtual machines.
const META_PACKAGE: &str = "linux-image-cloud-amd64";
/// The user apt downloads as.
const APT_USER: &str = "_apt";

/// A concrete kernel package.
pub struct Package {
    name: String,
    version: String,
    /// Of a package that was given rather than taken from the distribution.
    file: Option<PathBuf>,
}

impl Package {
    /// The newest that apt knows.
    pub fn newest() -> Result<Self> {
        let unknown = |package: &str| Error::UnknownPackage { package: package.to_owned() };
        let depends = Tool::new("apt-cache").args(["depends", META_PACKAGE]).text()?;
        let name = first_dependency(&depends).ok_or_else(|| unknown(META_PACKAGE))?;
        let record = Tool::new("apt-cache").args(["show", "--no-all-versions", &name]).text()?;
        let version = field(&record, "Version").ok_or_else(|| unknown(&name))?;
        Ok(Self { name, version, file: None })
    }

    /// What a package file says it is.
    pub fn given(deb: &Path) -> Result<Self> {
        let record = Tool::new("dpkg-deb").arg("-f").arg(deb).args(["Package", "Version"]).text()?;
        let said = |name| {
            field(&record, name)
                .ok_or_else(|| Error::NotAKernel { package: deb.to_owned(), lacks: "a version" })
        };
        Ok(Self { name: said("Package")?, version: said("Version")?, file: Some(deb.to_owned()) })
    }

    pub fn version(&self) -> &str {
        &self.version
    }

    /// Tells packages apart: a given file by its content, the distribution's by their version.
    pub fn identity(&self) -> Result<String> {
        match &self.file {
            Some(file) => digest::of_file(file),
            None => Ok(format!("{} {}", self.name, self.version)),
        }
    }

    /// The package's file, downloaded to `cache` unless it is there; older ones are removed.
    pub fn fetch(&self, cache: &Path) -> Result<PathBuf> {
        if let Some(file) = &self.file {
            return Ok(file.clone());
        }
        let deb = cache.join(format!("{}_{}.deb", self.name, self.version));
        if deb.exists() {
            return Ok(deb);
        }
        let download = download(&format!("{}={}", self.name, self.version))?;
        let found = fs::read_dir(download.path()).at("list", download.path())?.next();
        let file = found.ok_or_else(|| Error::UnknownPackage { package: self.name.clone() })?;
        let file = file.at("list", download.path())?.path();
        if cache.exists() {
            fs::remove_dir_all(cache).at("empty", cache)?;
        }
        fs::create_dir_all(cache).at("make", cache)?;
        publish::write_file(&deb, |staged| fs::copy(&file, staged).map(drop).at("copy", &file))?;
        Ok(deb)
    }
}

/// Downloads into a directory of its own, which belongs to apt's user so that it need not do it as root.
fn download(package: &str) -> Result<tempfile::TempDir> {
    let dir = tempfile::tempdir().at("make a directory in", std::env::temp_dir())?;
    if let Some(user) = User::from_name(APT_USER).at("look up the user", APT_USER)? {
        chown(dir.path(), Some(user.uid), Some(user.gid)).at("hand over", dir.path())?;
    }
    Tool::new("apt-get").args(["download", "--quiet", package]).current_dir(dir.path()).run()?;
    Ok(dir)
}

pub fn unpack(deb: &Path, to: &Path) -> Result<()> {
    Tool::new("dpkg-deb").arg("-x").arg(deb).arg(to).run().map(drop)
}

/// From what `apt-cache depends` prints.
fn first_dependency(depends: &str) -> Option<String> {
    depends.lines().find_map(|line| line.trim().strip_prefix("Depends: ")).map(str::to_owned)
}

/// A one-line field of a Debian control record.
fn field(record: &str, name: &str) -> Option<String> {
    record.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(": ")?.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apts_answers_are_understood() {
        let depends =
            "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-56-cloud-amd64\n  Recommends: x\n";
        assert_eq!(first_dependency(depends).as_deref(), Some("linux-image-6.1.0-56-cloud-amd64"));
        assert_eq!(first_dependency("linux-image-cloud-amd64\n"), None);
        let record = "Package: linux-image-6.1.0-56-cloud-amd64\nVersion: 6.1.192-2\nInstalled-Size: 1\n";
        assert_eq!(field(record, "Version").as_deref(), Some("6.1.192-2"));
        assert_eq!(field(record, "Ver"), None);
    }
}

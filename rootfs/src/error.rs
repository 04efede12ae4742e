//! What can go wrong, each with what was being done to what.

use std::{
    io,
    path::{Path, PathBuf},
    process::ExitStatus,
};

use crate::kernel::bzimage::BzImageError;

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot {action} {}", path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{tool} is not installed: apt-get install {package}")]
    MissingTool { tool: String, package: &'static str },
    #[error("cannot start {tool}")]
    StartTool {
        tool: String,
        #[source]
        source: io::Error,
    },
    #[error("{tool} failed ({status}): {said}")]
    Tool { tool: String, status: ExitStatus, said: String },
    #[error("only root can do this: files in an image belong to several users")]
    NotRoot,
    #[error("apt knows no package {package}: apt-get update")]
    UnknownPackage { package: String },
    #[error("apt knows no repository of Debian {suite}: add one to its sources, then apt-get update")]
    NoRepository { suite: &'static str },
    #[error("{} is not a kernel package: {lacks} is not in it", package.display())]
    NotAKernel { package: PathBuf, lacks: &'static str },
    #[error("no kernel can be taken out of {}", path.display())]
    BzImage {
        path: PathBuf,
        #[source]
        source: BzImageError,
    },
    #[error("kernel module {module} is not in the package, and not built in")]
    NoModule { module: String },
    #[error("kernel module {module} depends on itself")]
    ModuleCycle { module: String },
    #[error("{} is not a 64-bit little-endian ELF file", path.display())]
    NotElf { path: PathBuf },
    #[error(
        "{name} has not been built (looked for {looked_for}): build it for the guest, or name it with --{option}"
    )]
    NotBuilt { name: &'static str, option: &'static str, looked_for: String },
    #[error("{} needs a dynamic loader; the guest may have another: build it static, with the profile `guest`", path.display())]
    NotStatic { path: PathBuf },
    #[error("{} leads out of the image", path.display())]
    OutsideTree { path: PathBuf },
    #[error("file name {name:?} cannot be put in an image")]
    FileName { name: PathBuf },
    #[error("debugfs did not set all times: {said}")]
    Times { said: String },
    #[error("{} is not what this program writes", path.display())]
    Manifest {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
}

/// Says what was done to which file when an operation on it failed.
pub trait At<T> {
    fn at(self, action: &'static str, path: impl AsRef<Path>) -> Result<T>;
}

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn at(self, action: &'static str, path: impl AsRef<Path>) -> Result<T> {
        self.map_err(|e| Error::File { action, path: path.as_ref().to_owned(), source: e.into() })
    }
}

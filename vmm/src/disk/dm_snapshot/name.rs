//! What mapped devices are called.
//!
//! ```text
//! wrenn-<digest of the agent's directory>-<inode of the view's own file of changes>
//! wrenn-…-<the same inode>.<layer>    what the view's file has changes of; 1 is the lowest
//! ```
//! The first part says whose it is, so that an agent finds what an earlier one left and leaves alone what is another's.
//! The second is the view's own wherever its file is moved to, and as long as the device is there nobody else's: the
//! device keeps the file, and with it the number.

use std::fmt;

use crate::{disk::number::FileId, paths::HostPaths};

/// The names of one agent.
#[derive(Clone, Debug)]
pub struct DeviceNames {
    prefix: String,
}

/// The name of one device.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DeviceName(String);

impl DeviceNames {
    pub fn of(paths: &HostPaths) -> Self {
        Self { prefix: format!("wrenn-{}-", paths.digest()) }
    }

    /// For the view with this file of changes of its own.
    pub fn view(&self, changes: FileId) -> DeviceName {
        DeviceName(format!("{}{}", self.prefix, changes.inode))
    }

    /// If it is one of this agent's: the view it belongs to.
    pub fn recognise(&self, name: &str) -> Option<DeviceName> {
        let (view, layer) = name.split_once('.').map_or((name, None), |(view, layer)| (view, Some(layer)));
        let inode = view.strip_prefix(&self.prefix)?;
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|digit| digit.is_ascii_digit());
        (is_number(inode) && layer.is_none_or(is_number)).then(|| DeviceName(view.to_owned()))
    }
}

impl DeviceName {
    /// For one of the layers below the view with this name.
    pub fn layer(&self, number: usize) -> Self {
        Self(format!("{self}.{number}"))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_knows_its_own_devices() {
        let names = DeviceNames::of(&HostPaths::new("/var/lib/wrenn").unwrap());
        let others = DeviceNames::of(&HostPaths::new("/var/lib/other").unwrap());
        let name = names.view(FileId { device: 1, inode: 42 });
        assert!(name.as_str().starts_with("wrenn-") && name.as_str().ends_with("-42"), "{name}");
        assert_eq!(names.recognise(name.as_str()), Some(name.clone()));
        assert_eq!(names.recognise(name.layer(12).as_str()), Some(name.clone()));
        assert_eq!(others.recognise(name.as_str()), None);
        for foreign in ["", "vg-root", "wrenn-", &names.prefix, &format!("{name}-real"), &format!("{name}.")]
        {
            assert_eq!(names.recognise(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn the_kernel_takes_every_name() {
        let names = DeviceNames::of(&HostPaths::new("/var/lib/wrenn").unwrap());
        let longest = names.view(FileId { device: 0, inode: u64::MAX }).layer(usize::MAX);
        assert!(longest.as_str().len() < 128 && !longest.as_str().contains('/'), "{longest}");
    }
}

//! What the built-in templates consist of.

use crate::{digest::Inputs, image::ext4::Filesystem, layout::MINIMAL_TEMPLATE};

/// An image of Debian packages.
#[derive(Debug)]
pub struct Recipe {
    pub name: &'static str,
    /// Wire form of the template's id.
    pub template: &'static str,
    /// Change it when the same packages are to give another image.
    version: &'static str,
    pub suite: &'static str,
    /// On top of the essential ones and apt.
    pub packages: &'static [&'static str],
    /// `dpkg`'s patterns of what packages have and images do not, then of what they have all the same.
    pub excluded: &'static [&'static str],
    pub included: &'static [&'static str],
    /// No file in the image is younger, in seconds since 1970.
    pub epoch: u64,
    filesystem_uuid: &'static str,
    hash_seed: &'static str,
}

/// The smallest system that people find their way in: sh, bash, coreutils, apt, sudo, curl.
///
/// Names resolve without the network (`libnss-myhostname`): a capsule's host name is given to it long after its
/// `/etc/hosts` was written. Nothing starts services; chrony is there for machines with a PTP clock.
const MINIMAL: Recipe = Recipe {
    name: "minimal",
    template: MINIMAL_TEMPLATE,
    version: "1",
    suite: "bookworm",
    packages: &["ca-certificates", "chrony", "curl", "libnss-myhostname", "procps", "sudo"],
    excluded: &["/usr/share/doc/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/man/*"],
    included: &["/usr/share/doc/*/copyright", "/usr/share/locale/locale.alias"],
    epoch: 1_793_491_200, // 2026-11-01T00:00:00Z
    filesystem_uuid: "5d3c1b4e-2f1a-4a6b-9c80-77656e6e0001",
    hash_seed: "5d3c1b4e-2f1a-4a6b-9c80-77656e6e0002",
};

const ALL: [&Recipe; 1] = [&MINIMAL];

impl Recipe {
    /// By name; the error lists the names there are.
    pub fn named(name: &str) -> Result<&'static Self, String> {
        ALL.into_iter().find(|recipe| recipe.name == name).ok_or_else(|| {
            let names: Vec<_> = ALL.iter().map(|recipe| recipe.name).collect();
            format!("there is {}", names.join(", "))
        })
    }

    /// Changes with everything in the recipe.
    pub fn key(&self) -> String {
        Inputs::default().with("version", self.version).with("recipe", &format!("{self:?}")).key()
    }

    pub fn filesystem(&self) -> Filesystem {
        Filesystem { uuid: self.filesystem_uuid, hash_seed: self.hash_seed, epoch: self.epoch }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_changes_with_the_recipe() {
        assert_eq!(MINIMAL.key(), MINIMAL.key());
        assert_ne!(MINIMAL.key(), Recipe { packages: &["sudo"], ..MINIMAL }.key());
        assert_ne!(MINIMAL.key(), Recipe { epoch: MINIMAL.epoch + 1, ..MINIMAL }.key());
        assert_ne!(MINIMAL.key(), Recipe { version: "another", ..MINIMAL }.key());
    }

    #[test]
    fn an_unknown_name_is_answered_with_the_known_ones() {
        assert_eq!(Recipe::named("minimal").unwrap().name, "minimal");
        assert_eq!(Recipe::named("maximal").unwrap_err(), "there is minimal");
    }
}

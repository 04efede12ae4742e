//! What the built-in templates and the test host consist of.

use crate::{
    digest::Inputs,
    image::ext4::Filesystem,
    layout::{CODE_INTERPRETER_TEMPLATE, MINIMAL_TEMPLATE, PYTHON_TEMPLATE},
};

/// What capsules can start from without anybody having built it.
#[derive(Debug)]
pub struct Template {
    /// In its wire form.
    pub id: &'static str,
    pub recipe: Recipe,
}

/// A system of Debian packages.
#[derive(Debug)]
pub struct Recipe {
    pub name: &'static str,
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
const MINIMAL: Template = Template {
    id: MINIMAL_TEMPLATE,
    recipe: Recipe {
        name: "minimal",
        version: "1",
        suite: "bookworm",
        packages: &["ca-certificates", "chrony", "curl", "libnss-myhostname", "procps", "sudo"],
        excluded: NO_DOCUMENTATION,
        included: BUT_LICENCES,
        epoch: EPOCH,
        filesystem_uuid: "5d3c1b4e-2f1a-4a6b-9c80-77656e6e0001",
        hash_seed: "5d3c1b4e-2f1a-4a6b-9c80-77656e6e0002",
    },
};

/// `minimal` with Python as people expect it: `python` and `pip` work, in a virtual environment and without one.
const PYTHON: Template = Template {
    id: PYTHON_TEMPLATE,
    recipe: Recipe {
        name: "python",
        version: "1",
        suite: "bookworm",
        packages: &[
            "ca-certificates",
            "chrony",
            "curl",
            "libnss-myhostname",
            "procps",
            "python-is-python3",
            "python3-pip",
            "python3-venv",
            "sudo",
        ],
        excluded: NO_DOCUMENTATION_AND_PIP_FOR_ALL,
        included: BUT_LICENCES,
        epoch: EPOCH,
        filesystem_uuid: "5d3c1b4e-2f1a-4a6b-9c80-77656e6e0007",
        hash_seed: "5d3c1b4e-2f1a-4a6b-9c80-77656e6e0008",
    },
};

/// `python` with Jupyter Server and the kernel in which it runs cells. Nothing starts it: `jupyter server` does.
const CODE_INTERPRETER: Template = Template {
    id: CODE_INTERPRETER_TEMPLATE,
    recipe: Recipe {
        name: "code-interpreter",
        version: "1",
        suite: "bookworm",
        packages: &[
            "ca-certificates",
            "chrony",
            "curl",
            "jupyter-core",
            "jupyter-server",
            "libnss-myhostname",
            "procps",
            "python-is-python3",
            "python3-ipykernel",
            "python3-pip",
            "python3-venv",
            "sudo",
        ],
        excluded: NO_DOCUMENTATION_AND_PIP_FOR_ALL,
        included: BUT_LICENCES,
        epoch: EPOCH,
        filesystem_uuid: "5d3c1b4e-2f1a-4a6b-9c80-77656e6e0009",
        hash_seed: "5d3c1b4e-2f1a-4a6b-9c80-77656e6e000a",
    },
};

/// What a host runs beside Wrenn, and what shows a person what went wrong there.
pub const TEST_HOST: Recipe = Recipe {
    name: "test-host",
    version: "1",
    suite: "bookworm",
    packages: &[
        "ca-certificates",
        "curl",
        "dmsetup",
        "e2fsprogs",
        "iproute2",
        "kmod",
        "nftables",
        "procps",
        "qemu-system-x86",
        "xfsprogs",
    ],
    excluded: NO_DOCUMENTATION,
    included: BUT_LICENCES,
    epoch: EPOCH,
    filesystem_uuid: "5d3c1b4e-2f1a-4a6b-9c80-77656e6e0005",
    hash_seed: "5d3c1b4e-2f1a-4a6b-9c80-77656e6e0006",
};

const NO_DOCUMENTATION: &[&str] =
    &["/usr/share/doc/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/man/*"];
/// Debian's pip refuses to install beside Debian's packages where this file is. A capsule is a machine for one purpose.
const NO_DOCUMENTATION_AND_PIP_FOR_ALL: &[&str] = &[
    "/usr/lib/python3*/EXTERNALLY-MANAGED",
    "/usr/share/doc/*",
    "/usr/share/info/*",
    "/usr/share/locale/*",
    "/usr/share/man/*",
];
const BUT_LICENCES: &[&str] = &["/usr/share/doc/*/copyright", "/usr/share/locale/locale.alias"];
const EPOCH: u64 = 1_793_491_200; // 2026-11-01T00:00:00Z

const ALL: [&Template; 3] = [&MINIMAL, &PYTHON, &CODE_INTERPRETER];

impl Template {
    /// By name; the error lists the names there are.
    pub fn named(name: &str) -> Result<&'static Self, String> {
        ALL.into_iter().find(|template| template.recipe.name == name).ok_or_else(|| {
            let names: Vec<_> = ALL.iter().map(|template| template.recipe.name).collect();
            format!("there is {}", names.join(", "))
        })
    }
}

impl Recipe {
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
        assert_eq!(TEST_HOST.key(), TEST_HOST.key());
        assert_ne!(TEST_HOST.key(), Recipe { packages: &["sudo"], ..TEST_HOST }.key());
        assert_ne!(TEST_HOST.key(), Recipe { epoch: TEST_HOST.epoch + 1, ..TEST_HOST }.key());
        assert_ne!(TEST_HOST.key(), Recipe { version: "another", ..TEST_HOST }.key());
        assert_ne!(TEST_HOST.key(), MINIMAL.recipe.key());
    }

    #[test]
    fn an_unknown_name_is_answered_with_the_known_ones() {
        assert_eq!(Template::named("minimal").unwrap().recipe.name, "minimal");
        assert_eq!(Template::named("maximal").unwrap_err(), "there is minimal, python, code-interpreter");
    }

    #[test]
    fn every_template_has_what_the_one_before_has_and_is_a_file_system_of_its_own() {
        for (less, more) in ALL.iter().zip(&ALL[1..]) {
            for package in less.recipe.packages {
                assert!(more.recipe.packages.contains(package), "{} has no {package}", more.recipe.name);
            }
            assert!(more.recipe.packages.is_sorted());
        }
        let recipes = || ALL.iter().map(|template| &template.recipe).chain([&TEST_HOST]);
        for recipe in recipes() {
            let like = |other: &&Recipe| {
                other.filesystem_uuid == recipe.filesystem_uuid || other.hash_seed == recipe.hash_seed
            };
            assert_eq!(recipes().filter(like).count(), 1, "{}", recipe.name);
        }
    }
}

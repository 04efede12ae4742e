//! Every path on a host. Nobody else joins path components.
//!
//! ```text
//! <root>/lock                       held by the one agent of this directory
//! <root>/kernels/<version>/         vmlinux, initrd.cpio, kernel.json
//! <root>/images/teams/<team>/<template>/rootfs.ext4, and template.json with one that was a capsule's disk
//! <root>/logs/  ca/  agent/
//! <root>/data.xfs                   the disk store's own file system, where it needs one; mounted on
//! <root>/data/                      what is cloned from each other lives in one file system:
//!        capsules/<capsule>/        capsule.json, disk.ext4, memory, generations/, changes/, vmm/, metrics.json;
//!                                   with the disk store dm-snapshot also disk.ext4.base, disk.ext4.<layer>
//!        snapshots/<capsule>/       see `snapshot`
//!        golden/<template>/<vcpus>-<memory>-<disk>-<vmm>-<versions>/
//!        templates/<template>/      a snapshot, and template.json with it
//!        forks/<fork>/              a snapshot, for as long as copies are started from it
//! /run/wrenn/<digest of root>/<capsule>/    sockets: a socket's path may have 107 bytes at most
//! ```

mod name;

use std::{
    ffi::OsStr,
    fmt, fs,
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    str::FromStr,
    sync::atomic::{AtomicU64, Ordering},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

pub use self::name::{InvalidName, Name};
use crate::{
    driver::{KernelImage, MachineConfig, VmmIdentity},
    failure::{Doing as _, Failure, Failures, Teardown},
};

/// Where sockets live; a tmpfs on every distribution.
const RUN: &str = "/run/wrenn";

#[derive(Debug, thiserror::Error)]
pub enum PathError {
    #[error(transparent)]
    Io(#[from] Failure),
    #[error("there is no guest kernel in {0}")]
    NoKernel(PathBuf),
    #[error("{path} does not describe a guest kernel")]
    KernelDescription {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("the guest kernel is not complete: {0} is missing")]
    IncompleteKernel(PathBuf),
}

/// All paths of one host agent's directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPaths {
    root: PathBuf,
    run: PathBuf,
}

impl HostPaths {
    /// The root is made absolute, and need not exist yet.
    pub fn new(root: impl Into<PathBuf>) -> Result<Self, PathError> {
        let root = root.into();
        let root = std::path::absolute(&root).doing(|| format!("making {} absolute", root.display()))?;
        let digest = hex(&Sha256::digest(root.as_os_str().as_encoded_bytes())[..6]);
        Ok(Self { run: Path::new(RUN).join(digest), root })
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn lock_file(&self) -> PathBuf {
        self.root.join("lock")
    }

    pub fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    pub fn ca(&self) -> PathBuf {
        self.root.join("ca")
    }

    pub fn agent(&self) -> PathBuf {
        self.root.join("agent")
    }

    pub fn kernels(&self) -> PathBuf {
        self.root.join("kernels")
    }

    /// The kernel that new machines boot: the one made last.
    pub fn current_kernel(&self) -> Result<KernelImage, PathError> {
        let kernels = self.kernels();
        let doing = || format!("listing {}", kernels.display());
        let mut newest = None;
        for entry in fs::read_dir(&kernels).doing(doing)? {
            let directory = entry.doing(doing)?.path();
            let Ok(made) = fs::metadata(directory.join("kernel.json")).and_then(|m| m.modified()) else {
                // Written last: a directory without it is not complete.
                continue;
            };
            if newest.as_ref().is_none_or(|(latest, _)| made > *latest) {
                newest = Some((made, directory));
            }
        }
        let (_, directory) = newest.ok_or(PathError::NoKernel(kernels))?;
        read_kernel(&directory)
    }

    pub fn images(&self) -> PathBuf {
        self.root.join("images").join("teams")
    }

    /// The immutable disk image of a template.
    pub fn image(&self, team: &Name, template: &Name) -> PathBuf {
        self.images().join(team.as_ref()).join(template.as_ref()).join("rootfs.ext4")
    }

    /// The one file system of everything that is cloned.
    pub fn data(&self) -> PathBuf {
        self.root.join("data")
    }

    /// Holds the file system mounted on [`data`](Self::data) where the host's own cannot clone.
    pub(crate) fn data_image(&self) -> PathBuf {
        self.root.join("data.xfs")
    }

    pub fn capsules(&self) -> PathBuf {
        self.data().join("capsules")
    }

    pub fn capsule(&self, capsule: &Name) -> CapsulePaths {
        CapsulePaths {
            directory: self.capsules().join(capsule.as_ref()),
            run: self.run.join(capsule.as_ref()),
        }
    }

    pub fn snapshots(&self) -> PathBuf {
        self.data().join("snapshots")
    }

    /// Where a paused capsule waits.
    pub fn snapshot(&self, capsule: &Name) -> PathBuf {
        self.snapshots().join(capsule.as_ref())
    }

    pub fn golden_root(&self) -> PathBuf {
        self.data().join("golden")
    }

    pub fn golden(&self, template: &Name, key: &GoldenKey) -> PathBuf {
        self.goldens_of(template).join(key.to_string())
    }

    /// All golden snapshots of one template.
    pub fn goldens_of(&self, template: &Name) -> PathBuf {
        self.golden_root().join(template.as_ref())
    }

    pub fn templates(&self) -> PathBuf {
        self.data().join("templates")
    }

    /// The snapshot that is a template of this host.
    pub fn template(&self, template: &Name) -> PathBuf {
        self.templates().join(template.as_ref())
    }

    pub fn forks(&self) -> PathBuf {
        self.data().join("forks")
    }

    /// The moment of a capsule that its copies start from.
    pub fn fork(&self, fork: &Name) -> PathBuf {
        self.forks().join(fork.as_ref())
    }

    /// Tells this directory's things from another's where they have one name space.
    pub(crate) fn digest(&self) -> &str {
        self.run.file_name().and_then(OsStr::to_str).unwrap_or_default()
    }

    /// Sockets and what is to be forgotten at the next start of the machine.
    pub fn run(&self) -> &Path {
        &self.run
    }

    /// Of all its machines, below where the control groups are mounted.
    pub fn cgroup(&self) -> PathBuf {
        Path::new("wrenn").join(self.digest())
    }

    /// Makes the directories, open to root alone except the way to what is served to others.
    /// Call it after [`disk::prepare`](crate::disk::prepare), which may mount `data/`.
    pub fn create_all(&self) -> Result<(), PathError> {
        let private = [
            self.ca(),
            self.agent(),
            self.capsules(),
            self.snapshots(),
            self.golden_root(),
            self.templates(),
            self.forks(),
        ];
        let open = [self.kernels(), self.images(), self.logs()];
        for (mode, directories) in [(0o755, open.as_slice()), (0o700, private.as_slice())] {
            for directory in directories {
                create_directory(directory, mode)?;
            }
        }
        Ok(create_directory(&self.run, 0o700)?)
    }
}

/// What of `kernel.json` matters here.
#[derive(Deserialize)]
struct KernelDescription {
    version: String,
    /// Digest of all that went into kernel and initrd.
    inputs: String,
}

fn read_kernel(directory: &Path) -> Result<KernelImage, PathError> {
    let path = directory.join("kernel.json");
    let text = fs::read(&path).doing(|| format!("reading {}", path.display()))?;
    let description: KernelDescription =
        serde_json::from_slice(&text).map_err(|source| PathError::KernelDescription { path, source })?;
    let inputs: String = description.inputs.chars().take(12).collect();
    let kernel = KernelImage {
        version: format!("{}+{inputs}", description.version),
        vmlinux: directory.join("vmlinux"),
        initrd: directory.join("initrd.cpio"),
    };
    for file in [&kernel.vmlinux, &kernel.initrd] {
        if !file.is_file() {
            return Err(PathError::IncompleteKernel(file.clone()));
        }
    }
    Ok(kernel)
}

/// Makes a directory and what leads to it; one that exists is left as it is.
pub(crate) fn create_directory(path: &Path, mode: u32) -> Result<(), Failure> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .doing(|| format!("making the directory {}", path.display()))
}

/// What one capsule has on its host while it is not a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapsulePaths {
    /// On the data file system.
    pub directory: PathBuf,
    /// For sockets.
    pub run: PathBuf,
}

impl CapsulePaths {
    pub fn record(&self) -> PathBuf {
        self.directory.join("capsule.json")
    }

    pub fn disk(&self) -> PathBuf {
        self.directory.join("disk.ext4")
    }

    /// The file that the machine's memory is, or is based on.
    pub fn memory(&self) -> PathBuf {
        self.directory.join("memory")
    }

    /// The generations that the machine's memory is based on, where it is not only a flat file.
    pub fn generations(&self) -> PathBuf {
        self.directory.join("generations")
    }

    /// Memory that the VMM has written down and that is not yet in what the machine's memory is based on.
    pub fn changes(&self) -> PathBuf {
        self.directory.join("changes")
    }

    /// The one directory on the disk that a jailed VMM, or its page server, writes to.
    pub fn vmm(&self) -> PathBuf {
        self.directory.join("vmm")
    }

    /// The same for sockets.
    pub fn vmm_run(&self) -> PathBuf {
        self.run.join("vmm")
    }

    /// What its machine's load was.
    pub fn metrics(&self) -> PathBuf {
        self.directory.join("metrics.json")
    }

    pub fn qmp_socket(&self) -> PathBuf {
        self.run.join("qmp.sock")
    }

    /// Of Firecracker.
    pub fn api_socket(&self) -> PathBuf {
        self.run.join("api.sock")
    }

    /// Where a page server is asked how it is going.
    pub fn page_server_socket(&self) -> PathBuf {
        self.run.join("pages.sock")
    }

    /// All that any VMM's driver makes here, whether it is there or not.
    pub fn of_machine(&self) -> [PathBuf; 8] {
        [
            self.memory(),
            self.generations(),
            self.changes(),
            self.vmm(),
            self.vmm_run(),
            self.qmp_socket(),
            self.api_socket(),
            self.page_server_socket(),
        ]
    }

    /// Removes it.
    pub(crate) fn clear_machine(&self, teardown: &mut Teardown) {
        for path in self.of_machine() {
            teardown.step(|| format!("removing {}", path.display()), remove_any(&path));
        }
    }

    /// What the capsule, or whatever this is the home of, is called.
    pub fn name(&self) -> String {
        self.directory.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    pub fn create(&self) -> Result<(), PathError> {
        create_directory(&self.directory, 0o700)?;
        Ok(create_directory(&self.run, 0o700)?)
    }

    /// Puts all that is in these directories into those of `to`, which exist, and removes these. An error leaves
    /// some of it here and some there.
    pub fn move_into(&self, to: &Self) -> Result<(), Failure> {
        for (from, to) in [(&self.directory, &to.directory), (&self.run, &to.run)] {
            let doing = || format!("moving {} to {}", from.display(), to.display());
            for entry in fs::read_dir(from).doing(doing)? {
                let entry = entry.doing(doing)?;
                fs::rename(entry.path(), to.join(entry.file_name())).doing(doing)?;
            }
            fs::remove_dir(from).doing(doing)?;
        }
        Ok(())
    }

    /// Removes what a machine left in both directories, all but the record; goes on past errors.
    pub fn clear(&self) -> Result<(), Failures> {
        let mut teardown = Teardown::default();
        for directory in [&self.run, &self.directory] {
            let doing = || format!("listing {}", directory.display());
            for entry in fs::read_dir(directory).into_iter().flatten() {
                match entry {
                    Ok(entry) if entry.path() != self.record() => {
                        let path = entry.path();
                        let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
                        let removed =
                            if is_directory { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
                        teardown.step(|| format!("removing {}", path.display()), removed);
                    }
                    Ok(_) => {}
                    Err(error) => teardown.step(doing, Err::<(), _>(error)),
                }
            }
        }
        teardown.finish()
    }

    /// Removes both directories with all that is in them; goes on past errors.
    pub fn remove(&self) -> Result<(), Failures> {
        let mut teardown = Teardown::default();
        for directory in [&self.run, &self.directory] {
            teardown.step(|| format!("removing {}", directory.display()), fs::remove_dir_all(directory));
        }
        teardown.finish()
    }
}

/// Removes a file or a directory with all that is in it, if it is there.
pub(crate) fn remove_any(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// What the host's agent keeps with a snapshot or an image that is a template, in its directory, complete or not.
pub fn template_record(directory: &Path) -> PathBuf {
    directory.join("template.json")
}

/// Takes a snapshot's directory out of its place in one step, so that the name is free at once, and answers with
/// where it is then. If it is not removed from there, it goes with what is not complete.
pub fn set_aside(directory: &Path) -> io::Result<PathBuf> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let mut name = directory.as_os_str().to_owned();
    name.push(format!(".{}-{number}{PARTIAL}", std::process::id()));
    let aside = PathBuf::from(name);
    match fs::rename(directory, &aside) {
        // An agent of the same process id left it, before the machine was started again.
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
            fs::remove_dir_all(&aside)?;
            fs::rename(directory, &aside)?;
        }
        result => result?,
    }
    Ok(aside)
}

/// Which golden snapshot of a template fits a capsule.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GoldenKey {
    pub vcpus: u32,
    pub memory_mib: u32,
    pub disk_mib: u32,
    /// [`VmmIdentity::label`].
    pub vmm: String,
    /// Digest of every version whose change makes the snapshot stale.
    pub versions: String,
}

impl GoldenKey {
    /// `extra` is what else the snapshot holds: the image's digest, the guest daemon's version.
    pub fn new(machine: &MachineConfig, disk_mib: u32, identity: &VmmIdentity, extra: &[&str]) -> Self {
        let mut digest = Sha256::new();
        for part in identity.fixed_parts().iter().map(String::as_str).chain(extra.iter().copied()) {
            digest.update((part.len() as u64).to_le_bytes());
            digest.update(part);
        }
        Self {
            vcpus: machine.vcpus,
            memory_mib: machine.memory_mib,
            disk_mib,
            vmm: identity.label(),
            versions: hex(&digest.finalize()[..8]),
        }
    }
}

impl FromStr for GoldenKey {
    type Err = InvalidKey;

    /// As it is written by `Display`.
    fn from_str(text: &str) -> Result<Self, InvalidKey> {
        let parse = || {
            let mut parts = text.splitn(4, '-');
            let mut number = || parts.next()?.parse().ok();
            let (vcpus, memory_mib, disk_mib) = (number()?, number()?, number()?);
            let (vmm, versions) = parts.next()?.rsplit_once('-')?;
            Some(Self { vcpus, memory_mib, disk_mib, vmm: vmm.to_owned(), versions: versions.to_owned() })
        };
        parse().ok_or_else(|| InvalidKey(text.to_owned()))
    }
}

/// The text does not say which golden snapshot it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the name of a golden snapshot")]
pub struct InvalidKey(String);

impl fmt::Display for GoldenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { vcpus, memory_mib, disk_mib, vmm, versions } = self;
        write!(f, "{vcpus}-{memory_mib}-{disk_mib}-{vmm}-{versions}")
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A digest from [`hex`].
pub(crate) fn unhex(text: &str) -> Option<[u8; 32]> {
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return None };
    let digit = |digit: u8| char::from(digit).to_digit(16);
    let bytes = pairs.iter().map(|[high, low]| Some((digit(*high)? << 4 | digit(*low)?) as u8));
    bytes.collect::<Option<Vec<u8>>>()?.try_into().ok()
}

/// What the disk's base is called, where the disk's own file has only what was changed of it.
pub(crate) fn base_of_disk(disk: &Path) -> PathBuf {
    let mut name = disk.as_os_str().to_owned();
    name.push(".base");
    name.into()
}

/// What the disk's layer of this number is called: what was changed of its base in earlier lives. The first is the lowest.
pub(crate) fn layer_of_disk(disk: &Path, number: usize) -> PathBuf {
    let mut name = disk.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

/// All layers that there are of a disk, the lowest first.
pub fn layers_of_disk(disk: &Path) -> io::Result<Vec<PathBuf>> {
    let directory = disk.parent().unwrap_or(Path::new("."));
    let mut layers = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let number = path.extension().and_then(OsStr::to_str).and_then(|number| number.parse().ok());
        if let Some(number) = number.filter(|number| path == layer_of_disk(disk, *number)) {
            layers.push((number, path));
        }
    }
    layers.sort();
    Ok(layers.into_iter().map(|(_, path)| path).collect())
}

/// What a file is called until it is complete.
pub(crate) fn partial(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(PARTIAL);
    name.into()
}

/// Ending of what is not complete; no [`Name`] made by others ends so by chance and is kept.
pub(crate) const PARTIAL: &str = ".partial";

/// Replaces a file so that a reader, or a crash, sees the old content or the new, never less.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let partial = partial(path);
    let mut file =
        fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&partial, path)?;
    sync_directory(path.parent().unwrap_or(Path::new("/")))
}

/// Makes the names in a directory durable.
pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    fs::File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_socket_path_fits_into_an_address() {
        let paths = HostPaths::new(format!("/{}", "very-long/".repeat(40))).unwrap();
        let socket = paths.capsule(&"c".repeat(63).parse().unwrap()).qmp_socket();
        assert!(socket.as_os_str().len() < 108, "{}", socket.display());
    }

    #[test]
    fn the_current_kernel_is_the_complete_one_made_last() {
        let directory = tempfile::tempdir().unwrap();
        let paths = HostPaths::new(directory.path()).unwrap();
        fs::create_dir_all(paths.kernels().join("6.9-unfinished")).unwrap();
        assert!(matches!(paths.current_kernel(), Err(PathError::NoKernel(_))));

        for (version, age) in [("6.1.0", 1), ("6.2.0", 60)] {
            let kernel = paths.kernels().join(version);
            fs::create_dir(&kernel).unwrap();
            fs::write(kernel.join("vmlinux"), "").unwrap();
            let description = kernel.join("kernel.json");
            fs::write(&description, format!(r#"{{"version":"{version}","inputs":"0123456789abcdef"}}"#))
                .unwrap();
            let made = std::time::SystemTime::now() - std::time::Duration::from_secs(age);
            fs::File::open(description).unwrap().set_modified(made).unwrap();
        }
        assert!(matches!(paths.current_kernel(), Err(PathError::IncompleteKernel(_))));
        fs::write(paths.kernels().join("6.1.0/initrd.cpio"), "").unwrap();
        assert_eq!(paths.current_kernel().unwrap().version, "6.1.0+0123456789ab");
    }

    #[test]
    fn a_home_moves_into_another_with_all_that_is_in_it() {
        let directory = tempfile::tempdir().unwrap();
        let home = |name: &str| CapsulePaths {
            directory: directory.path().join("data").join(name),
            run: directory.path().join("run").join(name),
        };
        let (from, to) = (home("spare"), home("cl-1"));
        from.create().unwrap();
        to.create().unwrap();
        fs::write(to.record(), "kept").unwrap();
        fs::write(from.disk(), "disk").unwrap();
        fs::write(from.qmp_socket(), "").unwrap();
        from.move_into(&to).unwrap();
        assert_eq!(fs::read(to.disk()).unwrap(), b"disk");
        assert_eq!(fs::read(to.record()).unwrap(), b"kept");
        assert!(to.qmp_socket().exists());
        assert!(!from.directory.exists() && !from.run.exists());
        assert!(from.move_into(&to).is_err());
        to.clear().unwrap();
        assert_eq!(fs::read_dir(&to.directory).unwrap().count(), 1);
        assert!(to.record().exists() && !to.qmp_socket().exists());
    }

    #[test]
    fn what_is_set_aside_frees_its_name_and_counts_as_unfinished() {
        let directory = tempfile::tempdir().unwrap();
        let golden = directory.path().join("1-256-1024");
        let mut places = Vec::new();
        for _ in 0..2 {
            fs::create_dir(&golden).unwrap();
            fs::write(golden.join("memory"), "").unwrap();
            places.push(set_aside(&golden).unwrap());
            assert!(!golden.exists());
        }
        assert_ne!(places[0], places[1]);
        assert!(places.iter().all(|place| place.extension().is_some_and(|end| end == "partial")));
        assert_eq!(set_aside(&golden).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn the_name_of_a_golden_snapshot_says_what_it_is_of() {
        let key = GoldenKey {
            vcpus: 2,
            memory_mib: 512,
            disk_mib: 5120,
            vmm: "qemu-tcg".into(),
            versions: "0123456789abcdef".into(),
        };
        assert_eq!(key.to_string().parse(), Ok(key));
        for text in ["", "2-512-5120", "2-512-5120-qemu", "two-512-5120-qemu-tcg-01"] {
            assert!(text.parse::<GoldenKey>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_replaced_file_leaves_no_partial_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("capsule.json");
        write_atomically(&path, b"one").unwrap();
        write_atomically(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}

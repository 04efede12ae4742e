//! The baseline: a microVM driven by nothing but a QEMU command line, with no Wrenn code on the host and none in
//! the path of the answer. What answers in the guest is a dozen lines of Perl in the place of envd.

mod answer;
pub mod dirty;
mod network;
mod qmp;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;

pub use answer::Answered;
use answer::Patience;
use network::Namespace;
use qmp::Qmp;

const MEMORY_MIB: u32 = 256;

/// The disk is as long as a capsule's default one.
const DISK_BYTES: u64 = 5 << 30;

/// A cold boot of a guest under software emulation on a busy machine.
const BOOT: Patience = Patience { interval: Duration::from_millis(25), deadline: Duration::from_secs(60) };
const RESTORE: Patience = Patience { interval: Duration::from_millis(3), deadline: Duration::from_secs(20) };
/// Where several machines share the processors: asked as often as one alone, they would be kept busy by the asking.
const RESTORE_AMONG_OTHERS: Patience =
    Patience { interval: Duration::from_millis(50), deadline: Duration::from_secs(60) };

/// Answers every connection with one line.
const ANSWERER: &str = r#"#!/usr/bin/perl
use Socket;
$SIG{TERM} = sub { exit 0 };
socket(S, PF_INET, SOCK_STREAM, 0) or die;
setsockopt(S, SOL_SOCKET, SO_REUSEADDR, 1);
bind(S, sockaddr_in(7, INADDR_ANY)) or die;
listen(S, 64);
while (accept(C, S)) { syswrite(C, "here\n"); close(C); }
"#;

/// What the machines are made from.
#[derive(Clone)]
pub struct Ingredients {
    pub kernel: PathBuf,
    pub initrd: PathBuf,
    pub image: PathBuf,
    /// Rate of the host's time stamp counter, which the guest must be told.
    pub tsc_khz: u64,
    /// On the file system that capsules' disks are on.
    pub directory: PathBuf,
}

pub struct Workbench {
    ingredients: Ingredients,
    namespace: Namespace,
    /// The disk that every cold boot starts with a copy of.
    disk: PathBuf,
    /// With restored machines.
    patience: Patience,
}

/// Memory, devices and disk of a stopped machine.
pub struct Saved {
    memory: PathBuf,
    state: PathBuf,
    disk: PathBuf,
}

/// A running machine. Dropping it kills it.
pub struct Machine {
    child: Child,
    monitor: PathBuf,
    memory: PathBuf,
    disk: PathBuf,
}

impl Workbench {
    pub fn prepare(ingredients: Ingredients) -> Result<Self> {
        fs::create_dir_all(&ingredients.directory)?;
        let disk = ingredients.directory.join("image.ext4");
        fs::copy(&ingredients.image, &disk).context("copying the image")?;
        File::options().write(true).open(&disk)?.set_len(DISK_BYTES)?;
        replace_envd(&ingredients.directory, &disk)?;
        Ok(Self { namespace: Namespace::create(0)?, ingredients, disk, patience: RESTORE })
    }

    /// Another place for a machine beside this one's, to restore the same templates in at the same time; `number` tells
    /// them apart.
    pub fn another(&self, number: usize) -> Result<Self> {
        let directory = self.ingredients.directory.join(number.to_string());
        fs::create_dir_all(&directory)?;
        let ingredients = Ingredients { directory, ..self.ingredients.clone() };
        let namespace = Namespace::create(number)?;
        Ok(Self { namespace, ingredients, disk: self.disk.clone(), patience: RESTORE_AMONG_OTHERS })
    }

    /// A cold boot to the first answer.
    pub fn boot(&self) -> Result<(Machine, Answered)> {
        let begun = Instant::now();
        let disk = self.file("boot-disk");
        replace_by_copy(&self.disk, &disk)?;
        let memory = self.file("boot-memory");
        remove_if_there(&memory)?;
        let mut command = self.qemu(&memory, &disk, "on");
        command.arg("-kernel").arg(&self.ingredients.kernel).arg("-initrd").arg(&self.ingredients.initrd);
        command.args(["-append", &self.kernel_line()]).stdin(Stdio::null());
        self.launch(command, memory, disk, begun, BOOT)
    }

    /// From a saved machine to the first answer. `disk` of a template is cloned, that of a pause taken as it is.
    pub fn restore(&self, saved: &Saved, clone_disk: bool) -> Result<(Machine, Answered)> {
        let begun = Instant::now();
        let disk = if clone_disk {
            let disk = self.file("disk");
            replace_by_copy(&saved.disk, &disk)?;
            disk
        } else {
            saved.disk.clone()
        };
        let mut command = self.qemu(&saved.memory, &disk, "off");
        command.args(["-global", "migration.send-configuration=off", "-machine", "suppress-vmdesc=on"]);
        command.args(["-incoming", "fd:0"]).stdin(File::open(&saved.state)?);
        self.launch(command, saved.memory.clone(), disk, begun, self.patience)
    }

    /// Saves a booted machine as the template of all that follow: its memory file is complete as it is.
    pub fn save_template(&self, machine: Machine) -> Result<Saved> {
        let saved = Saved {
            memory: self.file("base-memory"),
            state: self.file("base-state"),
            disk: self.file("base-disk"),
        };
        machine.stop_and_save_devices(&saved.state)?;
        fs::rename(&machine.memory, &saved.memory)?;
        replace_by_copy(&machine.disk, &saved.disk)?;
        machine.end()?;
        Ok(saved)
    }

    /// Stops a machine, writes what it changed onto a clone of what it came from, makes it durable and ends it.
    pub fn save(&self, machine: Machine) -> Result<(Saved, Duration)> {
        let begun = Instant::now();
        let saved = Saved {
            memory: self.file("paused-memory"),
            state: self.file("paused-state"),
            disk: machine.disk.clone(),
        };
        machine.stop_and_save_devices(&saved.state)?;
        replace_by_copy(&machine.memory, &saved.memory)?;
        let memory = File::options().write(true).open(&saved.memory)?;
        dirty::copy_changed(machine.child.id(), &machine.memory, &memory)?;
        memory.sync_all()?;
        File::open(&saved.state)?.sync_all()?;
        machine.end()?;
        Ok((saved, begun.elapsed()))
    }

    /// How long a running machine stands still while its devices and what it changed are written, without any care for
    /// what becomes of the copy.
    pub fn standstill(&self, machine: &Machine) -> Result<Duration> {
        let (state, memory) = (self.file("copied-state"), self.file("copied-memory"));
        remove_if_there(&state)?;
        replace_by_copy(&machine.memory, &memory)?;
        let memory = File::options().write(true).open(&memory)?;
        let mut qmp = Qmp::connect(&machine.monitor)?;
        let begun = Instant::now();
        qmp.run("stop", json!({}))?;
        qmp.run("xen-save-devices-state", json!({ "filename": state, "live": false }))?;
        dirty::copy_changed(machine.child.id(), &machine.memory, &memory)?;
        qmp.run("cont", json!({}))?;
        Ok(begun.elapsed())
    }

    fn file(&self, name: &str) -> PathBuf {
        self.ingredients.directory.join(name)
    }

    fn qemu(&self, memory: &Path, disk: &Path, share: &str) -> Command {
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args(["-M", "microvm,x-option-roms=off,pit=off,pic=off,rtc=on,isa-serial=on,memory-backend=mem"])
            .args(["-bios", "qboot.rom", "-nodefaults", "-no-user-config", "-display", "none"])
            .args(["-accel", "tcg,tb-size=64", "-smp", "1", "-m", &MEMORY_MIB.to_string()])
            .args(["-cpu", "qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt,+aes,+rdrand"])
            .arg("-object")
            .arg(format!(
                "memory-backend-file,id=mem,size={MEMORY_MIB}M,mem-path={},share={share}",
                memory.display()
            ))
            .arg("-blockdev")
            .arg(format!(
                "driver=raw,node-name=d0,file.driver=file,file.filename={},file.locking=off",
                disk.display()
            ))
            .args(["-device", "virtio-blk-device,drive=d0"])
            .args(["-netdev", &format!("tap,id=n0,ifname={},script=no,downscript=no", network::TAP)])
            .args(["-device", &format!("virtio-net-device,netdev=n0,mac={},status=off", network::MAC)])
            .args(["-serial", "null"])
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", self.file("monitor").display()))
            .stdout(Stdio::null());
        command
    }

    fn kernel_line(&self) -> String {
        format!(
            "console=ttyS0 quiet reboot=t panic=-1 tsc_early_khz={} tsc=reliable no_timer_check nokaslr norandmaps \
             mitigations=off random.trust_cpu=on cryptomgr.notests raid=noautodetect 8250.nr_uarts=1 pci=off \
             init_on_alloc=0 audit=0 lsm= nowatchdog",
            self.ingredients.tsc_khz
        )
    }

    fn launch(
        &self,
        mut command: Command,
        memory: PathBuf,
        disk: PathBuf,
        begun: Instant,
        patience: Patience,
    ) -> Result<(Machine, Answered)> {
        let monitor = self.file("monitor");
        remove_if_there(&monitor)?;
        self.namespace.run(move || {
            let child = command.spawn().context("starting QEMU")?;
            let machine = Machine { child, monitor, memory, disk };
            let answered = answer::wait(begun, patience)?;
            Ok((machine, answered))
        })
    }
}

impl Machine {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn stop_and_save_devices(&self, state: &Path) -> Result<()> {
        let mut qmp = Qmp::connect(&self.monitor)?;
        qmp.run("stop", json!({}))?;
        // `live` on a stopped machine would make QEMU abort at the next save.
        qmp.run("xen-save-devices-state", json!({ "filename": state, "live": false }))?;
        Ok(())
    }

    /// What the guest wrote has reached the disk's file once it stands still: it can be ended without ceremony.
    pub fn end(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// On a file system that can, a copy is a clone: nothing is read or written.
fn replace_by_copy(from: &Path, to: &Path) -> Result<()> {
    remove_if_there(to)?;
    fs::copy(from, to).with_context(|| format!("cloning {}", from.display()))?;
    Ok(())
}

fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Puts the answerer where the image's init looks for envd.
fn replace_envd(directory: &Path, disk: &Path) -> Result<()> {
    let program = directory.join("answerer.pl");
    fs::write(&program, ANSWERER)?;
    let commands = directory.join("debugfs.commands");
    let envd = "/usr/local/bin/envd";
    fs::write(
        &commands,
        format!("rm {envd}\nwrite {} {envd}\nset_inode_field {envd} mode 0100755\n", program.display()),
    )?;
    let output = Command::new("debugfs")
        .arg("-w")
        .arg("-f")
        .arg(&commands)
        .arg(disk)
        .output()
        .context("running debugfs")?;
    ensure!(output.status.success(), "debugfs: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

//! Looks at one area after another.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{
    Area::{self, Disk, Kernel, Limits, Network, Tools, Vmm},
    Finding, HostOptions,
    Status::{self, Missing, Ok as Fine, Warning},
};
use crate::{
    disk::{DiskStoreChoice, DiskStoreKind, check_dm_snapshot, clones_here},
    driver::{Chosen, VmmChoice, choose},
    firecracker::{self, RestoreChoice},
    kvm::KvmCheck,
    paths::HostPaths,
    process::{
        cgroup::{CgroupPolicy, Survey, Unlimited, names},
        tool::find,
    },
    qemu,
};

pub fn all(paths: &HostPaths, options: &HostOptions) -> Vec<Finding> {
    let mut findings = vec![privilege()];
    findings.extend(vmm(options));
    findings.extend([kernel(paths), disk(paths, options.disk_store)]);
    findings.extend(network());
    findings.push(limits(options.cgroups));
    findings.push(tool("nft", "nftables", "sets up the capsules' packet filters"));
    findings.push(tool("resize2fs", "e2fsprogs", "makes images of capsules' disks small"));
    findings
}

fn finding(area: Area, status: Status, what: impl Into<String>, why: impl Into<String>) -> Finding {
    Finding { area, status, what: what.into(), why: why.into(), fix: None }
}

fn fixed_by(finding: Finding, fix: impl Into<String>) -> Finding {
    Finding { fix: Some(fix.into()), ..finding }
}

fn install(package: &str) -> String {
    format!("apt-get install -y {package}")
}

fn privilege() -> Finding {
    if nix::unistd::geteuid().is_root() {
        finding(Tools, Fine, "root", "namespaces, mounts and users can be made")
    } else {
        let why = "namespaces, mounts and users of their own need it";
        fixed_by(finding(Tools, Missing, "root", why), "run it as root")
    }
}

/// The VMM that will be used, and what stands in its way or in that of a better one.
fn vmm(options: &HostOptions) -> Vec<Finding> {
    let (chosen, why) = choose(options.vmm, options.kvm, options.firecracker_binary.as_deref());
    match chosen {
        Chosen::Firecracker => vec![firecracker(options, why), restores(options.restore)],
        Chosen::Qemu => {
            let kvm = KvmCheck::run(options.kvm).usable;
            let mut findings = vec![qemu(kvm, why)];
            if kvm && options.vmm == VmmChoice::Auto {
                let why = "KVM is usable, but it is neither in the search path nor named";
                let missing = finding(Vmm, Warning, "Firecracker", why);
                findings.push(fixed_by(missing, "WRENN_FIRECRACKER_BIN=/path/of/firecracker"));
            }
            findings
        }
    }
}

fn qemu(kvm: bool, why: String) -> Finding {
    let Some(program) = qemu::find_program() else {
        let why = "it is not in the search path";
        return fixed_by(finding(Vmm, Missing, "QEMU", why), install("qemu-system-x86"));
    };
    match qemu::describe(&program, kvm) {
        Ok(summary) => finding(Vmm, Fine, summary, why),
        Err(error) => {
            let missing = finding(Vmm, Missing, "QEMU", error.to_string());
            fixed_by(missing, install("--reinstall qemu-system-x86"))
        }
    }
}

fn firecracker(options: &HostOptions, why: String) -> Finding {
    let missing = |why: String| finding(Vmm, Missing, "Firecracker", why);
    let check = KvmCheck::run(options.kvm);
    if !check.usable {
        return fixed_by(missing(format!("it needs KVM: {check}")), "WRENN_VMM=qemu");
    }
    let Some(program) = options.firecracker_binary.clone().or_else(firecracker::find_program) else {
        let why = "it is neither in the search path nor named".to_owned();
        return fixed_by(missing(why), "WRENN_FIRECRACKER_BIN=/path/of/firecracker");
    };
    match firecracker::describe(&program) {
        Ok(summary) => finding(Vmm, Fine, summary, format!("{}; {why}", program.display())),
        Err(error) => fixed_by(
            missing(format!("{}: {}", program.display(), reasons(&error))),
            "WRENN_FIRECRACKER_BIN=/path/of/a/released/firecracker",
        ),
    }
}

/// How memory will be restored.
fn restores(choice: RestoreChoice) -> Finding {
    const WHAT: &str = "restores by page server";
    match (choice, firecracker::faults_can_be_served()) {
        (RestoreChoice::File, _) => finding(Vmm, Fine, "restores by mapped files", "chosen by the operator"),
        (RestoreChoice::Uffd, true) => finding(Vmm, Fine, WHAT, "chosen by the operator"),
        (RestoreChoice::Auto, true) => {
            finding(Vmm, Fine, WHAT, "where memory is in generations; a flat one is mapped")
        }
        (choice, false) => {
            let wanted = if choice == RestoreChoice::Uffd { Missing } else { Warning };
            let why = "there is no /dev/userfaultfd: all memory is mapped from flat files";
            fixed_by(finding(Vmm, wanted, WHAT, why), "sysctl -w vm.unprivileged_userfaultfd=1, or Linux 6.1")
        }
    }
}

fn reasons(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

fn kernel(paths: &HostPaths) -> Finding {
    match paths.current_kernel() {
        Ok(kernel) => finding(Kernel, Fine, kernel.version, kernel.vmlinux.display().to_string()),
        Err(error) => fixed_by(finding(Kernel, Missing, "guest kernel", error.to_string()), "make up"),
    }
}

/// Says what [`disk::prepare`](crate::disk::prepare) would do.
fn disk(paths: &HostPaths, choice: DiskStoreChoice) -> Finding {
    match choice {
        DiskStoreChoice::Only(DiskStoreKind::Copy) => {
            return finding(Disk, Warning, "copy", "chosen by the operator; every disk is a full copy");
        }
        DiskStoreChoice::Only(DiskStoreKind::DmSnapshot) => return dm_snapshot("chosen by the operator"),
        DiskStoreChoice::Only(DiskStoreKind::Reflink) | DiskStoreChoice::Auto => {}
    }
    let there = existing(&paths.data());
    match clones_here(&there) {
        Ok(true) => return finding(Disk, Fine, "reflink", format!("{} can share blocks", there.display())),
        Ok(false) => {}
        Err(error) => {
            let why = format!("{error}: {}", error.source);
            return finding(Disk, Missing, "a directory to write to", why);
        }
    }
    let missing = if find("mkfs.xfs").is_none() {
        Some(("mkfs.xfs is missing", install("xfsprogs")))
    } else if !Path::new("/dev/loop-control").exists() {
        Some(("there are no loop devices", "modprobe loop".to_owned()))
    } else {
        None
    };
    let Some((missing, fix)) = missing else {
        let why = format!("{} cannot share blocks; an XFS in a file is mounted for it", there.display());
        return finding(Disk, Fine, "reflink", why);
    };
    let why = format!("{} cannot share blocks, and {missing}", there.display());
    match choice {
        DiskStoreChoice::Only(_) => fixed_by(finding(Disk, Missing, "reflink", why), fix),
        DiskStoreChoice::Auto if check_dm_snapshot().is_ok() => dm_snapshot(&why),
        DiskStoreChoice::Auto => fixed_by(finding(Disk, Warning, "copy", why), fix),
    }
}

fn dm_snapshot(why: &str) -> Finding {
    match check_dm_snapshot() {
        Ok(()) => {
            finding(Disk, Fine, "dm-snapshot", format!("{why}; the kernel maps changes beside an image"))
        }
        Err(error) => fixed_by(finding(Disk, Missing, "dm-snapshot", format!("{why}; {error}")), error.fix()),
    }
}

/// The directory itself, or the nearest above it that is there.
fn existing(directory: &Path) -> PathBuf {
    directory.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/")).to_owned()
}

fn network() -> Vec<Finding> {
    let tun = if Path::new("/dev/net/tun").exists() {
        finding(Network, Fine, "TAP", "/dev/net/tun is there")
    } else {
        fixed_by(finding(Network, Missing, "TAP", "/dev/net/tun is missing"), "modprobe tun")
    };
    vec![tun, uplink()]
}

fn uplink() -> Finding {
    match default_interface(&fs::read_to_string("/proc/net/route").unwrap_or_default()) {
        Some(interface) => finding(
            Network,
            Fine,
            format!("namespaces and nftables, out by {interface}"),
            "it has the default route",
        ),
        None => finding(Network, Warning, "no way out", "there is no default route: capsules reach nobody"),
    }
}

/// Of the kernel's table of routes: destination and mask are zero.
fn default_interface(routes: &str) -> Option<&str> {
    routes.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        match fields[..] {
            [interface, "00000000", _, _, _, _, _, "00000000", ..] => Some(interface),
            _ => None,
        }
    })
}

/// Says what machines will be held to.
fn limits(policy: CgroupPolicy) -> Finding {
    let survey = match Survey::of_host(policy) {
        Ok(survey) => survey,
        Err(reason @ Unlimited::Off) => return finding(Limits, Warning, "none", reason.to_string()),
        Err(reason) => {
            let none =
                finding(Limits, Warning, "none, a machine may take all of the host", reason.to_string());
            return fixed_by(none, "boot the host with systemd.unified_cgroup_hierarchy=1 cgroup_no_v1=all");
        }
    };
    let what = format!("cgroup v2, by {}", names(&survey.offered));
    match survey.missing() {
        missing if missing.is_empty() => finding(Limits, Fine, what, survey.mount.display().to_string()),
        missing => {
            let why = format!("{} does not offer {}", survey.mount.display(), names(&missing));
            finding(Limits, Warning, what, why)
        }
    }
}

fn tool(program: &str, package: &str, why: &str) -> Finding {
    match find(program) {
        Some(path) => finding(Tools, Fine, program, format!("{} {why}", path.display())),
        None => fixed_by(finding(Tools, Missing, program, format!("it {why}")), install(package)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_route_is_found_among_others() {
        let routes = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\n\
                      veth0\t02000C0A\t00000000\t0001\t0\t0\t0\tFEFFFFFF\t0\n\
                      eth0\t00000000\t0102A8C0\t0003\t0\t0\t0\t00000000\t0\n";
        assert_eq!(default_interface(routes), Some("eth0"));
        assert_eq!(default_interface("Iface\n"), None);
    }

    #[tokio::test]
    async fn what_is_missing_comes_with_the_command_that_brings_it() {
        let directory = tempfile::tempdir().unwrap();
        let paths = HostPaths::new(directory.path().join("not/made/yet")).unwrap();
        let report = super::super::HostReport::inspect(&paths, &HostOptions::default()).await;
        let kernel = report.findings.iter().find(|finding| finding.area == Kernel).unwrap();
        assert_eq!(kernel.status, Missing);
        assert!(!report.is_usable());
        for finding in report.findings.iter().filter(|finding| finding.status == Missing) {
            assert!(finding.fix.is_some(), "{finding}");
        }
        assert!(report.to_string().contains("→ make up"), "{report}");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0, "it changes nothing");
    }
}

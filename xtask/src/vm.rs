//! The disk of a robot in a virtual machine: Debian, its kernel, and the agent's package installed.
//! `moai-vm` runs it.
//!
//! Invariant: a disk has the package that lies beside it, and is newer than each file of the guest.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use anyhow::{Context, Result};

use crate::cargo::{step, target_directory};
use crate::{debian, dist, setup};

/// What is in the guest beside what Debian says is essential, and the agent's package.
const PACKAGES: &str = "systemd-sysv,udev,dbus,kmod,initramfs-tools,linux-image-amd64,mosquitto";
/// Grows as it is filled.
const DISK_SIZE: &str = "3G";

/// Makes what is missing of the virtual machine; returns the arguments of `moai-vm` that name it.
///
/// # Errors
/// The package does not build, or the disk cannot be made.
pub(crate) fn prepare(package: Option<PathBuf>) -> Result<Vec<String>> {
    setup::install(setup::Purpose::Vm)?;
    let package = match package {
        Some(package) => package,
        None => dist::make(false)?,
    };
    let package = package
        .canonicalize()
        .with_context(|| format!("there is no package {}", package.display()))?;
    let directory = target_directory()?.join("vm");
    fs::create_dir_all(&directory)?;
    let [disk, kernel, initrd] =
        ["disk.ext4", "vmlinuz", "initrd.img"].map(|name| directory.join(name));
    let guest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/guest").canonicalize()?;
    // Not by its time: a release is packaged anew each time, and is the same if nothing has changed.
    let installed = directory.join("installed.deb");
    let is_installed =
        fs::read(&installed).is_ok_and(|it| fs::read(&package).is_ok_and(|new| it == new));
    if !is_installed || !is_newer(&disk, newest(&guest)?) {
        make_disk(&directory, &package, &guest)?;
        fs::copy(&package, &installed)?;
    }
    Ok([("--disk", disk), ("--kernel", kernel), ("--initrd", initrd)]
        .into_iter()
        .flat_map(|(option, path)| [option.to_owned(), path.display().to_string()])
        .collect())
}

fn make_disk(directory: &Path, package: &Path, guest: &Path) -> Result<()> {
    let release = debian::release().context("this is not Debian")?;
    let sources = debian::sources(|suite| suite.starts_with(&release))?;
    let name = package.file_name().unwrap_or_default().to_string_lossy();
    let unfinished = directory.join("unfinished.ext4");
    let (at, disk) = (directory.display(), unfinished.display());
    let hooks = [
        format!("copy-in '{}' /tmp", package.display()),
        format!("chroot \"$1\" apt-get install --yes --no-install-recommends /tmp/{name}"),
        format!("rm \"$1/tmp/{name}\""),
        format!("sync-in '{}' /", guest.display()),
        "chroot \"$1\" systemctl enable systemd-networkd robot-shell".to_owned(),
        format!("cp \"$1\"/boot/vmlinuz-* '{at}/vmlinuz'"),
        format!("cp \"$1\"/boot/initrd.img-* '{at}/initrd.img'"),
        "chroot \"$1\" apt-get clean".to_owned(),
        format!("truncate --size=0 '{disk}'"),
        // Here, because the owners of the files are right in the hook's namespace alone; and what is
        // mounted below, /proc for one, is not part of the disk.
        format!(
            "root=$(mktemp --directory) && mount --bind \"$1\" \"$root\" && \
             mkfs.ext4 -q -F -L robot -d \"$root\" '{disk}' {DISK_SIZE} && umount \"$root\" && \
             rmdir \"$root\""
        ),
    ];
    step(
        Command::new("mmdebstrap")
            .args(["--variant=minbase", "--format=null", &format!("--include={PACKAGES}")])
            .args(hooks.map(|hook| format!("--customize-hook={hook}")))
            .args([&release, "-"])
            .args(sources),
    )?;
    Ok(fs::rename(unfinished, directory.join("disk.ext4"))?)
}

fn is_newer(path: &Path, than: SystemTime) -> bool {
    modified(path).is_ok_and(|made| made > than)
}

fn modified(path: &Path) -> Result<SystemTime> {
    let metadata = fs::metadata(path).with_context(|| format!("cannot look at {}", path.display()));
    Ok(metadata?.modified()?)
}

/// When the newest file below a directory was changed.
fn newest(directory: &Path) -> Result<SystemTime> {
    let mut newest = modified(directory)?;
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        newest = newest.max(if path.is_dir() { self::newest(&path)? } else { modified(&path)? });
    }
    Ok(newest)
}

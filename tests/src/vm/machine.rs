//! The computer: QEMU with a firmware that measures what it boots, and a TPM.
//!
//! Invariants:
//! - the disk and the TPM keep their state while the machine is off;
//! - nothing of it listens beyond loopback.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::shell::Shell;
use crate::ports::Ports;
use crate::process::{Launch, Process, STEP, program};

const FIRMWARE: &str = "/usr/share/OVMF/OVMF_CODE.fd";
const FIRMWARE_VARIABLES: &str = "/usr/share/OVMF/OVMF_VARS.fd";
/// The copy of the disk that is used.
const DISK: &str = "disk";
const SHELL_SOCKET: &str = "shell.socket";
const TPM_SOCKET: &str = "tpm.socket";
/// How long a start may take on an emulated processor.
const BOOT: Duration = Duration::from_mins(5);
/// How long one may take with KVM before it counts as hung.
const BOOT_WITH_KVM: Duration = Duration::from_mins(1);
/// The port of the onboard broker in the guest.
const ONBOARD_PORT: u16 = 1883;

/// What executes the machine's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Accelerator {
    /// KVM if a start with it succeeds, else emulation.
    Auto,
    /// The processor, by the kernel.
    Kvm,
    /// Emulation.
    Tcg,
}

/// What a machine boots.
#[derive(Debug, Clone)]
pub struct Software {
    /// The file system, as `cargo xtask vm` makes it.
    pub disk: PathBuf,
    /// The kernel.
    pub kernel: PathBuf,
    /// What the kernel has in memory when it starts.
    pub initrd: PathBuf,
}

/// A computer that is on or off.
#[derive(Debug)]
pub(super) struct Machine {
    /// The guest's shell.
    pub(super) shell: Shell,
    software: Software,
    accelerator: Accelerator,
    directory: PathBuf,
    ports: Ports,
    /// The computer, then its TPM, which ends with it.
    running: Option<(Process, Process)>,
}

/// A disk, variables of the firmware and a TPM that have never been used.
fn unused(directory: &Path, disk: &Path) -> Result<()> {
    let tpm = directory.join("tpm/state");
    if tpm.exists() {
        fs::remove_dir_all(&tpm)?;
    }
    fs::create_dir_all(&tpm)?;
    fs::copy(FIRMWARE_VARIABLES, directory.join("firmware-variables"))?;
    let copied = std::process::Command::new("cp")
        .args(["--sparse=always", "--reflink=auto"])
        .args([disk, &directory.join(DISK)])
        .status()?;
    if !copied.success() {
        bail!("cannot copy {}; `cargo xtask vm` makes it", disk.display());
    }
    Ok(())
}

impl Machine {
    /// A computer that has never been on, with a disk of its own.
    ///
    /// # Errors
    /// The disk cannot be copied.
    pub(super) fn new(
        directory: &Path,
        software: Software,
        accelerator: Accelerator,
    ) -> Result<Self> {
        fs::create_dir_all(directory)?;
        let directory = directory.canonicalize()?;
        unused(&directory, &software.disk)?;
        let shell = Shell::new(directory.join(SHELL_SOCKET));
        Ok(Self {
            shell,
            software,
            accelerator,
            directory,
            ports: Ports::reserve()?,
            running: None,
        })
    }

    /// The port on loopback that leads to the guest's onboard broker.
    #[must_use]
    pub(super) fn onboard_port(&self) -> u16 {
        self.ports.first()
    }

    /// The disk that is used.
    #[must_use]
    pub(super) fn disk(&self) -> PathBuf {
        self.directory.join(DISK)
    }

    /// Where the TPM keeps its state, for [`crate::swtpm::Swtpm::start`].
    #[must_use]
    pub(super) fn tpm(&self) -> PathBuf {
        self.directory.join("tpm")
    }

    /// What executes the instructions: not [`Accelerator::Auto`] any more once it has started.
    #[must_use]
    pub(super) fn accelerator(&self) -> Accelerator {
        self.accelerator
    }

    /// Switches it on, and waits until the guest obeys. `word` is on the kernel's command line, which
    /// the kernel measures into PCR 9.
    ///
    /// # Errors
    /// It does not start; the error shows the console.
    pub(super) async fn switch_on(&mut self, word: &str) -> Result<()> {
        if self.accelerator == Accelerator::Auto {
            match self.start(Accelerator::Kvm, word, BOOT_WITH_KVM).await {
                Ok(()) => {
                    self.accelerator = Accelerator::Kvm;
                    return Ok(());
                }
                Err(error) => {
                    // The first says that it does not start, and what was on the console.
                    let cause = error.chain().nth(1).map(ToString::to_string).unwrap_or_default();
                    println!("  KVM does not start it, so it is emulated: {cause}");
                }
            }
            self.accelerator = Accelerator::Tcg;
            self.kill().await?;
            unused(&self.directory, &self.software.disk)?;
        }
        self.start(self.accelerator, word, BOOT).await
    }

    /// Has the guest end everything, and waits until the machine is off.
    ///
    /// # Errors
    /// It does not go off.
    pub(super) async fn switch_off(&mut self) -> Result<()> {
        let (computer, tpm) = self.running.take().context("the machine is off")?;
        self.shell.run("systemctl --no-block poweroff", STEP).await?;
        computer.wait(BOOT).await?;
        tpm.wait(STEP).await.map(drop)
    }

    async fn kill(&mut self) -> Result<()> {
        if let Some((computer, tpm)) = self.running.take() {
            computer.kill().await?;
            tpm.kill().await?;
        }
        Ok(())
    }

    async fn start(&mut self, with: Accelerator, word: &str, limit: Duration) -> Result<()> {
        let tpm = self.start_tpm().await?;
        let computer = self.launch(with, word)?.spawn()?;
        let console = computer.log().clone();
        self.running = Some((computer, tpm));
        let up = async {
            tokio::select! {
                up = self.shell.run("true", limit) => up.map(drop),
                ended = console.wait_for_exit(2 * limit) => bail!("QEMU ended: {}", ended?),
            }
        };
        up.await.with_context(|| format!("the machine does not start\n{}", console.tail()))
    }

    async fn start_tpm(&self) -> Result<Process> {
        let socket = self.directory.join(TPM_SOCKET);
        // That of the last time.
        drop(fs::remove_file(&socket));
        let tpm = Launch::new("tpm", &program("swtpm")?, &self.directory.join("logs"))
            .args(["socket", "--tpm2", "--terminate"])
            .args(["--tpmstate", &format!("dir={}/state,mode=0600", self.tpm().display())])
            .args(["--ctrl", &format!("type=unixio,path={}", socket.display())])
            .spawn()?;
        while tpm.exit().is_none() && !socket.exists() {
            // Nothing announces a socket.
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(tpm)
    }

    fn launch(&self, with: Accelerator, word: &str) -> Result<Launch> {
        let Software { kernel, initrd, .. } = &self.software;
        let at = |name: &str| self.directory.join(name).display().to_string();
        let accelerator = if with == Accelerator::Kvm { "kvm" } else { "tcg,thread=multi" };
        let port = self.onboard_port();
        Ok(Launch::new("computer", &program("qemu-system-x86_64")?, &self.directory.join("logs"))
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio"])
            .args(["-machine", "q35", "-accel", accelerator, "-cpu", "max", "-smp", "2"])
            .args(["-m", "1024", "-device", "virtio-rng-pci"])
            .args(["-drive", &format!("if=pflash,unit=0,format=raw,readonly=on,file={FIRMWARE}")])
            .args([
                "-drive",
                &format!("if=pflash,unit=1,format=raw,file={}", at("firmware-variables")),
            ])
            .args(["-kernel".as_ref(), kernel.as_os_str(), "-initrd".as_ref(), initrd.as_os_str()])
            .args(["-append", &format!("root=/dev/vda rw console=ttyS0 panic=-1 robot={word}")])
            .args(["-drive", &format!("if=none,id=disk,format=raw,cache=unsafe,file={}", at(DISK))])
            .args(["-device", "virtio-blk-pci,drive=disk"])
            .args(["-netdev", &format!("user,id=net,hostfwd=tcp:127.0.0.1:{port}-:{ONBOARD_PORT}")])
            .args(["-device", "virtio-net-pci,netdev=net"])
            .args([
                "-chardev",
                &format!("socket,id=shell,server=on,wait=off,path={}", at(SHELL_SOCKET)),
            ])
            .args(["-device", "virtio-serial-pci"])
            .args(["-device", "virtserialport,chardev=shell,name=robot.shell"])
            .args(["-chardev", &format!("socket,id=tpm,path={}", at(TPM_SOCKET))])
            .args(["-tpmdev", "emulator,id=tpm,chardev=tpm", "-device", "tpm-tis,tpmdev=tpm"]))
    }
}

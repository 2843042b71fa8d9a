//! Network and mounts of our own, so that nothing done to them reaches the machine.
//!
//! Invariants:
//! - packets are dropped only in a network namespace made for this run, on its loopback device;
//! - a file system is mounted only in a mount namespace made for this run; both end with it.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::process::program;

const MARK: &str = "MOAI_FAULTS_ISOLATED";

/// What this run may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isolation {
    /// Network and mounts are its own.
    Own,
    /// They are the machine's.
    None,
}

impl Isolation {
    /// Starts this program again with network and mounts of its own, if it may; returns what came of
    /// it. To be called before anything else is done.
    ///
    /// # Errors
    /// The program cannot be started again, or its network cannot be used.
    pub fn enter() -> Result<Self> {
        if std::env::var_os(MARK).is_some() {
            run(&program("ip")?, &["link", "set", "lo", "up"])?;
            return Ok(Self::Own);
        }
        let may = rustix::process::geteuid().is_root()
            && ["unshare", "ip"].iter().all(|name| program(name).is_ok())
            && Command::new(program("unshare")?)
                .args(["--net", "--mount", "true"])
                .status()
                .is_ok_and(|status| status.success());
        if !may {
            return Ok(Self::None);
        }
        let mut again = Command::new(program("unshare")?);
        again.args(["--net", "--mount", "--"]).arg(std::env::current_exe()?);
        Err(again.args(std::env::args_os().skip(1)).env(MARK, "1").exec().into())
    }

    /// Why packets cannot be dropped; none if they can.
    #[must_use]
    pub fn no_packet_loss(self) -> Option<&'static str> {
        match self {
            Self::None => Some("needs root, for a network of its own"),
            Self::Own if program("nft").is_err() => Some("needs nft (package nftables)"),
            Self::Own => None,
        }
    }

    /// Why no file system can be mounted; none if it can.
    #[must_use]
    pub fn no_mounts(self) -> Option<&'static str> {
        (self == Self::None).then_some("needs root, to mount a small disk")
    }
}

/// Drops every tenth packet to and from a TCP port, until it is dropped itself.
#[derive(Debug)]
pub struct PacketLoss(());

impl PacketLoss {
    const TABLE: &str = "moai_faults";

    /// Begins.
    ///
    /// # Errors
    /// The kernel cannot, or the network is not our own.
    pub fn start(port: u16) -> Result<Self> {
        ensure!(std::env::var_os(MARK).is_some(), "the network is not our own");
        let nft = program("nft")?;
        let table = Self::TABLE;
        run(&nft, &["add", "table", "inet", table])?;
        let loss = Self(());
        run(
            &nft,
            &["add", "chain", "inet", table, "in", "{ type filter hook input priority 0; }"],
        )?;
        for end in ["dport", "sport"] {
            let rule = format!("tcp {end} {port} numgen random mod 10 == 0 drop");
            run(&nft, &["add", "rule", "inet", table, "in", &rule])?;
        }
        Ok(loss)
    }
}

impl Drop for PacketLoss {
    fn drop(&mut self) {
        // The namespace goes with the run, whatever is left in it.
        if let Ok(nft) = program("nft") {
            let _ = run(&nft, &["delete", "table", "inet", Self::TABLE]);
        }
    }
}

/// A file system in memory, until it is dropped.
#[derive(Debug)]
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Mounts one of so many KiB over a directory.
    ///
    /// # Errors
    /// The kernel refuses, or the mounts are not our own.
    pub fn mount(directory: &Path, kib: u32) -> Result<Self> {
        ensure!(std::env::var_os(MARK).is_some(), "the mounts are not our own");
        let path = directory.to_str().context("the path is not text")?;
        let options = format!("size={kib}k,mode=0700");
        run(&program("mount")?, &["-t", "tmpfs", "-o", &options, "moai-faults", path])?;
        Ok(Self(directory.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // The namespace goes with the run, whatever is left in it.
        if let (Ok(umount), Some(path)) = (program("umount"), self.0.to_str()) {
            let _ = run(&umount, &["--lazy", path]);
        }
    }
}

fn run(program: &Path, arguments: &[&str]) -> Result<()> {
    let output = Command::new(program).args(arguments).output()?;
    ensure!(
        output.status.success(),
        "{} {}: {}",
        program.display(),
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

//! The search of a robot's disk for what must not be on it.
//!
//! Invariant: the search is known to work: it has to find the robot's name, which is on the disk.

use std::collections::HashSet;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::str::FromStr as _;

use anyhow::{Context as _, Result, ensure};
use moai_agent::custody::files::read_sealed;
use moai_agent::secrets::{SessionSeed, VaultKey};
use moai_agent::vault::LockedVault;
use moai_fhe::Context;
use moai_tpm::{Options, RecoveryCode, RootSecret, SealedRoot, Tcti, Tpm};

use crate::recordings::Trial;
use crate::scan::{Needles, Scanner, list};
use crate::swtpm::Swtpm;
use crate::world::IDENTITY;

/// What a robot that is off has left.
pub(super) struct Kept {
    pub(super) disk: PathBuf,
    pub(super) tpm: PathBuf,
    /// A copy of the sealed root secret.
    pub(super) sealed: PathBuf,
    /// Copies of the vault, as it was again and again.
    pub(super) vaults: Vec<PathBuf>,
    /// All that were shown; the last one fits the sealed root secret.
    pub(super) recovery_codes: Vec<String>,
    /// Those that were sent to the agent.
    pub(super) trials: Vec<Trial>,
}

/// Opens the root secret and the vaults, and looks for everything in them on the disk.
pub(super) async fn search(kept: Kept) -> Result<String> {
    let tpm = Swtpm::start(&kept.tpm).await?;
    let tcti = Tcti::from_str(&tpm.tcti())?;
    tokio::task::spawn_blocking(move || {
        let root = recover(&kept, tcti)?;
        let (scanner, sessions) = scanner(&kept, &root)?;
        let mut control = Needles::default();
        control.bytes("the robot's name", IDENTITY.as_bytes())?;
        let (findings, bytes) = look(&scanner, &kept.disk)?;
        ensure!(findings.is_empty(), "{}", list(&findings));
        let (found, _) = look(&control.build()?, &kept.disk)?;
        ensure!(!found.is_empty(), "the search finds nothing at all");
        Ok(format!("nothing of {sessions} sessions in {} MiB", bytes / 1024 / 1024))
    })
    .await?
}

fn recover(kept: &Kept, tcti: Tcti) -> Result<RootSecret> {
    let file = read_sealed(&kept.sealed)?.context("the robot is provisioned")?;
    let tpm = Tpm::start(tcti, Options::default())?;
    let code = kept.recovery_codes.last().context("the robot has shown a recovery code")?;
    let code = RecoveryCode::from_str(code)?;
    Ok(tpm.recover(&SealedRoot::from_bytes(&file.body)?, &code)?.root)
}

/// What looks for the secrets, and of how many sessions.
fn scanner(kept: &Kept, root: &RootSecret) -> Result<(Scanner, usize)> {
    let mut needles = Needles::default();
    needles.parts("root secret", root.expose())?;
    for code in &kept.recovery_codes {
        needles.bytes("recovery code", code.as_bytes())?;
        needles.bytes("recovery code", code.replace('-', "").as_bytes())?;
    }
    let mut sessions = HashSet::new();
    for vault in &kept.vaults {
        let vault = LockedVault::open(vault)?;
        let epoch = vault.epoch()?.context("the vault has an epoch")?;
        for record in vault.unlock(&VaultKey::derive(root), epoch)?.load()? {
            let record = record?;
            if sessions.insert(record.id.clone()) {
                session(&mut needles, &record.seed)?;
            }
        }
    }
    ensure!(!sessions.is_empty(), "the robot has no session to look for");
    for trial in &kept.trials {
        needles.numbers("readings", trial.samples.as_flattened())?;
        needles.bytes("readings as JSON", &serde_json::to_vec(&trial.samples)?)?;
    }
    Ok((needles.build()?, sessions.len()))
}

/// Everything secret that follows from a session's seed.
fn session(needles: &mut Needles, seed: &SessionSeed) -> Result<()> {
    let context = Context::tfhe();
    needles.bytes("session seed", seed.expose())?;
    needles.bytes("signing key", &**seed.signing_seed())?;
    let seed = seed.fhe_seed(context.scheme_name());
    needles.bytes("key seed", seed.expose())?;
    let keys = seed.expose_keys(&context);
    for (what, coefficients) in &keys.coefficients {
        needles.bits(what, coefficients)?;
    }
    for (what, seed) in &keys.seeds {
        needles.bytes(what, seed)?;
    }
    Ok(())
}

/// What is found on a disk, and how much of it is not empty.
fn look(scanner: &Scanner, disk: &Path) -> Result<(Vec<crate::scan::Finding>, usize)> {
    /// More than the longest needle.
    const OVERLAP: usize = 64 * 1024;
    const STEP: usize = 16 * 1024 * 1024;
    let mut file = File::open(disk)?;
    let (mut buffer, mut findings, mut searched) = (Vec::new(), Vec::new(), 0);
    loop {
        let length = file.by_ref().take(STEP as u64).read_to_end(&mut buffer)?;
        if length == 0 {
            return Ok((findings, searched));
        }
        if buffer.iter().any(|byte| *byte != 0) {
            findings.extend(scanner.bytes("the disk", &buffer));
            searched += length;
        }
        buffer.drain(..buffer.len().saturating_sub(OVERLAP));
    }
}

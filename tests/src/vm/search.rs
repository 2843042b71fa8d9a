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
use moai_tpm::{Options, RecoveryCode, SealedRoot, Tcti, Tpm};
use moai_transport::ids::SessionId;

use crate::recordings::Trial;
use crate::scan::{Needles, Scanner, list};
use crate::swtpm::Swtpm;
use crate::world::IDENTITY;

/// What a robot that is off has left.
pub(super) struct Kept {
    pub(super) disk: PathBuf,
    pub(super) moments: Vec<Moment>,
    /// Those that were sent to the agent.
    pub(super) trials: Vec<Trial>,
}

/// What opens the secrets that a robot had at some moment: a later TPM does not, once the root secret
/// has been replaced.
pub(super) struct Moment {
    /// The TPM's state, for [`Swtpm::start`].
    pub(super) tpm: PathBuf,
    /// The sealed root secret.
    pub(super) sealed: PathBuf,
    /// The vault.
    pub(super) vault: PathBuf,
    /// The code that was shown last.
    pub(super) recovery_code: String,
}

/// Opens root secret and vault of each moment, and looks for everything in them on the disk.
pub(super) async fn search(kept: Kept) -> Result<String> {
    let (mut needles, mut sessions) = (Needles::default(), HashSet::new());
    for moment in kept.moments {
        let tpm = Swtpm::start(&moment.tpm).await?;
        let tcti = Tcti::from_str(&tpm.tcti())?;
        let all = move || {
            secrets(&moment, tcti, &mut needles, &mut sessions)?;
            anyhow::Ok((needles, sessions))
        };
        (needles, sessions) = tokio::task::spawn_blocking(all).await??;
    }
    ensure!(!sessions.is_empty(), "the robot has no session to look for");
    for trial in &kept.trials {
        needles.numbers("readings", trial.samples.as_flattened())?;
        needles.bytes("readings as JSON", &serde_json::to_vec(&trial.samples)?)?;
    }
    let mut control = Needles::default();
    control.bytes("the robot's name", IDENTITY.as_bytes())?;
    let (scanner, control) = (needles.build()?, control.build()?);
    tokio::task::spawn_blocking(move || {
        let (findings, bytes) = look(&scanner, &kept.disk)?;
        ensure!(findings.is_empty(), "{}", list(&findings));
        let (found, _) = look(&control, &kept.disk)?;
        ensure!(!found.is_empty(), "the search finds nothing at all");
        Ok(format!("nothing of {} sessions in {} MiB", sessions.len(), bytes / 1024 / 1024))
    })
    .await?
}

/// Adds what was secret at a moment, but for sessions that were looked at before.
fn secrets(
    moment: &Moment,
    tcti: Tcti,
    needles: &mut Needles,
    sessions: &mut HashSet<SessionId>,
) -> Result<()> {
    let code = &moment.recovery_code;
    needles.bytes("recovery code", code.as_bytes())?;
    needles.bytes("recovery code", code.replace('-', "").as_bytes())?;
    let sealed = read_sealed(&moment.sealed)?.context("the robot is provisioned")?;
    let tpm = Tpm::start(tcti, Options::default())?;
    let sealed = SealedRoot::from_bytes(&sealed.body)?;
    let root = tpm.recover(&sealed, &RecoveryCode::from_str(code)?)?.root;
    needles.parts("root secret", root.expose())?;
    let vault = LockedVault::open(&moment.vault)?;
    let epoch = vault.epoch()?.context("the vault has an epoch")?;
    for record in vault.unlock(&VaultKey::derive(&root), epoch)?.load()? {
        let record = record?;
        if sessions.insert(record.id.clone()) {
            session(needles, &record.seed)?;
        }
    }
    Ok(())
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

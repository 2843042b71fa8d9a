//! What a person does with the root secret: provision, reseal, recover.
//!
//! Invariants:
//! - nothing is overwritten before what replaces it has been opened once;
//! - a recovery code is shown once, and after a new one was made the old one opens nothing: the
//!   epoch it belonged to is over.

use std::path::PathBuf;
use std::sync::Arc;

use moai_tpm::{Epoch, RecoveryCode, RootSecret, SealedRoot};
use zeroize::Zeroizing;

use super::custodian::{self, Custodian, CustodianKind};
use super::error::CustodyError;
use super::escrow::{self, ESCROW_FILE};
use super::files::{NEXT_ROOT_FILE, ROOT_FILE, StateDirectory, VAULT_FILE};
use super::rotation::{fresh_root, root_of, settle};
use super::sealed_file::SealedFile;
use super::tpm::{PolicyReport, TpmCustodian, parse};
use super::{Custody, record, rotate_offline, rotation};
use crate::audit::AuditEvent;
use crate::config::{Config, CustodianConfig};
use crate::secrets::VaultKey;
use crate::vault::LockedVault;

/// What `provision` makes beside the root secret.
#[derive(Debug, Clone, Copy)]
pub struct Extras {
    /// A recovery code, where the custodian has them.
    pub recovery_code: bool,
    /// An escrow for the configured recipient.
    pub escrow: bool,
}

/// A root secret that was sealed and has been opened once since.
pub struct Provisioned {
    /// The sealed root secret.
    pub path: PathBuf,
    /// Its epoch.
    pub epoch: u32,
    /// What opens it, for people.
    pub bound_to: String,
    /// The new recovery code, to be shown once.
    pub recovery_code: Option<Zeroizing<String>>,
    /// What did not work out besides.
    pub warning: Option<String>,
}

/// Makes the root secret and seals it. Blocks.
///
/// # Errors
/// The robot is provisioned already, the custodian or the escrow refuses.
pub fn provision(config: &Config, extras: Extras) -> Result<Provisioned, CustodyError> {
    let state = StateDirectory::lock(&config.state_directory)?;
    for name in [ROOT_FILE, NEXT_ROOT_FILE] {
        if state.file(name).exists() {
            return Err(CustodyError::AlreadyProvisioned { path: state.file(name) });
        }
    }
    let recipient = match (&config.custody.escrow, extras.escrow) {
        (None, true) => return Err(CustodyError::NoEscrow),
        (Some(recipient), true) => Some(recipient),
        (_, false) => None,
    };
    let seal = Seal::open(config)?;
    let epoch = Epoch::FIRST;
    let root = fresh_root(seal.custodian())?;
    let sealed = seal.seal(epoch, &root, extras.recovery_code)?;
    let escrow = match recipient {
        Some(recipient) => Some(escrow::seal(recipient, &config.identity, epoch, &root)?),
        None => None,
    };
    if state.file(VAULT_FILE).exists() {
        tracing::warn!("the session vault of an earlier root secret is removed");
        state.remove(VAULT_FILE)?;
    }
    match escrow {
        Some(escrow) => state.write(ESCROW_FILE, &escrow)?,
        None => state.remove(ESCROW_FILE)?,
    }
    let done = seal.keep(&state, epoch, sealed)?;
    let custodian = seal.custodian().kind().to_string();
    record(config, &state, epoch, &root, AuditEvent::Provisioned { custodian });
    Ok(done)
}

/// Seals the root secret anew to the boot state of this moment. Blocks.
///
/// # Errors
/// An agent runs, the root secret does not open, or the custodian is not a TPM.
pub fn reseal(config: &Arc<Config>, new_recovery_code: bool) -> Result<Provisioned, CustodyError> {
    let state = settled(config)?;
    let tpm = tpm(config)?;
    let (file, sealed) = present(&state, &tpm)?;
    let unsealed = tpm.open_sealed(&sealed)?;
    let event = AuditEvent::Resealed { new_recovery_code };
    if new_recovery_code {
        return reseal_with_new_code(config, state, &tpm, &file, &sealed, &unsealed.root, event);
    }
    let resealed = tpm.reseal(&sealed, &unsealed.root, unsealed.recovery.as_ref())?;
    let done = replace(&state, &tpm, &file, &resealed)?;
    record(config, &state, file.epoch, &unsealed.root, event);
    Ok(done)
}

/// Opens the root secret with the recovery code, whatever the boot state, and seals it to the boot
/// state of this moment, with a new recovery code. Blocks.
///
/// # Errors
/// An agent runs, the code is wrong, or the custodian is not a TPM.
pub fn recover(config: &Arc<Config>, code: &RecoveryCode) -> Result<Provisioned, CustodyError> {
    let state = settled(config)?;
    let tpm = tpm(config)?;
    let (file, sealed) = present(&state, &tpm)?;
    let root = tpm.recover(&sealed, code)?;
    let event = AuditEvent::Recovered { means: "recovery_code" };
    reseal_with_new_code(config, state, &tpm, &file, &sealed, &root, event)
}

/// Seals a root secret that comes out of an escrow, in its epoch. Blocks.
///
/// # Errors
/// An agent runs, the vault is of another epoch or root secret, or the custodian refuses.
pub fn recover_with_root(
    config: &Config,
    epoch: Epoch,
    root: &RootSecret,
) -> Result<Provisioned, CustodyError> {
    let state = StateDirectory::lock(&config.state_directory)?;
    let vault = LockedVault::open(&state.file(VAULT_FILE))?;
    settle(&state, vault.epoch()?)?;
    if !vault.fits(&VaultKey::derive(root), epoch)? {
        return Err(CustodyError::OtherRoot);
    }
    let seal = Seal::open(config)?;
    let sealed = seal.seal(epoch, root, true)?;
    let done = seal.keep(&state, epoch, sealed)?;
    // It cannot be open twice.
    drop(vault);
    record(config, &state, epoch, root, AuditEvent::Recovered { means: "escrow" });
    Ok(done)
}

/// What the root secret is bound to. Blocks.
///
/// # Errors
/// The robot was never provisioned, or the custodian is not a TPM.
pub fn show_policy(config: &Config) -> Result<PolicyReport, CustodyError> {
    let tpm = tpm(config)?;
    let path = config.state_directory.join(ROOT_FILE);
    let Some(file) = super::files::read_sealed(&path)? else {
        return Err(CustodyError::NotProvisioned { path });
    };
    tpm.report(&parse(file.epoch, &file.body)?)
}

/// The state directory, with no rotation half done.
fn settled(config: &Config) -> Result<StateDirectory, CustodyError> {
    let state = StateDirectory::lock(&config.state_directory)?;
    let marker = LockedVault::open(&state.file(VAULT_FILE))?.epoch()?;
    rotation::settle(&state, marker)?;
    Ok(state)
}

fn tpm(config: &Config) -> Result<Arc<TpmCustodian>, CustodyError> {
    let kind = match config.custody.custodian {
        CustodianConfig::Tpm => return Ok(Arc::new(TpmCustodian::open(&config.tpm)?)),
        CustodianConfig::Pkcs11(_) => CustodianKind::Pkcs11,
        CustodianConfig::Kms(_) => CustodianKind::Kms,
        CustodianConfig::Env => CustodianKind::Env,
    };
    Err(CustodyError::OnlyTpm(kind))
}

fn present(
    state: &StateDirectory,
    tpm: &TpmCustodian,
) -> Result<(SealedFile, SealedRoot), CustodyError> {
    let file = root_of(state, tpm)?;
    let sealed = parse(file.epoch, &file.body)?;
    Ok((file, sealed))
}

fn reseal_with_new_code(
    config: &Arc<Config>,
    state: StateDirectory,
    tpm: &Arc<TpmCustodian>,
    file: &SealedFile,
    sealed: &SealedRoot,
    root: &RootSecret,
    event: AuditEvent,
) -> Result<Provisioned, CustodyError> {
    let code = tpm.new_recovery_code()?;
    let resealed = tpm.reseal(sealed, root, Some(&code))?;
    let mut done = replace(&state, tpm, file, &resealed)?;
    record(config, &state, file.epoch, root, event);
    // Whoever has a copy of the file before opens it with the code before, until its key is gone.
    let custody =
        Custody::new(Arc::clone(config), Arc::new(state), Arc::<TpmCustodian>::clone(tpm));
    match rotate_offline(&custody, &mut |_| {}) {
        Ok(rotated) => done.epoch = rotated.epoch,
        Err(error) => {
            done.warning = Some(format!(
                "old copies of {} still open with the old code until the next rotation: {error}",
                done.path.display()
            ));
        }
    }
    done.recovery_code = Some(code.to_text());
    Ok(done)
}

/// Puts a resealed root secret in the place of `file`, once it has been opened.
fn replace(
    state: &StateDirectory,
    tpm: &TpmCustodian,
    file: &SealedFile,
    resealed: &SealedRoot,
) -> Result<Provisioned, CustodyError> {
    tpm.open_sealed(resealed)?;
    let file = SealedFile { body: resealed.to_bytes(), ..file.clone() };
    state.write_sealed(ROOT_FILE, &file)?;
    Ok(Provisioned {
        path: state.file(ROOT_FILE),
        epoch: file.epoch.0,
        bound_to: bound_to(resealed),
        recovery_code: None,
        warning: None,
    })
}

fn bound_to(sealed: &SealedRoot) -> String {
    match sealed.policy_key() {
        Some(key) => {
            let (pcrs, key) = (sealed.pcrs(), key.fingerprint());
            format!("the present boot state ({pcrs}) and to those that policy key {key} signs")
        }
        None => format!("the present boot state ({})", sealed.pcrs()),
    }
}

/// The configured custodian, for a first sealing.
enum Seal {
    Tpm(TpmCustodian),
    Other(Box<dyn Custodian>),
}

/// What came out of it.
struct Sealed {
    body: Vec<u8>,
    bound_to: String,
    code: Option<RecoveryCode>,
}

impl Seal {
    fn open(config: &Config) -> Result<Self, CustodyError> {
        Ok(match config.custody.custodian {
            CustodianConfig::Tpm => Self::Tpm(TpmCustodian::open(&config.tpm)?),
            _ => Self::Other(custodian::open(config)?),
        })
    }

    fn custodian(&self) -> &dyn Custodian {
        match self {
            Self::Tpm(tpm) => tpm,
            Self::Other(custodian) => &**custodian,
        }
    }

    fn seal(
        &self,
        epoch: Epoch,
        root: &RootSecret,
        recovery_code: bool,
    ) -> Result<Sealed, CustodyError> {
        let sealed = match self {
            Self::Tpm(tpm) => {
                let code = if recovery_code { Some(tpm.new_recovery_code()?) } else { None };
                let sealed = tpm.seal_with(epoch, root, code.as_ref())?;
                Sealed { body: sealed.to_bytes(), bound_to: bound_to(&sealed), code }
            }
            Self::Other(custodian) => Sealed {
                body: custodian.seal(epoch, root, None)?,
                bound_to: custodian.describe()?,
                code: None,
            },
        };
        // Proves, while a person watches, that the next start can unseal.
        self.custodian().unseal(epoch, &sealed.body)?;
        Ok(sealed)
    }

    /// The root secret is in force from here on; keys of other epochs go.
    fn keep(
        &self,
        state: &StateDirectory,
        epoch: Epoch,
        sealed: Sealed,
    ) -> Result<Provisioned, CustodyError> {
        let Sealed { body, bound_to, code } = sealed;
        let custodian = self.custodian();
        let file = SealedFile { custodian: custodian.kind(), epoch, body };
        state.write_sealed(ROOT_FILE, &file)?;
        let retired = custodian.retire(epoch, &file.body);
        Ok(Provisioned {
            path: state.file(ROOT_FILE),
            epoch: epoch.0,
            bound_to,
            recovery_code: code.map(|code| code.to_text()),
            warning: retired.err().map(|error| format!("keys of earlier epochs stay: {error}")),
        })
    }
}

//! Custody of the root secret: who keeps it, how it is replaced, what to do when it does not open.
//!
//! [`custodian`] is the trait, [`tpm`], [`pkcs11`], [`kms`] and [`env`] are what can be behind it;
//! [`rotation`] begins the next epoch; [`provisioning`] is what a person does: provision, reseal,
//! recover; [`escrow`] is for the day the custodian is lost.
//!
//! Invariants:
//! - a root secret is made by `provision` and by a rotation, which re-wraps everything under the old
//!   one; nothing else ever makes one;
//! - on disk it exists only sealed, and in memory only until the key below it is derived;
//! - one process at a time works with the files.

pub mod custodian;
pub mod env;
pub mod error;
pub mod escrow;
pub mod files;
#[cfg(feature = "kms")]
pub mod kms;
#[cfg(feature = "pkcs11")]
pub mod pkcs11;
pub mod provisioning;
pub mod rotation;
pub mod sealed_file;
pub mod tpm;

use std::sync::Arc;

use moai_tpm::{Epoch, RootSecret};

pub use self::custodian::{Custodian, CustodianKind, open};
pub use self::error::CustodyError;
pub use self::files::{ROOT_FILE, StateDirectory, VAULT_FILE};
pub use self::provisioning::{
    Extras, Provisioned, provision, recover, recover_with_root, reseal, show_policy,
};
pub use self::rotation::{Rotated, RotationStep};
pub use self::tpm::connect;
use crate::audit::{self, AuditError, AuditEvent, AuditReport};
use crate::clock::SystemClock;
use crate::config::Config;
use crate::secrets::VaultKey;
use crate::vault::{LockedVault, Vault};

/// The root secret's custodian together with custody's files. All methods block.
pub struct Custody {
    config: Arc<Config>,
    state: Arc<StateDirectory>,
    custodian: Arc<dyn Custodian>,
}

impl Custody {
    /// Opens the custodian that the configuration names.
    ///
    /// # Errors
    /// It cannot be reached, or is not part of this build.
    pub fn open(config: Arc<Config>, state: Arc<StateDirectory>) -> Result<Self, CustodyError> {
        let custodian = Arc::from(custodian::open(&config)?);
        Ok(Self::new(config, state, custodian))
    }

    /// The state directory, which is locked as long as anybody has it.
    #[must_use]
    pub fn state(&self) -> &Arc<StateDirectory> {
        &self.state
    }

    fn new(config: Arc<Config>, state: Arc<StateDirectory>, custodian: Arc<dyn Custodian>) -> Self {
        Self { config, state, custodian }
    }

    /// The custodian.
    #[must_use]
    pub fn custodian(&self) -> &Arc<dyn Custodian> {
        &self.custodian
    }

    /// When the root secret in force was sealed.
    #[must_use]
    pub fn sealed_at(&self) -> Option<std::time::SystemTime> {
        std::fs::metadata(self.state.file(ROOT_FILE)).ok()?.modified().ok()
    }

    /// Finishes or undoes a rotation that was cut off, unseals the root secret, destroys what is
    /// left of other epochs, and derives the vault's key.
    ///
    /// # Errors
    /// The robot was never provisioned, a file is damaged, or the custodian refuses.
    pub fn unseal(&self, vault: &LockedVault) -> Result<(Epoch, VaultKey), CustodyError> {
        let (epoch, root) = self.root_secret(vault)?;
        Ok((epoch, VaultKey::derive(&root)))
    }

    /// The root secret itself; see [`Self::unseal`].
    ///
    /// # Errors
    /// Those of [`Self::unseal`].
    pub fn root_secret(&self, vault: &LockedVault) -> Result<(Epoch, RootSecret), CustodyError> {
        rotation::settle(&self.state, vault.epoch()?)?;
        let sealed = rotation::root_of(&self.state, &*self.custodian)?;
        let epoch = sealed.epoch;
        let root = self.custodian.unseal(epoch, &sealed.body)?;
        if let Err(source) = self.custodian.retire(epoch, &sealed.body) {
            let error = CustodyError::NotRetired { epoch, source: Box::new(source) };
            tracing::error!(%error, "crypto-shredding is incomplete");
        }
        Ok((epoch, root))
    }

    /// Begins the next epoch. `observe` is told of each step when it is durable.
    ///
    /// # Errors
    /// The custodian, the escrow or the disk refuses. The epoch before stays in force then, except
    /// after [`CustodyError::NotRetired`].
    pub fn rotate(
        &self,
        vault: &Vault,
        observe: &mut dyn FnMut(RotationStep),
    ) -> Result<Rotated, CustodyError> {
        let escrow = |epoch: Epoch, root: &RootSecret| match &self.config.custody.escrow {
            Some(recipient) => {
                Ok(Some(escrow::seal(recipient, &self.config.identity, epoch, root)?))
            }
            None => Ok(None),
        };
        rotation::rotate(&self.state, &*self.custodian, &escrow, vault, observe)
    }
}

/// Begins the next epoch where no agent runs.
///
/// # Errors
/// An agent runs, the root secret does not open, or those of [`Custody::rotate`].
pub fn rotate_root(
    config: &Arc<Config>,
    observe: &mut dyn FnMut(RotationStep),
) -> Result<Rotated, CustodyError> {
    let state = Arc::new(StateDirectory::lock(&config.state_directory)?);
    rotate_offline(&Custody::open(Arc::clone(config), state)?, observe)
}

/// Checks the audit log where no agent runs.
///
/// # Errors
/// An agent runs, the root secret does not open, or there is no log that can be checked.
pub fn verify_audit(config: &Arc<Config>) -> anyhow::Result<AuditReport> {
    let state = Arc::new(StateDirectory::lock(&config.state_directory)?);
    let custody = Custody::open(Arc::clone(config), state)?;
    let vault = LockedVault::open(&custody.state.file(VAULT_FILE)).map_err(CustodyError::from)?;
    let (epoch, key) = custody.unseal(&vault)?;
    let vault = Arc::new(vault.unlock(&key, epoch).map_err(CustodyError::from)?);
    Ok(audit::verify_offline(&config.state_directory, vault, config.audit)?)
}

/// Takes an event down where no agent runs. What cannot be taken down is said, and stops nothing.
fn record(
    config: &Config,
    state: &StateDirectory,
    epoch: Epoch,
    root: &RootSecret,
    event: AuditEvent,
) {
    let result = LockedVault::open(&state.file(VAULT_FILE))
        .and_then(|vault| vault.unlock(&VaultKey::derive(root), epoch))
        .map_err(AuditError::from)
        .and_then(|vault| {
            let (directory, vault) = (&config.state_directory, Arc::new(vault));
            audit::record_offline(directory, vault, epoch, config.audit, &SystemClock, event)
        });
    if let Err(error) = result {
        tracing::warn!(%error, "not in the audit log");
        eprintln!("moai-agent: warning: not in the audit log: {error}");
    }
}

fn rotate_offline(
    custody: &Custody,
    observe: &mut dyn FnMut(RotationStep),
) -> Result<Rotated, CustodyError> {
    let vault = LockedVault::open(&custody.state.file(VAULT_FILE))?;
    let (epoch, key) = custody.unseal(&vault)?;
    custody.rotate(&vault.unlock(&key, epoch)?, observe)
}

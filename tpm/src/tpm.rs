//! The handle that programs hold.
//!
//! Invariant: no method touches the TPM itself; each hands a job to the owner thread and waits
//! for its answer. All of them block: call them off async threads.

use std::fmt;
use std::time::Duration;

use zeroize::Zeroizing;

use crate::blob::SealedRoot;
use crate::device::{Device, Loaded, Properties};
use crate::error::TpmError;
use crate::owner::Owner;
use crate::pcr::PcrSelection;
use crate::secret::RootSecret;
use crate::tcti::Tcti;

/// How a TPM is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// How long a call waits for its answer, waiting for earlier calls included.
    pub deadline: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { deadline: Duration::from_secs(10) }
    }
}

/// A TPM in use. Cheap to clone; the connection closes when the last clone is dropped.
#[derive(Clone)]
pub struct Tpm {
    owner: Owner<Device>,
}

impl fmt::Debug for Tpm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tpm").finish_non_exhaustive()
    }
}

impl Tpm {
    /// Starts the owner thread and opens the connection. On a software TPM, which has no
    /// resource manager, this flushes the transient objects and sessions that killed programs
    /// left.
    ///
    /// # Errors
    /// [`TpmError::Absent`] when nothing can be opened, [`TpmError::Deadline`] when the TPM does
    /// not answer.
    pub fn start(tcti: Tcti, options: Options) -> Result<Self, TpmError> {
        let owner = Owner::start(options.deadline, move || Device::open(&tcti))?;
        let tpm = Self { owner };
        tpm.owner.call(|_| Ok(()))?;
        Ok(tpm)
    }

    /// Seals a secret to this TPM and to the values the selected PCRs hold now. Creates the
    /// storage root key if there is none.
    ///
    /// # Errors
    /// See [`TpmError`].
    pub fn seal(&self, secret: &RootSecret, pcrs: &PcrSelection) -> Result<SealedRoot, TpmError> {
        let secret = RootSecret::copy_of(secret.expose());
        let pcrs = *pcrs;
        self.owner.call(move |device| device.seal(&secret, pcrs))
    }

    /// Opens a sealed secret.
    ///
    /// # Errors
    /// [`TpmError::PcrMismatch`], [`TpmError::Tampered`], [`TpmError::OtherTpm`],
    /// [`TpmError::OwnerCleared`] when it cannot be opened here and now; see [`TpmError`] for the
    /// rest.
    pub fn unseal(&self, sealed: &SealedRoot) -> Result<RootSecret, TpmError> {
        let sealed = sealed.clone();
        self.owner.call(move |device| device.unseal(&sealed))
    }

    /// 32 bytes of the TPM's random number generator, encrypted on the bus. Mix them with the
    /// operating system's: the TPM is not authenticated for this call.
    ///
    /// # Errors
    /// See [`TpmError`].
    pub fn random(&self) -> Result<Zeroizing<[u8; 32]>, TpmError> {
        self.owner.call(Device::random)
    }

    /// Who made this TPM and what runs on it.
    ///
    /// # Errors
    /// See [`TpmError`].
    pub fn properties(&self) -> Result<Properties, TpmError> {
        self.owner.call(Device::properties)
    }

    /// What occupies the TPM's slots now; behind a resource manager, what of ours does.
    ///
    /// # Errors
    /// See [`TpmError`].
    pub fn loaded(&self) -> Result<Loaded, TpmError> {
        self.owner.call(Device::loaded)
    }
}

//! The handle that programs hold.
//!
//! Invariant: no method touches the TPM itself; each hands a job to the owner thread and waits
//! for its answer. All of them block: call them off async threads.

use std::fmt;
use std::time::Duration;

use zeroize::Zeroizing;

use crate::blob::SealedRoot;
use crate::device::{Device, Loaded, Properties};
use crate::epoch::Epoch;
use crate::error::TpmError;
use crate::measurements::Measurements;
use crate::owner::Owner;
use crate::pcr::PcrSelection;
use crate::policy::Protection;
use crate::recovery::RecoveryCode;
use crate::seal::Payload;
use crate::secret::{RootSecret, Unsealed};
use crate::signed_policy::SignedPolicy;
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
    pub(crate) owner: Owner<Device>,
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

    /// Begins an epoch: makes its storage key, persists it at [`Epoch::handle`] in place of a
    /// leftover of an epoch that was abandoned there, and seals the secret below it, to this TPM
    /// and to the platform state of `protection`. Creates the storage root key if there is none.
    ///
    /// The storage key that was at the handle is destroyed with all that was sealed below it: for
    /// the epoch in use call [`Self::reseal`].
    ///
    /// # Errors
    /// [`TpmError::HandleTaken`] if somebody else's object is at the handle; see [`TpmError`].
    pub fn seal(
        &self,
        epoch: Epoch,
        root: &RootSecret,
        recovery: Option<&RecoveryCode>,
        protection: &Protection,
    ) -> Result<SealedRoot, TpmError> {
        let payload = payload(root, recovery);
        let protection = protection.clone();
        self.owner.call(move |device| {
            device.with_forgetting(|device| device.seal(epoch, &payload, protection))
        })
    }

    /// Seals anew below the storage key of the epoch of `sealed`, to the platform state as it is
    /// now. The copies sealed before still open in their states until the epoch is retired.
    ///
    /// # Errors
    /// [`TpmError::EpochGone`] if that key is gone; see [`TpmError`].
    pub fn reseal(
        &self,
        sealed: &SealedRoot,
        root: &RootSecret,
        recovery: Option<&RecoveryCode>,
        protection: &Protection,
    ) -> Result<SealedRoot, TpmError> {
        let payload = payload(root, recovery);
        let (sealed, protection) = (sealed.clone(), protection.clone());
        self.owner.call(move |device| {
            device.with_forgetting(|device| device.reseal(&sealed, &payload, protection))
        })
    }

    /// Opens a sealed secret. `policies` are the signed policies at hand; they matter only to a
    /// secret sealed with a policy key.
    ///
    /// # Errors
    /// [`TpmError::OtherTpm`], [`TpmError::OwnerCleared`], [`TpmError::EpochGone`],
    /// [`TpmError::Tampered`] when it cannot be opened here; [`TpmError::PcrMismatch`],
    /// [`TpmError::NoPolicy`], [`TpmError::PolicySigner`], [`TpmError::PolicySelection`],
    /// [`TpmError::PolicyStale`] when it cannot be opened in the present state of the platform;
    /// see [`TpmError`] for the rest.
    pub fn unseal(
        &self,
        sealed: &SealedRoot,
        policies: &[SignedPolicy],
    ) -> Result<Unsealed, TpmError> {
        let (sealed, policies) = (sealed.clone(), policies.to_vec());
        self.owner
            .call(move |device| device.with_forgetting(|device| device.unseal(&sealed, &policies)))
    }

    /// Opens a sealed secret with its recovery code, whatever state the platform is in.
    ///
    /// # Errors
    /// [`TpmError::RecoveryRefused`] for another code, [`TpmError::NoRecovery`] if it was sealed
    /// without one; see [`TpmError`] for the rest.
    pub fn recover(&self, sealed: &SealedRoot, code: &RecoveryCode) -> Result<Unsealed, TpmError> {
        let (sealed, code) = (sealed.clone(), RecoveryCode::copy_of(code.expose()));
        self.owner
            .call(move |device| device.with_forgetting(|device| device.recover(&sealed, &code)))
    }

    /// Destroys the storage key of every epoch but that of `keep`, and with it what was sealed
    /// below.
    ///
    /// # Errors
    /// [`TpmError::EpochGone`] if the key of `keep` is not there, and nothing is destroyed; see
    /// [`TpmError`].
    pub fn retire(&self, keep: &SealedRoot) -> Result<(), TpmError> {
        let keep = keep.clone();
        self.owner.call(move |device| device.retire(&keep))
    }

    /// What the PCRs hold now, in an authenticated answer. Creates the storage root key if there
    /// is none.
    ///
    /// # Errors
    /// See [`TpmError`].
    pub fn measurements(&self, pcrs: PcrSelection) -> Result<Measurements, TpmError> {
        self.owner.call(move |device| device.measurements(pcrs))
    }

    /// 32 bytes of the TPM's random number generator, encrypted on the bus. Mix them with the
    /// operating system's: the TPM is not authenticated for this call.
    ///
    /// # Errors
    /// See [`TpmError`].
    pub fn random(&self) -> Result<Box<Zeroizing<[u8; 32]>>, TpmError> {
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

fn payload(root: &RootSecret, recovery: Option<&RecoveryCode>) -> Payload {
    Payload {
        root: RootSecret::copy_of(root.expose()),
        recovery: recovery.map(|code| RecoveryCode::copy_of(code.expose())),
    }
}

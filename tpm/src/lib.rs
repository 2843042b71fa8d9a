//! TPM 2.0 custody of a root secret.
//!
//! A [`RootSecret`] of 32 bytes is sealed below the storage key of its [`Epoch`], which never
//! leaves the TPM, under a policy: the PCR values at sealing, or any that the fleet's
//! [`PolicyKey`] signed ([`SignedPolicy`]), or a [`RecoveryCode`]. What comes out is a
//! [`SealedRoot`], which only this TPM opens, and only until the epoch is retired
//! ([`Tpm::retire`]).
//!
//! Invariants of the crate:
//! 1. One thread owns the connection to the TPM. [`Tpm`] is a handle to it; every call is
//!    answered, or given up, within the deadline of [`Options`].
//! 2. The secret crosses the bus only inside sessions that are salted to the SRK and encrypt
//!    parameters both ways (TPM 2.0 Part 1, 19.6 and 21). Unsealing salts only to the SRK whose
//!    name was recorded at sealing, so a key put in its place learns nothing.
//! 3. Sealed objects are fixedTPM, fixedParent, noDA and without userWithAuth: the policy is the
//!    only way in, and a robot whose power was cut cannot be locked out.
//! 4. Nothing of ours stays in the TPM after a call but the SRK at [`SRK_HANDLE`] and the storage
//!    keys of epochs at [`Epoch::handle`].
//! 5. Every error says what happened and what to do: see [`TpmError::advice`].
//!
//! ```no_run
//! use moai_tpm::{Epoch, Options, PcrSelection, Protection, RootSecret, Tpm};
//!
//! let tpm = Tpm::start("device:/dev/tpmrm0".parse()?, Options::default())?;
//! let root = RootSecret::from_bytes([7; 32]);
//! let protection = Protection { pcrs: PcrSelection::default(), policy_key: None };
//! let sealed = tpm.seal(Epoch::FIRST, &root, None, &protection)?;
//! assert_eq!(tpm.unseal(&sealed, &[])?.root.expose(), root.expose());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod approval;
mod blob;
mod changed;
mod code;
mod command;
mod device;
mod epoch;
mod error;
mod forget;
mod identity;
mod key_blob;
mod measurements;
mod owner;
mod pcr;
mod policy;
mod policy_key;
mod reader;
mod recovery;
mod seal;
mod secret;
mod signed_policy;
mod srk;
mod tcti;
mod tpm;
mod unseal;

pub use blob::{BlobError, MAX_SEALED_LEN, SealedRoot};
pub use command::Command;
pub use device::{Loaded, Properties};
pub use epoch::Epoch;
pub use error::{Absence, Advice, TpmError};
pub use identity::{Attested, KeyTrouble};
pub use key_blob::{KeyBlob, KeyBlobError, KeyKind, MAX_KEY_BLOB_LEN};
pub use measurements::{Measurements, MeasurementsError};
pub use pcr::{PcrSelection, PcrSelectionError};
pub use policy::Protection;
pub use policy_key::PolicyKey;
pub use recovery::{RecoveryCode, RecoveryCodeError};
pub use secret::{RootSecret, Unsealed};
pub use signed_policy::{MAX_SIGNED_POLICY_LEN, PolicyError, SignedPolicy, sign_policy};
pub use srk::SRK_HANDLE;
pub use tcti::{Tcti, TctiError};
pub use tpm::{Options, Tpm};

/// Environment variable and value that silence the C library, which otherwise writes a line of
/// its own to standard error for every error this crate reports anyway.
///
/// Set it where the process is started (unit file, test harness): changing the environment of a
/// running process is unsafe once it has threads.
pub const TSS_LOG_ENVIRONMENT: (&str, &str) = ("TSS2_LOG", "all+none");

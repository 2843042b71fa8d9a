//! TPM 2.0 custody of a root secret.
//!
//! A [`RootSecret`] of 32 bytes is sealed under the TPM's storage root key (SRK) and a PCR
//! policy; what comes out is a [`SealedRoot`], a file that only this TPM opens, and only while
//! the selected PCRs hold the values they held at sealing.
//!
//! Invariants of the crate:
//! 1. One thread owns the connection to the TPM. [`Tpm`] is a handle to it; every call is
//!    answered, or given up, within the deadline of [`Options`].
//! 2. The secret crosses the bus only inside sessions that are salted to the SRK and encrypt
//!    parameters both ways (TPM 2.0 Part 1, 19.6 and 21). Unsealing salts only to the SRK whose
//!    name was recorded at sealing, so a key put in its place learns nothing.
//! 3. Sealed objects are fixedTPM, fixedParent, noDA and without userWithAuth: the PCR policy is
//!    the only way in, and a robot whose power was cut cannot be locked out.
//! 4. Nothing of ours stays in the TPM after a call but the SRK at [`SRK_HANDLE`].
//! 5. Every error says what happened and what to do: see [`TpmError::advice`].
//!
//! The C library copies secrets to buffers of its own and does not wipe them; a program that
//! cares installs a zeroizing allocator.
//!
//! ```no_run
//! use moai_tpm::{Options, PcrSelection, RootSecret, Tpm};
//!
//! let tpm = Tpm::start("device:/dev/tpmrm0".parse()?, Options::default())?;
//! let secret = RootSecret::from_bytes([7; 32]);
//! tpm.seal(&secret, &PcrSelection::default())?.save("root.sealed".as_ref())?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod blob;
mod code;
mod device;
mod error;
mod owner;
mod pcr;
mod seal;
mod secret;
mod srk;
mod tcti;
mod tpm;

pub use blob::{BlobError, MAX_SEALED_LEN, SealedRoot};
pub use device::{Loaded, Properties};
pub use error::{Absence, Advice, Command, TpmError};
pub use pcr::{PcrSelection, PcrSelectionError};
pub use secret::RootSecret;
pub use srk::SRK_HANDLE;
pub use tcti::{Tcti, TctiError};
pub use tpm::{Options, Tpm};

/// Environment variable and value that silence the C library, which otherwise writes a line of
/// its own to standard error for every error this crate reports anyway.
///
/// Set it where the process is started (unit file, test harness): changing the environment of a
/// running process is unsafe once it has threads.
pub const TSS_LOG_ENVIRONMENT: (&str, &str) = ("TSS2_LOG", "all+none");

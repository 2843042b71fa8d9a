//! What can go wrong with a TPM, and what to do about it.
//!
//! Invariants: every message names the cause and the remedy; [`TpmError::advice`] answers retry,
//! fix or stop for every variant; response codes are translated in `code` and nowhere else.

use std::io::ErrorKind;
use std::time::Duration;

use crate::blob::BlobError;
use crate::changed::Changed;
use crate::command::Command;
use crate::epoch::Epoch;
use crate::identity::KeyTrouble;
use crate::key_blob::KeyKind;
use crate::pcr::PcrSelection;
use crate::signed_policy::PolicyError;
use crate::tcti::Tcti;

/// What the caller should do after an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Advice {
    /// The same call may succeed later, unchanged.
    Retry,
    /// Something outside has to be set right first, as the message says; what was sealed is not
    /// lost.
    Fix,
    /// Neither waiting nor setting something right brings this secret or this TPM back.
    Stop,
}

/// Why no TPM could be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Absence {
    /// The device node does not exist.
    #[error("there is no such device: enable the TPM in the firmware setup and load its driver")]
    NoDevice,
    /// The device node is there, but not for us.
    #[error("permission denied: add this user to the group that owns the device, usually tss")]
    Permission,
    /// `/dev/tpm0` has one user at a time.
    #[error("another program holds it: use the resource manager, device:/dev/tpmrm0")]
    InUse,
    /// Nothing answers at host and port.
    #[error("nothing answers there: start swtpm or correct host and port")]
    Unreachable,
    /// The TPM answers us, but the TSS library did not open it.
    #[error(
        "it answers, but the TSS library cannot use it: install the TCTI library \
         (libtss2-tcti-device0 or libtss2-tcti-swtpm0)"
    )]
    Library,
    /// Any other refusal of the operating system.
    #[error("{0}: look in the kernel log for TPM messages")]
    Other(ErrorKind),
}

/// A TPM operation that failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TpmError {
    /// No TPM could be opened.
    #[error("no TPM at {tcti}: {absence}")]
    Absent {
        /// Where it was looked for.
        tcti: Tcti,
        /// Why it was not found.
        absence: Absence,
    },
    /// The connection broke during a call; the next call opens a new one.
    #[error(
        "the connection to the TPM broke during {command}: try again; if it stays so, restart the \
         TPM's resource manager or software TPM"
    )]
    ConnectionLost {
        /// What was being executed.
        command: Command,
    },
    /// No answer in time. The call may still be executed; its answer is dropped.
    #[error(
        "the TPM gave no answer within {} s: it hangs or another program holds it; try again, and \
         if it stays so, end the other program or power-cycle the machine",
        .after.as_secs_f32()
    )]
    Deadline {
        /// How long was waited.
        after: Duration,
    },
    /// Too many calls wait for the TPM.
    #[error("too many calls wait for the TPM: try again later")]
    Busy,
    /// A warning of the TPM that passes by itself (`TPM_RC_RETRY`, `TPM_RC_TESTING`, …).
    #[error("the TPM is busy with itself during {command} (code {code:#x}): try again")]
    NotReady {
        /// What was being executed.
        command: Command,
        /// Raw response code.
        code: u32,
    },
    /// Selected PCRs no longer hold the values they held at sealing.
    #[error(
        "the platform is not in the state the root secret was sealed to ({selection}): {}. Boot \
         the software and settings it was provisioned with, or use the recovery code if the \
         change is intended",
        Changed(.changed)
    )]
    PcrMismatch {
        /// The selection of the sealed root.
        selection: PcrSelection,
        /// The PCRs that differ, as far as it could be told.
        changed: Vec<u8>,
    },
    /// Selected PCRs no longer hold the values they held at sealing, and there is no signed policy.
    #[error(
        "the platform is not in the state the root secret was sealed to ({selection}): {}; and \
         there is no policy signed by the policy key {key}. Install the signed policy of this \
         firmware, boot the firmware the robot had, or use the recovery code",
        Changed(.changed)
    )]
    NoPolicy {
        /// The selection of the sealed root.
        selection: PcrSelection,
        /// The PCRs that differ.
        changed: Vec<u8>,
        /// Fingerprint of the policy key.
        key: String,
    },
    /// Signed policies, but none by the right key.
    #[error(
        "no signed policy at hand is signed by the policy key {key}, or it was altered since: \
         install one that is signed by that key, or use the recovery code"
    )]
    PolicySigner {
        /// Fingerprint of the policy key.
        key: String,
    },
    /// Signed by the right key, but for other PCRs.
    #[error(
        "the root secret was sealed to {sealed}, the signed policy is for {signed}: sign one for \
         {sealed}, or use the recovery code and seal anew"
    )]
    PolicySelection {
        /// The PCRs of the sealed root.
        sealed: PcrSelection,
        /// The PCRs of a policy at hand.
        signed: PcrSelection,
    },
    /// Signed by the right key for the right PCRs, but for other values.
    #[error(
        "no signed policy is for the present state of the platform ({selection}): since the \
         closest one, {}. Install the signed policy of this firmware, boot the firmware that it \
         was signed for, or use the recovery code",
        Changed(.changed)
    )]
    PolicyStale {
        /// The selection of the sealed root.
        selection: PcrSelection,
        /// The PCRs that differ from the policy that is closest.
        changed: Vec<u8>,
    },
    /// Another recovery code.
    #[error(
        "the TPM refuses the recovery code: it is that of another robot or of an earlier epoch; \
         look up the right one"
    )]
    RecoveryRefused,
    /// There is no recovery code.
    #[error(
        "the root secret was sealed without a recovery code: boot the state it was sealed to, \
         recover from escrow, or provision anew"
    )]
    NoRecovery,
    /// The storage key of the sealed root's epoch is gone.
    #[error(
        "the TPM no longer has the storage key of epoch {epoch} (persistent handle \
         {handle:#x}): {}",
        if *.superseded {
            "a later rotation destroyed it, so this is an old copy of the sealed root secret, \
             put back. Restore the newest one; the old one opens nowhere any more"
        } else {
            "it was evicted by hand. Recover from escrow or provision anew"
        },
        handle = .epoch.handle()
    )]
    EpochGone {
        /// The epoch of the sealed root.
        epoch: Epoch,
        /// Whether the key of another epoch is there.
        superseded: bool,
    },
    /// Something of somebody else lies where the storage key of an epoch belongs.
    #[error(
        "another program keeps an object at {handle:#x}, where the storage key of an epoch \
         belongs: remove it with `tpm2_evictcontrol -C o -c {handle:#x}` if nothing uses it"
    )]
    HandleTaken {
        /// The persistent handle.
        handle: u32,
    },
    /// No room for a persistent object.
    #[error(
        "the TPM has no room for another persistent object: list them with `tpm2_getcap \
         handles-persistent` and remove those that nothing uses with `tpm2_evictcontrol`"
    )]
    PersistentSlots,
    /// A PCR was extended while it was being used.
    #[error("a PCR changed during the operation: try again once the boot has finished")]
    PcrChanged,
    /// The TPM does not keep the selected PCRs.
    #[error(
        "the TPM does not keep all PCRs of {selection}: select a bank that `tpm2_getcap pcrs` lists"
    )]
    PcrBank {
        /// The selection asked for.
        selection: PcrSelection,
    },
    /// The TPM refused the sealed data: not what it once sealed.
    #[error(
        "the sealed root secret was altered, the TPM refuses it: restore the file from a copy or \
         provision anew"
    )]
    Tampered,
    /// This TPM cannot use an identity or attestation key.
    #[error("the {kind} {trouble}")]
    Key {
        /// Which key.
        kind: KeyKind,
        /// Why.
        trouble: KeyTrouble,
    },
    /// The storage root key belongs to another TPM.
    #[error(
        "the root secret was sealed by another TPM: put the storage back into the robot it came \
         from, or provision this robot anew"
    )]
    OtherTpm,
    /// The same TPM, but the storage root key that sealed the secret is gone.
    #[error(
        "the storage root key that sealed the root secret is gone from this TPM: its owner \
         hierarchy was cleared (TPM2_Clear) or the key at {SRK:#x} was replaced. The secret \
         cannot be recovered: provision anew",
        SRK = crate::srk::SRK_HANDLE
    )]
    OwnerCleared,
    /// Another storage root key, and the TPM does not tell whether it is the same TPM.
    #[error(
        "the storage root key is not the one that sealed the root secret: this is another TPM, or \
         its owner hierarchy was cleared. Put the storage back into the robot it came from, or \
         provision anew"
    )]
    SrkChanged,
    /// What lies at the storage root key's handle cannot serve as one.
    #[error(
        "the object at {SRK:#x} is no storage key (fixedTPM, fixedParent, restricted, decrypt, \
         noDA, SHA-256): remove it with `tpm2_evictcontrol -C o -c {SRK:#x}` if nothing uses it",
        SRK = crate::srk::SRK_HANDLE
    )]
    SrkUnsuitable,
    /// The owner hierarchy or the storage root key has a password.
    #[error(
        "the TPM refused the empty password during {command}: leave the owner password and that \
         of the storage root key at {SRK:#x} empty",
        SRK = crate::srk::SRK_HANDLE
    )]
    Password {
        /// What was being executed.
        command: Command,
    },
    /// Dictionary-attack lockout.
    #[error(
        "the TPM is in dictionary-attack lockout: wait for its recovery time or reset it with \
         `tpm2_dictionarylockout --clear-lockout`"
    )]
    Lockout,
    /// The TPM's self-test failed.
    #[error("the TPM is in failure mode: power-cycle the machine; if it stays so, replace the TPM")]
    FailureMode,
    /// No `TPM2_Startup` since reset.
    #[error(
        "the TPM was not started: the firmware does that at boot; start swtpm with \
         `--flags not-need-init,startup-clear`"
    )]
    NotStarted,
    /// The owner or endorsement hierarchy is switched off.
    #[error("a TPM hierarchy is disabled ({command}): enable it in the firmware setup")]
    HierarchyDisabled {
        /// What was being executed.
        command: Command,
    },
    /// No free slot for an object.
    #[error(
        "the TPM has no free object slot: use the resource manager device:/dev/tpmrm0, or flush \
         what other programs left with `tpm2_flushcontext -t`; then try again"
    )]
    ObjectSlots,
    /// No free slot for a session.
    #[error(
        "the TPM has no free session slot: use the resource manager device:/dev/tpmrm0, or flush \
         what other programs left with `tpm2_flushcontext -l`; then try again"
    )]
    SessionSlots,
    /// A response failed its HMAC or did not fit its command.
    #[error(
        "an answer to {command} was not authentic: something between the processor and the TPM \
         altered it. Take the robot out of service and inspect its hardware"
    )]
    Forged {
        /// What was being executed.
        command: Command,
    },
    /// An answer that the TPM specification excludes.
    #[error("the TPM answered {command} against its specification: update the TPM's firmware")]
    Malformed {
        /// What was being executed.
        command: Command,
    },
    /// A response code without a meaning of its own here.
    #[error(
        "{command} failed with response code {code:#x}: `tpm2_rc_decode {code:#x}` explains it; \
         please report it"
    )]
    Unexpected {
        /// What was being executed.
        command: Command,
        /// Raw response code; layer in the upper half.
        code: u32,
    },
    /// The TSS wrapper refused a value before it reached the TPM.
    #[error("the TSS library refused {command} ({reason}): please report it")]
    Refused {
        /// What was being executed.
        command: Command,
        /// The library's words.
        reason: String,
    },
    /// The TSS library panicked; the connection is opened anew.
    #[error("the TSS library failed within itself: try again, and please report it")]
    Panicked,
    /// The thread that owns the TPM could not be started or has ended.
    #[error("the thread that owns the TPM is not running: restart the program")]
    OwnerStopped,
}

impl TpmError {
    /// Retry, fix or stop?
    #[must_use]
    pub fn advice(&self) -> Advice {
        match self {
            Self::Key { trouble, .. } => trouble.advice(),
            Self::ConnectionLost { .. }
            | Self::Deadline { .. }
            | Self::Busy
            | Self::NotReady { .. }
            | Self::PcrChanged
            | Self::ObjectSlots
            | Self::SessionSlots
            | Self::Panicked => Advice::Retry,
            Self::Absent { .. }
            | Self::PcrMismatch { .. }
            | Self::NoPolicy { .. }
            | Self::PolicySigner { .. }
            | Self::PolicySelection { .. }
            | Self::PolicyStale { .. }
            | Self::RecoveryRefused
            | Self::NoRecovery
            | Self::EpochGone { superseded: true, .. }
            | Self::HandleTaken { .. }
            | Self::PersistentSlots
            | Self::PcrBank { .. }
            | Self::OtherTpm
            | Self::SrkChanged
            | Self::SrkUnsuitable
            | Self::Password { .. }
            | Self::Lockout
            | Self::FailureMode
            | Self::NotStarted
            | Self::HierarchyDisabled { .. }
            | Self::OwnerStopped => Advice::Fix,
            Self::Tampered
            | Self::EpochGone { superseded: false, .. }
            | Self::OwnerCleared
            | Self::Forged { .. }
            | Self::Malformed { .. }
            | Self::Unexpected { .. }
            | Self::Refused { .. } => Advice::Stop,
        }
    }
}

impl BlobError {
    /// Retry, fix or stop?
    #[must_use]
    pub fn advice(&self) -> Advice {
        match self {
            Self::Version { .. } => Advice::Fix,
            Self::TooLarge | Self::NotSealedRoot | Self::Damaged | Self::Malformed(_) => {
                Advice::Stop
            }
        }
    }
}

impl PolicyError {
    /// Retry, fix or stop? Every one is a wrong or damaged file that can be replaced.
    #[must_use]
    pub fn advice(&self) -> Advice {
        Advice::Fix
    }
}

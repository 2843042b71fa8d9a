//! What can go wrong with a TPM, and what to do about it.
//!
//! Invariants: every message names the cause and the remedy; [`TpmError::advice`] answers retry,
//! fix or stop for every variant; response codes are translated in `code` and nowhere else.

use std::fmt;
use std::io::ErrorKind;
use std::time::Duration;

use crate::blob::BlobError;
use crate::pcr::PcrSelection;
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

/// The TPM command (TPM 2.0 Part 3) that was being executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of the commands")]
pub enum Command {
    Create,
    CreatePrimary,
    EvictControl,
    FlushContext,
    GetCapability,
    GetRandom,
    Load,
    PcrRead,
    PolicyGetDigest,
    PolicyPcr,
    ReadPublic,
    StartAuthSession,
    Unseal,
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Create => "TPM2_Create",
            Self::CreatePrimary => "TPM2_CreatePrimary",
            Self::EvictControl => "TPM2_EvictControl",
            Self::FlushContext => "TPM2_FlushContext",
            Self::GetCapability => "TPM2_GetCapability",
            Self::GetRandom => "TPM2_GetRandom",
            Self::Load => "TPM2_Load",
            Self::PcrRead => "TPM2_PCR_Read",
            Self::PolicyGetDigest => "TPM2_PolicyGetDigest",
            Self::PolicyPcr => "TPM2_PolicyPCR",
            Self::ReadPublic => "TPM2_ReadPublic",
            Self::StartAuthSession => "TPM2_StartAuthSession",
            Self::Unseal => "TPM2_Unseal",
        })
    }
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
         the software and settings it was provisioned with, or provision anew if the change is \
         intended",
        Changed(.changed)
    )]
    PcrMismatch {
        /// The selection of the sealed root.
        selection: PcrSelection,
        /// The PCRs that differ, as far as it could be told.
        changed: Vec<u8>,
    },
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
        "the TPM refused the empty password during {command}: create the storage root key at \
         {SRK:#x} with an empty password, using the owner password, or clear that password",
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

struct Changed<'a>(&'a [u8]);

impl fmt::Display for Changed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((last, rest)) = self.0.split_last() else {
            return f.write_str("which PCR changed cannot be told");
        };
        for index in rest {
            write!(f, "PCR {index}{} and ", Meaning(*index))?;
        }
        write!(f, "PCR {last}{} changed", Meaning(*last))
    }
}

/// What a PCR measures (TCG PC Client Platform Firmware Profile; UAPI PCR registry).
struct Meaning(u8);

impl fmt::Display for Meaning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            0 => " (firmware code)",
            1 => " (firmware settings)",
            2 => " (option ROMs)",
            4 => " (boot loader)",
            5 => " (partition table)",
            7 => " (Secure Boot state)",
            8 => " (boot loader commands)",
            9 => " (kernel and initrd)",
            10 => " (IMA)",
            11 => " (unified kernel image)",
            12 => " (kernel command line)",
            14 => " (MOK certificates)",
            _ => "",
        })
    }
}

impl TpmError {
    /// Retry, fix or stop?
    #[must_use]
    pub fn advice(&self) -> Advice {
        match self {
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
            Self::Exists(_) | Self::Missing(_) | Self::Io { .. } | Self::Version { .. } => {
                Advice::Fix
            }
            Self::TooLarge | Self::NotSealedRoot | Self::Damaged | Self::Malformed(_) => {
                Advice::Stop
            }
        }
    }
}

//! Names of the TPM commands that this crate executes, for messages.

use std::fmt;

/// The TPM command (TPM 2.0 Part 3) that was being executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of the commands")]
pub enum Command {
    Certify,
    Create,
    CreatePrimary,
    EvictControl,
    FlushContext,
    GetCapability,
    GetRandom,
    Load,
    LoadExternal,
    PcrRead,
    PolicyAuthValue,
    PolicyAuthorize,
    PolicyGetDigest,
    PolicyOr,
    PolicyPcr,
    Quote,
    ReadPublic,
    Sign,
    StartAuthSession,
    Unseal,
    VerifySignature,
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Certify => "TPM2_Certify",
            Self::Create => "TPM2_Create",
            Self::CreatePrimary => "TPM2_CreatePrimary",
            Self::EvictControl => "TPM2_EvictControl",
            Self::FlushContext => "TPM2_FlushContext",
            Self::GetCapability => "TPM2_GetCapability",
            Self::GetRandom => "TPM2_GetRandom",
            Self::Load => "TPM2_Load",
            Self::LoadExternal => "TPM2_LoadExternal",
            Self::PcrRead => "TPM2_PCR_Read",
            Self::PolicyAuthValue => "TPM2_PolicyAuthValue",
            Self::PolicyAuthorize => "TPM2_PolicyAuthorize",
            Self::PolicyGetDigest => "TPM2_PolicyGetDigest",
            Self::PolicyOr => "TPM2_PolicyOR",
            Self::PolicyPcr => "TPM2_PolicyPCR",
            Self::Quote => "TPM2_Quote",
            Self::ReadPublic => "TPM2_ReadPublic",
            Self::Sign => "TPM2_Sign",
            Self::StartAuthSession => "TPM2_StartAuthSession",
            Self::Unseal => "TPM2_Unseal",
            Self::VerifySignature => "TPM2_VerifySignature",
        })
    }
}

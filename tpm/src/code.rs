//! Response codes of the TSS (TCG TSS 2.0 Overview, 3.2; TPM 2.0 Part 2, 6.6) as [`TpmError`]s.
//!
//! Invariants: the layer in the upper 16 bits is looked at first, since the same lower bits mean
//! different things in different layers; codes of "format one" are compared without the number
//! of the parameter, handle or session they are about.

use bitfield::BitRange as _;
use tss_esapi::Error;
use tss_esapi::constants::response_code::Tss2ResponseCode;

use crate::command::Command;
use crate::error::TpmError;

const LAYER_TPM: u32 = 0;
const LAYER_ESYS: u32 = 7;
const LAYER_TCTI: u32 = 10;
const LAYER_RESOURCE_MANAGER: u32 = 11;
const LAYER_RESOURCE_MANAGER_TPM: u32 = 12;

const BASE_BAD_SEQUENCE: u32 = 7;
const BASE_MALFORMED_RESPONSE: u32 = 17;
const BASE_INSUFFICIENT_RESPONSE: u32 = 19;
const BASE_RESPONSE_AUTH_FAILED: u32 = 27;

const FORMAT_ONE: u32 = 0x080;
const FORMAT_ONE_NUMBER: u32 = 0x03f;
const FORMAT_ONE_PARAMETER: u32 = 0x040;

const VALUE: u32 = 0x084;
const HIERARCHY: u32 = 0x085;
const HANDLE: u32 = 0x08b;
const AUTH_FAIL: u32 = 0x08e;
const POLICY_FAIL: u32 = 0x09d;
const SIGNATURE: u32 = 0x09b;
const INTEGRITY: u32 = 0x09f;
const BAD_AUTH: u32 = 0x0a2;

const INITIALIZE: u32 = 0x100;
const FAILURE: u32 = 0x101;
const PCR_CHANGED: u32 = 0x128;
const NV_SPACE: u32 = 0x14b;
const OBJECT_MEMORY: u32 = 0x902;
const SESSION_MEMORY: u32 = 0x903;
const MEMORY: u32 = 0x904;
const SESSION_HANDLES: u32 = 0x905;
const OBJECT_HANDLES: u32 = 0x906;
const YIELDED: u32 = 0x908;
const CANCELED: u32 = 0x909;
const TESTING: u32 = 0x90a;
const NV_RATE: u32 = 0x920;
const LOCKOUT: u32 = 0x921;
const RETRY: u32 = 0x922;
const NV_UNAVAILABLE: u32 = 0x923;

/// Translates an error of the TSS library.
pub(crate) fn translate(command: Command, error: Error) -> TpmError {
    match error {
        Error::Tss2Error(response) => classify(command, raw(response)),
        Error::WrapperError(kind) => TpmError::Refused { command, reason: kind.to_string() },
    }
}

/// The policy of the object was not met by the session.
pub(crate) fn is_policy_failure(error: Error) -> bool {
    has_reason(error, POLICY_FAIL)
}

/// The handle does not exist in the TPM.
pub(crate) fn is_missing_handle(error: Error) -> bool {
    has_reason(error, HANDLE)
}

/// The password of the object is another.
pub(crate) fn is_wrong_password(error: Error) -> bool {
    has_reason(error, BAD_AUTH) || has_reason(error, AUTH_FAIL)
}

/// The signature is not that of the key.
pub(crate) fn is_wrong_signature(error: Error) -> bool {
    has_reason(error, SIGNATURE)
}

/// A digest or value given with the command is not the TPM's.
pub(crate) fn is_wrong_value(error: Error) -> bool {
    has_reason(error, VALUE)
}

fn has_reason(error: Error, reason: u32) -> bool {
    matches!(error, Error::Tss2Error(response)
        if is_of_tpm(raw(response)) && self::reason(raw(response)) == reason)
}

/// Whether the connection can still be used after this error.
pub(crate) fn spares_connection(error: &TpmError) -> bool {
    match error {
        TpmError::ConnectionLost { .. } | TpmError::Forged { .. } | TpmError::Panicked => false,
        TpmError::Unexpected { code, .. } => is_of_tpm(*code),
        _ => true,
    }
}

fn raw(response: Tss2ResponseCode) -> u32 {
    match response {
        Tss2ResponseCode::Success => 0,
        Tss2ResponseCode::FormatZero(code) => code.bit_range(31, 0),
        Tss2ResponseCode::FormatOne(code) => code.bit_range(31, 0),
    }
}

fn is_of_tpm(code: u32) -> bool {
    matches!(code >> 16, LAYER_TPM | LAYER_RESOURCE_MANAGER | LAYER_RESOURCE_MANAGER_TPM)
}

/// The code without the parameter, handle or session it is about.
fn reason(code: u32) -> u32 {
    if code & FORMAT_ONE == 0 { code & 0xffff } else { FORMAT_ONE | (code & FORMAT_ONE_NUMBER) }
}

fn is_about_parameter(code: u32) -> bool {
    code & FORMAT_ONE != 0 && code & FORMAT_ONE_PARAMETER != 0
}

fn classify(command: Command, code: u32) -> TpmError {
    match (code >> 16, code & 0xffff) {
        _ if is_of_tpm(code) => classify_tpm(command, code),
        (LAYER_TCTI, _) | (LAYER_ESYS, BASE_BAD_SEQUENCE) => TpmError::ConnectionLost { command },
        (
            LAYER_ESYS,
            BASE_RESPONSE_AUTH_FAILED | BASE_MALFORMED_RESPONSE | BASE_INSUFFICIENT_RESPONSE,
        ) => TpmError::Forged { command },
        _ => TpmError::Unexpected { command, code },
    }
}

fn classify_tpm(command: Command, code: u32) -> TpmError {
    match reason(code) {
        INTEGRITY => TpmError::Tampered,
        // The private part is parsed by the TPM, so an altered length inside it surfaces as one
        // of several codes about Load's parameters.
        _ if command == Command::Load && is_about_parameter(code) => TpmError::Tampered,
        AUTH_FAIL | BAD_AUTH => TpmError::Password { command },
        HIERARCHY => TpmError::HierarchyDisabled { command },
        INITIALIZE => TpmError::NotStarted,
        FAILURE => TpmError::FailureMode,
        PCR_CHANGED => TpmError::PcrChanged,
        NV_SPACE => TpmError::PersistentSlots,
        LOCKOUT => TpmError::Lockout,
        OBJECT_MEMORY | OBJECT_HANDLES => TpmError::ObjectSlots,
        SESSION_MEMORY | SESSION_HANDLES => TpmError::SessionSlots,
        MEMORY | YIELDED | CANCELED | TESTING | NV_RATE | RETRY | NV_UNAVAILABLE => {
            TpmError::NotReady { command, code }
        }
        _ => TpmError::Unexpected { command, code },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_get_the_meaning_their_layer_gives_them() {
        let command = Command::StartAuthSession;
        let lost = TpmError::ConnectionLost { command };
        for (code, expected) in [
            (0x000a_000a, lost.clone()),
            (0x0007_0007, lost),
            (0x0007_001b, TpmError::Forged { command }),
            (0x1df, TpmError::Tampered),
            (0x9a2, TpmError::Password { command }),
            (0x98e, TpmError::Password { command }),
            (0x921, TpmError::Lockout),
            (0x101, TpmError::FailureMode),
            (0x100, TpmError::NotStarted),
            (0x128, TpmError::PcrChanged),
            (0x14b, TpmError::PersistentSlots),
            (0x902, TpmError::ObjectSlots),
            (0x903, TpmError::SessionSlots),
            (0x000b_0903, TpmError::SessionSlots),
            (0x185, TpmError::HierarchyDisabled { command }),
            (0x922, TpmError::NotReady { command, code: 0x922 }),
            (0x12f, TpmError::Unexpected { command, code: 0x12f }),
        ] {
            assert_eq!(classify(command, code), expected, "{code:#x}");
        }
    }

    #[test]
    fn a_load_that_stumbles_over_its_parameters_was_fed_altered_data() {
        assert_eq!(classify(Command::Load, 0x1d5), TpmError::Tampered);
        assert_ne!(classify(Command::Create, 0x1d5), TpmError::Tampered);
        assert_ne!(classify(Command::Load, 0x18b), TpmError::Tampered);
    }

    #[test]
    fn only_errors_below_the_tpm_cost_the_connection() {
        for (code, spared) in [
            (0x99d, true),
            (0x12f, true),
            (0x000a_000a, false),
            (0x0007_0007, false),
            (0x0008_0001, false),
        ] {
            let error = classify(Command::Unseal, code);
            assert_eq!(spares_connection(&error), spared, "{code:#x}");
        }
    }
}

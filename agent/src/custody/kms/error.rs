//! What can go wrong with AWS KMS, and what to do about it.
//!
//! Invariants:
//! - codes of the service are translated here and nowhere else; a code without a message of its
//!   own is shown with what the service says;
//! - no message holds what the service answered to a call that went well.

use std::error::Error;

use aws_sdk_kms::error::{ProvideErrorMetadata, SdkError};
use moai_tpm::Advice;

use crate::config::KmsConfig;

/// A call of the key management service that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KmsError {
    /// No credentials to call with.
    #[error(
        "there are no credentials for AWS KMS ({reason}): give the agent's service \
         AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, a web identity token or the role of its instance"
    )]
    Credentials {
        /// What each source of credentials said.
        reason: String,
    },
    /// The service does not accept the credentials.
    #[error(
        "AWS KMS does not accept the credentials ({code}): renew them, and check the clock of this \
         machine"
    )]
    CredentialsRefused {
        /// The service's code.
        code: String,
    },
    /// The credentials do not permit the call.
    #[error(
        "AWS KMS denies the use of the key {key} ({message}): allow kms:GenerateDataKey, \
         kms:Decrypt and kms:GenerateRandom in the policies of the key and of the robot's role"
    )]
    AccessDenied {
        /// The key in the configuration.
        key: String,
        /// What the service says.
        message: String,
    },
    /// There is no such key.
    #[error(
        "AWS KMS knows no key {key} in {region} ({message}): correct `kms.key` and `kms.region`; \
         if the key was deleted, what it sealed is lost, so recover from escrow or provision anew"
    )]
    KeyNotFound {
        /// The key in the configuration.
        key: String,
        /// The region in the configuration.
        region: String,
        /// What the service says.
        message: String,
    },
    /// The key is there and cannot be used.
    #[error(
        "the key {key} of AWS KMS cannot be used ({code}: {message}): enable it, cancel its \
         deletion, or name a symmetric encryption key in `kms.key`"
    )]
    KeyUnusable {
        /// The key in the configuration.
        key: String,
        /// The service's code.
        code: String,
        /// What the service says.
        message: String,
    },
    /// Another key sealed it.
    #[error(
        "the root secret was sealed under another key than {key}: set `kms.key` back to the key \
         that was named when it was sealed"
    )]
    OtherKey {
        /// The key in the configuration.
        key: String,
    },
    /// Altered, or bound to another robot, epoch or purpose.
    #[error(
        "the sealed root secret was altered, or sealed for another robot or epoch, AWS KMS refuses \
         it: restore the file from a copy, recover from escrow or provision anew"
    )]
    Tampered,
    /// Not the form of a sealed body.
    #[error(
        "the sealed root secret is not of the form this version of the agent writes for AWS KMS: \
         use the version that wrote it, or restore the file from a copy"
    )]
    Body,
    /// No connection, or no answer in time.
    #[error(
        "AWS KMS is not reachable at {place} ({reason}): check the network, `kms.region` and \
         `kms.endpoint`; it is tried again"
    )]
    Unreachable {
        /// Region or endpoint.
        place: String,
        /// What failed.
        reason: String,
    },
    /// The service is there and cannot answer now.
    #[error("AWS KMS cannot answer now ({code}): it is tried again")]
    Busy {
        /// The service's code.
        code: String,
    },
    /// The service answered something that cannot be.
    #[error("AWS KMS answered {what}: check that `kms.endpoint` is a KMS")]
    Answer {
        /// What is wrong with it.
        what: &'static str,
    },
    /// Any other refusal.
    #[error("AWS KMS refuses ({code}: {message}): look the code up in the documentation of KMS")]
    Refused {
        /// The service's code.
        code: String,
        /// What the service says.
        message: String,
    },
    /// No randomness for the nonce.
    #[error("the operating system gave no randomness: {0}")]
    Randomness(#[from] getrandom::Error),
    /// The process cannot do network calls.
    #[error("cannot start what network calls need: {0}: raise the limit of open files")]
    Runtime(#[source] std::io::Error),
}

impl KmsError {
    /// What to do about it.
    #[must_use]
    pub fn advice(&self) -> Advice {
        match self {
            Self::Unreachable { .. } | Self::Busy { .. } => Advice::Retry,
            Self::Tampered => Advice::Stop,
            Self::Credentials { .. }
            | Self::CredentialsRefused { .. }
            | Self::AccessDenied { .. }
            | Self::KeyNotFound { .. }
            | Self::KeyUnusable { .. }
            | Self::OtherKey { .. }
            | Self::Body
            | Self::Answer { .. }
            | Self::Refused { .. }
            | Self::Randomness(_)
            | Self::Runtime(_) => Advice::Fix,
        }
    }

    /// Whether the agent keeps trying: besides outages, also what is set right in the cloud,
    /// without a hand on the robot.
    #[must_use]
    pub fn heals(&self) -> bool {
        self.advice() == Advice::Retry
            || matches!(
                self,
                Self::Credentials { .. }
                    | Self::CredentialsRefused { .. }
                    | Self::AccessDenied { .. }
                    | Self::KeyUnusable { .. }
            )
    }

    pub(super) fn unreachable(config: &KmsConfig, reason: String) -> Self {
        let region = || format!("the region {}", config.region);
        Self::Unreachable { place: config.endpoint.clone().unwrap_or_else(region), reason }
    }

    pub(super) fn from_call<E>(error: &SdkError<E>, config: &KmsConfig) -> Self
    where
        E: Error + ProvideErrorMetadata + 'static,
    {
        match error {
            SdkError::ServiceError(service) => {
                let status = service.raw().status();
                let meta = service.err().meta();
                let code = meta.code().unwrap_or("no code");
                let message = meta.message().filter(|text| !text.is_empty());
                Self::from_code(code, message.unwrap_or(code), status.is_server_error(), config)
            }
            SdkError::TimeoutError(_) => Self::unreachable(config, "no answer in time".to_owned()),
            SdkError::DispatchFailure(failure) => Self::unreachable(
                config,
                failure.as_connector_error().map_or_else(|| error.to_string(), |e| chain(e)),
            ),
            // Its text could quote the answer.
            SdkError::ResponseError(_) => {
                Self::Answer { what: "something that is not an answer of KMS" }
            }
            other => Self::Refused { code: "client".to_owned(), message: chain(other) },
        }
    }

    /// Codes: "Common errors" and "Errors" of each action in the AWS KMS API reference.
    fn from_code(code: &str, message: &str, server_error: bool, config: &KmsConfig) -> Self {
        let key = config.key.clone();
        let message = message.to_owned();
        match code {
            "AccessDeniedException" | "AccessDenied" | "NotAuthorized" => {
                Self::AccessDenied { key, message }
            }
            "UnrecognizedClientException"
            | "InvalidClientTokenId"
            | "InvalidSignatureException"
            | "IncompleteSignature"
            | "ExpiredTokenException"
            | "ExpiredToken"
            | "RequestExpired"
            | "MissingAuthenticationToken" => Self::CredentialsRefused { code: code.to_owned() },
            "NotFoundException" => {
                Self::KeyNotFound { key, region: config.region.clone(), message }
            }
            "DisabledException" | "KMSInvalidStateException" | "InvalidKeyUsageException" => {
                Self::KeyUnusable { key, code: code.to_owned(), message }
            }
            "IncorrectKeyException" => Self::OtherKey { key },
            "InvalidCiphertextException" => Self::Tampered,
            "KMSInternalException"
            | "KeyUnavailableException"
            | "DependencyTimeoutException"
            | "LimitExceededException"
            | "ThrottlingException" => Self::Busy { code: code.to_owned() },
            _ if server_error => Self::Busy { code: code.to_owned() },
            _ => Self::Refused { code: code.to_owned(), message },
        }
    }
}

/// The message of an error and of each of its causes.
pub(super) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_right_in_the_cloud_heals_and_a_forged_body_does_not() {
        let config =
            KmsConfig { key: "alias/moai".into(), region: "eu-central-1".into(), endpoint: None };
        let of = |code| KmsError::from_code(code, "why", false, &config);
        for (code, heals, advice, named) in [
            ("AccessDeniedException", true, Advice::Fix, "kms:Decrypt"),
            ("ExpiredTokenException", true, Advice::Fix, "ExpiredTokenException"),
            ("DisabledException", true, Advice::Fix, "enable it"),
            ("KMSInvalidStateException", true, Advice::Fix, "cancel its deletion"),
            ("NotFoundException", false, Advice::Fix, "`kms.region`"),
            ("IncorrectKeyException", false, Advice::Fix, "alias/moai"),
            ("InvalidCiphertextException", false, Advice::Stop, "altered"),
            ("ThrottlingException", true, Advice::Retry, "ThrottlingException"),
            ("SomethingNew", false, Advice::Fix, "SomethingNew: why"),
        ] {
            let error = of(code);
            assert_eq!((error.heals(), error.advice()), (heals, advice), "{error}");
            assert!(error.to_string().contains(named), "{error}");
        }
        assert!(KmsError::from_code("SomethingNew", "why", true, &config).heals());
    }
}

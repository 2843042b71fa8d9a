//! Why a robot is not believed.
//!
//! Invariant: one variant for each reason, whose message names cause and remedy.

use std::fmt;

use crate::statement::StatementError;

/// A signed part of the evidence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// That the identity key is in the TPM.
    Certification,
    /// What the PCRs hold.
    Quote,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Certification => "certification",
            Self::Quote => "quote",
        })
    }
}

/// A reason not to believe evidence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AttestationError {
    /// The evidence is another TPM's.
    #[error(
        "the attestation key is not the enrolled one: this is another TPM, or it was cleared; \
         enrol the robot anew if that is intended"
    )]
    OtherAttestationKey,
    /// The evidence speaks of another key than the one in the robot's certificate.
    #[error(
        "the evidence is about another key than the certificate's: install the certificate that \
         was issued for this TPM's identity key"
    )]
    OtherIdentityKey,
    /// The identity key may exist outside the TPM.
    #[error(
        "the identity key can leave the TPM or was not made there: make it with `moai-agent \
         provision` and have a certificate issued for it"
    )]
    ExportableIdentityKey,
    /// The identity key is of another use.
    #[error("the identity key is no signing key: make it with `moai-agent provision`")]
    NotASigningKey,
    /// The signature is not the attestation key's.
    #[error("the {0} was not signed by the attestation key: the evidence was altered")]
    BadSignature(Part),
    /// Signed, but no TPM made it.
    #[error("the {part}: {source}")]
    Statement {
        /// Which part.
        part: Part,
        /// What is wrong with it.
        source: StatementError,
    },
    /// A quote where a certification belongs, or the reverse.
    #[error("the {0} is a statement of another kind: the evidence was put together wrongly")]
    WrongKind(Part),
    /// Made for another challenge, robot or session.
    #[error(
        "the {0} answers another challenge: it is old, or another robot's or session's; ask for a \
         new challenge"
    )]
    Stale(Part),
    /// The certification names another key.
    #[error("the TPM certified another key than the identity key")]
    NotCertified,
    /// Other PCRs than the enrolled ones.
    #[error(
        "PCRs {found} were quoted, {expected} are enrolled: set [tpm] pcrs to the enrolled ones"
    )]
    OtherPcrs {
        /// The enrolled PCRs.
        expected: String,
        /// The quoted ones.
        found: String,
    },
    /// The values given do not have the quoted digest.
    #[error("the PCR values are not the quoted ones: they changed meanwhile, or were altered")]
    PcrValues,
    /// The robot is in another state than those enrolled.
    #[error(
        "the robot did not boot what is enrolled, {} differ: boot enrolled firmware and settings, \
         or add the new values to the enrolment if the change is intended",
        Pcrs(.differing)
    )]
    NotAccepted {
        /// The PCRs that differ from the accepted values nearest to the present ones.
        differing: Vec<u8>,
    },
}

struct Pcrs<'a>(&'a [u8]);

impl fmt::Display for Pcrs<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, index) in self.0.iter().enumerate() {
            write!(f, "{}PCR {index}", if position == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

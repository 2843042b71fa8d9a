//! The answer to a server that wants to know what this robot is.
//!
//! Invariants:
//! - the attestation key never leaves the TPM and signs only what the TPM itself states;
//! - what is stated is bound to the server's challenge, this robot and one session;
//! - PCR values are handed over only if they are the ones that were quoted.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use moai_attestation::{
    Evidence, EvidenceError, PcrValues, PcrValuesError, PublicArea, PublicAreaError, Statement,
    StatementKind, qualifying,
};
use moai_tpm::{Attested, KeyBlob, KeyKind, PcrSelection, Tpm, TpmError};
use moai_transport::ids::{Identity, SessionId};
use moai_transport::message::CHALLENGE_LEN;

use super::key::{IdentityKey, KEY_FILE};
use super::{IdentityError, file};
use crate::config::Config;

/// Name of the attestation key in the state directory.
pub const ATTESTATION_KEY_FILE: &str = "attestation.key";

/// A PCR can be extended between reading and quoting it, but not again and again.
const ATTEMPTS: usize = 3;

/// What answers a server's challenges.
pub trait Attester: Send + Sync {
    /// The evidence that answers a challenge in a session, as the uplink carries it. Blocks for as
    /// long as the TPM does.
    ///
    /// # Errors
    /// There is no attestation key, or the TPM refuses.
    fn evidence(
        &self,
        challenge: &[u8; CHALLENGE_LEN],
        session: &SessionId,
    ) -> Result<Vec<u8>, AttestError>;
}

/// Why there is no evidence.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttestError {
    /// The robot was never enrolled.
    #[error(
        "there is no attestation key at {}; run `moai-agent identity enrolment` and place what it \
         prints on the server", path.display()
    )]
    NoKey {
        /// Where it should be.
        path: PathBuf,
    },
    /// The identity key is not in a TPM.
    #[error(
        "the identity key is a file, which no TPM vouches for; set uplink.key = \"tpm\" and \
         provision the robot's identity"
    )]
    NotInTpm,
    /// A key file is missing or damaged.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The TPM refuses.
    #[error(transparent)]
    Tpm(#[from] TpmError),
    /// What the TPM made is not what the protocol carries.
    #[error("the TPM's answer cannot be used: {0}; please report it")]
    Unusable(String),
}

impl From<PublicAreaError> for AttestError {
    fn from(error: PublicAreaError) -> Self {
        Self::Unusable(error.to_string())
    }
}

impl From<PcrValuesError> for AttestError {
    fn from(error: PcrValuesError) -> Self {
        Self::Unusable(error.to_string())
    }
}

impl From<EvidenceError> for AttestError {
    fn from(error: EvidenceError) -> Self {
        Self::Unusable(error.to_string())
    }
}

/// Answers challenges with the TPM and the key files in the state directory. The files are read for
/// each challenge, so that a robot can be enrolled while the agent runs.
pub struct TpmAttester {
    tpm: Tpm,
    identity: Identity,
    state_directory: PathBuf,
    pcrs: PcrSelection,
}

/// What answers challenges for this identity key; nothing does if it is not in a TPM.
#[must_use]
pub fn attester(config: &Config, key: &IdentityKey) -> Option<Arc<dyn Attester>> {
    let IdentityKey::Tpm { tpm, .. } = key else { return None };
    Some(Arc::new(TpmAttester {
        tpm: tpm.clone(),
        identity: config.identity.clone(),
        state_directory: config.state_directory.clone(),
        pcrs: config.tpm.pcrs,
    }))
}

impl TpmAttester {
    /// The quote and the values it is of.
    fn quote(
        &self,
        attestation: &KeyBlob,
        qualifying: [u8; 32],
    ) -> Result<(Attested, PcrValues), AttestError> {
        for _ in 0..ATTEMPTS {
            let values: PcrValues = self.tpm.measurements(self.pcrs)?.to_string().parse()?;
            let quote = self.tpm.quote(attestation, self.pcrs, qualifying)?;
            let statement = Statement::from_bytes(&quote.statement)
                .map_err(|error| AttestError::Unusable(error.to_string()))?;
            if matches!(statement.kind, StatementKind::Quote { digest, .. } if digest == values.digest())
            {
                return Ok((quote, values));
            }
        }
        Err(TpmError::PcrChanged.into())
    }
}

impl Attester for TpmAttester {
    fn evidence(
        &self,
        challenge: &[u8; CHALLENGE_LEN],
        session: &SessionId,
    ) -> Result<Vec<u8>, AttestError> {
        let attestation = load(&self.state_directory, ATTESTATION_KEY_FILE, KeyKind::Attestation)?;
        let identity = load(&self.state_directory, KEY_FILE, KeyKind::Identity)?;
        let qualifying = qualifying(challenge, &self.identity.to_string(), session.as_bytes());
        let certification = self.tpm.certify(&identity, &attestation, qualifying)?;
        let (quote, pcr_values) = self.quote(&attestation, qualifying)?;
        let evidence = Evidence {
            attestation_key: PublicArea::from_bytes(&attestation.public_area())?,
            identity_key: PublicArea::from_bytes(&identity.public_area())?,
            certification: part(certification),
            quote: part(quote),
            pcr_values,
        };
        Ok(evidence.to_bytes()?)
    }
}

fn part(Attested { statement, signature }: Attested) -> moai_attestation::Attested {
    moai_attestation::Attested { statement, signature }
}

/// A key of the TPM in the state directory.
pub(super) fn load(
    state_directory: &Path,
    name: &str,
    kind: KeyKind,
) -> Result<KeyBlob, AttestError> {
    let path = state_directory.join(name);
    let Some(bytes) = file::read(&path)? else {
        return Err(match kind {
            KeyKind::Attestation => AttestError::NoKey { path },
            KeyKind::Identity => IdentityError::NoKey { path }.into(),
        });
    };
    let damaged = |problem| IdentityError::KeyFile { path: path.clone(), problem };
    let key = KeyBlob::from_bytes(&bytes).map_err(|error| damaged(error.to_string()))?;
    if key.kind() == kind {
        Ok(key)
    } else {
        Err(damaged(format!("it is not the {kind}, but the {}", key.kind())).into())
    }
}

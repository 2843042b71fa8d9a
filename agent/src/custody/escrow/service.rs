//! Escrow under a key of a key management service, where the build has a client for one.

use moai_tpm::{Epoch, RootSecret};
use moai_transport::ids::Identity;

use super::error::EscrowError;
use crate::config::KmsConfig;
#[cfg(feature = "kms")]
use crate::custody::kms::{self, Context, Purpose};

#[cfg(feature = "kms")]
pub(super) fn seal(
    config: &KmsConfig,
    identity: &Identity,
    epoch: Epoch,
    root: &RootSecret,
) -> Result<Vec<u8>, EscrowError> {
    Ok(kms::seal(config, Context { purpose: Purpose::Escrow, identity, epoch }, root)?)
}

#[cfg(feature = "kms")]
pub(super) fn open(
    config: &KmsConfig,
    identity: &Identity,
    epoch: Epoch,
    body: &[u8],
) -> Result<RootSecret, EscrowError> {
    Ok(kms::open(config, Context { purpose: Purpose::Escrow, identity, epoch }, body)?)
}

#[cfg(not(feature = "kms"))]
pub(super) fn seal(
    _config: &KmsConfig,
    _identity: &Identity,
    _epoch: Epoch,
    _root: &RootSecret,
) -> Result<Vec<u8>, EscrowError> {
    Err(EscrowError::NotBuilt)
}

#[cfg(not(feature = "kms"))]
pub(super) fn open(
    _config: &KmsConfig,
    _identity: &Identity,
    _epoch: Epoch,
    _body: &[u8],
) -> Result<RootSecret, EscrowError> {
    Err(EscrowError::NotBuilt)
}

//! The next epoch begins: new root secret, vault re-wrapped, old key destroyed.
//!
//! Invariants:
//! - at every moment exactly one epoch can be started from: that of the vault's marker. `root.next`
//!   is in force from the moment the vault has its epoch, and nothing before;
//! - the next root secret has been unsealed once before anything depends on it;
//! - a rotation that is cut off anywhere is finished or undone by [`settle`] at the next start.

use std::fmt;

use moai_tpm::{Epoch, RootSecret};
use zeroize::Zeroizing;

use super::custodian::Custodian;
use super::error::CustodyError;
use super::escrow::ESCROW_FILE;
use super::files::{ROOT_FILE, StateDirectory};
use super::sealed_file::SealedFile;
use crate::secrets::{OsEntropy, VaultKey};
use crate::vault::Vault;

/// What of a rotation is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RotationStep {
    /// The next root secret is sealed in `root.next`.
    Sealed,
    /// The vault is in the next epoch.
    Vault,
    /// `root.next` has become `root.sealed`.
    Renamed,
    /// The key of the epoch before is destroyed.
    Retired,
}

impl fmt::Display for RotationStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sealed => "sealed",
            Self::Vault => "vault",
            Self::Renamed => "renamed",
            Self::Retired => "retired",
        })
    }
}

/// A rotation that was done.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Rotated {
    /// The epoch in force.
    pub epoch: u32,
    /// How many live sessions were re-wrapped.
    pub sessions: usize,
    /// Whether everything of earlier epochs is undecryptable now, whoever has a copy of it.
    pub shredded: bool,
}

/// Wraps a root secret for the escrow's recipient, if there is one; returns the file.
pub(super) type Escrow<'a> =
    &'a dyn Fn(Epoch, &RootSecret) -> Result<Option<Vec<u8>>, CustodyError>;

/// A fresh root secret: operating system and custodian are mixed, so it is good while either is.
pub(super) fn fresh_root(custodian: &dyn Custodian) -> Result<RootSecret, CustodyError> {
    let mut bytes = Box::new(Zeroizing::new(OsEntropy::bytes::<32>()?));
    for (byte, other) in bytes.iter_mut().zip(custodian.random()?.iter()) {
        *byte ^= other;
    }
    Ok(RootSecret::copy_of(&bytes))
}

/// Begins the next epoch. `escrow` is called only if there is an escrow already. `observe` is told
/// of each step when it is durable. Blocks.
///
/// # Errors
/// The custodian or the disk refuses. The epoch before stays in force then, except after
/// [`CustodyError::NotRetired`].
pub(super) fn rotate(
    state: &StateDirectory,
    custodian: &dyn Custodian,
    escrow: Escrow<'_>,
    vault: &Vault,
    observe: &mut dyn FnMut(RotationStep),
) -> Result<Rotated, CustodyError> {
    // An earlier one may have failed after the vault was in the next epoch.
    settle(state, vault.marker()?)?;
    let present = root_of(state, custodian)?;
    vault.expect(present.epoch)?;
    let epoch = present.epoch.next();
    let (next, key) = match seal_next(state, custodian, escrow, &present, epoch) {
        Ok(sealed) => sealed,
        Err(error) => {
            // The first error counts; what stays behind goes at the next start.
            let _ = state.discard_next();
            let _ = custodian.retire(present.epoch, &present.body);
            return Err(error);
        }
    };
    observe(RotationStep::Sealed);
    let sessions = vault.rewrap(&key, epoch)?;
    observe(RotationStep::Vault);
    state.promote_next()?;
    observe(RotationStep::Renamed);
    custodian
        .retire(epoch, &next.body)
        .map_err(|source| CustodyError::NotRetired { epoch, source: Box::new(source) })?;
    observe(RotationStep::Retired);
    Ok(Rotated { epoch: epoch.0, sessions, shredded: custodian.shreds() })
}

/// Makes the next root secret and writes `root.next`; returns its vault key.
fn seal_next(
    state: &StateDirectory,
    custodian: &dyn Custodian,
    escrow: Escrow<'_>,
    present: &SealedFile,
    epoch: Epoch,
) -> Result<(SealedFile, VaultKey), CustodyError> {
    let root = fresh_root(custodian)?;
    let body = custodian.seal(epoch, &root, Some(&present.body))?;
    // Proves that the next start can unseal, while the present epoch can still go on.
    custodian.unseal(epoch, &body)?;
    let escrow = if state.file(ESCROW_FILE).exists() { escrow(epoch, &root)? } else { None };
    let next = SealedFile { custodian: custodian.kind(), epoch, body };
    state.write_next(&next, escrow.as_deref())?;
    Ok((next, VaultKey::derive(&root)))
}

/// Finishes or undoes a rotation that was cut off; `marker` is the vault's. Needs no custodian.
///
/// # Errors
/// The disk refuses, or `root.next` is in force and damaged.
pub(super) fn settle(state: &StateDirectory, marker: Option<Epoch>) -> Result<(), CustodyError> {
    let is_in_force = |epoch| marker == Some(epoch);
    match state.next() {
        Ok(Some(next)) if is_in_force(next.epoch) => {
            tracing::warn!(epoch = %next.epoch, "a rotation was cut off; it is finished now");
            return state.promote_next();
        }
        Ok(_) => {}
        Err(error) => {
            if !state.root().is_ok_and(|root| is_in_force(root.epoch)) {
                return Err(error);
            }
        }
    }
    // Nothing depends on what was not in force, if there is something to go back to.
    if state.file(ROOT_FILE).exists() { state.discard_next() } else { Ok(()) }
}

/// The sealed root secret in force, if the configured custodian sealed it.
pub(super) fn root_of(
    state: &StateDirectory,
    custodian: &dyn Custodian,
) -> Result<SealedFile, CustodyError> {
    let root = state.root()?;
    if root.custodian == custodian.kind() {
        Ok(root)
    } else {
        Err(CustodyError::OtherCustodian {
            path: state.file(ROOT_FILE),
            sealed: root.custodian,
            configured: custodian.kind(),
        })
    }
}

#[cfg(test)]
mod tests;

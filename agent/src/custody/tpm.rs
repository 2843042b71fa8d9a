//! Custodian `tpm`: the robot's TPM 2.0.
//!
//! Invariants:
//! - the recovery code is sealed beside the root secret and carried over from epoch to epoch: the one
//!   a person wrote down opens every later epoch until a new one is asked for;
//! - what is sealed opens in the boot state of that moment, whichever policies are at hand, so the
//!   next start can open it; the fleet's policy key adds the boot states that it signs;
//! - policy files are capped in number and size; one that is not usable is skipped, and said.

use std::fmt;
use std::path::{Path, PathBuf};

use moai_tpm::{
    BlobError, Epoch, MAX_SIGNED_POLICY_LEN, Measurements, Options, PolicyError, PolicyKey,
    Protection, RecoveryCode, RootSecret, SealedRoot, SignedPolicy, Tpm, TpmError, Unsealed,
};
use zeroize::Zeroizing;

use super::custodian::{Custodian, CustodianKind};
use super::error::CustodyError;
use super::files::read_capped;
use crate::config::TpmConfig;
use crate::secrets::OsEntropy;

const MAX_POLICIES: usize = 256;
const MAX_KEY_LEN: usize = 4096;

/// Why the fleet's policy cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum PolicyFileError {
    /// A file or the directory cannot be read.
    #[error("cannot read {}: {source}; check [tpm] in the configuration", path.display())]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The policy key is none.
    #[error("{}: {source}", path.display())]
    Key {
        /// The file of the key.
        path: PathBuf,
        /// What is wrong with it.
        source: PolicyError,
    },
    /// More policies than anybody needs.
    #[error("{} holds more than {MAX_POLICIES} policies: remove old ones", path.display())]
    TooMany {
        /// The directory.
        path: PathBuf,
    },
}

/// The TPM of the configuration.
pub struct TpmCustodian {
    tpm: Tpm,
    config: TpmConfig,
}

/// Connects to the TPM; blocks for milliseconds.
///
/// # Errors
/// There is none, or it does not answer.
pub fn connect(config: &TpmConfig) -> Result<Tpm, TpmError> {
    Tpm::start(config.tcti.clone(), Options { deadline: config.deadline })
}

impl TpmCustodian {
    /// Connects to the TPM.
    ///
    /// # Errors
    /// There is none, or it does not answer.
    pub fn open(config: &TpmConfig) -> Result<Self, TpmError> {
        Ok(Self { tpm: connect(config)?, config: config.clone() })
    }

    /// A fresh recovery code: operating system and TPM are mixed.
    ///
    /// # Errors
    /// One of them gives no randomness.
    pub fn new_recovery_code(&self) -> Result<RecoveryCode, CustodyError> {
        let mut bytes = Zeroizing::new(OsEntropy::bytes::<{ RecoveryCode::LEN }>()?);
        for (byte, other) in bytes.iter_mut().zip(self.random()?.iter()) {
            *byte ^= other;
        }
        Ok(RecoveryCode::copy_of(&bytes))
    }

    /// Seals under a new key of `epoch`, with this recovery code or none.
    ///
    /// # Errors
    /// The TPM refuses, or the policy files cannot be read.
    pub fn seal_with(
        &self,
        epoch: Epoch,
        root: &RootSecret,
        recovery: Option<&RecoveryCode>,
    ) -> Result<SealedRoot, CustodyError> {
        Ok(self.tpm.seal(epoch, root, recovery, &self.protection()?)?)
    }

    /// Seals under the key of the same epoch to the boot state of this moment.
    ///
    /// # Errors
    /// The TPM refuses, or the policy files cannot be read.
    pub fn reseal(
        &self,
        sealed: &SealedRoot,
        root: &RootSecret,
        recovery: Option<&RecoveryCode>,
    ) -> Result<SealedRoot, CustodyError> {
        Ok(self.tpm.reseal(sealed, root, recovery, &self.protection()?)?)
    }

    /// Opens with the boot state of this moment, or with a signed policy that allows it.
    ///
    /// # Errors
    /// The TPM refuses, or the policy files cannot be read.
    pub fn open_sealed(&self, sealed: &SealedRoot) -> Result<Unsealed, CustodyError> {
        let policies = match sealed.policy_key() {
            Some(_) => self.policies()?.into_iter().filter_map(|(_, policy)| policy.ok()).collect(),
            None => Vec::new(),
        };
        Ok(self.tpm.unseal(sealed, &policies)?)
    }

    /// Opens with the recovery code, whatever the boot state.
    ///
    /// # Errors
    /// The code is wrong, or the TPM refuses.
    pub fn recover(
        &self,
        sealed: &SealedRoot,
        code: &RecoveryCode,
    ) -> Result<RootSecret, CustodyError> {
        Ok(self.tpm.recover(sealed, code)?.root)
    }

    /// What the root secret is bound to, and which policies are at hand.
    ///
    /// # Errors
    /// The TPM or a file cannot be read.
    pub fn report(&self, sealed: &SealedRoot) -> Result<PolicyReport, CustodyError> {
        let key = self.policy_key()?;
        let present = self.tpm.measurements(self.config.pcrs)?;
        let policies = self.policies()?.into_iter().map(|(path, policy)| {
            let verdict = policy.map_or_else(
                |error| error.to_string(),
                |policy| verdict(&policy, key.as_ref(), &present),
            );
            (path, verdict)
        });
        Ok(PolicyReport {
            epoch: sealed.epoch(),
            sealed: sealed.measurements().clone(),
            changed: sealed.measurements().differing(&self.tpm.measurements(sealed.pcrs())?),
            policy_key: sealed.policy_key().map(PolicyKey::fingerprint),
            has_recovery_code: sealed.has_recovery(),
            policies: policies.collect(),
            present,
        })
    }

    fn protection(&self) -> Result<Protection, CustodyError> {
        Ok(Protection { pcrs: self.config.pcrs, policy_key: self.policy_key()? })
    }

    fn policy_key(&self) -> Result<Option<PolicyKey>, PolicyFileError> {
        let Some(path) = &self.config.policy_key else { return Ok(None) };
        let read = |source| PolicyFileError::Read { path: path.clone(), source };
        let pem = read_capped(path, MAX_KEY_LEN).map_err(read)?;
        let key = PolicyKey::from_pem(&String::from_utf8_lossy(&pem));
        key.map(Some).map_err(|source| PolicyFileError::Key { path: path.clone(), source })
    }

    fn policies(&self) -> Result<Vec<PolicyFile>, PolicyFileError> {
        read_policies(&self.config.policies)
    }
}

type PolicyFile = (PathBuf, Result<SignedPolicy, PolicyError>);

/// Every `*.json` of a directory that need not be there, newest name first.
fn read_policies(directory: &Path) -> Result<Vec<PolicyFile>, PolicyFileError> {
    let failed = |path: &Path, source| PolicyFileError::Read { path: path.to_owned(), source };
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(|error| failed(directory, error))?,
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(|error| failed(directory, error))?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            if paths.len() == MAX_POLICIES {
                return Err(PolicyFileError::TooMany { path: directory.to_owned() });
            }
            paths.push(path);
        }
    }
    paths.sort_unstable_by(|a, b| b.cmp(a));
    let mut policies = Vec::new();
    for path in paths {
        let json =
            read_capped(&path, MAX_SIGNED_POLICY_LEN).map_err(|error| failed(&path, error))?;
        let policy = SignedPolicy::from_json(&json);
        if let Err(error) = &policy {
            tracing::warn!(path = %path.display(), %error, "policy file skipped");
        }
        policies.push((path, policy));
    }
    Ok(policies)
}

const FITS: &str = "fits the present boot state";

fn verdict(policy: &SignedPolicy, key: Option<&PolicyKey>, present: &Measurements) -> String {
    let Some(key) = key else { return "of no use: tpm.policy_key is not set".to_owned() };
    if let Err(error) = policy.signed_by(key) {
        return error.to_string();
    }
    if policy.pcrs() != present.pcrs() {
        return format!("is about {}, not {}", policy.pcrs(), present.pcrs());
    }
    let differing = policy.measurements().differing(present);
    if differing.is_empty() {
        FITS.to_owned()
    } else {
        format!("is for another boot state: {} differs", pcr_list(&differing))
    }
}

fn pcr_list(indices: &[u8]) -> String {
    indices.iter().map(|index| format!("PCR {index}")).collect::<Vec<_>>().join(", ")
}

impl Custodian for TpmCustodian {
    fn kind(&self) -> CustodianKind {
        CustodianKind::Tpm
    }

    fn describe(&self) -> Result<String, CustodyError> {
        Ok(format!("tpm at {} ({})", self.config.tcti, self.tpm.properties()?.manufacturer))
    }

    fn random(&self) -> Result<Box<Zeroizing<[u8; 32]>>, CustodyError> {
        Ok(self.tpm.random()?)
    }

    fn seal(
        &self,
        epoch: Epoch,
        root: &RootSecret,
        previous: Option<&[u8]>,
    ) -> Result<Vec<u8>, CustodyError> {
        let recovery = match previous {
            Some(body) => self.open_sealed(&SealedRoot::from_bytes(body)?)?.recovery,
            None => None,
        };
        Ok(self.seal_with(epoch, root, recovery.as_ref())?.to_bytes())
    }

    fn unseal(&self, epoch: Epoch, body: &[u8]) -> Result<RootSecret, CustodyError> {
        Ok(self.open_sealed(&parse(epoch, body)?)?.root)
    }

    fn retire(&self, keep: Epoch, body: &[u8]) -> Result<(), CustodyError> {
        Ok(self.tpm.retire(&parse(keep, body)?)?)
    }

    fn shreds(&self) -> bool {
        true
    }

    fn tpm(&self) -> Option<Tpm> {
        Some(self.tpm.clone())
    }
}

/// What the TPM sealed, if it is of the epoch that the file says.
pub(super) fn parse(epoch: Epoch, body: &[u8]) -> Result<SealedRoot, CustodyError> {
    let sealed = SealedRoot::from_bytes(body)?;
    if sealed.epoch() == epoch { Ok(sealed) } else { Err(BlobError::Malformed("epoch").into()) }
}

/// What the root secret is bound to; shown by `policy show`.
#[derive(Debug)]
pub struct PolicyReport {
    /// The boot state of this moment, as `policy sign` takes it.
    pub present: Measurements,
    /// The boot state at sealing.
    pub sealed: Measurements,
    /// The PCRs that have changed since.
    pub changed: Vec<u8>,
    /// The epoch of the root secret.
    pub epoch: Epoch,
    /// Fingerprint of the key whose signature makes a boot state acceptable.
    pub policy_key: Option<String>,
    /// Whether a recovery code opens it.
    pub has_recovery_code: bool,
    /// The policy files at hand, and what each is good for.
    pub policies: Vec<(PathBuf, String)>,
}

impl fmt::Display for PolicyReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let changed = match &self.changed[..] {
            [] => "the present state".to_owned(),
            changed => format!("{} changed since", pcr_list(changed)),
        };
        writeln!(f, "present   {}", self.present)?;
        writeln!(f, "sealed    {} ({changed}), epoch {}", self.sealed, self.epoch)?;
        match &self.policy_key {
            Some(key) => writeln!(
                f,
                "opens     in the sealed boot state and in those that policy key {key} signs"
            )?,
            None => writeln!(f, "opens     in the sealed boot state only")?,
        }
        let recovery = if self.has_recovery_code { "opens it too" } else { "there is none" };
        writeln!(f, "recovery  code: {recovery}")?;
        if self.policies.is_empty() {
            writeln!(f, "policies  none")?;
        }
        for (path, verdict) in &self.policies {
            writeln!(f, "policy    {}: {verdict}", path.display())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_read_newest_name_first_and_bad_ones_are_named() {
        let scratch = tempfile::tempdir().unwrap();
        assert!(read_policies(&scratch.path().join("absent")).unwrap().is_empty());
        for name in ["1.json", "3.json", "2.json", "readme.txt"] {
            std::fs::write(scratch.path().join(name), "{}").unwrap();
        }
        let policies = read_policies(scratch.path()).unwrap();
        let names: Vec<_> = policies
            .iter()
            .map(|(path, policy)| (path.file_name().unwrap().to_str().unwrap(), policy.is_err()))
            .collect();
        assert_eq!(names, [("3.json", true), ("2.json", true), ("1.json", true)]);
    }

    #[test]
    fn a_flood_of_policies_is_refused() {
        let scratch = tempfile::tempdir().unwrap();
        for index in 0..=MAX_POLICIES {
            std::fs::write(scratch.path().join(format!("{index}.json")), "").unwrap();
        }
        assert!(matches!(read_policies(scratch.path()), Err(PolicyFileError::TooMany { .. })));
    }
}

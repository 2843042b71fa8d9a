//! What keeps the root secret: one trait, whatever is behind it.
//!
//! Invariants:
//! - everything here blocks: it is called off the async threads;
//! - a custodian seals under a key of an epoch that never leaves it, and says of itself whether
//!   destroying that key makes what was sealed under it undecryptable.

use std::fmt;

use moai_tpm::{Epoch, RootSecret, Tpm};
use zeroize::Zeroizing;

use super::env::EnvCustodian;
use super::error::CustodyError;
#[cfg(feature = "kms")]
use super::kms::KmsCustodian;
#[cfg(feature = "pkcs11")]
use super::pkcs11::Pkcs11Custodian;
use super::tpm::TpmCustodian;
use crate::config::{Config, CustodianConfig};

/// The kinds of custodian; shown as the word in the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CustodianKind {
    /// The robot's TPM 2.0.
    Tpm,
    /// A PKCS #11 token: secure element, OP-TEE or HSM.
    Pkcs11,
    /// A cloud's key management service.
    Kms,
    /// An environment variable; for development.
    Env,
}

impl CustodianKind {
    /// How it is written to files; never changes its meaning.
    pub(super) fn code(self) -> u8 {
        match self {
            Self::Tpm => 1,
            Self::Pkcs11 => 2,
            Self::Kms => 3,
            Self::Env => 4,
        }
    }

    pub(super) fn from_code(code: u8) -> Option<Self> {
        [Self::Tpm, Self::Pkcs11, Self::Kms, Self::Env].into_iter().find(|kind| kind.code() == code)
    }
}

impl fmt::Display for CustodianKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tpm => "tpm",
            Self::Pkcs11 => "pkcs11",
            Self::Kms => "kms",
            Self::Env => "env",
        })
    }
}

/// Keeps the root secret. Every method blocks.
pub trait Custodian: Send + Sync {
    /// What it is.
    fn kind(&self) -> CustodianKind;

    /// What it is and where, for people, such as `tpm at device:/dev/tpmrm0 (IFX)`.
    ///
    /// # Errors
    /// It cannot be reached.
    fn describe(&self) -> Result<String, CustodyError>;

    /// 32 random bytes of a source that is not the operating system's, where there is one.
    ///
    /// # Errors
    /// It cannot be reached or refuses.
    fn random(&self) -> Result<Box<Zeroizing<[u8; 32]>>, CustodyError>;

    /// Seals under a key of `epoch` that only the custodian holds. `previous` is the body of the
    /// epoch that ends, when rotating: what was sealed beside the root secret is carried over.
    ///
    /// # Errors
    /// It cannot be reached or refuses.
    fn seal(
        &self,
        epoch: Epoch,
        root: &RootSecret,
        previous: Option<&[u8]>,
    ) -> Result<Vec<u8>, CustodyError>;

    /// Opens what [`Self::seal`] made in the same epoch.
    ///
    /// # Errors
    /// It cannot be reached, it refuses, or the body is none of this custodian and epoch.
    fn unseal(&self, epoch: Epoch, body: &[u8]) -> Result<RootSecret, CustodyError>;

    /// Destroys the keys of every epoch but `keep`, whose body is `body`. Having nothing to
    /// destroy is no error.
    ///
    /// # Errors
    /// It cannot be reached or refuses; keys of other epochs may still be there.
    fn retire(&self, keep: Epoch, body: &[u8]) -> Result<(), CustodyError>;

    /// Whether [`Self::retire`] makes the bodies of other epochs undecryptable for good.
    fn shreds(&self) -> bool;

    /// The TPM it uses, if any, for whoever else needs one: a TPM without a resource manager serves
    /// one connection at a time.
    fn tpm(&self) -> Option<Tpm> {
        None
    }
}

/// Opens the custodian that the configuration names.
///
/// # Errors
/// It cannot be reached, or is not part of this build.
pub fn open(config: &Config) -> Result<Box<dyn Custodian>, CustodyError> {
    Ok(match &config.custody.custodian {
        CustodianConfig::Tpm => Box::new(TpmCustodian::open(&config.tpm)?),
        #[cfg(feature = "pkcs11")]
        CustodianConfig::Pkcs11(pkcs11) => {
            Box::new(Pkcs11Custodian::new(pkcs11.clone(), config.identity.clone()))
        }
        #[cfg(not(feature = "pkcs11"))]
        CustodianConfig::Pkcs11(_) => return Err(CustodyError::NotBuilt(CustodianKind::Pkcs11)),
        #[cfg(feature = "kms")]
        CustodianConfig::Kms(kms) => {
            Box::new(KmsCustodian::new(kms.clone(), config.identity.clone()))
        }
        #[cfg(not(feature = "kms"))]
        CustodianConfig::Kms(_) => return Err(CustodyError::NotBuilt(CustodianKind::Kms)),
        CustodianConfig::Env => Box::new(EnvCustodian::open(config)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_a_code_of_its_own_that_leads_back_to_it() {
        for kind in
            [CustodianKind::Tpm, CustodianKind::Pkcs11, CustodianKind::Kms, CustodianKind::Env]
        {
            assert_eq!(CustodianKind::from_code(kind.code()), Some(kind));
        }
        assert_eq!(CustodianKind::from_code(0), None);
    }
}

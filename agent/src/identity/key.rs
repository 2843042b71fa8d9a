//! The identity key: what proves that we are this robot, to the broker and to the server.
//!
//! Invariants:
//! - a key in the TPM never leaves it: its file holds what only that TPM can load;
//! - signing blocks for as long as the TPM takes, and holds up no other task of the runtime;
//! - nothing here shows a private key.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use moai_tpm::{KeyBlob, KeyKind, Tpm, TpmError};
use p256::ecdsa::signature::hazmat::PrehashSigner;
use p256::ecdsa::{Signature, SigningKey};
use p256::pkcs8::{DecodePrivateKey, EncodePrivateKey, LineEnding};
use rustls::pki_types::{SubjectPublicKeyInfoDer, alg_id};
use rustls::{SignatureAlgorithm, SignatureScheme};
use sha2::{Digest, Sha256};
use tokio::runtime::{Handle, RuntimeFlavor};
use zeroize::Zeroizing;

use super::{IdentityError, file};
use crate::config::{Config, IdentityKeySource};
use crate::secrets::OsEntropy;

/// Name of the identity key in the state directory.
pub const KEY_FILE: &str = "identity.key";

/// The robot's private key.
pub enum IdentityKey {
    /// In the TPM.
    Tpm {
        /// The TPM.
        tpm: Tpm,
        /// The key, as only this TPM can load it.
        blob: Box<KeyBlob>,
    },
    /// In this process's memory; for development.
    Software(Box<SigningKey>),
}

impl fmt::Debug for IdentityKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IdentityKey({})", self.place())
    }
}

impl IdentityKey {
    /// The key the configuration names. `tpm` is called if the key is in the TPM; blocks.
    ///
    /// # Errors
    /// It is missing or damaged, or there is no TPM.
    pub fn open(
        config: &Config,
        tpm: impl FnOnce() -> Result<Tpm, TpmError>,
    ) -> Result<Self, IdentityError> {
        match &config.uplink.key {
            IdentityKeySource::Tpm => {
                let blob = Box::new(blob(&config.state_directory)?);
                Ok(Self::Tpm { tpm: tpm()?, blob })
            }
            IdentityKeySource::File(path) => Ok(Self::Software(Box::new(software(path)?))),
        }
    }

    /// The key the configuration names, made if there is none yet. An existing key stays: there may
    /// be certificates for it. Blocks.
    ///
    /// # Errors
    /// Disk or TPM refuse.
    pub fn open_or_create(
        config: &Config,
        tpm: impl FnOnce() -> Result<Tpm, TpmError>,
    ) -> Result<Self, IdentityError> {
        match &config.uplink.key {
            IdentityKeySource::Tpm => {
                let path = config.state_directory.join(KEY_FILE);
                let tpm = tpm()?;
                if !path.exists() {
                    let blob = tpm.create_key(KeyKind::Identity)?;
                    file::replace(&path, &blob.to_bytes(), 0o600)?;
                }
                let blob = Box::new(blob(&config.state_directory)?);
                Ok(Self::Tpm { tpm, blob })
            }
            IdentityKeySource::File(path) => {
                if !path.exists() {
                    file::replace(path, generate()?.as_bytes(), 0o600)?;
                }
                Ok(Self::Software(Box::new(software(path)?)))
            }
        }
    }

    /// Where it is: `tpm` or `software`.
    #[must_use]
    pub fn place(&self) -> &'static str {
        match self {
            Self::Tpm { .. } => "tpm",
            Self::Software(_) => "software",
        }
    }

    /// The public key: an uncompressed point of P-256 (SEC1 2.3.3).
    #[must_use]
    pub fn public_key(&self) -> [u8; 65] {
        match self {
            Self::Tpm { blob, .. } => blob.public_key(),
            Self::Software(key) => public_key(key),
        }
    }

    /// The ECDSA signature r ‖ s over a message with this SHA-256. Blocks.
    ///
    /// # Errors
    /// The TPM refuses.
    pub fn sign(&self, sha256: [u8; 32]) -> Result<[u8; 64], IdentityError> {
        match self {
            Self::Tpm { tpm, blob } => Ok(blocking(|| tpm.sign(blob, sha256))?),
            Self::Software(key) => {
                let signature: Signature =
                    key.sign_prehash(&sha256).map_err(|error| make("a signature", &error))?;
                Ok(signature.to_bytes().into())
            }
        }
    }

    /// The signature over `message` in DER, as TLS and X.509 have it (RFC 3279 section 2.2.3).
    pub(super) fn sign_der(&self, message: &[u8]) -> Result<Vec<u8>, IdentityError> {
        let signature = self.sign(Sha256::digest(message).into())?;
        let signature =
            Signature::from_slice(&signature).map_err(|error| make("a signature", &error))?;
        Ok(signature.to_der().as_bytes().to_vec())
    }
}

/// The public key of the key the configuration names; asks no TPM.
///
/// # Errors
/// The key's file is missing or damaged.
pub fn public_key_of(config: &Config) -> Result<[u8; 65], IdentityError> {
    match &config.uplink.key {
        IdentityKeySource::Tpm => Ok(blob(&config.state_directory)?.public_key()),
        IdentityKeySource::File(path) => Ok(public_key(&software(path)?)),
    }
}

fn make(what: &'static str, error: &impl ToString) -> IdentityError {
    IdentityError::Make { what, problem: error.to_string() }
}

fn public_key(key: &SigningKey) -> [u8; 65] {
    let point = key.verifying_key().to_sec1_point(false);
    point.as_bytes().try_into().expect("an uncompressed point of P-256 has 65 bytes")
}

fn blob(state: &Path) -> Result<KeyBlob, IdentityError> {
    let path = state.join(KEY_FILE);
    let Some(bytes) = file::read(&path)? else { return Err(IdentityError::NoKey { path }) };
    let damaged = |problem| IdentityError::KeyFile { path: path.clone(), problem };
    let blob = KeyBlob::from_bytes(&bytes).map_err(|error| damaged(error.to_string()))?;
    if blob.kind() == KeyKind::Identity {
        Ok(blob)
    } else {
        Err(damaged("it is a TPM key of another kind than an identity key".to_owned()))
    }
}

fn software(path: &Path) -> Result<SigningKey, IdentityError> {
    let Some(bytes) = file::read(path)?.map(Zeroizing::new) else {
        return Err(IdentityError::NoKey { path: path.to_owned() });
    };
    let pem = std::str::from_utf8(&bytes).ok();
    let key = pem.and_then(|pem| {
        let sec1 = || p256::SecretKey::from_sec1_pem(pem).ok().map(SigningKey::from);
        SigningKey::from_pkcs8_pem(pem).ok().or_else(sec1)
    });
    key.ok_or_else(|| IdentityError::KeyFile {
        path: path.to_owned(),
        problem: "it is no ECDSA P-256 private key in PEM form (PKCS #8 or SEC1)".to_owned(),
    })
}

fn generate() -> Result<Zeroizing<String>, IdentityError> {
    // Few numbers of 256 bits are no scalar of the curve; each try makes another.
    let key = loop {
        let bytes = Zeroizing::new(OsEntropy::bytes::<32>()?);
        if let Ok(key) = SigningKey::from_slice(bytes.as_ref()) {
            break key;
        }
    };
    key.to_pkcs8_pem(LineEnding::LF).map_err(|error| make("a key", &error))
}

/// Runs what blocks, letting the other tasks of this thread's runtime go on.
fn blocking<T>(work: impl FnOnce() -> T) -> T {
    match Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}

/// The identity key as rustls wants it.
#[derive(Debug, Clone)]
pub(super) struct TlsKey(pub(super) Arc<IdentityKey>);

impl rustls::sign::SigningKey for TlsKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn rustls::sign::Signer>> {
        let possible = offered.contains(&SignatureScheme::ECDSA_NISTP256_SHA256);
        possible.then(|| Box::new(self.clone()) as Box<dyn rustls::sign::Signer>)
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        Some(rustls::sign::public_key_to_spki(&alg_id::ECDSA_P256, self.0.public_key()))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ECDSA
    }
}

impl rustls::sign::Signer for TlsKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        self.0.sign_der(message).map_err(|error| {
            // The link's error says no more than that the handshake failed.
            tracing::warn!(%error, "the identity key did not sign a TLS handshake");
            rustls::Error::General(error.to_string())
        })
    }

    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::ECDSA_NISTP256_SHA256
    }
}

/// The identity key as rcgen wants it.
pub(super) struct RequestKey<'k> {
    key: &'k IdentityKey,
    public: [u8; 65],
}

impl<'k> RequestKey<'k> {
    pub(super) fn new(key: &'k IdentityKey) -> Self {
        Self { key, public: key.public_key() }
    }
}

impl rcgen::PublicKeyData for RequestKey<'_> {
    fn der_bytes(&self) -> &[u8] {
        &self.public
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

impl rcgen::SigningKey for RequestKey<'_> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.key.sign_der(message).map_err(|error| {
            tracing::warn!(%error, "the identity key did not sign a certificate request");
            rcgen::Error::RemoteKeyError
        })
    }
}

#[cfg(test)]
mod tests {
    use p256::ecdsa::VerifyingKey;
    use p256::ecdsa::signature::hazmat::PrehashVerifier;
    use rustls::sign::SigningKey as _;

    use super::*;
    use crate::identity::support::Site;

    #[tokio::test(flavor = "multi_thread")]
    async fn signatures_verify_on_every_kind_of_thread() {
        let key = Site::new().key;
        let verify = |signature: [u8; 64]| {
            let key = VerifyingKey::from_sec1_bytes(&key.public_key()).unwrap();
            key.verify_prehash(&[7; 32], &Signature::from_slice(&signature).unwrap()).unwrap();
        };
        let shared = [(); 2].map(|()| Arc::clone(&key));
        let [in_task, off_thread] = shared.map(|key| move || key.sign([7; 32]).unwrap());
        verify(tokio::spawn(async move { in_task() }).await.unwrap());
        verify(tokio::task::spawn_blocking(off_thread).await.unwrap());
        let alone = Arc::clone(&key);
        let current_thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async { alone.sign([7; 32]).unwrap() })
        });
        verify(current_thread.join().unwrap());
    }

    #[test]
    fn tls_finds_the_scheme_of_the_key_and_no_other() {
        let key = TlsKey(Site::new().key);
        assert!(key.choose_scheme(&[SignatureScheme::ED25519]).is_none());
        let offered = [SignatureScheme::ED25519, SignatureScheme::ECDSA_NISTP256_SHA256];
        let signer = key.choose_scheme(&offered).unwrap();
        assert_eq!(signer.scheme(), SignatureScheme::ECDSA_NISTP256_SHA256);
        let verifying = VerifyingKey::from_sec1_bytes(&key.0.public_key()).unwrap();
        let signature = Signature::from_der(&signer.sign(b"message").unwrap()).unwrap();
        verifying.verify_prehash(&Sha256::digest(b"message"), &signature).unwrap();
    }

    #[test]
    fn a_key_file_is_made_once_and_read_in_both_forms() {
        let site = Site::new();
        let IdentityKeySource::File(path) = &site.config.uplink.key else { unreachable!() };
        let pkcs8 = std::fs::read_to_string(path).unwrap();
        let again =
            IdentityKey::open_or_create(&site.config, || unreachable!("no TPM is asked")).unwrap();
        assert_eq!(again.public_key(), site.key.public_key());
        let sec1 = p256::SecretKey::from_pkcs8_pem(&pkcs8).unwrap();
        std::fs::write(path, sec1.to_sec1_pem(LineEnding::LF).unwrap()).unwrap();
        assert_eq!(public_key_of(&site.config).unwrap(), site.key.public_key());

        let text = format!("{:?}", site.key);
        assert_eq!(text, "IdentityKey(software)");
        std::fs::write(path, "no key").unwrap();
        let problem = public_key_of(&site.config).unwrap_err();
        assert!(matches!(problem, IdentityError::KeyFile { .. }), "{problem}");
        std::fs::remove_file(path).unwrap();
        let problem = public_key_of(&site.config).unwrap_err();
        assert!(matches!(problem, IdentityError::NoKey { .. }), "{problem}");
    }
}

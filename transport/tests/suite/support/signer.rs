//! Robots, sessions and servers that sign.

use std::error::Error;
use std::sync::LazyLock;

use moai_transport::frame::FrameSigner;
use moai_transport::keys::{
    OperatorKeys, OperatorSigningKey, ServerKeys, ServerSigningKey, SessionSigningKey,
};
use moai_transport::trust::TrustedRobots;
use p256::ecdsa::signature::hazmat::PrehashSigner;
use p256::ecdsa::{Signature, SigningKey};
use p256::pkcs8::DecodePrivateKey;
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::CertificateDer;

use super::certificates::Authority;

/// When all of it happens, in seconds since 1970.
pub(crate) const NOW: u64 = 1_799_999_940;

/// The authority of all robots.
pub(crate) static AUTHORITY: LazyLock<Authority> = LazyLock::new(Authority::new);

/// The robot of the example values.
pub(crate) static ROBOT: LazyLock<Signer> =
    LazyLock::new(|| Signer::new(&AUTHORITY, "acme.robot-1", |_| {}));

/// What signs for the session of the example values.
pub(crate) static SESSION: LazyLock<SessionSigningKey> =
    LazyLock::new(|| SessionSigningKey::from_seed(&[0x5e; 32]));

/// What signs for the servers.
pub(crate) static SERVER: LazyLock<ServerSigningKey> =
    LazyLock::new(|| ServerSigningKey::from_seed(&[0x5a; 32]));

pub(crate) fn servers() -> ServerKeys {
    SERVER.public().into()
}

/// What signs for the fleet's operator.
pub(crate) static OPERATOR: LazyLock<OperatorSigningKey> =
    LazyLock::new(|| OperatorSigningKey::from_seed(&[0x0e; 32]));

pub(crate) fn operators() -> OperatorKeys {
    OPERATOR.public().into()
}

pub(crate) fn trusted() -> TrustedRobots {
    TrustedRobots::from_pem(AUTHORITY.pem().as_bytes()).unwrap()
}

/// An identity key in software, and its certificates.
#[derive(Clone)]
pub(crate) struct Signer {
    key: SigningKey,
    pub(crate) chain: Vec<CertificateDer<'static>>,
}

impl Signer {
    pub(crate) fn new(
        authority: &Authority,
        common_name: &str,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Self {
        let key = KeyPair::generate().unwrap();
        let chain = vec![authority.certify(common_name, &key, change)];
        Self { key: SigningKey::from_pkcs8_pem(&key.serialize_pem()).unwrap(), chain }
    }

    /// The same key with other certificates.
    pub(crate) fn with_chain(&self, chain: Vec<CertificateDer<'static>>) -> Self {
        Self { chain, ..self.clone() }
    }

    pub(crate) fn public_key(&self) -> Vec<u8> {
        self.key.verifying_key().to_sec1_point(false).as_bytes().to_vec()
    }
}

impl FrameSigner for Signer {
    fn chain(&self) -> Vec<CertificateDer<'static>> {
        self.chain.clone()
    }

    fn sign(&self, sha256: [u8; 32]) -> Result<[u8; 64], Box<dyn Error + Send + Sync>> {
        let signature: Signature = self.key.sign_prehash(&sha256)?;
        Ok(signature.to_bytes().into())
    }
}

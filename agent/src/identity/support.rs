//! An authority, a robot with a software key, and a clock, for tests.

use std::sync::Arc;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::PrivateKeyDer;
use tempfile::TempDir;
use tokio::time::Instant;

use super::key::RequestKey;
use super::{CertificateStore, IdentityKey};
use crate::clock::{BootInstant, Clock};
use crate::config::Config;

/// When tests begin, in seconds since 1970.
pub(super) const NOW: u64 = 1_790_000_000;
pub(super) const HOUR: u64 = 3600;
pub(super) const ROBOT: &str = "acme.robot-1";

/// A certificate authority.
pub(super) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    /// Its name has parts, as those of real ones have.
    pub(super) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CountryName, "DE");
        params.distinguished_name.push(DnType::OrganizationName, "Ämter & Söhne");
        params.distinguished_name.push(DnType::CommonName, "robots");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub(super) fn pem(&self) -> String {
        self.0.pem()
    }

    pub(super) fn key_pem(&self) -> String {
        self.0.key().serialize_pem()
    }

    /// A robot's certificate (PEM) that begins and ends so many seconds after [`NOW`].
    pub(super) fn certify(&self, name: &str, key: &IdentityKey, begin: i64, end: i64) -> String {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let at = |offset| {
            let seconds = NOW.checked_add_signed(offset).unwrap();
            rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds)
        };
        (params.not_before, params.not_after) = (at(begin), at(end));
        params.signed_by(&RequestKey::new(key), &self.0).unwrap().pem()
    }

    /// TLS of a broker at `localhost` that wants robots of this authority.
    pub(super) fn broker(&self) -> Arc<rustls::ServerConfig> {
        let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let key = KeyPair::generate().unwrap();
        let chain = vec![params.signed_by(&key, &self.0).unwrap().der().clone()];
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.0.der().clone()).unwrap();
        let clients = rustls::server::WebPkiClientVerifier::builder_with_provider(
            Arc::new(roots),
            Arc::clone(&provider),
        );
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(clients.build().unwrap())
            .with_single_cert(chain, key);
        Arc::new(config.unwrap())
    }
}

/// A robot in a directory of its own.
pub(super) struct Site {
    pub(super) scratch: TempDir,
    pub(super) authority: Authority,
    pub(super) config: Config,
    pub(super) key: Arc<IdentityKey>,
}

impl Site {
    pub(super) fn new() -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let authority = Authority::new();
        let directory = scratch.path().display();
        std::fs::write(scratch.path().join("ca.pem"), authority.pem()).unwrap();
        let text = format!(
            "identity = '{ROBOT}'\ndevelopment = true\nstate_directory = '{directory}'\n[uplink]\n\
             host = 'localhost'\nca = '{directory}/ca.pem'\n\
             certificate = '{directory}/robot.pem'\nkey = '{directory}/robot.key'\n"
        );
        let file = scratch.path().join("agent.toml");
        std::fs::write(&file, text).unwrap();
        let config = Config::load(&file).unwrap();
        let no_tpm = || unreachable!("the key is in software");
        let key = Arc::new(IdentityKey::open_or_create(&config, no_tpm).unwrap());
        Self { scratch, authority, config, key }
    }

    /// A certificate of this robot.
    pub(super) fn certificate(&self, begin: i64, end: i64) -> String {
        self.authority.certify(ROBOT, &self.key, begin, end)
    }

    /// Puts something into the certificate file, as somebody else does.
    pub(super) fn write(&self, pem: &str) {
        std::fs::write(&self.config.uplink.certificate, pem).unwrap();
    }

    pub(super) fn read(&self) -> String {
        std::fs::read_to_string(&self.config.uplink.certificate).unwrap()
    }

    pub(super) fn store(&self) -> Arc<CertificateStore> {
        Arc::new(CertificateStore::open(&self.config, Arc::clone(&self.key)).unwrap())
    }
}

/// A clock that goes with tokio's, from [`NOW`].
pub(super) struct TokioClock(Instant);

impl TokioClock {
    pub(super) fn start() -> Arc<Self> {
        Arc::new(Self(Instant::now()))
    }
}

impl Clock for TokioClock {
    fn boot(&self) -> BootInstant {
        BootInstant(0).after(self.0.elapsed())
    }

    fn unix(&self) -> Duration {
        Duration::from_secs(NOW) + self.0.elapsed()
    }

    fn is_trusted(&self) -> bool {
        true
    }
}

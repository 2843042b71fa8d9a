//! The robot's certificate chain: what is shown at handshakes and carried by signed frames.
//!
//! Invariants:
//! - what is shown is for this robot and this key, and fits into a frame;
//! - a new chain comes in only if an authority of `uplink.robots_ca` vouches for it now; what was
//!   there at the start is shown even if not, so that the broker says what is wrong with it;
//! - the file is replaced before what is shown, and either whole or not at all.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use moai_transport::frame::{FrameSigner, check_chain};
use moai_transport::ids::Identity;
use moai_transport::tls::{CertificateFacts, certificate_chain};
use moai_transport::trust::TrustedRobots;
use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::pki_types::CertificateDer;
use rustls::sign::CertifiedKey;

use super::key::{TlsKey, public_key_of};
use super::{IdentityError, IdentityKey, file};
use crate::config::Config;

/// Certificates are public.
const CERTIFICATE_MODE: u32 = 0o644;

/// The chain in use, shared by everything that shows it.
#[derive(Debug)]
pub struct CertificateStore {
    rules: Rules,
    key: Arc<IdentityKey>,
    current: RwLock<Option<Current>>,
}

#[derive(Debug, Clone)]
struct Current {
    pem: Vec<u8>,
    certified: Arc<CertifiedKey>,
    facts: CertificateFacts,
}

/// A chain and what its leaf says.
type Parsed = (Vec<CertificateDer<'static>>, CertificateFacts);

/// What a chain must be, and where its file is.
#[derive(Debug)]
struct Rules {
    identity: Identity,
    public_key: [u8; 65],
    path: PathBuf,
    robots_ca: PathBuf,
}

impl Rules {
    fn new(config: &Config, public_key: [u8; 65]) -> Self {
        Self {
            identity: config.identity.clone(),
            public_key,
            path: config.uplink.certificate.clone(),
            robots_ca: config.uplink.robots_ca.clone(),
        }
    }

    /// The chain in `pem`, if it is for this robot and this key.
    fn parse(&self, pem: &[u8]) -> Result<Parsed, IdentityError> {
        let unusable = |source| IdentityError::Credential { path: self.path.clone(), source };
        let chain = certificate_chain(pem).map_err(unusable)?;
        let facts = CertificateFacts::from_pem(pem).map_err(unusable)?;
        if facts.identity().ok().as_ref() != Some(&self.identity) {
            let (named, expected) = (facts.common_name, self.identity.clone());
            return Err(IdentityError::OtherRobot { named, expected });
        }
        if facts.p256_key != Some(self.public_key) {
            return Err(IdentityError::OtherKey);
        }
        check_chain(&chain)?;
        Ok((chain, facts))
    }

    /// Whether servers will believe the chain at `now`, in seconds since 1970.
    fn vouch(&self, chain: &[CertificateDer<'_>], now: u64) -> Result<(), IdentityError> {
        let refused = |source| IdentityError::Refused { authority: self.robots_ca.clone(), source };
        authorities(&self.robots_ca)?.check(chain, now).map(drop).map_err(refused)
    }

    fn install(&self, pem: &[u8], now: u64) -> Result<Parsed, IdentityError> {
        let (chain, facts) = self.parse(pem)?;
        self.vouch(&chain, now)?;
        file::replace(&self.path, pem, CERTIFICATE_MODE)?;
        Ok((chain, facts))
    }

    fn load(&self) -> Result<Option<Vec<u8>>, IdentityError> {
        file::read(&self.path)
    }
}

fn authorities(path: &Path) -> Result<TrustedRobots, IdentityError> {
    let Some(pem) = file::read(path)? else {
        let source = std::io::ErrorKind::NotFound.into();
        return Err(IdentityError::File { path: path.to_owned(), source });
    };
    TrustedRobots::from_pem(&pem)
        .map_err(|source| IdentityError::Credential { path: path.to_owned(), source })
}

/// Checks the files of authorities, key and certificate without asking a TPM.
///
/// # Errors
/// A file is missing, or not what it should be. [`IdentityError::NoKey`] and
/// [`IdentityError::NoCertificate`] mean no more than that the robot is not provisioned or not
/// certified yet.
pub fn check(config: &Config) -> Result<CertificateFacts, IdentityError> {
    for authority in [&config.uplink.ca, &config.uplink.robots_ca] {
        authorities(authority)?;
    }
    let rules = Rules::new(config, public_key_of(config)?);
    let Some(pem) = rules.load()? else {
        return Err(IdentityError::NoCertificate { path: rules.path });
    };
    Ok(rules.parse(&pem)?.1)
}

/// Puts a chain (PEM, leaf first) in place of whatever is in the certificate file, if it is for this
/// robot and its key. Asks no TPM; a running agent notices by itself. `now` is in seconds since 1970.
///
/// # Errors
/// The chain is for another robot or key, or nobody vouches for it; or the disk refuses.
pub fn install(config: &Config, pem: &[u8], now: u64) -> Result<CertificateFacts, IdentityError> {
    Rules::new(config, public_key_of(config)?).install(pem, now).map(|(_, facts)| facts)
}

impl CertificateStore {
    /// The store of the configured certificate file, which may be missing still.
    ///
    /// # Errors
    /// The file is there but not for this robot and this key.
    pub fn open(config: &Config, key: Arc<IdentityKey>) -> Result<Self, IdentityError> {
        let rules = Rules::new(config, key.public_key());
        let store = Self { rules, key, current: RwLock::new(None) };
        if let Some(pem) = store.rules.load()? {
            let (chain, facts) = store.rules.parse(&pem)?;
            store.show(pem, chain, facts);
        }
        Ok(store)
    }

    /// The robot.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.rules.identity
    }

    /// Its key.
    #[must_use]
    pub fn key(&self) -> &IdentityKey {
        &self.key
    }

    /// What the certificate in use says; none if there is none.
    #[must_use]
    pub fn facts(&self) -> Option<CertificateFacts> {
        self.current().map(|current| current.facts)
    }

    /// That there is a certificate.
    ///
    /// # Errors
    /// There is none.
    pub fn require(&self) -> Result<(), IdentityError> {
        let path = self.rules.path.clone();
        self.current().map(drop).ok_or(IdentityError::NoCertificate { path })
    }

    /// Checks a chain (PEM, leaf first), writes it to the certificate file and shows it from the
    /// next handshake and the next signed frame on. `now` is in seconds since 1970.
    ///
    /// # Errors
    /// The chain is for another robot or key, or nobody vouches for it; or the disk refuses. File
    /// and chain in use are as before then.
    pub fn install(&self, pem: &[u8], now: u64) -> Result<CertificateFacts, IdentityError> {
        let (chain, facts) = self.rules.install(pem, now)?;
        self.show(pem.to_vec(), chain, facts.clone());
        Ok(facts)
    }

    /// Looks whether somebody else has replaced the certificate file, and shows the new chain then.
    ///
    /// # Errors
    /// The file is not readable, or its chain not usable; what was shown stays.
    pub fn reload(&self, now: u64) -> Result<Option<CertificateFacts>, IdentityError> {
        let Some(pem) = self.rules.load()? else { return Ok(None) };
        if self.current().is_some_and(|current| current.pem == pem) {
            return Ok(None);
        }
        let (chain, facts) = self.rules.parse(&pem)?;
        self.rules.vouch(&chain, now)?;
        self.show(pem, chain, facts.clone());
        Ok(Some(facts))
    }

    fn current(&self) -> Option<Current> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn show(&self, pem: Vec<u8>, chain: Vec<CertificateDer<'static>>, facts: CertificateFacts) {
        let key = Arc::new(TlsKey(Arc::clone(&self.key)));
        let certified = Arc::new(CertifiedKey::new(chain, key));
        let next = Some(Current { pem, certified, facts });
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = next;
    }
}

impl ResolvesClientCert for CertificateStore {
    fn resolve(
        &self,
        _root_hint_subjects: &[&[u8]],
        schemes: &[SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        let current = self.current()?;
        current.certified.key.choose_scheme(schemes).map(|_| current.certified)
    }

    fn has_certs(&self) -> bool {
        self.current().is_some()
    }
}

impl FrameSigner for CertificateStore {
    fn chain(&self) -> Vec<CertificateDer<'static>> {
        self.current().map_or_else(Vec::new, |current| current.certified.cert.clone())
    }

    fn sign(&self, sha256: [u8; 32]) -> Result<[u8; 64], Box<dyn Error + Send + Sync>> {
        Ok(self.key.sign(sha256)?)
    }
}

#[cfg(test)]
mod tests {
    use moai_transport::tls::client_config_resolving;
    use moai_transport::trust::CertificateRefusal;
    use rustls::{ClientConnection, ServerConnection};

    use super::*;
    use crate::identity::support::{Authority, NOW, ROBOT, Site};

    const YEAR: i64 = 365 * 24 * 3600;

    /// What a broker sees of the client that connects.
    fn handshake(
        client: &Arc<rustls::ClientConfig>,
        broker: &Arc<rustls::ServerConfig>,
    ) -> Result<Vec<CertificateDer<'static>>, rustls::Error> {
        let name = "localhost".try_into().unwrap();
        let mut client = ClientConnection::new(Arc::clone(client), name)?;
        let mut broker = ServerConnection::new(Arc::clone(broker))?;
        while client.is_handshaking() || broker.is_handshaking() {
            let mut bytes = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut bytes).unwrap();
            }
            broker.read_tls(&mut bytes.as_slice()).unwrap();
            broker.process_new_packets()?;
            bytes.clear();
            while broker.wants_write() {
                broker.write_tls(&mut bytes).unwrap();
            }
            client.read_tls(&mut bytes.as_slice()).unwrap();
            client.process_new_packets()?;
        }
        Ok(broker.peer_certificates().unwrap_or_default().to_vec())
    }

    #[test]
    fn the_next_handshake_shows_what_was_installed() {
        let site = Site::new();
        let (first, second) = (site.certificate(-YEAR, YEAR), site.certificate(-YEAR, 2 * YEAR));
        site.write(&first);
        let store = site.store();
        let ca = site.authority.pem();
        let client = client_config_resolving(ca.as_bytes(), store.clone()).unwrap();
        let broker = site.authority.broker();
        let shown = |pem: &str| certificate_chain(pem.as_bytes()).unwrap();
        assert_eq!(handshake(&client, &broker).unwrap(), shown(&first));
        store.install(second.as_bytes(), NOW).unwrap();
        assert_eq!(handshake(&client, &broker).unwrap(), shown(&second));
        assert_eq!(FrameSigner::chain(&*store), shown(&second));
        assert_eq!(site.read(), second);
    }

    #[test]
    fn a_chain_that_is_not_ours_changes_nothing() {
        let site = Site::new();
        let present = site.certificate(-YEAR, YEAR);
        site.write(&present);
        let store = site.store();
        let other = Site::new();
        let refusal = |pem: &str| {
            let error = store.install(pem.as_bytes(), NOW).unwrap_err();
            assert_eq!(site.read(), present);
            assert_eq!(FrameSigner::chain(&*store), certificate_chain(present.as_bytes()).unwrap());
            error
        };
        let certify = |authority: &Authority, name, key| authority.certify(name, key, -YEAR, YEAR);

        let error = refusal(&certify(&site.authority, "acme.robot-2", &site.key));
        assert!(matches!(error, IdentityError::OtherRobot { .. }), "{error}");
        let error = refusal(&certify(&site.authority, ROBOT, &other.key));
        assert!(matches!(error, IdentityError::OtherKey), "{error}");
        let error = refusal(&certify(&other.authority, ROBOT, &site.key));
        let IdentityError::Refused { source, .. } = error else { panic!("{error}") };
        assert_eq!(source, CertificateRefusal::ForeignAuthority);
        let error = refusal(&site.certificate(-YEAR, -1));
        let IdentityError::Refused { source, .. } = error else { panic!("{error}") };
        assert!(matches!(source, CertificateRefusal::Expired { .. }), "{source}");
        let error = refusal(&present.repeat(5));
        assert!(matches!(error, IdentityError::Chain(_)), "{error}");
        let error = refusal("no PEM");
        assert!(matches!(error, IdentityError::Credential { .. }), "{error}");
    }

    #[test]
    fn a_robot_without_a_certificate_shows_none() {
        let site = Site::new();
        let store = site.store();
        assert!(!store.has_certs() && FrameSigner::chain(&*store).is_empty());
        assert!(matches!(store.require(), Err(IdentityError::NoCertificate { .. })));
        assert!(matches!(check(&site.config), Err(IdentityError::NoCertificate { .. })));
        install(&site.config, site.certificate(-1, YEAR).as_bytes(), NOW).unwrap();
        assert!(check(&site.config).is_ok());
        assert!(store.reload(NOW).unwrap().is_some());
        store.require().unwrap();
    }

    #[test]
    fn somebody_elses_certificate_is_not_opened() {
        let site = Site::new();
        let other = Site::new();
        site.write(&site.authority.certify(ROBOT, &other.key, -YEAR, YEAR));
        let error = CertificateStore::open(&site.config, Arc::clone(&site.key)).unwrap_err();
        assert!(matches!(error, IdentityError::OtherKey), "{error}");
        // An installation is the way out of it.
        install(&site.config, site.certificate(-1, YEAR).as_bytes(), NOW).unwrap();
        site.store().require().unwrap();
    }
}

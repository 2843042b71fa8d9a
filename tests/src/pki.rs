//! A throw-away certificate authority, and a throw-away key of servers.
//!
//! Invariants:
//! - keys are ECDSA P-256, made for one run, in files of mode 0600;
//! - a certificate is valid for as long as any test runs, unless its test says otherwise.

use std::error::Error;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use moai_transport::frame::{Frame, FrameSigner, Received, SignedFrame};
use moai_transport::keys::{ServerKeys, ServerSigningKey};
use moai_transport::trust::TrustedRobots;
use p256::ecdsa::signature::hazmat::PrehashSigner;
use p256::ecdsa::{Signature, SigningKey};
use p256::pkcs8::DecodePrivateKey;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SignatureAlgorithm,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// What a virtual machine calls the machine that it runs on.
pub const REMOTE_HOST: &str = "uplink.test";
const SIGNING_KEY: &str = "signing.key";
const SERVER_KEY: &str = "server-key.pem";

/// A CA and the directory its certificates are written to.
#[derive(Debug)]
pub struct Pki {
    directory: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

/// The two PEM files of a CA, for `moai-agent provision --ca … --ca-key …`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authority {
    /// Its certificate.
    pub certificate: PathBuf,
    /// Its private key, PKCS #8.
    pub key: PathBuf,
}

/// Three PEM files: whom to trust, who we are, and the proof.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The CA the peer's certificate must come from.
    pub ca: PathBuf,
    /// Our certificate.
    pub certificate: PathBuf,
    /// Its private key, PKCS #8.
    pub key: PathBuf,
}

impl Pki {
    /// Makes a CA whose certificate and key are `ca.pem` and `ca.key` in `directory`.
    ///
    /// # Errors
    /// The directory cannot be written.
    pub fn new(directory: &Path) -> Result<Self> {
        fs::create_dir_all(directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "moai throw-away CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key)?;
        let Authority { certificate: ca, key: ca_key } = authority(directory);
        fs::write(ca, certificate.pem())?;
        write_private(&ca_key, &key.serialize_pem())?;
        let mut seed = [0; 32];
        getrandom::fill(&mut seed)?;
        let server_key = ServerSigningKey::from_seed(&seed);
        write_private(&directory.join(SIGNING_KEY), &server_key.to_pem())?;
        fs::write(directory.join(SERVER_KEY), server_key.public().to_pem())?;
        Ok(Self { directory: directory.to_owned(), issuer: Issuer::new(params, key) })
    }

    /// The CA's certificate.
    #[must_use]
    pub fn ca(&self) -> PathBuf {
        self.authority().certificate
    }

    /// The CA's certificate and key.
    #[must_use]
    pub fn authority(&self) -> Authority {
        authority(&self.directory)
    }

    /// The file of the key that signs what servers say.
    #[must_use]
    pub fn signing_key(&self) -> PathBuf {
        self.directory.join(SIGNING_KEY)
    }

    /// The file of its public half, for robots.
    #[must_use]
    pub fn server_key(&self) -> PathBuf {
        self.directory.join(SERVER_KEY)
    }

    /// What signs as the servers do.
    ///
    /// # Errors
    /// The file has gone.
    pub fn server_signer(&self) -> Result<ServerSigningKey> {
        Ok(ServerSigningKey::from_pem(&fs::read_to_string(self.signing_key())?)?)
    }

    /// The servers that robots of this CA believe.
    ///
    /// # Errors
    /// The file has gone.
    pub fn servers(&self) -> Result<ServerKeys> {
        Ok(ServerKeys::from_pem(&fs::read(self.server_key())?)?)
    }

    /// A chain (PEM) for a robot whose private key is elsewhere, by its public key (SEC1). It begins
    /// and ceases to be valid so long from now; a negative begin is in the past.
    ///
    /// # Errors
    /// Seconds out of any range.
    pub fn robot(
        &self,
        identity: &str,
        public_key: [u8; 65],
        seconds: Range<i64>,
    ) -> Result<String> {
        let params = valid(client(identity)?, seconds)?;
        Ok(params.signed_by(&PublicKey(public_key), &self.issuer)?.pem())
    }

    /// A server certificate for `localhost`, `127.0.0.1` and [`REMOTE_HOST`].
    ///
    /// # Errors
    /// The files cannot be written.
    pub fn server(&self) -> Result<Credentials> {
        let hosts = ["localhost".into(), "127.0.0.1".into(), REMOTE_HOST.into()];
        self.issue("localhost", &params("localhost", &hosts, ExtendedKeyUsagePurpose::ServerAuth)?)
    }

    /// A client certificate with the given common name.
    ///
    /// # Errors
    /// The files cannot be written.
    pub fn client(&self, common_name: &str) -> Result<Credentials> {
        self.issue(common_name, &client(common_name)?)
    }

    /// The robots this CA vouches for.
    ///
    /// # Errors
    /// The CA's file has gone.
    pub fn robots(&self) -> Result<TrustedRobots> {
        Ok(TrustedRobots::from_pem(&fs::read(self.ca())?)?)
    }

    /// The open in these bytes, if a robot that this CA vouches for signed it for itself.
    ///
    /// # Errors
    /// The bytes are no such open.
    pub fn opened(&self, bytes: &[u8]) -> Result<Frame> {
        Ok(signed(bytes)?.verify_robot(&self.robots()?, unix_now()?)?.into_frame())
    }

    /// The frame in these bytes, if a server of ours signed it.
    ///
    /// # Errors
    /// The bytes are no such frame.
    pub fn answered(&self, bytes: &[u8]) -> Result<Frame> {
        Ok(signed(bytes)?.verify_server(&self.servers()?, unix_now()?)?)
    }

    /// A client certificate that ceases to be valid so many seconds from now; a negative number is in
    /// the past.
    ///
    /// # Errors
    /// The files cannot be written.
    pub fn client_until(&self, common_name: &str, seconds: i64) -> Result<Credentials> {
        const DAY: i64 = 24 * 60 * 60;
        self.issue(common_name, &valid(client(common_name)?, -DAY..seconds)?)
    }

    fn issue(&self, common_name: &str, params: &CertificateParams) -> Result<Credentials> {
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        // Common names with a slash are issued on purpose: brokers must refuse them.
        let file = self.directory.join(common_name.replace('/', "_"));
        let credentials = Credentials {
            ca: self.ca(),
            certificate: append(&file, ".pem"),
            key: append(&file, ".key"),
        };
        fs::write(&credentials.certificate, certificate.pem())?;
        write_private(&credentials.key, &key.serialize_pem())?;
        Ok(credentials)
    }
}

/// The frame in these bytes, which is to be verified.
///
/// # Errors
/// The bytes are no frame, or a chunk.
pub fn signed(bytes: &[u8]) -> Result<SignedFrame> {
    match Received::decode(bytes)? {
        Received::Signed(signed) => Ok(signed),
        Received::Chunk(_) => bail!("a chunk is not signed"),
    }
}

/// Now, in seconds since 1970.
///
/// # Errors
/// It is before 1970.
pub fn unix_now() -> Result<u64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())
}

/// Credentials that sign frames, as a robot with a software key does.
#[derive(Debug, Clone)]
pub struct Signer {
    key: SigningKey,
    chain: Vec<CertificateDer<'static>>,
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

/// A public key whose private half this process has not.
struct PublicKey([u8; 65]);

impl PublicKeyData for PublicKey {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

fn authority(directory: &Path) -> Authority {
    Authority { certificate: directory.join("ca.pem"), key: directory.join("ca.key") }
}

fn client(common_name: &str) -> Result<CertificateParams> {
    params(common_name, &[], ExtendedKeyUsagePurpose::ClientAuth)
}

fn params(
    common_name: &str,
    hosts: &[String],
    purpose: ExtendedKeyUsagePurpose,
) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(hosts)?;
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![purpose];
    Ok(params)
}

/// Valid in this range of seconds from now.
fn valid(mut params: CertificateParams, seconds: Range<i64>) -> Result<CertificateParams> {
    let now = unix_now()?;
    let at = |seconds: i64| -> Result<_> {
        let at = now.checked_add_signed(seconds).context("before 1970")?;
        Ok(rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(at))
    };
    (params.not_before, params.not_after) = (at(seconds.start)?, at(seconds.end)?);
    Ok(params)
}

fn write_private(path: &Path, text: &str) -> Result<()> {
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(path)?;
    Ok(file.write_all(text.as_bytes())?)
}

/// `with_extension` would cut a common name at its dot.
fn append(path: &Path, suffix: &str) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}

impl Credentials {
    /// The same certificate, but trusting another CA.
    #[must_use]
    pub fn trusting(self, ca: PathBuf) -> Self {
        Self { ca, ..self }
    }

    /// What signs frames with these credentials.
    ///
    /// # Errors
    /// A file is missing or is not what its name says.
    pub fn signer(&self) -> Result<Signer> {
        let key = SigningKey::from_pkcs8_pem(&fs::read_to_string(&self.key)?)?;
        let chain = CertificateDer::pem_file_iter(&self.certificate)?.collect::<Result<_, _>>()?;
        Ok(Signer { key, chain })
    }

    /// The TLS 1.3 client configuration these credentials make.
    ///
    /// # Errors
    /// A file is missing or is not what its name says.
    pub fn tls(&self) -> Result<Arc<rustls::ClientConfig>> {
        let mut roots = rustls::RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(&self.ca)? {
            roots.add(certificate?)?;
        }
        let chain = CertificateDer::pem_file_iter(&self.certificate)?.collect::<Result<_, _>>()?;
        let key = PrivateKeyDer::from_pem_file(&self.key)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)?;
        Ok(Arc::new(config))
    }
}

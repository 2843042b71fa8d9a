//! Throw-away certificates.

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
};
use std::sync::Arc;

/// A certificate authority.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, in PEM.
pub struct Credentials {
    pub certificate: String,
    pub key: String,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "test authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate with this common name, for these host names.
    pub fn issue(&self, common_name: &str, hosts: &[&str]) -> Credentials {
        let hosts: Vec<_> = hosts.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(hosts).unwrap();
        params.distinguished_name.push(DnType::CommonName, common_name);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap().pem();
        Credentials { certificate, key: key.serialize_pem() }
    }

    /// What a client needs that trusts this authority and has these credentials.
    pub fn client(&self, credentials: &Credentials) -> Arc<rustls::ClientConfig> {
        let (certificate, key) = (credentials.certificate.as_bytes(), credentials.key.as_bytes());
        moai_transport::tls::client_config(self.pem().as_bytes(), certificate, key).unwrap()
    }
}

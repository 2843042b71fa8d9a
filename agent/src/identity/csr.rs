//! Asking for a certificate, and for tests and demos granting it.
//!
//! Invariants:
//! - a request names the robot as the uplink knows it, is for TLS clients, and is signed by the
//!   identity key;
//! - [`grant`] is the authority of tests, demos and benches: it takes an authority's private key,
//!   which has no business on a robot in the field.

use std::time::Duration;

use moai_transport::ids::Identity;
use moai_transport::tls::certificate_chain;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, DnValue, ExtendedKeyUsagePurpose, Issuer,
    KeyPair, KeyUsagePurpose,
};
use x509_parser::asn1_rs::Tag;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::key::RequestKey;
use super::{IdentityError, IdentityKey};

/// Clocks that are late by less than this take a granted certificate.
const SKEW: Duration = Duration::from_hours(1);

fn make(what: &'static str) -> impl Fn(rcgen::Error) -> IdentityError {
    move |error| IdentityError::Make { what, problem: error.to_string() }
}

fn params(identity: &Identity) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, identity.to_string());
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params
}

/// A certificate signing request (RFC 2986) in PEM. Blocks while the key signs.
///
/// # Errors
/// The key does not sign.
pub fn request(identity: &Identity, key: &IdentityKey) -> Result<String, IdentityError> {
    let failed = make("a certificate request");
    let request = params(identity).serialize_request(&RequestKey::new(key)).map_err(|error| {
        // rcgen tells that a key did not sign, but not why: the key itself does.
        key.sign([0; 32]).err().unwrap_or_else(|| failed(error))
    })?;
    request.pem().map_err(failed)
}

/// A certificate for `key` by the authority in `ca_pem`, whose private key is `ca_key_pem`
/// (PKCS #8): PEM, valid from an hour ago for `lifetime` from `now`, in seconds since 1970.
///
/// # Errors
/// The authority's files are not usable.
pub fn grant(
    identity: &Identity,
    key: &IdentityKey,
    ca_pem: &[u8],
    ca_key_pem: &str,
    now: u64,
    lifetime: Duration,
) -> Result<String, IdentityError> {
    let failed = make("a certificate");
    let mut authority = CertificateParams::default();
    authority.distinguished_name = subject(ca_pem)?;
    let ca_key = KeyPair::from_pem(ca_key_pem).map_err(&failed)?;
    let issuer = Issuer::new(authority, ca_key);
    let mut params = params(identity);
    let now = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(now);
    params.not_before = now - SKEW;
    params.not_after = now + lifetime;
    Ok(params.signed_by(&RequestKey::new(key), &issuer).map_err(failed)?.pem())
}

/// The authority's name, as its certificate has it byte by byte: chains are built by comparing.
fn subject(ca_pem: &[u8]) -> Result<DistinguishedName, IdentityError> {
    let failed =
        |problem: String| IdentityError::Make { what: "use of the authority's file", problem };
    let chain = certificate_chain(ca_pem).map_err(|error| failed(error.to_string()))?;
    let ca = chain.first().map(AsRef::as_ref).unwrap_or_default();
    let (_, ca) = X509Certificate::from_der(ca).map_err(|error| failed(error.to_string()))?;
    let mut name = DistinguishedName::new();
    for attribute in ca.subject().iter_attributes() {
        let oid: Option<Vec<u64>> = attribute.attr_type().iter().map(Iterator::collect);
        let value = attribute.attr_value();
        let text = std::str::from_utf8(value.data).ok();
        let value = match (value.header.tag(), text) {
            (Tag::Utf8String, Some(text)) => Some(DnValue::Utf8String(text.to_owned())),
            (Tag::PrintableString, Some(text)) => {
                text.try_into().ok().map(DnValue::PrintableString)
            }
            _ => None,
        };
        let (Some(oid), Some(value)) = (oid, value) else {
            return Err(failed("its name has a part of an unusual type".to_owned()));
        };
        name.push(DnType::from_oid(&oid), value);
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use moai_transport::trust::TrustedRobots;
    use p256::ecdsa::signature::Verifier;
    use p256::ecdsa::{Signature, VerifyingKey};
    use rustls::pki_types::CertificateSigningRequestDer;
    use rustls::pki_types::pem::PemObject;
    use x509_parser::prelude::X509CertificationRequest;

    use super::*;
    use crate::identity::support::{HOUR, NOW, Site};

    #[test]
    fn a_request_names_the_robot_and_is_signed_by_its_key() {
        let site = Site::new();
        let pem = request(&site.config.identity, &site.key).unwrap();
        let der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).unwrap();
        let (_, request) = X509CertificationRequest::from_der(&der).unwrap();
        let info = &request.certification_request_info;
        assert_eq!(info.subject.to_string(), "CN=acme.robot-1");
        let point = site.key.public_key();
        assert_eq!(*info.subject_pki.subject_public_key.data, point);
        let signature = Signature::from_der(&request.signature_value.data).unwrap();
        let key = VerifyingKey::from_sec1_bytes(&point).unwrap();
        key.verify(info.raw, &signature).unwrap();
    }

    #[test]
    fn what_is_granted_counts_for_its_lifetime() {
        let Site { scratch: _scratch, authority, config, key } = Site::new();
        let (ca, ca_key) = (authority.pem(), authority.key_pem());
        let lifetime = Duration::from_secs(HOUR);
        let grant = grant(&config.identity, &key, ca.as_bytes(), &ca_key, NOW, lifetime).unwrap();
        let chain = certificate_chain(grant.as_bytes()).unwrap();
        let robots = TrustedRobots::from_pem(ca.as_bytes()).unwrap();
        let robot = robots.check(&chain, NOW).unwrap();
        assert_eq!((robot.identity, robot.public_key), (config.identity, key.public_key()));
        assert!(robots.check(&chain, NOW - HOUR).is_ok());
        assert!(robots.check(&chain, NOW + HOUR + 1).is_err());
    }
}

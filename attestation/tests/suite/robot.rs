//! A robot whose TPM is a P-256 key in memory, and which lies where it is told to.

use moai_attestation::{Attested, Enrolment, Evidence, PcrValues, PublicArea, qualifying};
use p256::ecdsa::signature::Signer as _;
use p256::ecdsa::{Signature, SigningKey};

pub(crate) const NONCE: [u8; 32] = [0x17; 32];
pub(crate) const IDENTITY: &str = "acme.robot-1";
pub(crate) const SESSION: [u8; 16] = [0x42; 16];

/// fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, noDA, sign.
pub(crate) const IDENTITY_ATTRIBUTES: u32 = 0x0004_0472;
/// The same and restricted.
pub(crate) const ATTESTATION_ATTRIBUTES: u32 = 0x0005_0472;

const GENERATED: u32 = 0xff54_4347;
pub(crate) const CERTIFY: u16 = 0x8017;
pub(crate) const QUOTE: u16 = 0x8018;

pub(crate) fn signing_key(seed: u8) -> SigningKey {
    SigningKey::from_slice(&[seed; 32]).expect("a scalar")
}

pub(crate) fn public_key(key: &SigningKey) -> [u8; 65] {
    let point = key.verifying_key().to_sec1_point(false);
    point.as_bytes().try_into().expect("uncompressed")
}

fn sized(bytes: &[u8]) -> Vec<u8> {
    let len = u16::try_from(bytes.len()).expect("short");
    [&len.to_be_bytes(), bytes].concat()
}

/// `TPMT_PUBLIC` of a P-256 key for ECDSA with SHA-256.
pub(crate) fn public_area_bytes(key: &SigningKey, attributes: u32) -> Vec<u8> {
    let point = public_key(key);
    [
        &[0x00, 0x23, 0x00, 0x0b][..],
        &attributes.to_be_bytes(),
        &[0, 0, 0x00, 0x10, 0x00, 0x18, 0x00, 0x0b, 0x00, 0x03, 0x00, 0x10],
        &sized(&point[1..33]),
        &sized(&point[33..]),
    ]
    .concat()
}

pub(crate) fn public_area(key: &SigningKey, attributes: u32) -> PublicArea {
    PublicArea::from_bytes(&public_area_bytes(key, attributes)).expect("a public area")
}

pub(crate) fn pcr7(fill: u8) -> PcrValues {
    format!("sha256:7={}", hex_of(fill)).parse().expect("PCR values")
}

pub(crate) fn hex_of(fill: u8) -> String {
    format!("{fill:02x}").repeat(32)
}

/// What a statement is made of.
#[derive(Clone)]
pub(crate) struct Statement {
    pub(crate) magic: u32,
    pub(crate) kind: u16,
    pub(crate) qualifying: Vec<u8>,
    pub(crate) attested: Vec<u8>,
}

impl Statement {
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let clock_and_firmware = [1; 25];
        [
            &self.magic.to_be_bytes()[..],
            &self.kind.to_be_bytes(),
            &sized(&[0xaa; 34]),
            &sized(&self.qualifying),
            &clock_and_firmware,
            &self.attested,
        ]
        .concat()
    }
}

pub(crate) struct Robot {
    pub(crate) attestation_key: SigningKey,
    pub(crate) identity_key: SigningKey,
    pub(crate) identity_attributes: u32,
    pub(crate) pcr_values: PcrValues,
}

impl Robot {
    pub(crate) fn new() -> Self {
        Self {
            attestation_key: signing_key(1),
            identity_key: signing_key(2),
            identity_attributes: IDENTITY_ATTRIBUTES,
            pcr_values: pcr7(0x77),
        }
    }

    pub(crate) fn enrolment(&self) -> Enrolment {
        let key = public_area(&self.attestation_key, ATTESTATION_ATTRIBUTES);
        Enrolment::new(IDENTITY, key, self.pcr_values.clone()).expect("an enrolment")
    }

    pub(crate) fn identity_key(&self) -> [u8; 65] {
        public_key(&self.identity_key)
    }

    pub(crate) fn certification(&self, qualifying: [u8; 32]) -> Statement {
        let name = public_area(&self.identity_key, self.identity_attributes).name();
        Statement {
            magic: GENERATED,
            kind: CERTIFY,
            qualifying: qualifying.to_vec(),
            attested: [sized(&name), sized(&[0xbb; 34])].concat(),
        }
    }

    pub(crate) fn quote(&self, qualifying: [u8; 32]) -> Statement {
        // One bank, SHA-256, three bytes of selection, PCR 7.
        let selection = [0, 0, 0, 1, 0x00, 0x0b, 3, 0x80, 0, 0];
        Statement {
            magic: GENERATED,
            kind: QUOTE,
            qualifying: qualifying.to_vec(),
            attested: [&selection[..], &sized(&self.pcr_values.digest())].concat(),
        }
    }

    pub(crate) fn sign(&self, statement: &Statement) -> Attested {
        let statement = statement.to_bytes();
        let signature: Signature = self.attestation_key.sign(&statement);
        Attested { signature: signature.to_bytes().into(), statement }
    }

    /// An honest answer.
    pub(crate) fn evidence(&self, qualifying: [u8; 32]) -> Evidence {
        Evidence {
            attestation_key: public_area(&self.attestation_key, ATTESTATION_ATTRIBUTES),
            identity_key: public_area(&self.identity_key, self.identity_attributes),
            certification: self.sign(&self.certification(qualifying)),
            quote: self.sign(&self.quote(qualifying)),
            pcr_values: self.pcr_values.clone(),
        }
    }
}

/// The qualifying data of the one challenge most tests ask.
pub(crate) fn expected() -> [u8; 32] {
    qualifying(&NONCE, IDENTITY, &SESSION)
}

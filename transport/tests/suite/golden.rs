//! Golden frames: one of each kind, byte by byte, made with fixed keys. Whoever writes another end
//! of the protocol can check theirs against the files; `docs/protocol.md` has the keys.

use std::error::Error;
use std::path::PathBuf;

use moai_transport::chunk;
use moai_transport::frame::{Claims, Frame, FrameKind, FrameSigner, Received, Signatory};
use moai_transport::message::{Challenge, Command, ErrorBody, ErrorCode, Have, Report};
use moai_transport::trust::TrustedRobots;
use p256::ecdsa::signature::hazmat::PrehashSigner;
use p256::ecdsa::{Signature, SigningKey};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::time::Duration;

use crate::support::signer::{NOW, OPERATOR, SERVER, SESSION, operators, servers};
use crate::support::values::{context, frame, worker};

pub(crate) const AUTHORITY: &[u8] = include_bytes!("../golden/authority.pem");
const ROBOT: &[u8] = include_bytes!("../golden/robot.pem");
/// The private key of the robot's certificate: SEC1, big endian.
const IDENTITY_KEY: [u8; 32] = [0x1d; 32];
/// Set to write the files anew where the protocol changed.
const WRITE: &str = "MOAI_WRITE_GOLDEN_FRAMES";

struct Robot;

impl FrameSigner for Robot {
    fn chain(&self) -> Vec<CertificateDer<'static>> {
        vec![CertificateDer::from_pem_slice(ROBOT).unwrap()]
    }

    /// ECDSA without chance (RFC 6979).
    fn sign(&self, sha256: [u8; 32]) -> Result<[u8; 64], Box<dyn Error + Send + Sync>> {
        let key = SigningKey::from_slice(&IDENTITY_KEY)?;
        let signature: Signature = key.sign_prehash(&sha256)?;
        Ok(signature.to_bytes().into())
    }
}

/// The frame of a kind, as its file has it.
fn golden(kind: FrameKind) -> Frame {
    let body = match kind {
        FrameKind::Open => {
            let (ttl, keys) = (Duration::from_mins(15), b"evaluation keys");
            chunk::manifest(context(), ttl, SESSION.public(), keys, 1).unwrap().encode().unwrap()
        }
        FrameKind::Chunk => b"evaluation keys".to_vec(),
        FrameKind::Job => b"ciphertext".to_vec(),
        FrameKind::Delete => Vec::new(),
        FrameKind::Have => {
            let have = Have { worker: worker(), nonce: 1, bitmap: vec![1], registered: true };
            have.encode().unwrap()
        }
        FrameKind::Result => b"result".to_vec(),
        FrameKind::Error => ErrorBody::new(ErrorCode::Busy, "too many jobs wait").encode().unwrap(),
        FrameKind::Models => vec![0x80],
        FrameKind::Challenge => {
            let challenge = Challenge { worker: worker(), nonce: 1, challenge: vec![0x11; 32] };
            challenge.encode().unwrap()
        }
        FrameKind::Attest => b"evidence".to_vec(),
        FrameKind::Command => Command::Emergency { stay_closed: false }.encode().unwrap(),
        FrameKind::Report => Report::new(true, "epoch 2 is in force").encode().unwrap(),
    };
    let plain = frame(kind, body);
    let claims = Claims {
        number: match kind {
            FrameKind::Models | FrameKind::Command | FrameKind::Report => 1_799_999_940_000,
            FrameKind::Open => 1 << 32 | 1,
            _ => plain.claims.number,
        },
        context: (!matches!(
            kind,
            FrameKind::Chunk | FrameKind::Delete | FrameKind::Command | FrameKind::Report
        ))
        .then(context),
        compute_micros: (kind == FrameKind::Result).then_some(250_000),
        ..plain.claims
    };
    Frame { claims, ..plain }
}

/// The bytes of a golden frame, encoded and signed now.
fn encode(kind: FrameKind) -> Vec<u8> {
    let frame = golden(kind);
    match kind.signatory() {
        None => frame.encode(),
        Some(Signatory::Robot) => frame.encode_as_robot(&Robot),
        Some(Signatory::Session) => frame.encode_as_session(&SESSION),
        Some(Signatory::Server) => frame.encode_as_server(&SERVER),
        Some(Signatory::Operator) => frame.encode_as_operator(&OPERATOR),
    }
    .unwrap()
}

/// The bytes in the file of a kind.
pub(crate) fn file(kind: FrameKind) -> Vec<u8> {
    let name = format!("{kind:?}.hex").to_lowercase();
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os(WRITE).is_some() {
        let digits = hex::encode(encode(kind)).into_bytes();
        let lines: Vec<_> = digits.chunks(96).map(|line| [line, b"\n"].concat()).collect();
        std::fs::write(&path, lines.concat()).unwrap();
    }
    let text = std::fs::read_to_string(&path).unwrap();
    hex::decode(text.split_whitespace().collect::<String>()).unwrap()
}

#[test]
fn every_kind_is_read_and_written_as_its_file_has_it() {
    let robots = TrustedRobots::from_pem(AUTHORITY).unwrap();
    for kind in FrameKind::ALL {
        let bytes = file(kind);
        let read = match (Received::decode(&bytes).unwrap(), kind.signatory()) {
            (Received::Chunk(chunk), None) => chunk.into_frame(),
            (Received::Signed(signed), Some(Signatory::Robot)) => {
                signed.verify_robot(&robots, NOW).unwrap().into_frame()
            }
            (Received::Signed(signed), Some(Signatory::Session)) => {
                signed.verify_session(&SESSION.public(), NOW).unwrap()
            }
            (Received::Signed(signed), Some(Signatory::Server)) => {
                signed.verify_server(&servers(), NOW).unwrap()
            }
            (Received::Signed(signed), Some(Signatory::Operator)) => {
                signed.verify_operator(&operators(), NOW).unwrap()
            }
            (received, _) => panic!("{received:?}"),
        };
        assert_eq!(read, golden(kind));
        assert_eq!(hex::encode(encode(kind)), hex::encode(bytes), "{kind:?}");
    }
}

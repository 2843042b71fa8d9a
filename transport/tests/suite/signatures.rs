//! Signed frames: whose they are, and every way in which they are not.

use coset::{CborSerializable, CoseSign1};
use moai_transport::frame::{
    Claims, Frame, FrameError, FrameKind, MAX_CHAIN_CERTIFICATES, MAX_CHAIN_LEN, PREFIX_LEN,
    Received, Signatory, SignatureError, SignedFrame, VerifiedFrame,
};
use moai_transport::trust::{CertificateRefusal, TrustedRobots};
use rcgen::{ExtendedKeyUsagePurpose, KeyPair, PKCS_ECDSA_P384_SHA384, date_time_ymd};

use crate::support::certificates::Authority;
use crate::support::signer::{AUTHORITY, NOW, ROBOT, SESSION, Signer, servers, trusted};
use crate::support::values::{encode, frame, identity};

fn open() -> Frame {
    frame(FrameKind::Open, b"manifest".as_slice())
}

/// An open that is fresh at this time.
fn open_at(now: u64) -> Frame {
    let mut open = open();
    open.claims.expires_at = now + 60;
    open
}

fn signed_by(signer: &Signer) -> Vec<u8> {
    open().encode_as_robot(signer).unwrap()
}

fn signed(bytes: &[u8]) -> SignedFrame {
    match Received::decode(bytes).unwrap() {
        Received::Signed(signed) => signed,
        Received::Chunk(frame) => panic!("{frame:?} is not signed"),
    }
}

fn verify_at(bytes: &[u8], now: u64) -> Result<VerifiedFrame, SignatureError> {
    signed(bytes).verify_robot(&trusted(), now)
}

fn verify(bytes: &[u8]) -> Result<VerifiedFrame, SignatureError> {
    verify_at(bytes, NOW)
}

/// A robot whose certificate is as `change` has it.
fn robot(change: impl FnOnce(&mut rcgen::CertificateParams)) -> Signer {
    Signer::new(&AUTHORITY, "acme.robot-1", change)
}

fn header_len(bytes: &[u8]) -> usize {
    usize::from(u16::from_be_bytes([bytes[6], bytes[7]]))
}

/// The same frame with its header changed and with another body.
fn forge(bytes: &[u8], change: impl FnOnce(&mut CoseSign1), body: &[u8]) -> Vec<u8> {
    let header = &bytes[PREFIX_LEN..PREFIX_LEN + header_len(bytes)];
    let mut sign1 = CoseSign1::from_slice(header).unwrap();
    change(&mut sign1);
    let header = sign1.to_vec().unwrap();
    let len = u16::try_from(header.len()).unwrap().to_be_bytes();
    [&bytes[..PREFIX_LEN - 2], &len, &header, body].concat()
}

#[test]
fn an_open_is_the_robots_that_its_certificate_names() {
    let verified = verify(&signed_by(&ROBOT)).unwrap();
    assert_eq!(verified.frame(), &open());
    assert_eq!(verified.signer().identity, identity());
    assert_eq!(verified.signer().public_key.as_slice(), ROBOT.public_key());
    assert_eq!(verified.into_frame(), open());
}

#[test]
fn an_intermediate_authority_may_stand_between() {
    let plant = AUTHORITY.intermediate("a plant");
    let signer = Signer::new(&plant, "acme.robot-1", |_| {});
    let alone = verify(&signed_by(&signer)).unwrap_err();
    assert_eq!(alone, CertificateRefusal::ForeignAuthority.into());
    let chain = vec![signer.chain[0].clone(), plant.certificate()];
    assert!(verify(&signed_by(&signer.with_chain(chain))).is_ok());
}

#[test]
fn nothing_of_an_open_shows_before_it_is_verified() {
    let bytes = signed_by(&ROBOT);
    let received = format!("{:?}", Received::decode(&bytes).unwrap());
    assert_eq!(received, "Signed(SignedFrame { kind: Open, .. })");
}

#[test]
fn signatures_are_where_they_belong_and_nowhere_else() {
    let others = |kind: &FrameKind| kind.signatory() != Some(Signatory::Robot);
    for kind in FrameKind::ALL.into_iter().filter(others) {
        let other = frame(kind, []);
        assert_eq!(other.encode_as_robot(&*ROBOT), Err(FrameError::Signatory(kind)), "{kind:?}");
        let mut signed = signed_by(&ROBOT);
        signed[5] = kind as u8;
        if let Ok(received) = Received::decode(&signed) {
            panic!("{received:?} was taken");
        }
    }
    let bare = |sign1: &mut CoseSign1| {
        sign1.protected = coset::ProtectedHeader::default();
        sign1.signature.clear();
    };
    let unsigned = forge(&signed_by(&ROBOT), bare, b"manifest");
    assert_eq!(Received::decode(&unsigned).unwrap_err(), FrameError::Unsigned(FrameKind::Open));
    for strip in [
        (|sign1: &mut CoseSign1| sign1.signature.clear()) as fn(&mut CoseSign1),
        |sign1| sign1.signature.truncate(63),
        |sign1| sign1.protected = coset::ProtectedHeader::default(),
        |sign1| sign1.unprotected.key_id = vec![1],
    ] {
        let stripped = forge(&signed_by(&ROBOT), strip, b"manifest");
        assert_eq!(Received::decode(&stripped).unwrap_err(), FrameError::Signature);
    }
}

#[test]
fn another_body_or_other_claims_need_another_signature() {
    let bytes = signed_by(&ROBOT);
    let swapped = forge(&bytes, |_| {}, b"MANIFEST");
    assert_eq!(Received::decode(&swapped).unwrap_err(), FrameError::BodyDigest);

    // What the signature has to catch: claims that fit the body, but are not the signed ones.
    let other_claims = Claims { number: 2, ..open().claims };
    for other in
        [Frame { claims: other_claims, ..open() }, frame(FrameKind::Open, b"MANIFEST".as_slice())]
    {
        let theirs = other.encode_as_robot(&*ROBOT).unwrap();
        let header = &theirs[PREFIX_LEN..PREFIX_LEN + header_len(&theirs)];
        let payload = CoseSign1::from_slice(header).unwrap().payload;
        let mixed = forge(&bytes, |sign1| sign1.payload = payload, &other.body);
        assert_eq!(verify(&mixed).unwrap_err(), SignatureError::BadSignature);
    }
}

#[test]
fn one_robot_cannot_sign_for_another() {
    let other = Signer::new(&AUTHORITY, "acme.robot-2", |_| {});
    let error = verify(&signed_by(&other)).unwrap_err();
    let claimed = "acme.robot-1".to_owned();
    let signer = "acme.robot-2".parse().unwrap();
    assert_eq!(error, SignatureError::OtherRobot { signer, claimed });
    // Nor pass itself off with the other's certificate.
    let masked = signed_by(&other.with_chain(ROBOT.chain.clone()));
    assert_eq!(verify(&masked).unwrap_err(), SignatureError::BadSignature);
}

#[test]
fn an_authority_of_the_same_name_is_not_the_same_authority() {
    let impostor = Authority::new();
    let signer = Signer::new(&impostor, "acme.robot-1", |_| {});
    let error = verify(&signed_by(&signer)).unwrap_err();
    assert_eq!(error, CertificateRefusal::ForeignAuthority.into());
    let chain = vec![signer.chain[0].clone(), impostor.certificate()];
    let error = verify(&signed_by(&signer.with_chain(chain))).unwrap_err();
    assert_eq!(error, CertificateRefusal::ForeignAuthority.into());
}

#[test]
fn a_certificate_counts_within_its_time_only() {
    let signer = robot(|params| {
        params.not_before = date_time_ymd(2026, 1, 1);
        params.not_after = date_time_ymd(2026, 12, 31);
    });
    let verify_at = |now| verify_at(&open_at(now).encode_as_robot(&signer).unwrap(), now);
    let (begin, end) = (1_767_225_600, 1_798_675_200);
    let early = verify_at(begin - 1).unwrap_err();
    assert_eq!(early, CertificateRefusal::NotYetValid { not_before: 1_767_225_600 }.into());
    assert!(verify_at(begin).is_ok());
    assert!(verify_at(end).is_ok());
    let late = verify_at(end + 1).unwrap_err();
    assert_eq!(late, CertificateRefusal::Expired { not_after: 1_798_675_200 }.into());
    assert!(late.to_string().contains("Dec 31 00:00:00 2026"), "{late}");
}

#[test]
fn a_certificate_must_be_a_robots() {
    type Change = fn(&mut rcgen::CertificateParams);
    let purposes: [Change; 2] = [
        |params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth],
        |params| params.extended_key_usages.clear(),
    ];
    for change in purposes {
        let error = verify(&signed_by(&robot(change))).unwrap_err();
        assert_eq!(error, CertificateRefusal::Purpose.into());
    }
    let operator = Signer::new(&AUTHORITY, "operator", |_| {});
    let error = verify(&signed_by(&operator)).unwrap_err();
    assert!(matches!(error, SignatureError::Certificate(CertificateRefusal::Name { .. })));

    let key = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
    let chain = vec![AUTHORITY.certify("acme.robot-1", &key, |_| {})];
    let error = verify(&signed_by(&ROBOT.with_chain(chain))).unwrap_err();
    assert_eq!(error, CertificateRefusal::Key.into());
    let error = verify(&signed_by(&ROBOT.with_chain(vec![b"no DER".to_vec().into()]))).unwrap_err();
    assert!(matches!(error, SignatureError::Certificate(CertificateRefusal::Malformed(_))));
    assert!(TrustedRobots::from_pem(b"no PEM").is_err());
}

#[test]
fn chains_have_a_cap() {
    let leaf = &ROBOT.chain[0];
    let mut long = ROBOT.chain.clone();
    long.push(vec![0; MAX_CHAIN_LEN + 1 - leaf.len()].into());
    let many = vec![leaf.clone(); MAX_CHAIN_CERTIFICATES + 1];
    for chain in [Vec::new(), many, long] {
        let error = open().encode_as_robot(&ROBOT.with_chain(chain)).unwrap_err();
        assert!(matches!(error, FrameError::Chain { .. }), "{error}");
    }
    let mut longest = ROBOT.chain.clone();
    longest.push(vec![0; MAX_CHAIN_LEN - leaf.len()].into());
    assert!(
        open().encode_as_robot(&ROBOT.with_chain(longest)).is_ok(),
        "it leaves the claims room"
    );
}

#[test]
fn no_cut_and_no_changed_bit_is_believed() {
    for kind in FrameKind::ALL.into_iter().filter(|kind| kind.signatory().is_some()) {
        let body = vec![7; kind.max_body_len().min(8)];
        let bytes = encode(&frame(kind, body)).unwrap();
        for len in 0..bytes.len() {
            assert!(Received::decode(&bytes[..len]).is_err(), "{kind:?} cut to {len} bytes");
        }
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(!is_believed(&changed), "bit {bit} of a {kind:?} was changed");
        }
    }
}

/// Whether anybody of those who get frames believes this one.
fn is_believed(bytes: &[u8]) -> bool {
    let Ok(received) = Received::decode(bytes) else { return false };
    let Received::Signed(signed) = received else { return true };
    let others = signed.clone();
    others.verify_server(&servers(), NOW).is_ok()
        || signed.clone().verify_session(&SESSION.public(), NOW).is_ok()
        || signed.verify_robot(&trusted(), NOW).is_ok()
}

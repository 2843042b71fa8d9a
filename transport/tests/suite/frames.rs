//! Frames: what they survive and what they refuse.

use moai_transport::frame::{
    Claims, Frame, FrameError, FrameKind, MAX_FRAME_LEN, PREFIX_LEN, Received,
};
use moai_transport::ids::{ContextId, Digest, SessionId};
use moai_transport::topic::Topic;
use proptest::prelude::*;

use crate::support::signer::NOW;
use crate::support::values::{claims, decode, encode, frame, identity, session, worker};

fn any_kind() -> impl Strategy<Value = FrameKind> {
    proptest::sample::select(FrameKind::ALL.to_vec())
}

fn any_frame() -> impl Strategy<Value = Frame> {
    let body = proptest::collection::vec(any::<u8>(), 0..2000);
    let parts = (any_kind(), body, any::<[u64; 3]>(), any::<[u8; 10]>(), any::<[bool; 3]>());
    parts.prop_map(|(kind, mut body, [number, expires_at, compute], random, extra)| {
        let plain = claims(kind);
        let numbered = plain.number != 0 || matches!(kind, FrameKind::Chunk | FrameKind::Error);
        // Anything else is not fresh.
        let expires_at = NOW + 1 + expires_at % 300;
        let claims = Claims {
            session: kind.concerns_session().then(|| SessionId::new(expires_at, random)),
            number: if numbered { number.max(1) } else { 0 },
            model: plain.model.or_else(|| extra[0].then(|| "m".parse().unwrap())),
            context: plain.context.or_else(|| extra[1].then(|| ContextId(Digest::of(&random)))),
            expires_at,
            compute_micros: (kind == FrameKind::Result && extra[2]).then_some(compute),
            ..plain
        };
        body.truncate(kind.max_body_len());
        Frame { kind, claims, body }
    })
}

proptest! {
    #[test]
    fn a_frame_survives_its_bytes(frame in any_frame()) {
        let bytes = encode(&frame).unwrap();
        prop_assert!(bytes.len() <= MAX_FRAME_LEN);
        prop_assert_eq!(decode(&bytes), Ok(frame));
    }

    /// A chunk's claims are nobody's: its place in the manifest decides. All else shows.
    #[test]
    fn a_changed_frame_is_refused_or_is_exactly_another_frame(
        frame in any_frame(),
        at: proptest::sample::Index,
        flip in 1..=255_u8,
    ) {
        let mut bytes = encode(&frame).unwrap();
        let header_len = usize::from(u16::from_be_bytes([bytes[6], bytes[7]]));
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        if let Ok(other) = decode(&bytes) {
            prop_assert_eq!(frame.kind, FrameKind::Chunk, "a signed frame was changed");
            prop_assert!(at < PREFIX_LEN + header_len, "a changed body was taken");
            prop_assert_ne!(&other, &frame);
            prop_assert_eq!(other.encode().unwrap(), bytes);
        }
    }

    #[test]
    fn a_cut_or_extended_frame_is_refused(
        frame in any_frame(),
        at: proptest::sample::Index,
        more in proptest::collection::vec(any::<u8>(), 1..50),
    ) {
        let bytes = encode(&frame).unwrap();
        prop_assert!(Received::decode(&bytes[..at.index(bytes.len())]).is_err());
        prop_assert!(Received::decode(&[bytes, more].concat()).is_err());
    }

    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = Received::decode(&bytes);
    }

    #[test]
    fn no_header_panics(kind in 1..=12_u8, header in proptest::collection::vec(any::<u8>(), 0..300)) {
        let len = u16::try_from(header.len()).unwrap().to_be_bytes();
        let bytes = [&b"MOAI\x01"[..], &[kind], &len, &header].concat();
        let _ = Received::decode(&bytes);
    }
}

#[test]
fn every_kind_has_its_cap() {
    for kind in FrameKind::ALL {
        let max = kind.max_body_len();
        let largest = frame(kind, vec![7; max]);
        let bytes = encode(&largest).unwrap();
        assert!(bytes.len() <= MAX_FRAME_LEN, "{kind:?}");
        assert_eq!(decode(&bytes).unwrap(), largest);
        let too_large = FrameError::BodyTooLarge { kind, len: max + 1, max };
        assert_eq!(encode(&frame(kind, vec![7; max + 1])), Err(too_large.clone()));
        assert_eq!(Received::decode(&[bytes, vec![7]].concat()).unwrap_err(), too_large);
    }
}

#[test]
fn a_header_beyond_its_cap_is_refused_before_it_is_there() {
    let bytes = [&b"MOAI\x01\x03"[..], &1025_u16.to_be_bytes()].concat();
    let error = Received::decode(&bytes).unwrap_err();
    assert_eq!(error, FrameError::HeaderTooLarge { kind: FrameKind::Job, len: 1025, max: 1024 });
}

#[test]
fn a_kind_without_its_claims_is_not_framed() {
    type Spoil = fn(&mut Claims);
    let broken: [(FrameKind, Spoil); 15] = [
        (FrameKind::Open, |claims| claims.context = None),
        (FrameKind::Open, |claims| claims.number = 0),
        (FrameKind::Open, |claims| claims.expires_at = 0),
        (FrameKind::Delete, |claims| claims.number = 1),
        (FrameKind::Delete, |claims| claims.tenant = Some(identity().tenant)),
        (FrameKind::Result, |claims| claims.model = None),
        (FrameKind::Job, |claims| claims.model = None),
        (FrameKind::Job, |claims| claims.number = 0),
        (FrameKind::Result, |claims| claims.number = 0),
        (FrameKind::Have, |claims| claims.session = None),
        (FrameKind::Error, |claims| claims.compute_micros = Some(1)),
        (FrameKind::Models, |claims| claims.identity = Some(identity())),
        (FrameKind::Models, |claims| claims.tenant = None),
        (FrameKind::Models, |claims| claims.number = 0),
        (FrameKind::Models, |claims| claims.expires_at = 0),
    ];
    for (kind, spoil) in broken {
        let mut frame = frame(kind, []);
        spoil(&mut frame.claims);
        assert!(matches!(encode(&frame), Err(FrameError::Claims { .. })), "{kind:?}");
    }
}

/// A frame of these header bytes and an empty body.
fn with_header(kind: FrameKind, header: &[u8]) -> Vec<u8> {
    let len = u16::try_from(header.len()).unwrap().to_be_bytes();
    [&b"MOAI\x01"[..], &[kind as u8], &len, header].concat()
}

/// The header of an empty chunk, with some of its parts replaced.
fn header(protected: &str, unprotected: &str, claims: &str, signature: &str) -> Vec<u8> {
    let claims = hex::decode(claims).unwrap();
    let text = format!(
        "84{protected}{unprotected}58{:02x}{}{signature}",
        claims.len(),
        hex::encode(&claims)
    );
    hex::decode(text).unwrap()
}

#[test]
fn what_version_1_does_not_know_is_refused() {
    let (digest, robot) = (Digest::of(b""), hex::encode(identity().to_string()));
    let session = hex::encode(session().as_bytes());
    let whose = format!("016c{robot}0250{session}");
    let plain = format!("a5{whose}0300065820{digest}0700");
    let refusal = |bytes: Vec<u8>| Received::decode(&with_header(FrameKind::Chunk, &bytes)).err();
    assert_eq!(refusal(header("40", "a0", &plain, "40")), None);

    // A signature, its algorithm (EdDSA), a key id.
    let signature = Some(FrameError::Signature);
    assert_eq!(refusal(header("40", "a0", &plain, "420102")), signature);
    assert_eq!(refusal(header("43a10127", "a0", &plain, "40")), signature);
    assert_eq!(refusal(header("40", "a1044101", &plain, "40")), signature);

    let claims = [
        ("an unknown claim", format!("a6{whose}0300065820{digest}07000a00")),
        ("a claim of another type", format!("a5{whose}036100065820{digest}0700")),
        ("a doubled claim", format!("a6{whose}03000300065820{digest}0700")),
        ("another order", format!("a5{whose}065820{digest}03000700")),
        ("a number longer than it has to be", format!("a5{whose}031800065820{digest}0700")),
        ("an indefinite length", format!("bf{whose}0300065820{digest}0700ff")),
        ("bytes behind the claims", format!("a5{whose}0300065820{digest}070000")),
        ("a text key", format!("a6613000{}", &plain[2..])),
        ("a negative key", format!("a62000{}", &plain[2..])),
        ("no digest", format!("a4{whose}03000700")),
        ("a short digest", format!("a5{whose}030006581f{}0700", &digest.to_string()[2..])),
    ];
    for (what, claims) in claims {
        let error = refusal(header("40", "a0", &claims, "40"));
        assert!(matches!(error, Some(FrameError::Header(_))), "{what}: {error:?}");
    }
    let tagged = [vec![0xd2], header("40", "a0", &plain, "40")].concat();
    assert!(matches!(refusal(tagged), Some(FrameError::Header(_))), "a tagged COSE_Sign1");
    let protected_empty_map = header("41a0", "a0", &plain, "40");
    assert!(matches!(refusal(protected_empty_map), Some(FrameError::Header(_))));
    let nested = [vec![0x81; 500], vec![0x00]].concat();
    assert!(matches!(refusal(nested), Some(FrameError::Header(_))), "deep nesting");

    let mut bytes = with_header(FrameKind::Chunk, &header("40", "a0", &plain, "40"));
    let error = |bytes: &[u8]| Received::decode(bytes).unwrap_err();
    bytes[4] = 2;
    assert_eq!(error(&bytes), FrameError::Version(2));
    bytes[4] = 1;
    bytes[5] = 13;
    assert_eq!(error(&bytes), FrameError::Kind(13));
    bytes[0] = b'm';
    assert_eq!(error(&bytes), FrameError::Magic);
}

#[test]
fn a_frame_belongs_on_its_own_topic_only() {
    let job = frame(FrameKind::Job, b"ciphertext".as_slice());
    let topic = |identity: &str, session| Topic::Job {
        identity: identity.parse().unwrap(),
        worker: worker(),
        session,
    };
    let other = SessionId::new(0, [0; 10]);
    assert_eq!(job.check_topic(&topic("acme.robot-1", session())), Ok(()));
    let error = |what| Err(FrameError::Topic(what));
    assert_eq!(job.check_topic(&topic("acme.robot-2", session())), error("robot"));
    assert_eq!(job.check_topic(&topic("evil.robot-1", session())), error("robot"));
    assert_eq!(job.check_topic(&topic("acme.robot-1", other)), error("session"));
    let result = Topic::Result { identity: identity(), session: session() };
    assert_eq!(job.check_topic(&result), error("kind"));
    let status = Topic::RobotStatus { identity: identity() };
    assert_eq!(job.check_topic(&status), error("kind"));

    let models = frame(FrameKind::Models, []);
    let topic = |tenant: &str| Topic::Models { tenant: tenant.parse().unwrap() };
    assert_eq!(models.check_topic(&topic("acme")), Ok(()));
    assert_eq!(models.check_topic(&topic("globex")), error("tenant"));
}

#[test]
fn debug_shows_no_body() {
    let text = format!("{:?}", frame(FrameKind::Job, b"SECRET".as_slice()));
    assert!(text.contains("body_len: 6"), "{text}");
    assert!(!text.contains("83"), "{text}");
}

//! Bodies and status payloads: what they survive and what they refuse.

use ciborium::{Value, cbor};
use moai_transport::chunk;
use moai_transport::ids::Digest;
use moai_transport::message::{
    CHALLENGE_LEN, Challenge, Command, ErrorBody, ErrorCode, Have, MAX_CHUNKS, Manifest,
    MessageError, Report, RobotState, WorkerState,
};
use proptest::prelude::*;
use std::time::Duration;

use crate::support::signer::SESSION;
use crate::support::values::{context, identity, session, worker};

fn manifest() -> Manifest {
    chunk::manifest(context(), Duration::from_mins(1), SESSION.public(), &vec![1; 300_000], 7)
        .unwrap()
}

fn bytes(value: &Value) -> Vec<u8> {
    let mut bytes = Vec::new();
    ciborium::into_writer(value, &mut bytes).unwrap();
    bytes
}

#[test]
fn a_manifest_tells_the_chunks_of_its_key() {
    let manifest = manifest();
    assert_eq!(manifest.chunk_digests.len(), 3);
    assert_eq!(manifest.chunk_digests[0], Digest::of(&vec![1; 122_880]));
    assert_eq!(manifest.chunk_digests[2], Digest::of(&vec![1; 54_240]));
    assert_eq!(manifest.key_digest, Digest::of(&vec![1; 300_000]));
    let body = manifest.encode().unwrap();
    assert_eq!(Manifest::decode(&body, 300_000), Ok(manifest));
    let error = Manifest::decode(&body, 299_999).unwrap_err();
    assert_eq!(error, MessageError::KeyTooLarge { len: 300_000, max: 299_999 });
}

#[test]
fn the_largest_manifest_fits_an_open_and_larger_keys_have_none() {
    let max_len = MAX_CHUNKS * chunk::CHUNK_LEN;
    let digests = vec![Digest::of(b""); MAX_CHUNKS];
    let largest = Manifest { key_len: max_len as u64, chunk_digests: digests, ..manifest() };
    let len = largest.encode().unwrap().len();
    assert!(len <= moai_transport::frame::FrameKind::Open.max_body_len(), "{len}");
    assert!(chunk::manifest(context(), Duration::from_secs(1), SESSION.public(), &[], 0).is_err());
    let larger = vec![0; max_len + 1];
    assert!(
        chunk::manifest(context(), Duration::from_secs(1), SESSION.public(), &larger, 0).is_err()
    );
}

#[test]
fn a_manifest_that_cannot_be_is_refused() {
    let spoil: [fn(&mut Manifest); 8] = [
        |manifest| manifest.chunk_len = 0,
        |manifest| manifest.chunk_len = 122_881,
        |manifest| manifest.key_len = 0,
        |manifest| manifest.key_len = 3 * 122_880 + 1,
        |manifest| manifest.key_len = 2 * 122_880,
        |manifest| manifest.key_len = u64::MAX,
        |manifest| manifest.chunk_digests.clear(),
        |manifest| manifest.ttl_seconds = 0,
    ];
    for (index, spoil) in spoil.into_iter().enumerate() {
        let mut spoilt = manifest();
        spoil(&mut spoilt);
        assert!(matches!(spoilt.encode(), Err(MessageError::Inconsistent { .. })), "{index}");
        let body = bytes(&Value::serialized(&spoilt).unwrap());
        assert!(Manifest::decode(&body, u64::MAX).is_err(), "{index}");
    }
}

#[test]
fn digests_and_bitmaps_are_byte_strings_on_the_wire() {
    let have = Have { worker: worker(), nonce: 1, bitmap: vec![5], registered: false };
    let expected = cbor!({
        "worker" => "worker-1",
        "nonce" => 1,
        "bitmap" => Value::Bytes(vec![5]),
        "registered" => false,
    });
    assert_eq!(have.encode().unwrap(), bytes(&expected.unwrap()));
    let body = manifest().encode().unwrap();
    let value: Value = ciborium::from_reader(body.as_slice()).unwrap();
    let entries = value.into_map().unwrap();
    let digest = entries.iter().find(|(key, _)| key.as_text() == Some("key_digest")).unwrap();
    assert_eq!(digest.1.as_bytes().unwrap().len(), 32);
}

#[test]
fn bodies_are_taken_strictly() {
    let bitmap = || Value::Bytes(vec![1]);
    let good = cbor!({"worker" => "w", "nonce" => 1, "bitmap" => bitmap(), "registered" => true});
    let good = bytes(&good.unwrap());
    assert!(Have::decode(&good).is_ok());
    let wrong = [
        ("a missing key", cbor!({"worker" => "w", "nonce" => 1, "bitmap" => bitmap()})),
        (
            "another key",
            cbor!({"worker" => "w", "nonce" => 1, "bitmap" => bitmap(), "registered" => true, "x" => 1}),
        ),
        (
            "a doubled key",
            cbor!({"nonce" => 1, "worker" => "w", "nonce" => 1, "bitmap" => bitmap(), "registered" => true}),
        ),
        (
            "no worker id",
            cbor!({"worker" => "a/b", "nonce" => 1, "bitmap" => bitmap(), "registered" => true}),
        ),
        (
            "a negative nonce",
            cbor!({"worker" => "w", "nonce" => -1, "bitmap" => bitmap(), "registered" => true}),
        ),
        (
            "an empty bitmap",
            cbor!({"worker" => "w", "nonce" => 1, "bitmap" => Value::Bytes(vec![]), "registered" => true}),
        ),
        (
            "a huge bitmap",
            cbor!({"worker" => "w", "nonce" => 1, "bitmap" => Value::Bytes(vec![0; 193]), "registered" => true}),
        ),
    ];
    for (what, value) in wrong {
        assert!(Have::decode(&bytes(&value.unwrap())).is_err(), "{what}");
    }
    assert!(Have::decode(&[good, vec![0]].concat()).is_err(), "bytes behind it");
    let nested = [vec![0x81; 4000], vec![0]].concat();
    assert!(Have::decode(&nested).is_err(), "deep nesting");
}

#[test]
fn a_challenge_has_32_random_bytes() {
    let challenge = Challenge { worker: worker(), nonce: 1, challenge: vec![7; CHALLENGE_LEN] };
    let body = challenge.encode().unwrap();
    let expected = cbor!({
        "worker" => "worker-1",
        "nonce" => 1,
        "challenge" => Value::Bytes(vec![7; CHALLENGE_LEN]),
    });
    assert_eq!(body, bytes(&expected.unwrap()));
    assert_eq!(Challenge::decode(&body).unwrap().random(), Ok([7; CHALLENGE_LEN]));
    for len in [0, CHALLENGE_LEN - 1, CHALLENGE_LEN + 1] {
        let other = Challenge { challenge: vec![7; len], ..challenge.clone() };
        assert!(other.encode().is_err(), "{len}");
        let body = bytes(&Value::serialized(&other).unwrap());
        assert!(Challenge::decode(&body).is_err(), "{len}");
    }
}

#[test]
fn an_error_has_a_code_for_programs_and_a_short_message_for_people() {
    let error = ErrorBody::new(ErrorCode::UnknownSession, "open it again");
    let expected = cbor!({"code" => "unknown_session", "message" => "open it again"});
    assert_eq!(error.encode().unwrap(), bytes(&expected.unwrap()));
    assert_eq!(ErrorBody::decode(&error.encode().unwrap()), Ok(error));
    let cut = ErrorBody::new(ErrorCode::Busy, "ä".repeat(300));
    assert_eq!(cut.message.len(), 512);
    let cut = ErrorBody::new(ErrorCode::Busy, format!("x{}", "ä".repeat(300)));
    assert_eq!(cut.message.len(), 511);
    let long = cbor!({"code" => "busy", "message" => "x".repeat(513)});
    assert!(ErrorBody::decode(&bytes(&long.unwrap())).is_err());
    let unknown = cbor!({"code" => "no_such_code", "message" => ""});
    assert!(ErrorBody::decode(&bytes(&unknown.unwrap())).is_err());
    assert!(ErrorCode::Busy.is_transient() && !ErrorCode::UnknownModel.is_transient());
}

#[test]
fn a_command_names_what_it_is_about_and_nothing_else() {
    let task: moai_transport::ids::TaskId = "arm".parse().unwrap();
    for command in [
        Command::RotateTask { task: task.clone() },
        Command::CloseTask { task: task.clone() },
        Command::RevokeTask { task, stay_closed: true },
        Command::RevokeSession { session: session() },
        Command::Emergency { stay_closed: false },
    ] {
        let body = command.encode().unwrap();
        assert!(body.len() <= moai_transport::frame::FrameKind::Command.max_body_len());
        assert_eq!(Command::decode(&body), Ok(command));
    }
    for wrong in [
        cbor!({"command" => "emergency"}),
        cbor!({"command" => "emergency", "stay_closed" => false, "why" => "none"}),
        cbor!({"command" => "open-doors", "stay_closed" => false}),
        cbor!({"command" => "close-task", "task" => "a/b"}),
        cbor!({"stay_closed" => false}),
        cbor!("emergency"),
    ] {
        let wrong = wrong.unwrap();
        assert!(Command::decode(&bytes(&wrong)).is_err(), "{wrong:?}");
    }
}

#[test]
fn a_report_is_cut_to_what_may_be_shown() {
    let report = Report::new(false, "ä".repeat(300));
    assert_eq!(report.message.len(), 512);
    assert_eq!(Report::decode(&report.encode().unwrap()), Ok(report));
    let long = cbor!({"done" => true, "message" => "x".repeat(513)});
    assert!(Report::decode(&bytes(&long.unwrap())).is_err());
}

#[test]
fn status_is_json() {
    let state = WorkerState { worker: worker(), up: true };
    assert_eq!(state.encode().unwrap(), br#"{"worker":"worker-1","up":true}"#);
    assert_eq!(WorkerState::decode(&state.encode().unwrap()), Ok(state));
    let state = RobotState { identity: identity(), up: false };
    assert_eq!(state.encode().unwrap(), br#"{"identity":"acme.robot-1","up":false}"#);
    assert_eq!(RobotState::decode(&state.encode().unwrap()), Ok(state));
    assert!(RobotState::decode(br#"{"identity":"acme","up":false}"#).is_err());
    assert!(WorkerState::decode(br#"{"worker":"w","up":true,"x":1}"#).is_err());
    let long = format!(r#"{{"worker":"w","up":true{}}}"#, " ".repeat(2000));
    assert!(WorkerState::decode(long.as_bytes()).is_err());
}

proptest! {
    #[test]
    fn no_body_panics(body in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Manifest::decode(&body, u64::MAX);
        let _ = Have::decode(&body);
        let _ = Challenge::decode(&body);
        let _ = ErrorBody::decode(&body);
        let _ = Command::decode(&body);
        let _ = Report::decode(&body);
        let _ = WorkerState::decode(&body);
        let _ = RobotState::decode(&body);
    }

    #[test]
    fn a_changed_body_is_refused_or_consistent(at: proptest::sample::Index, flip in 1..=255_u8) {
        let mut body = manifest().encode().unwrap();
        let at = at.index(body.len());
        body[at] ^= flip;
        if let Ok(manifest) = Manifest::decode(&body, u64::MAX) {
            prop_assert!(manifest.check(u64::MAX).is_ok());
        }
    }
}

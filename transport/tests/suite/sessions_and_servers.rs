//! Frames that sessions and servers sign: whose they are, and every way in which they are not.

use ciborium::Value;
use coset::{CborSerializable, CoseSign1, HeaderBuilder, iana};
use moai_transport::frame::{
    CLOCK_ALLOWANCE, Frame, FrameError, FrameKind, PREFIX_LEN, Received, Signatory, SignatureError,
    SignedFrame, Stale,
};
use moai_transport::ids::SessionId;
use moai_transport::keys::{
    KeyError, MAX_TRUSTED_KEYS, OperatorKeys, OperatorSigningKey, ServerKeys, ServerPublicKey,
    ServerSigningKey, SessionPublicKey, SessionSigningKey,
};
use moai_transport::topic::Topic;
use proptest::prelude::*;

use crate::support::signer::{NOW, OPERATOR, SERVER, SESSION, operators, servers, trusted};
use crate::support::values::{encode, frame, identity, session, worker};

fn kinds(signatory: Signatory) -> impl Iterator<Item = FrameKind> {
    FrameKind::ALL.into_iter().filter(move |kind| kind.signatory() == Some(signatory))
}

fn signed(bytes: &[u8]) -> SignedFrame {
    match Received::decode(bytes).unwrap() {
        Received::Signed(signed) => signed,
        Received::Chunk(frame) => panic!("{frame:?} is not signed"),
    }
}

fn by_session(bytes: &[u8]) -> Result<Frame, SignatureError> {
    signed(bytes).verify_session(&SESSION.public(), NOW)
}

fn by_server(bytes: &[u8]) -> Result<Frame, SignatureError> {
    signed(bytes).verify_server(&servers(), NOW)
}

fn by_operator(bytes: &[u8]) -> Result<Frame, SignatureError> {
    signed(bytes).verify_operator(&operators(), NOW)
}

fn job() -> Vec<u8> {
    encode(&frame(FrameKind::Job, b"ciphertext".as_slice())).unwrap()
}

fn result() -> Vec<u8> {
    encode(&frame(FrameKind::Result, b"result".as_slice())).unwrap()
}

/// The same frame with its header changed and with another body.
fn forge(bytes: &[u8], change: impl FnOnce(&mut CoseSign1), body: &[u8]) -> Vec<u8> {
    let len = usize::from(u16::from_be_bytes([bytes[6], bytes[7]]));
    let mut sign1 = CoseSign1::from_slice(&bytes[PREFIX_LEN..PREFIX_LEN + len]).unwrap();
    change(&mut sign1);
    let header = sign1.to_vec().unwrap();
    let len = u16::try_from(header.len()).unwrap().to_be_bytes();
    [&bytes[..PREFIX_LEN - 2], &len, &header, body].concat()
}

#[test]
fn what_a_session_signed_is_believed_of_it_alone() {
    let stranger = SessionSigningKey::from_seed(&[9; 32]).public();
    for kind in kinds(Signatory::Session) {
        let frame = frame(kind, []);
        let bytes = encode(&frame).unwrap();
        assert_eq!(by_session(&bytes), Ok(frame));
        let error = signed(&bytes).verify_session(&stranger, NOW).unwrap_err();
        assert_eq!(error, SignatureError::NotTheSession);
        let other = SignatureError::OtherSignatory(kind);
        assert_eq!(by_server(&bytes), Err(other.clone()));
        assert_eq!(signed(&bytes).verify_robot(&trusted(), NOW), Err(other));
    }
}

#[test]
fn what_a_server_signed_is_believed_of_it_alone() {
    let foreign: ServerKeys = ServerSigningKey::from_seed(&[9; 32]).public().into();
    for kind in kinds(Signatory::Server) {
        let frame = frame(kind, []);
        let bytes = encode(&frame).unwrap();
        assert_eq!(by_server(&bytes), Ok(frame));
        let error = signed(&bytes).verify_server(&foreign, NOW).unwrap_err();
        assert_eq!(error, SignatureError::NotTheServer);
        let other = SignatureError::OtherSignatory(kind);
        assert_eq!(by_session(&bytes), Err(other.clone()));
        assert_eq!(signed(&bytes).verify_robot(&trusted(), NOW), Err(other));
    }
}

#[test]
fn what_an_operator_signed_is_believed_of_it_alone() {
    let foreign: OperatorKeys = OperatorSigningKey::from_seed(&[9; 32]).public().into();
    for kind in kinds(Signatory::Operator) {
        let frame = frame(kind, []);
        let bytes = encode(&frame).unwrap();
        assert_eq!(by_operator(&bytes), Ok(frame));
        let error = signed(&bytes).verify_operator(&foreign, NOW).unwrap_err();
        assert_eq!(error, SignatureError::NotTheOperator);
        let other = SignatureError::OtherSignatory(kind);
        assert_eq!(by_server(&bytes), Err(other.clone()));
        assert_eq!(by_session(&bytes), Err(other.clone()));
        assert_eq!(signed(&bytes).verify_robot(&trusted(), NOW), Err(other));
    }
}

#[test]
fn nobody_signs_for_another() {
    for kind in FrameKind::ALL {
        let frame = frame(kind, []);
        let signatory = kind.signatory();
        let unsigned = signatory.map(|_| FrameError::Unsigned(kind));
        assert_eq!(frame.encode().err(), unsigned);
        let refused = FrameError::Signatory(kind);
        if signatory != Some(Signatory::Session) {
            assert_eq!(frame.encode_as_session(&SESSION), Err(refused.clone()));
        }
        if signatory != Some(Signatory::Server) {
            assert_eq!(frame.encode_as_server(&SERVER), Err(refused.clone()));
        }
        if signatory != Some(Signatory::Operator) {
            assert_eq!(frame.encode_as_operator(&OPERATOR), Err(refused));
        }
    }
    // Even where the bytes of the keys are the same, the kinds are not.
    let same = ServerSigningKey::from_seed(&[0x5e; 32]).public();
    assert_eq!(
        signed(&job()).verify_server(&same.into(), NOW),
        Err(SignatureError::OtherSignatory(FrameKind::Job))
    );
    let same = OperatorSigningKey::from_seed(&[0x5a; 32]).public();
    assert_eq!(
        signed(&result()).verify_operator(&same.into(), NOW),
        Err(SignatureError::OtherSignatory(FrameKind::Result))
    );
}

#[test]
fn an_unsigned_frame_is_none() {
    let bare = |sign1: &mut CoseSign1| {
        sign1.protected = coset::ProtectedHeader::default();
        sign1.signature.clear();
    };
    for (bytes, kind, body) in [
        (job(), FrameKind::Job, b"ciphertext".as_slice()),
        (result(), FrameKind::Result, b"result"),
    ] {
        let error = Received::decode(&forge(&bytes, bare, body)).unwrap_err();
        assert_eq!(error, FrameError::Unsigned(kind));
    }
}

#[test]
fn a_header_names_its_algorithm_and_nothing_else() {
    let changes: [fn(&mut CoseSign1); 8] = [
        |sign1| sign1.signature.clear(),
        |sign1| sign1.signature.truncate(63),
        |sign1| sign1.signature.push(0),
        |sign1| sign1.protected = coset::ProtectedHeader::default(),
        |sign1| sign1.unprotected.key_id = vec![1],
        |sign1| {
            let header = HeaderBuilder::new().algorithm(iana::Algorithm::ES256).build();
            sign1.protected.header = header;
            sign1.protected.original_data = None;
        },
        |sign1| {
            sign1.protected.header.key_id = vec![1];
            sign1.protected.original_data = None;
        },
        |sign1| {
            let chain = Value::Bytes(vec![1]);
            sign1.protected.header.rest.push((coset::Label::Int(33), chain));
            sign1.protected.original_data = None;
        },
    ];
    for (index, change) in changes.into_iter().enumerate() {
        let error = Received::decode(&forge(&job(), change, b"ciphertext")).unwrap_err();
        assert_eq!(error, FrameError::Signature, "change {index}");
    }
    // The same header in a longer encoding.
    let longer = |sign1: &mut CoseSign1| {
        sign1.protected.original_data = Some(vec![0xa1, 0x18, 0x01, 0x27]);
    };
    let error = Received::decode(&forge(&job(), longer, b"ciphertext")).unwrap_err();
    assert!(matches!(error, FrameError::Header(_)), "{error}");
}

#[test]
fn a_swapped_body_or_kind_or_claim_is_noticed() {
    let error = Received::decode(&forge(&result(), |_| {}, b"RESULT")).unwrap_err();
    assert_eq!(error, FrameError::BodyDigest);

    // A body of another frame of the same signer, with its claims.
    let other = frame(FrameKind::Result, b"RESULT".as_slice());
    let theirs = encode(&other).unwrap();
    let len = usize::from(u16::from_be_bytes([theirs[6], theirs[7]]));
    let payload = CoseSign1::from_slice(&theirs[PREFIX_LEN..PREFIX_LEN + len]).unwrap().payload;
    let mixed = forge(&result(), |sign1| sign1.payload = payload, b"RESULT");
    assert_eq!(by_server(&mixed), Err(SignatureError::NotTheServer));

    // A have of the same claims as a challenge has: its signature is over another kind.
    let mut have = encode(&frame(FrameKind::Have, b"body".as_slice())).unwrap();
    have[5] = FrameKind::Challenge as u8;
    assert_eq!(by_server(&have), Err(SignatureError::NotTheServer));
    let mut delete = encode(&frame(FrameKind::Attest, [])).unwrap();
    delete[5] = FrameKind::Delete as u8;
    assert_eq!(by_session(&delete), Err(SignatureError::NotTheSession));
}

#[test]
fn a_frame_counts_in_its_time_only() {
    let allowance = CLOCK_ALLOWANCE.as_secs();
    for kind in FrameKind::ALL.into_iter().filter(|kind| kind.signatory().is_some()) {
        let verify = |expires_at, now| {
            let mut frame = frame(kind, []);
            frame.claims.expires_at = expires_at;
            let signed = signed(&encode(&frame).unwrap());
            match kind.signatory() {
                Some(Signatory::Robot) => signed.verify_robot(&trusted(), now).map(drop),
                Some(Signatory::Session) => signed.verify_session(&SESSION.public(), now).map(drop),
                Some(Signatory::Operator) => signed.verify_operator(&operators(), now).map(drop),
                _ => signed.verify_server(&servers(), now).map(drop),
            }
        };
        assert_eq!(verify(NOW, NOW + allowance - 1), Ok(()), "{kind:?}");
        let now = NOW + allowance;
        let expired = Stale::Expired { expires_at: NOW, now };
        assert_eq!(verify(NOW, now), Err(expired.into()), "{kind:?}");
        assert!(expired.to_string().contains("check the clocks"), "{expired}");

        let last = NOW + kind.max_lifetime().as_secs() + allowance;
        assert_eq!(verify(last, NOW), Ok(()), "{kind:?}");
        let far = Stale::FarAhead { expires_at: last + 1, now: NOW };
        assert_eq!(verify(last + 1, NOW), Err(far.into()), "{kind:?}");
        let never = Stale::FarAhead { expires_at: u64::MAX, now: NOW };
        assert_eq!(verify(u64::MAX, NOW), Err(never.into()), "{kind:?}");
    }
    // What a stranger signed is no reason to doubt one's clock.
    let mut old = frame(FrameKind::Result, []);
    old.claims.expires_at = 1;
    let old = old.encode_as_server(&ServerSigningKey::from_seed(&[9; 32])).unwrap();
    assert_eq!(by_server(&old), Err(SignatureError::NotTheServer));
}

#[test]
fn a_frame_of_another_session_robot_or_tenant_is_on_the_wrong_topic() {
    let result = by_server(&result()).unwrap();
    let topic = |identity: &str, session: SessionId| Topic::Result {
        identity: identity.parse().unwrap(),
        session,
    };
    assert_eq!(result.check_topic(&topic("acme.robot-1", session())), Ok(()));
    for (topic, what) in [
        (topic("acme.robot-1", SessionId::new(0, [0; 10])), "session"),
        (topic("acme.robot-2", session()), "robot"),
        (topic("globex.robot-1", session()), "robot"),
        (Topic::Error { identity: identity(), session: session() }, "kind"),
        (Topic::Job { identity: identity(), worker: worker(), session: session() }, "kind"),
    ] {
        assert_eq!(result.check_topic(&topic), Err(FrameError::Topic(what)));
    }
}

fn pem(seed: u8) -> String {
    ServerSigningKey::from_seed(&[seed; 32]).public().to_pem()
}

#[test]
fn a_robot_believes_each_of_its_servers_keys_and_no_other() {
    let keys = ServerKeys::from_pem(format!("next:\n{}{}", pem(1), pem(2)).as_bytes()).unwrap();
    for (seed, is_believed) in [(1, true), (2, true), (3, false)] {
        let key = ServerSigningKey::from_seed(&[seed; 32]);
        let bytes = frame(FrameKind::Have, []).encode_as_server(&key).unwrap();
        assert_eq!(signed(&bytes).verify_server(&keys, NOW).is_ok(), is_believed, "key {seed}");
    }
}

#[test]
fn a_file_of_server_keys_has_one_to_four_and_nothing_private() {
    let count = |count: usize| {
        let text: String = (0..u8::try_from(count).unwrap()).map(pem).collect();
        ServerKeys::from_pem(text.as_bytes()).err()
    };
    assert_eq!(count(0), Some(KeyError::Count(0)));
    assert_eq!(count(1), None);
    assert_eq!(count(MAX_TRUSTED_KEYS), None);
    assert_eq!(count(MAX_TRUSTED_KEYS + 1), Some(KeyError::Count(MAX_TRUSTED_KEYS + 1)));
    let private = ServerSigningKey::from_seed(&[1; 32]).to_pem();
    assert_eq!(ServerKeys::from_pem(private.as_bytes()), Err(KeyError::Count(0)));
    let broken = [pem(1), pem(2).replace("MCow", "MCox")].concat();
    assert_eq!(ServerKeys::from_pem(broken.as_bytes()), Err(KeyError::Block(2)));
    // Version 1 of PKCS #8 (RFC 8410 section 7), which OpenSSL reads, and nothing behind the seed.
    assert!(private.contains("\nMC4CAQAwBQYDK2VwBCIEIAEBAQEBAQEB"), "{}", *private);
    let again = ServerSigningKey::from_pem(&private).unwrap();
    assert_eq!(again.public().to_pem(), pem(1));
    assert_eq!(ServerSigningKey::from_pem(&pem(1)).err(), Some(KeyError::NotAPrivateKey));
}

#[test]
fn weak_and_impossible_public_keys_are_refused() {
    let mut identity_point = [0; 32];
    identity_point[0] = 1;
    // The last has another encoding too, which is the right one.
    for bytes in [[0; 32], [2; 32], identity_point, [0xff; 32]] {
        assert_eq!(SessionPublicKey::from_bytes(&bytes), Err(KeyError::NotAPublicKey));
    }
    let key = SESSION.public();
    assert_eq!(SessionPublicKey::from_bytes(key.as_bytes()), Ok(key));
    let shown = format!("{key:?} {:?}", SERVER.public());
    assert!(shown.contains(&hex::encode(key.as_bytes())), "{shown}");
}

fn is_believed(bytes: &[u8], key: &SessionSigningKey, server: ServerPublicKey) -> bool {
    let Ok(Received::Signed(signed)) = Received::decode(bytes) else { return false };
    signed.clone().verify_session(&key.public(), NOW).is_ok()
        || signed.verify_server(&server.into(), NOW).is_ok()
}

proptest! {
    #[test]
    fn a_changed_bit_is_always_noticed(
        kind in proptest::sample::select(
            kinds(Signatory::Session).chain(kinds(Signatory::Server)).collect::<Vec<_>>()
        ),
        body in proptest::collection::vec(any::<u8>(), 0..200),
        seed in any::<[u8; 32]>(),
        at in any::<proptest::sample::Index>(),
    ) {
        let (session, server) =
            (SessionSigningKey::from_seed(&seed), ServerSigningKey::from_seed(&seed));
        let body = body.into_iter().take(kind.max_body_len()).collect::<Vec<_>>();
        let frame = frame(kind, body);
        let mut bytes = match kind.signatory() {
            Some(Signatory::Session) => frame.encode_as_session(&session),
            _ => frame.encode_as_server(&server),
        }.unwrap();
        prop_assert!(is_believed(&bytes, &session, server.public()));
        let bit = at.index(bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(!is_believed(&bytes, &session, server.public()));
    }

    #[test]
    fn no_bytes_make_a_key_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = ServerKeys::from_pem(&bytes);
        let _ = ServerSigningKey::from_pem(&String::from_utf8_lossy(&bytes));
        if let Some(first) = bytes.first_chunk() {
            let _ = SessionPublicKey::from_bytes(first);
        }
    }
}

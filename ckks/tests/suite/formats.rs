//! Writing and reading: round trips, sizes, damage.

use moai_ckks::{
    Ciphertext, Compression, EvaluationKeys, FormatError, KeySwitchKeys, Parameters, Policy,
    PublicContext, SecretKey, Selection, Vector,
};
use proptest::prelude::*;

use crate::common::{Counting, fresh, matched, numbers, secret};

fn low() -> &'static SecretKey {
    static KEY: std::sync::OnceLock<SecretKey> = std::sync::OnceLock::new();
    KEY.get_or_init(|| secret(&matched(4096, &[37, 32, 37])))
}

fn everything() -> Selection {
    let mut selection = Selection::for_matmul(6);
    selection.relinearization = true;
    selection
}

#[test]
fn ciphertexts_and_vectors_come_back() {
    let key = low();
    let parameters = key.parameters();
    let vector = key.encrypt_vector(&numbers(3000, 1), &mut Counting(0)).unwrap();
    for compression in [Compression::None, Compression::Packed] {
        let bytes = vector.encode(parameters, compression);
        assert_eq!(Vector::decode(parameters, &bytes, 3000), Ok(vector.clone()));
        for ciphertext in
            [vector.ciphertexts()[0].clone(), vector.ciphertexts()[0].expanded(parameters)]
        {
            let bytes = ciphertext.encode(parameters, compression);
            assert_eq!(Ciphertext::decode(parameters, &bytes), Ok(ciphertext));
        }
    }
}

#[test]
fn contexts_come_back_with_the_keys_that_were_chosen() {
    let key = low();
    for compression in [Compression::None, Compression::Packed] {
        for (selection, galois) in
            [(everything(), 4), (Selection::for_dot(24), 5), (Selection::default(), 0)]
        {
            let keys = EvaluationKeys::new(key, selection.clone(), compression).unwrap();
            let bytes = keys.context();
            assert_eq!(bytes.len() as u64, keys.context_len());
            assert_eq!(keys.context(), bytes, "keys are deterministic");
            let context = PublicContext::decode(&bytes, Policy::Secure).unwrap();
            assert_eq!(&context.parameters, key.parameters());
            assert_eq!(context.public_key.is_some(), selection.public_key);
            assert_eq!(context.relinearization.is_some(), selection.relinearization);
            let found = context.galois.iter().flat_map(KeySwitchKeys::indexes).count();
            assert_eq!(found, galois);
        }
    }
}

/// Every key is an encryption under the secret key: the public key of zero, with errors of the
/// right size, and no seed occurs twice.
#[test]
fn keys_are_encryptions_of_what_they_should_be() {
    let key = low();
    let parameters = key.parameters();
    let keys = EvaluationKeys::new(key, everything(), Compression::Packed).unwrap();
    let context = PublicContext::decode(&keys.context(), Policy::Secure).unwrap();
    let galois = context.galois.unwrap();
    let relinearization = context.relinearization.unwrap();
    let mut masks = std::collections::HashSet::new();
    let parts = galois.indexes().flat_map(|index| galois.key(index).unwrap());
    for part in parts.chain(relinearization.key(0).unwrap()).chain(&context.public_key) {
        let bytes = part.encode(parameters, Compression::None);
        assert!(masks.insert(bytes[bytes.len() - 64..].to_vec()));
        assert!(part.is_seeded());
        assert_eq!((part.level(), part.scale().to_bits()), (3, 1.0_f64.to_bits()));
    }
    assert_eq!(masks.len(), 4 * 2 + 2 + 1);
    assert!(galois.key(0).is_none(), "element 1 is no rotation");
}

/// What an upload and a job take: five bytes for each number of 40 bits, and half of everything.
#[test]
fn sizes_are_those_that_are_promised() {
    let key = secret(&matched(8192, &[60, 40, 60]));
    let vector = key.encrypt_vector(&numbers(24, 1), &mut Counting(0)).unwrap();
    let bytes = vector.encode(key.parameters(), Compression::Packed).len();
    assert!((8192 * 13..8192 * 13 + 400).contains(&bytes), "{bytes}");
    let keys = EvaluationKeys::new(&key, Selection::for_dot(24), Compression::Packed).unwrap();
    let bytes = keys.context_len();
    let parts = 5 * 2 * 8192 * 21;
    assert!((parts..parts + 5000).contains(&bytes), "{bytes}");
}

#[test]
fn rotations_that_do_not_exist_are_refused() {
    let key = low();
    for steps in [0, 2048, -2048, i32::MAX, i32::MIN] {
        let selection = Selection { rotations: [steps].into(), ..Selection::default() };
        assert!(EvaluationKeys::new(key, selection, Compression::None).is_err(), "{steps}");
    }
    let single = Parameters::new(2048, &[54], 2_f64.powi(40), Policy::Secure).unwrap();
    let single = secret(&single);
    assert!(EvaluationKeys::new(&single, Selection::for_dot(4), Compression::None).is_err());
    let public = Selection { public_key: true, ..Selection::default() };
    assert!(EvaluationKeys::new(&single, public, Compression::None).is_ok());
}

fn replaced(bytes: &[u8], place: usize, new: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[place..place + new.len()].copy_from_slice(new);
    bytes
}

/// What SEAL refuses, and the two things that it takes although it should not.
#[test]
fn each_wrong_field_is_refused_for_what_it_is() {
    let key = low();
    let parameters = key.parameters();
    let ciphertext = key.encrypt(&[1.0], &mut Counting(0)).unwrap();
    let good = ciphertext.encode(parameters, Compression::None);
    let refused = |bytes: &[u8]| Ciphertext::decode(parameters, bytes).unwrap_err();
    let word = |value: u64| value.to_le_bytes();
    let scale = |value: f64| value.to_le_bytes();
    // Offsets of the header are as they are, those of the payload follow it.
    let payload = |place: usize| 16 + place;
    assert_eq!(refused(&replaced(&good, 0, &[0])), FormatError::Header);
    assert_eq!(refused(&replaced(&good, 2, &[15])), FormatError::Header);
    assert_eq!(refused(&replaced(&good, 3, &[3, 5])), FormatError::Version { major: 3, minor: 5 });
    assert_eq!(refused(&replaced(&good, 3, &[5, 0])), FormatError::Version { major: 5, minor: 0 });
    assert_eq!(refused(&replaced(&good, 5, &[3])), FormatError::Compression);
    assert_eq!(refused(&replaced(&good, 6, &[1])), FormatError::Header);
    assert_eq!(refused(&replaced(&good, 8, &word(15))), FormatError::Header);
    assert_eq!(refused(&replaced(&good, 8, &word(u64::MAX))), FormatError::Truncated);
    assert_eq!(refused(&replaced(&good, payload(0), &[0, 0])), FormatError::Parameters);
    assert_eq!(refused(&replaced(&good, payload(32), &[0])), FormatError::Form);
    for (place, values) in
        [(33, [0, 1, 3, u64::MAX]), (41, [0, 4095, 8192, u64::MAX]), (49, [0, 1, 3, u64::MAX])]
    {
        for value in values {
            assert_eq!(refused(&replaced(&good, payload(place), &word(value))), FormatError::Shape);
        }
    }
    for value in [0.0, -1.0, f64::NAN, f64::INFINITY, f64::MIN_POSITIVE / 2.0] {
        assert_eq!(refused(&replaced(&good, payload(57), &scale(value))), FormatError::Scale);
    }
    assert_eq!(refused(&replaced(&good, payload(65), &[0])), FormatError::Header);
    assert_eq!(refused(&replaced(&good, payload(81), &word(1))), FormatError::Shape);
    assert_eq!(refused(&replaced(&good, payload(89), &word(u64::MAX))), FormatError::Range);
    let end = good.len();
    assert_eq!(refused(&replaced(&good, end - 65, &[2])), FormatError::Generator);
    assert_eq!(refused(&good[..end - 1]), FormatError::Truncated);
    let longer = [&good[..], &[0]].concat();
    assert_eq!(refused(&longer), FormatError::Trailing);
    let longer = replaced(&longer, 8, &word(end as u64 + 1));
    assert_eq!(refused(&longer), FormatError::Trailing);
    // In the dialect of SEAL 4 a correction factor stands after the scale, and must be 1.
    for (factor, outcome) in [(1, Ok(())), (2, Err(FormatError::Shape))] {
        let mut newer = good[..payload(65)].to_vec();
        newer.extend(word(factor));
        newer.extend(&good[payload(65)..]);
        let newer = replaced(&newer, 8, &word(end as u64 + 8));
        let newer = replaced(&newer, 3, &[4, 3]);
        assert_eq!(Ciphertext::decode(parameters, &newer).map(drop), outcome);
    }
    // Keys are not data.
    let keys = EvaluationKeys::new(key, everything(), Compression::None).unwrap();
    let context = PublicContext::decode(&keys.context(), Policy::Secure).unwrap();
    let public = context.public_key.unwrap().encode(parameters, Compression::None);
    assert_eq!(refused(&public), FormatError::Shape);
}

#[test]
fn vectors_that_contradict_themselves_are_refused() {
    let key = low();
    let parameters = key.parameters();
    let vector = key.encrypt_vector(&numbers(10, 1), &mut Counting(0)).unwrap();
    let good = vector.encode(parameters, Compression::Packed);
    assert!(Vector::decode(parameters, &good, 10).is_ok());
    assert_eq!(Vector::decode(parameters, &good, 9), Err(FormatError::Shape));
    assert_eq!(Vector::decode(parameters, &[], 9), Err(FormatError::Shape));
    let twice = [&good[..], &good[..]].concat();
    assert_eq!(Vector::decode(parameters, &twice, 10), Err(FormatError::Shape));
    let negative = replaced(&good, good.len() - 8, &(-1.0_f64).to_le_bytes());
    assert_eq!(Vector::decode(parameters, &negative, 10), Err(FormatError::Scale));
    assert_eq!(Vector::decode(parameters, &[0x22, 0], 10), Err(FormatError::ProtocolBuffer));
    let huge = vec![0; 4_000_000];
    assert_eq!(Vector::decode(parameters, &huge, 10), Err(FormatError::TooLarge));
}

#[test]
fn contexts_with_secrets_are_refused_as_public() {
    let with_secret = include_bytes!("../golden/0.3.18/secret-context.bin");
    assert_eq!(
        PublicContext::decode(with_secret, Policy::Secure).map(drop),
        Err(FormatError::Kind)
    );
}

/// A few hundred bytes that decompress to a gigabyte are refused once they pass the cap.
#[test]
fn bombs_are_defused() {
    let parameters = low().parameters();
    // Blocks of 128 KiB of one byte, four bytes each.
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x38];
    for _ in 0..8192 {
        frame.extend([0x02, 0x00, 0x10, 0x00]);
    }
    frame.extend([0x03, 0x00, 0x10, 0x00]);
    let total = (16 + frame.len() as u64).to_le_bytes();
    let object = [&[0x5e, 0xa1, 16, 4, 3, 2, 0, 0][..], &total, &frame].concat();
    assert_eq!(Ciphertext::decode(parameters, &object), Err(FormatError::TooLarge));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// One flipped byte anywhere in any object: an error or another object, never a panic, and
    /// what is read can be decrypted or is refused.
    #[test]
    fn damage_never_panics(place: prop::sample::Index, flip in 1_u8.., packed: bool, cut: bool) {
        let key = low();
        let parameters = key.parameters();
        let compression = if packed { Compression::Packed } else { Compression::None };
        let vector = key.encrypt_vector(&[1.0], &mut Counting(0)).unwrap();
        let mut bytes = vector.encode(parameters, compression);
        // Most of the bytes are numbers: half of the damage goes to the first hundred.
        let place = if flip & 1 == 0 { place.index(bytes.len()) } else { place.index(100) };
        bytes[place] ^= flip;
        if cut {
            bytes.truncate(place);
        }
        if let Ok(vector) = Vector::decode(parameters, &bytes, 1) {
            let _ = key.decrypt(&vector.ciphertexts()[0], &fresh(parameters, 1));
        }
        let _ = PublicContext::decode(&bytes, Policy::Secure);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let parameters = low().parameters();
        let mut headed = vec![0x5e, 0xa1, 16, 4, 3, bytes.first().copied().unwrap_or(0) % 3, 0, 0];
        headed.extend((16 + bytes.len() as u64).to_le_bytes());
        headed.extend(&bytes);
        for bytes in [&bytes, &headed] {
            let _ = Ciphertext::decode(parameters, bytes);
            let _ = KeySwitchKeys::decode_galois(parameters, bytes);
            let _ = KeySwitchKeys::decode_relinearization(parameters, bytes);
            let _ = SecretKey::decode(parameters, bytes);
            let _ = SecretKey::decode_context(bytes, Policy::AnyForTests);
            let _ = Vector::decode(parameters, bytes, 5000);
            let _ = PublicContext::decode(bytes, Policy::AnyForTests);
        }
    }
}

//! Encrypting and decrypting: error bounds, freshness, refusals.

use moai_ckks::{
    Ciphertext, Compression, EncodeError, EncryptError, EntropyError, Expected, KeySeed,
    Parameters, Policy, Refused, SecretKey, fresh_noise,
};
use proptest::prelude::*;

use crate::common::{Counting, Exhausted, error, fresh, matched, numbers, secret};

/// Six sets of parameters, each with its key, made once.
fn keys() -> &'static [SecretKey] {
    static KEYS: std::sync::OnceLock<Vec<SecretKey>> = std::sync::OnceLock::new();
    let make = |(degree, sizes): (usize, &[u32])| secret(&matched(degree, sizes));
    KEYS.get_or_init(|| {
        let sets: [(usize, &[u32]); 5] = [
            (4096, &[37, 32, 37]),
            (4096, &[33, 28, 45]),
            (8192, &[60, 40, 60]),
            (8192, &[60, 40, 40, 60]),
            (16_384, &[60, 40, 40, 40, 40, 60]),
        ];
        // One prime has no room for a scale of its own size, and no key switching.
        let single = Parameters::new(2048, &[54], 2_f64.powi(30), Policy::Secure).unwrap();
        sets.into_iter().map(make).chain([secret(&single)]).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Errors stay within six deviations, whatever the values, their number and the parameters.
    #[test]
    fn values_come_back_within_the_error_bound(
        set in 0_usize..6,
        values in prop::collection::vec(-8.0..8.0_f64, 1..200),
        salt: u8,
    ) {
        let key = &keys()[set];
        let parameters = key.parameters();
        let ciphertext = key.encrypt(&values, &mut Counting(salt)).unwrap();
        prop_assert!(ciphertext.is_seeded());
        let decrypted = key.decrypt(&ciphertext, &fresh(parameters, values.len())).unwrap();
        let bound = 6.5 * fresh_noise(parameters);
        let error = error(decrypted.expose(), &values);
        prop_assert!(error < bound, "{error} {bound}");
        let expanded = ciphertext.expanded(parameters);
        let again = key.decrypt(&expanded, &fresh(parameters, values.len())).unwrap();
        prop_assert_eq!(again.expose(), decrypted.expose());
    }
}

/// The deviation of the decrypted error is what `fresh_noise` says, within a few percent.
#[test]
fn noise_has_the_deviation_that_is_promised() {
    for key in keys() {
        let parameters = key.parameters();
        let mut sum = 0.0;
        let mut count = 0.0;
        for salt in 0..4 {
            let values = numbers(parameters.slots(), u64::from(salt));
            let ciphertext = key.encrypt(&values, &mut Counting(salt * 50)).unwrap();
            let decrypted =
                key.decrypt(&ciphertext, &fresh(parameters, parameters.slots())).unwrap();
            for (a, b) in decrypted.expose().iter().zip(&values) {
                sum += (a - b) * (a - b);
                count += 1.0;
            }
        }
        let ratio = (sum / count).sqrt() / fresh_noise(parameters);
        assert!((0.96..1.06).contains(&ratio), "{parameters:?}: {ratio}");
    }
}

#[test]
fn values_repeat_over_all_slots() {
    let key = &keys()[0];
    let ciphertext = key.encrypt(&[0.25, -0.5, 0.75], &mut Counting(0)).unwrap();
    let decrypted = key.decrypt(&ciphertext, &fresh(key.parameters(), 2048)).unwrap();
    for (index, value) in decrypted.expose().iter().enumerate() {
        assert!((value - [0.25, -0.5, 0.75][index % 3]).abs() < 1e-5);
    }
}

#[test]
fn keys_follow_from_their_seed_alone() {
    let parameters = matched(4096, &[37, 32, 37]);
    let key = |seed| SecretKey::from_seed(&parameters, &KeySeed::from_bytes([seed; 32]));
    assert_eq!(key(1).expose(), key(1).expose());
    assert_ne!(key(1).expose(), key(2).expose());
    // Other parameters, other key, although the seed is the same.
    let other = matched(4096, &[36, 32, 37]);
    let other = SecretKey::from_seed(&other, &KeySeed::from_bytes([1; 32]));
    assert_ne!(key(1).expose(), other.expose());
}

/// Fresh randomness gives another mask; stuck randomness gives another mask for another message, and
/// for the same message at worst the same ciphertext.
#[test]
fn no_mask_serves_two_messages() {
    struct Stuck;
    impl moai_ckks::Entropy for Stuck {
        fn fill(&mut self, out: &mut [u8]) -> Result<(), EntropyError> {
            out.fill(7);
            Ok(())
        }
    }
    let key = &keys()[0];
    let parameters = key.parameters();
    // The mask is the second polynomial.
    let mask = |ciphertext: &Ciphertext| {
        let bytes = ciphertext.encode(parameters, Compression::None);
        bytes[bytes.len() - 64..].to_vec()
    };
    let mut entropy = Counting(0);
    let (a, b) =
        (key.encrypt(&[1.0], &mut entropy).unwrap(), key.encrypt(&[1.0], &mut entropy).unwrap());
    assert_ne!(mask(&a), mask(&b));
    let (a, b) =
        (key.encrypt(&[1.0], &mut Stuck).unwrap(), key.encrypt(&[1.5], &mut Stuck).unwrap());
    assert_ne!(mask(&a), mask(&b));
    assert_eq!(a, key.encrypt(&[1.0], &mut Stuck).unwrap());
}

#[test]
fn what_cannot_be_encrypted_is_refused() {
    let key = &keys()[0];
    let refused = |values: &[f64]| key.encrypt(values, &mut Counting(0)).unwrap_err();
    assert_eq!(refused(&[]), EncryptError::Encode(EncodeError::Count { slots: 2048 }));
    assert_eq!(refused(&[1.0, f64::NAN]), EncryptError::Encode(EncodeError::Range));
    assert_eq!(
        key.encrypt(&[1.0], &mut Exhausted).unwrap_err(),
        EncryptError::Entropy(EntropyError)
    );
    let too_many = vec![0.0; 2048 * 64 + 1];
    assert!(key.encrypt_vector(&too_many, &mut Counting(0)).is_err());
    assert!(key.encrypt_vector(&[], &mut Counting(0)).is_err());
}

#[test]
fn long_vectors_take_several_ciphertexts() {
    let key = &keys()[0];
    let values = numbers(5000, 3);
    let vector = key.encrypt_vector(&values, &mut Counting(0)).unwrap();
    assert_eq!((vector.len(), vector.ciphertexts().len()), (5000, 3));
    let mut back = Vec::new();
    for (chunk, ciphertext) in values.chunks(2048).zip(vector.ciphertexts()) {
        let decrypted = key.decrypt(ciphertext, &fresh(key.parameters(), chunk.len())).unwrap();
        back.extend_from_slice(decrypted.expose());
    }
    assert!(error(&back, &values) < 1e-5);
}

/// Everything that differs from what was expected is refused in the same way.
#[test]
fn only_what_is_expected_is_decrypted() {
    let key = &keys()[3];
    let parameters = key.parameters();
    let ciphertext = key.encrypt(&[1.0, 2.0], &mut Counting(0)).unwrap();
    let expected = fresh(parameters, 2);
    assert!(key.decrypt(&ciphertext, &expected).is_ok());
    let scale = expected.scale;
    for wrong in [
        Expected { level: 2, ..expected },
        Expected { level: 4, ..expected },
        Expected { size: 3, ..expected },
        Expected { scale: scale * (1.0 + 1e-8), ..expected },
        Expected { scale: -scale, ..expected },
        Expected { scale: f64::NAN, ..expected },
        Expected { values: 0, ..expected },
        Expected { values: 4097, ..expected },
        Expected { range: 1.9, ..expected },
        Expected { range: f64::NAN, ..expected },
    ] {
        assert_eq!(key.decrypt(&ciphertext, &wrong).err(), Some(Refused), "{wrong:?}");
    }
    // Another key's ciphertext decrypts to noise, which is out of range.
    let other = SecretKey::from_seed(parameters, &KeySeed::from_bytes([9; 32]));
    let foreign = other.encrypt(&[1.0, 2.0], &mut Counting(0)).unwrap();
    assert_eq!(key.decrypt(&foreign, &expected).err(), Some(Refused));
    // Other parameters of the same shape.
    let other = secret(&Parameters::new(8192, &[60, 41, 41, 60], scale, Policy::Secure).unwrap());
    let foreign = other.encrypt(&[1.0, 2.0], &mut Counting(0)).unwrap();
    assert_eq!(key.decrypt(&foreign, &expected).err(), Some(Refused));
}

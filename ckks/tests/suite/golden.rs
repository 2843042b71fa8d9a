//! Bytes that TenSEAL 0.3.16 (SEAL 4.1) and 0.3.18 (SEAL 4.3) wrote, and bytes of ours that they
//! have read.

use moai_ckks::{
    Ciphertext, Compression, EvaluationKeys, Expected, KeySwitchKeys, Parameters, Policy,
    PublicContext, SecretKey, Selection, Vector,
};
use serde_json::Value;

use crate::common::{Counting, error, fresh, matched, numbers, secret};

macro_rules! files {
    ($directory:literal: $($name:literal),+) => {
        [$(include_bytes!(concat!("../golden/", $directory, "/", $name)).as_slice()),+]
    };
}

/// Facts, secret context, input and result of each version of TenSEAL.
static TENSEAL: [[&[u8]; 4]; 2] = [
    files!("0.3.16": "facts.json", "secret-context.bin", "input.bin", "result.bin"),
    files!("0.3.18": "facts.json", "secret-context.bin", "input.bin", "result.bin"),
];

/// Secret key, seeded ciphertext, the same expanded, Galois key of each version of SEAL.
static SEAL: [[&[u8]; 4]; 2] = [
    files!("seal-4.1": "secret-key.bin", "seeded.bin", "expanded.bin", "galois.bin"),
    files!("seal-4.3": "secret-key.bin", "seeded.bin", "expanded.bin", "galois.bin"),
];

static SEAL_VALUES: &str = include_str!("../golden/seal-4.3/values.txt");

fn list(facts: &Value, name: &str) -> Vec<f64> {
    facts[name].as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

#[test]
fn vectors_and_results_of_tenseal_decrypt_under_its_key() {
    for [facts, context, input, result] in TENSEAL {
        let facts: Value = serde_json::from_slice(facts).unwrap();
        let key = SecretKey::decode_context(context, Policy::Secure).unwrap();
        let parameters = key.parameters();
        let primes: Vec<_> = facts["primes"].as_array().unwrap().iter().collect();
        assert!(parameters.primes().eq(primes.iter().map(|prime| prime.as_u64().unwrap())));
        let (values, weights) = (list(&facts, "values"), list(&facts, "weights"));
        let tolerance = facts["tolerance"].as_f64().unwrap();

        let vector = Vector::decode(parameters, input, values.len()).unwrap();
        let expected = fresh(parameters, values.len());
        let decrypted = key.decrypt(&vector.ciphertexts()[0], &expected).unwrap();
        assert!(error(decrypted.expose(), &values) < tolerance);

        let result = Vector::decode(parameters, result, values.len()).unwrap();
        let expected = Expected { level: 1, ..fresh(parameters, 1) };
        let decrypted = key.decrypt(&result.ciphertexts()[0], &expected).unwrap();
        let sum: f64 = values.iter().zip(&weights).map(|(a, b)| a * b).sum();
        let sum = sum + facts["bias"].as_f64().unwrap();
        assert!(error(decrypted.expose(), &[sum]) < tolerance);
    }
}

#[test]
fn evaluation_keys_of_tenseal_are_read() {
    let keys = include_bytes!("../golden/0.3.18/evaluation-keys.bin");
    let context = PublicContext::decode(keys, Policy::Secure).unwrap();
    assert_eq!(context.galois.unwrap().indexes().collect::<Vec<_>>(), [1]);
    let secret = SecretKey::decode_context(TENSEAL[1][1], Policy::Secure).unwrap();
    assert_eq!(&context.parameters, secret.parameters());
}

#[test]
fn seeds_of_seal_expand_to_what_seal_expands_them_to() {
    let parameters = Parameters::new(4096, &[37, 32, 37], 2_f64.powi(32), Policy::Secure).unwrap();
    let values: Vec<f64> =
        SEAL_VALUES.split_whitespace().map(|number| number.parse().unwrap()).collect();
    for [secret_key, seeded, expanded, galois] in SEAL {
        let key = SecretKey::decode(&parameters, secret_key).unwrap();
        let seeded = Ciphertext::decode(&parameters, seeded).unwrap();
        assert!(seeded.is_seeded());
        let expanded = Ciphertext::decode(&parameters, expanded).unwrap();
        assert_eq!(seeded.expanded(&parameters), expanded);
        let decrypted = key.decrypt(&seeded, &fresh(&parameters, values.len())).unwrap();
        assert!(error(decrypted.expose(), &values) < 1e-5);

        let keys = KeySwitchKeys::decode_galois(&parameters, galois).unwrap();
        // The element of one step to the left is 3, its index 1.
        assert_eq!(keys.indexes().collect::<Vec<_>>(), [1]);
        assert_eq!(keys.key(1).unwrap().len(), 2);
        assert!(KeySwitchKeys::decode_relinearization(&parameters, galois).is_err());
        assert!(SecretKey::decode(&matched(4096, &[36, 32, 37]), secret_key).is_err());
        assert!(SecretKey::decode_context(secret_key, Policy::Secure).is_err());
    }
}

/// What this crate writes, byte for byte, as both versions of TenSEAL have loaded and computed with
/// it. Whoever changes these digests runs the tests of feature `interop` against both.
#[test]
fn what_is_written_does_not_change() {
    let key = secret(&matched(4096, &[37, 32, 37]));
    let parameters = key.parameters();
    let digest = |bytes: &[u8]| {
        // FNV-1a: any change shows.
        let fold = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        bytes.iter().fold(0xcbf2_9ce4_8422_2325, fold)
    };
    let mut selection = Selection::for_matmul(6);
    selection.relinearization = true;
    let digests = [Compression::None, Compression::Packed].map(|compression| {
        let keys = EvaluationKeys::new(&key, selection.clone(), compression).unwrap();
        let vector = key.encrypt_vector(&numbers(24, 1), &mut Counting(0)).unwrap();
        (digest(&keys.context()), digest(&vector.encode(parameters, compression)))
    });
    assert_eq!(digests, WRITTEN);
}

const WRITTEN: [(u64, u64); 2] = [
    (10_631_062_191_222_061_740, 15_812_243_515_589_303_487),
    (2_850_843_329_499_673_733, 14_715_923_028_506_922_425),
];

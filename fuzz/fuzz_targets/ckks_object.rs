//! Whatever an object of SEAL or TenSEAL holds, reading it returns, and what is read can be written
//! and read again.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use moai_ckks::{
    Ciphertext, Compression, KeySwitchKeys, Parameters, Policy, PublicContext, SecretKey, Vector,
};

/// The smallest parameters that have key switching.
static PARAMETERS: LazyLock<Parameters> = LazyLock::new(|| {
    Parameters::new(1024, &[18, 19, 20], 1000.0, Policy::AnyForTests).expect("they are valid")
});

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, bytes)) = bytes.split_first() else { return };
    let parameters = &PARAMETERS;
    match kind % 6 {
        0 => {
            if let Ok(ciphertext) = Ciphertext::decode(parameters, bytes) {
                for compression in [Compression::None, Compression::Packed] {
                    let again = ciphertext.encode(parameters, compression);
                    assert_eq!(Ciphertext::decode(parameters, &again).as_ref(), Ok(&ciphertext));
                }
            }
        }
        1 => {
            if let Ok(vector) = Vector::decode(parameters, bytes, 1000) {
                let again = vector.encode(parameters, Compression::Packed);
                assert_eq!(Vector::decode(parameters, &again, 1000).as_ref(), Ok(&vector));
            }
        }
        2 => drop(KeySwitchKeys::decode_galois(parameters, bytes)),
        3 => drop(KeySwitchKeys::decode_relinearization(parameters, bytes)),
        4 => drop(SecretKey::decode(parameters, bytes)),
        _ => {
            let _ = PublicContext::decode(bytes, Policy::AnyForTests);
            drop(SecretKey::decode_context(bytes, Policy::AnyForTests));
        }
    }
});

//! Contexts: one encoding, and nothing weaker than promised.

use moai_fhe::{Context, ContextDigest, ContextError};
use proptest::prelude::*;

/// The canonical bytes with one of the 16-bit parameters changed.
fn with_parameter(index: usize, value: u16) -> Vec<u8> {
    let mut bytes = Context::tfhe().canonical_bytes();
    bytes[10 + 2 * index..12 + 2 * index].copy_from_slice(&value.to_be_bytes());
    bytes
}

#[test]
fn canonical_bytes_come_back_and_keep_their_digest() {
    let context = Context::tfhe();
    let parsed = Context::from_canonical_bytes(&context.canonical_bytes()).unwrap();
    assert_eq!(parsed, context);
    assert_eq!(parsed.digest(), context.digest());
}

#[test]
fn the_digest_of_this_release_never_changes() {
    let digest = ContextDigest::from(&Context::tfhe()).to_string();
    assert_eq!(digest, "4ea0aae6473b5e655c4683ca2c35981249d4d28cb4861a4b2f17dc773d66c95c");
}

#[test]
fn weak_parameters_are_refused_as_weak() {
    for (index, value) in [(0, 800), (2, 1024), (3, 12), (4, 16)] {
        let error = Context::from_canonical_bytes(&with_parameter(index, value)).unwrap_err();
        assert!(matches!(error, ContextError::Weak { .. }), "{index}: {error}");
    }
}

#[test]
fn parameters_that_err_are_refused_as_unreliable() {
    // A message bit more, a body bit or keyswitch level fewer.
    for (index, value) in [(9, 5), (10, 9), (8, 2)] {
        let error = Context::from_canonical_bytes(&with_parameter(index, value)).unwrap_err();
        assert!(matches!(error, ContextError::Unreliable { .. }), "{index}: {error}");
    }
}

#[test]
fn sound_but_unknown_parameters_are_unsupported() {
    for (index, value) in [(9, 3), (10, 13), (13, 17)] {
        let error = Context::from_canonical_bytes(&with_parameter(index, value)).unwrap_err();
        assert_eq!(error, ContextError::Unsupported, "{index}");
    }
    let mut other_scheme = Context::tfhe().canonical_bytes();
    other_scheme[9] = 3;
    let error = Context::from_canonical_bytes(&other_scheme).unwrap_err();
    assert_eq!(error, ContextError::Unsupported);
}

proptest! {
    #[test]
    fn any_bytes_are_this_context_or_an_error(
        tail in prop::collection::vec(any::<u8>(), 0..64),
        parameters in prop::collection::vec(any::<u16>(), 14),
    ) {
        prop_assert!(Context::from_canonical_bytes(&tail).is_err());
        let mut bytes = Context::tfhe().canonical_bytes();
        for (index, value) in parameters.iter().enumerate() {
            bytes[10 + 2 * index..12 + 2 * index].copy_from_slice(&value.to_be_bytes());
        }
        prop_assert!(Context::from_canonical_bytes(&bytes).is_err());
        bytes.extend(tail);
        prop_assert!(Context::from_canonical_bytes(&bytes).is_err());
    }
}

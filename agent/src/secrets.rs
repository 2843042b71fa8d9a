//! Keys derived from the root secret and from session seeds (HKDF-SHA256, RFC 5869).
//!
//! Invariants:
//! - nothing here is `Debug`, `Clone` or `Serialize`; everything is zeroized on drop;
//! - a derived key has one purpose, named by its label;
//! - a session seed is OS randomness XOR TPM randomness, so it is good while either source is.

use hkdf::Hkdf;
use moai_fhe::{Entropy, EntropyError, KeySeed};
use moai_tpm::RootSecret;
use sha2::Sha256;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// The key that seals the vault's records.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct VaultKey([u8; 32]);

impl VaultKey {
    /// The vault key below a root secret.
    #[must_use]
    pub fn derive(root: &RootSecret) -> Self {
        Self(derive(root.expose(), b"moai/v1/vault"))
    }

    pub(crate) fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

/// What all keys of one session are derived from.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct SessionSeed([u8; 32]);

impl SessionSeed {
    /// Mixes two independent sources.
    #[must_use]
    pub fn mix(mut operating_system: [u8; 32], tpm: &[u8; 32]) -> Self {
        for (byte, other) in operating_system.iter_mut().zip(tpm) {
            *byte ^= other;
        }
        let seed = Self(operating_system);
        operating_system.zeroize();
        seed
    }

    /// A seed that was kept in the vault.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The seed of the session's FHE keys for one scheme.
    #[must_use]
    pub fn fhe_seed(&self, scheme: &str) -> KeySeed {
        KeySeed::from_bytes(derive(&self.0, scheme.as_bytes()))
    }

    /// The bytes: for the vault, and for whoever searches for leaks of them.
    #[must_use]
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

fn derive(secret: &[u8; 32], label: &[u8]) -> [u8; 32] {
    let mut key = Zeroizing::new([0; 32]);
    Hkdf::<Sha256>::new(None, secret)
        .expand(label, key.as_mut())
        .expect("32 bytes are a valid HKDF-SHA256 length");
    *key
}

/// The operating system's random generator.
pub struct OsEntropy;

impl OsEntropy {
    /// `N` random bytes.
    ///
    /// # Errors
    /// The kernel refuses; nothing secret may be made then.
    pub fn bytes<const N: usize>() -> Result<[u8; N], getrandom::Error> {
        let mut bytes = [0; N];
        getrandom::fill(&mut bytes)?;
        Ok(bytes)
    }
}

impl Entropy for OsEntropy {
    fn fill(&mut self, out: &mut [u8]) -> Result<(), EntropyError> {
        getrandom::fill(out).map_err(|_| EntropyError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_the_exclusive_or_of_both_sources() {
        let seed = SessionSeed::mix([0b1010; 32], &[0b0110; 32]);
        assert_eq!(seed.expose(), &[0b1100; 32]);
    }

    #[test]
    fn derived_keys_differ_by_purpose_and_by_root() {
        let seed = SessionSeed::from_bytes([7; 32]);
        assert_ne!(seed.fhe_seed("tfhe").expose(), seed.fhe_seed("ckks").expose());
        let one = VaultKey::derive(&RootSecret::from_bytes([1; 32]));
        let other = VaultKey::derive(&RootSecret::from_bytes([2; 32]));
        assert_ne!(one.expose(), other.expose());
    }
}

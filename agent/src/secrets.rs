//! Keys derived from the root secret and from session seeds (HKDF-SHA256, RFC 5869).
//!
//! Invariants:
//! - nothing here is `Debug`, `Clone` or `Serialize`; everything is zeroized on drop;
//! - a secret lives in one heap allocation, so that moving it leaves no copy behind, and what deriving
//!   it left on the stack is overwritten;
//! - a derived key has one purpose, named by its label;
//! - a session seed is OS randomness XOR TPM randomness, so it is good while either source is.

use hkdf::Hkdf;
use moai_fhe::{Entropy, EntropyError, KeySeed};
use moai_tpm::RootSecret;
use moai_transport::keys::SessionSigningKey;
use sha2::Sha256;
use zeroize::{Zeroize as _, Zeroizing, zeroize_stack};

/// More than anything here that works with a secret takes of the stack.
const SCRUBBED_LEN: usize = 64 * 1024;

/// The key that seals the vault's records.
pub struct VaultKey(Box<Zeroizing<[u8; 32]>>);

impl VaultKey {
    /// The vault key below a root secret.
    #[must_use]
    pub fn derive(root: &RootSecret) -> Self {
        let mut key = Self(Box::default());
        derive(root.expose(), b"moai/v1/vault", &mut key.0);
        key
    }

    /// The bytes: for the cipher, and for whoever searches for leaks of them.
    #[must_use]
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

/// What all keys of one session are derived from.
pub struct SessionSeed(Box<Zeroizing<[u8; 32]>>);

impl SessionSeed {
    /// Mixes two independent sources.
    #[must_use]
    pub fn mix(operating_system: [u8; 32], tpm: &[u8; 32]) -> Self {
        let mut seed = Self::from_bytes(operating_system);
        for (byte, other) in seed.0.iter_mut().zip(tpm) {
            *byte ^= other;
        }
        seed
    }

    /// A seed that was kept in the vault. The caller wipes its own copy.
    #[must_use]
    pub fn from_bytes(mut bytes: [u8; 32]) -> Self {
        let mut seed = Self(Box::default());
        seed.0.copy_from_slice(&bytes);
        bytes.zeroize();
        seed
    }

    /// The seed of the session's FHE keys for one scheme.
    #[must_use]
    pub fn fhe_seed(&self, scheme: &str) -> KeySeed {
        KeySeed::filled_by(|seed| derive(&self.0, scheme.as_bytes(), seed))
    }

    /// What signs the session's frames. The same seed makes the same key, so an agent that restarted
    /// has it again.
    #[must_use]
    pub fn signing_key(&self) -> SessionSigningKey {
        let seed = self.signing_seed();
        scrubbed(|| SessionSigningKey::from_seed(&seed))
    }

    /// The bytes of the signing key: for whoever searches for leaks of them.
    #[must_use]
    pub fn signing_seed(&self) -> Box<Zeroizing<[u8; 32]>> {
        let mut seed = Box::<Zeroizing<[u8; 32]>>::default();
        derive(&self.0, b"sign", &mut seed);
        seed
    }

    /// The bytes: for the vault, and for whoever searches for leaks of them.
    #[must_use]
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

fn derive(secret: &[u8; 32], label: &[u8], key: &mut [u8; 32]) {
    scrubbed(|| {
        Hkdf::<Sha256>::new(None, secret)
            .expand(label, key)
            .expect("32 bytes are a valid HKDF-SHA256 length");
    });
}

/// Runs `work` and overwrites the part of the stack it ran on: hash states, key schedules, copies
/// of arguments. What it returns should be on the heap if it is secret.
pub fn scrubbed<T>(work: impl FnOnce() -> T) -> T {
    let outcome = apart(work);
    zeroize_stack::<SCRUBBED_LEN>();
    outcome
}

/// Keeps the frames of `work` out of its caller's, which is not overwritten.
#[inline(never)]
fn apart<T>(work: impl FnOnce() -> T) -> T {
    work()
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
    use std::os::unix::fs::FileExt;

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
        assert_ne!(seed.fhe_seed("tfhe").expose(), &**seed.signing_seed());
        assert_eq!(seed.signing_key().public(), seed.signing_key().public());
        let one = VaultKey::derive(&RootSecret::from_bytes([1; 32]));
        let other = VaultKey::derive(&RootSecret::from_bytes([2; 32]));
        assert_ne!(one.expose(), other.expose());
    }

    /// How much of what `run` makes of the work below leaves its mark on the stack.
    fn left_behind(run: impl FnOnce(&mut dyn FnMut())) -> usize {
        const LEN: usize = 16 * 1024;
        let mut address = 0;
        run(&mut || {
            let mut secret = [0xa5_u8; LEN];
            address = std::hint::black_box(&mut secret).as_ptr().addr();
        });
        let mut bytes = vec![0; LEN];
        let memory = std::fs::File::open("/proc/self/mem").unwrap();
        memory.read_exact_at(&mut bytes, u64::try_from(address).unwrap()).unwrap();
        // Single bytes are also those of addresses, which reading the memory leaves there.
        bytes.chunks(8).filter(|word| *word == [0xa5; 8]).count() * 8
    }

    #[test]
    fn what_worked_with_a_secret_is_overwritten_on_the_stack() {
        assert!(left_behind(|work| apart(work)) > 8 * 1024, "or the test looks in the wrong place");
        assert_eq!(left_behind(|work| scrubbed(work)), 0);
    }
}

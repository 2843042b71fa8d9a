//! SEAL's byte stream: `BLAKE2Xb`, refilled 4096 bytes at a time.
//!
//! Refill c is `BLAKE2Xb` with output length 4096, the 64-byte seed as key and c as message.
//! (BLAKE2X, Aumasson, Neves, Wilcox-O'Hearn, Winnerlein, 2016.)
//!
//! Invariants:
//! - The stream of a public seed gives the uniform halves of ciphertexts, exactly as SEAL expands
//!   them. Secret randomness comes from streams of secret seeds, which are wiped.
//! - Rejection, which takes a number of steps that depends on the stream, is for public streams
//!   only.

use blake2b_simd::many::{HashManyJob, hash_many};
use zeroize::{Zeroize as _, ZeroizeOnDrop, Zeroizing};

use crate::ntt::Ntt;

/// Bytes of a seed.
pub(crate) const SEED_LEN: usize = 64;
const REFILL_LEN: usize = 4096;
const BLOCK_LEN: usize = 64;
const WORDS: usize = REFILL_LEN / 8;

/// A byte stream.
pub(crate) struct Stream {
    seed: [u8; SEED_LEN],
    counter: u64,
    buffer: Box<[u8; REFILL_LEN]>,
    used: usize,
    leaves: Vec<blake2b_simd::Params>,
}

impl Stream {
    pub(crate) fn new(seed: &[u8; SEED_LEN]) -> Self {
        let leaves = (0..(REFILL_LEN / BLOCK_LEN) as u64)
            .map(|index| {
                let mut leaf = blake2b_simd::Params::new();
                leaf.hash_length(BLOCK_LEN)
                    .fanout(0)
                    .max_depth(0)
                    .max_leaf_length(64)
                    .node_offset(index | (REFILL_LEN as u64) << 32)
                    .node_depth(0)
                    .inner_hash_length(BLOCK_LEN);
                leaf
            })
            .collect();
        let buffer = Box::new([0; REFILL_LEN]);
        Self { seed: *seed, counter: 0, buffer, used: REFILL_LEN, leaves }
    }

    /// Starts over with another seed; spares the preparation.
    pub(crate) fn reseed(&mut self, seed: &[u8; SEED_LEN]) {
        self.seed = *seed;
        self.counter = 0;
        self.used = REFILL_LEN;
    }

    fn refill(&mut self) {
        let root = blake2b_simd::Params::new()
            .hash_length(BLOCK_LEN)
            .key(&self.seed)
            .node_offset((REFILL_LEN as u64) << 32)
            .hash(&self.counter.to_le_bytes());
        self.counter += 1;
        let mut jobs: [HashManyJob<'_>; 8];
        for (leaves, out) in
            self.leaves.chunks_exact(8).zip(self.buffer.chunks_exact_mut(8 * BLOCK_LEN))
        {
            jobs = std::array::from_fn(|index| HashManyJob::new(&leaves[index], root.as_bytes()));
            hash_many(jobs.iter_mut());
            for (job, out) in jobs.iter().zip(out.chunks_exact_mut(BLOCK_LEN)) {
                out.copy_from_slice(job.to_hash().as_bytes());
            }
        }
        self.used = 0;
    }

    /// The next bytes of the stream.
    pub(crate) fn fill(&mut self, mut out: &mut [u8]) {
        while !out.is_empty() {
            if self.used == REFILL_LEN {
                self.refill();
            }
            let available = &self.buffer[self.used..];
            let count = available.len().min(out.len());
            let (now, later) = out.split_at_mut(count);
            now.copy_from_slice(&available[..count]);
            self.used += count;
            out = later;
        }
    }

    /// The next eight bytes.
    pub(crate) fn word(&mut self) -> u64 {
        let mut bytes = Zeroizing::new([0; 8]);
        self.fill(&mut bytes[..]);
        u64::from_le_bytes(*bytes)
    }

    /// A uniform polynomial over these primes as SEAL expands it from a fresh stream, one prime's
    /// values after another.
    pub(crate) fn uniform(&mut self, primes: &[Ntt], out: &mut [u64]) {
        let degree = out.len() / primes.len().max(1);
        let mut rejected = Vec::new();
        for (index, (values, prime)) in out.chunks_exact_mut(degree).zip(primes).enumerate() {
            let q = prime.modulus();
            let bound = bound(q.value());
            for (block, values) in values.chunks_mut(WORDS).enumerate() {
                self.refill();
                for (value, bytes) in values.iter_mut().zip(self.buffer.as_chunks::<8>().0) {
                    let word = u64::from_le_bytes(*bytes);
                    *value = if word < bound { q.reduce(word) } else { u64::MAX };
                }
                // Rare: looked for once a block, so that the loop above has no branch.
                if values.contains(&u64::MAX) {
                    let first = index * degree + block * WORDS;
                    let found = values.iter().enumerate().filter(|(_, value)| **value == u64::MAX);
                    rejected.extend(found.map(|(offset, _)| first + offset));
                }
            }
        }
        self.used = REFILL_LEN;
        for index in rejected {
            let Some(prime) = primes.get(index / degree) else { continue };
            let q = prime.modulus();
            let bound = bound(q.value());
            let mut word = self.word();
            while word >= bound {
                word = self.word();
            }
            out[index] = q.reduce(word);
        }
    }
}

/// The first word that SEAL rejects.
fn bound(q: u64) -> u64 {
    u64::MAX - u64::MAX % q - 1
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.seed.zeroize();
        self.buffer.zeroize();
    }
}

impl ZeroizeOnDrop for Stream {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::modulus::Modulus;

    /// Made with hashlib.blake2b's tree parameters, block by block.
    #[test]
    fn the_stream_is_blake2xb() {
        let seed: [u8; 64] = std::array::from_fn(|index| u8::try_from(index).unwrap());
        let mut stream = Stream::new(&seed);
        let mut bytes = [0; 8200];
        stream.fill(&mut bytes[..3]);
        stream.fill(&mut bytes[3..]);
        assert_eq!(bytes[..16], FIRST);
        assert_eq!(bytes[4080..4112], ACROSS);
        stream.reseed(&seed);
        assert_eq!(stream.word().to_le_bytes(), FIRST[..8]);
    }

    const FIRST: [u8; 16] =
        [23, 185, 118, 127, 99, 149, 167, 122, 61, 15, 47, 43, 210, 52, 216, 198];
    const ACROSS: [u8; 32] = [
        69, 84, 204, 122, 80, 186, 217, 65, 184, 220, 111, 135, 94, 112, 148, 69, 85, 230, 10, 161,
        186, 88, 80, 112, 4, 31, 229, 110, 37, 224, 84, 46,
    ];

    /// A prime just above a power of two rejects often; every value must be reduced.
    #[test]
    fn rejected_words_are_replaced_in_order() {
        let prime = (1_u64 << 58 | 1..).step_by(2048).find(|q| crate::prime::is_prime(*q)).unwrap();
        let primes = [Ntt::new(1024, Modulus::new(prime)).unwrap()];
        let seed = [7; 64];
        let mut words = vec![0; 1024];
        Stream::new(&seed).uniform(&primes, &mut words);
        let mut reference = Stream::new(&seed);
        let mut bulk: Vec<u64> = (0..1024).map(|_| reference.word()).collect();
        let mut replaced = 0;
        for word in &mut bulk {
            while *word >= u64::MAX - u64::MAX % prime - 1 {
                *word = reference.word();
                replaced += 1;
            }
            *word %= prime;
        }
        assert!(replaced > 0, "or the test tests nothing");
        assert_eq!(words, bulk);
    }
}

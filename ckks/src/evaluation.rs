//! What a server computes with: public key, relinearisation key, Galois keys, in a `TenSEAL`
//! context, written as a stream.
//!
//! Invariants:
//! - Everything is deterministic in the secret key, so that an interrupted upload goes on where it
//!   was.
//! - Memory does not grow with the number of keys: one part of one key at a time.

use std::collections::BTreeSet;
use std::io::{self, Write};

use thiserror::Error;
use zeroize::Zeroizing;

use crate::ntt::reversed;
use crate::parameters::Parameters;
use crate::scrub::scrubbed;
use crate::secret::{Scratch, SecretKey};
use crate::stream::SEED_LEN;
use crate::wire::ciphertext::{nested_len, write_seeded};
use crate::wire::header::{Mode, encode};
use crate::wire::keys::MAX_KEYS;
use crate::wire::tenseal::ContextFrame;
use crate::wire::writer::{Compression, Payload, object, object_len};

/// A rotation that does not exist.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("a rotation is by 1 to N/2 - 1 slots, left or right; at most {MAX_KEYS} are possible")]
pub struct RotationError;

/// Which evaluation keys a model needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// The public key. `TenSEAL` needs it for `matmul` and `polyval`, which encrypt zeros.
    pub public_key: bool,
    /// The relinearisation key, for products of two ciphertexts.
    pub relinearization: bool,
    /// Rotations in slots: to the left if positive, to the right if negative.
    pub rotations: BTreeSet<i32>,
}

impl Selection {
    /// What `TenSEAL`'s `dot` or `sum` over `inputs` values needs.
    #[must_use]
    pub fn for_dot(inputs: usize) -> Self {
        let steps = std::iter::successors(Some(1_usize), |step| Some(step * 2));
        let steps = steps.take_while(|step| *step < inputs.min(1 << 30));
        Self {
            rotations: steps.filter_map(|step| i32::try_from(step).ok()).collect(),
            ..Self::default()
        }
    }

    /// What `TenSEAL`'s `matmul` of `inputs` values needs: it rotates by 1 to `inputs` - 1, and
    /// SEAL splits each into the steps of its non-adjacent form.
    #[must_use]
    pub fn for_matmul(inputs: usize) -> Self {
        let most = i32::try_from(inputs.min(1 << 20)).unwrap_or(0);
        Self {
            public_key: true,
            rotations: (1..most).flat_map(non_adjacent_form).collect(),
            ..Self::default()
        }
    }

    /// Everything of both.
    #[must_use]
    pub fn union(mut self, other: Self) -> Self {
        self.public_key |= other.public_key;
        self.relinearization |= other.relinearization;
        self.rotations.extend(other.rotations);
        self
    }
}

/// Powers of two, no two neighbours, that add up to a positive number.
fn non_adjacent_form(mut number: i32) -> Vec<i32> {
    let mut terms = Vec::new();
    let mut power = 1;
    while number != 0 {
        if number & 1 == 1 {
            // 1 if two zeros can follow, else -1 and a carry.
            let digit = 2 - (number & 3);
            terms.push(digit * power);
            number -= digit;
        }
        number >>= 1;
        power *= 2;
    }
    terms
}

/// The evaluation keys of a secret key, not made yet.
pub struct EvaluationKeys<'a> {
    secret: &'a SecretKey,
    selection: Selection,
    /// Galois elements in order.
    elements: BTreeSet<usize>,
    compression: Compression,
    /// Lengths of the objects of the public key, the relinearisation key and the Galois keys.
    lengths: [Option<u64>; 3],
}

/// One key: what it switches from.
#[derive(Clone, Copy)]
enum Key {
    Public,
    Relinearization,
    Galois(usize),
}

impl<'a> EvaluationKeys<'a> {
    /// Chooses keys; makes none yet.
    ///
    /// # Errors
    /// [`RotationError`] when a rotation does not exist, or key switching does not because there
    /// is only one prime.
    pub fn new(
        secret: &'a SecretKey,
        selection: Selection,
        compression: Compression,
    ) -> Result<Self, RotationError> {
        let parameters = secret.parameters();
        let elements: Option<BTreeSet<_>> =
            selection.rotations.iter().map(|steps| element(parameters, *steps)).collect();
        let elements =
            elements.filter(|elements| elements.len() <= MAX_KEYS).ok_or(RotationError)?;
        if (selection.relinearization || !elements.is_empty()) && parameters.key_level() < 2 {
            return Err(RotationError);
        }
        let mut keys = Self { secret, selection, elements, compression, lengths: [None; 3] };
        keys.lengths = keys.measure();
        Ok(keys)
    }

    /// Length in bytes of the context.
    #[must_use]
    pub fn context_len(&self) -> u64 {
        self.frame().len
    }

    fn frame(&self) -> ContextFrame {
        let [public_key, relinearization, galois] = self.lengths;
        ContextFrame::new(self.secret.parameters(), public_key, relinearization, galois)
    }

    fn measure(&self) -> [Option<u64>; 3] {
        let mut part = Part::new(self.secret.parameters());
        let mut measure = |keys: &[Key]| {
            object_len(self.compression, |payload| self.write(keys, payload, &mut part, false))
        };
        let Selection { public_key, relinearization, .. } = self.selection;
        [
            public_key.then(|| measure(&[Key::Public])),
            relinearization.then(|| measure(&[Key::Relinearization])),
            (!self.elements.is_empty()).then(|| measure(&self.galois())),
        ]
    }

    fn galois(&self) -> Vec<Key> {
        self.elements.iter().map(|element| Key::Galois(*element)).collect()
    }

    /// Makes the keys and writes them as `TenSEAL`'s public context: the parameters, the chosen
    /// keys, the global scale. Uses constant memory, about two ciphertexts.
    ///
    /// # Errors
    /// What `out` fails with.
    pub fn write_context<W: Write>(&self, out: &mut W) -> io::Result<()> {
        let frame = self.frame();
        let mut part = Part::new(self.secret.parameters());
        let [public_key, relinearization, galois] = self.lengths;
        let galois_keys = self.galois();
        for (before, keys, length) in [
            (&frame.before_public_key, &[Key::Public][..], public_key),
            (&frame.before_relinearization, &[Key::Relinearization][..], relinearization),
            (&frame.before_galois, &galois_keys[..], galois),
        ] {
            out.write_all(before)?;
            let Some(length) = length else { continue };
            scrubbed(|| {
                object(out, self.compression, length, |payload| {
                    self.write(keys, payload, &mut part, true)
                })
            })?;
        }
        out.write_all(&frame.end)
    }

    /// The Galois keys alone, as SEAL's `GaloisKeys`, in memory. Empty if there are none.
    #[must_use]
    pub fn galois_keys(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        if let [_, _, Some(length)] = self.lengths {
            let mut part = Part::new(self.secret.parameters());
            bytes.reserve_exact(usize::try_from(length).unwrap_or(0));
            // Writing to memory does not fail.
            let _ = scrubbed(|| {
                object(&mut bytes, self.compression, length, |payload| {
                    self.write(&self.galois(), payload, &mut part, true)
                })
            });
        }
        bytes
    }

    /// The context in memory.
    #[must_use]
    pub fn context(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(usize::try_from(self.context_len()).unwrap_or(0));
        // Writing to memory does not fail.
        let _ = self.write_context(&mut bytes);
        bytes
    }

    /// Writes the payload of one object of keys: the keys themselves, or zeros of their shape.
    fn write<W: Write>(
        &self,
        keys: &[Key],
        payload: &mut Payload<W>,
        part: &mut Part,
        make: bool,
    ) -> io::Result<()> {
        let parameters = self.secret.parameters();
        let (degree, level) = (parameters.degree(), parameters.key_level());
        let id = parameters.key_id();
        let mut next = 0;
        for (position, key) in keys.iter().enumerate() {
            let (index, indexes) = match key {
                Key::Public => {
                    if make {
                        self.make(*key, 0, part);
                    }
                    let c0 = make.then_some(&part.scratch.c0[..]);
                    return write_seeded(payload, parameters, level, 1.0, c0, &part.seed);
                }
                Key::Relinearization => (0, 1),
                Key::Galois(element) => ((element - 1) / 2, degree),
            };
            if position == 0 {
                payload.bytes(&id.0)?;
                payload.u64(indexes as u64)?;
            }
            payload.zeros(8 * (index - next))?;
            payload.u64(level as u64 - 1)?;
            for digit in 0..level - 1 {
                if make {
                    self.make(*key, digit, part);
                }
                payload.bytes(&encode(Mode::Plain, nested_len(degree, level)))?;
                let c0 = make.then_some(&part.scratch.c0[..]);
                write_seeded(payload, parameters, level, 1.0, c0, &part.seed)?;
            }
            next = index + 1;
            if position + 1 == keys.len() {
                payload.zeros(8 * (indexes - next))?;
            }
        }
        Ok(())
    }

    /// Makes one part of a key: an encryption of zero, and for key switching P·t modulo one prime.
    fn make(&self, key: Key, digit: usize, part: &mut Part) {
        let parameters = self.secret.parameters();
        let (degree, level) = (parameters.degree(), parameters.key_level());
        let name = match key {
            Key::Public => 0,
            Key::Relinearization => 1,
            Key::Galois(element) => element as u64,
        };
        let kind = if matches!(key, Key::Galois(_)) { b"galois" } else { b"others" };
        let mut index = [0; 22];
        index[..6].copy_from_slice(kind);
        index[6..14].copy_from_slice(&name.to_le_bytes());
        index[14..].copy_from_slice(&(digit as u64).to_le_bytes());
        part.seed = self.secret.derive(b"key", &index);
        part.scratch.stream.reseed(&self.secret.derive(b"key error", &index));
        part.error.fill(0);
        crate::sample::add_errors(&mut part.scratch.stream, &mut part.error);
        self.secret.mask(&part.error, &part.seed, &mut part.scratch);

        let primes = parameters.ntts(level);
        let (Some(prime), Some(special)) = (primes.get(digit), primes.last()) else { return };
        let q = prime.modulus();
        let factor = q.factor(q.reduce(special.modulus().value()));
        let s = self.secret.residues(digit);
        let c0 = part.scratch.c0.chunks_exact_mut(degree).nth(digit).unwrap_or_default();
        match key {
            Key::Public => {}
            Key::Relinearization => {
                for (c0, s) in c0.iter_mut().zip(s) {
                    *c0 = q.add(*c0, q.times(q.multiply(*s, *s), factor));
                }
            }
            Key::Galois(element) => {
                for (place, c0) in c0.iter_mut().enumerate() {
                    let odd = element * (2 * part.reversed[place] + 1);
                    // The degree is a power of two: this is the remainder by twice the degree.
                    let source = part.reversed[odd / 2 % degree];
                    *c0 = q.add(*c0, q.times(s.get(source).copied().unwrap_or(0), factor));
                }
            }
        }
    }
}

/// The Galois element of a rotation.
fn element(parameters: &Parameters, steps: i32) -> Option<usize> {
    let slots = parameters.slots();
    let magnitude = usize::try_from(steps.unsigned_abs()).ok()?;
    if !(1..slots).contains(&magnitude) {
        return None;
    }
    let exponent = if steps > 0 { magnitude } else { slots - magnitude };
    let order = 2 * parameters.degree();
    Some((0..exponent).fold(1, |power, _| power * 3 % order))
}

/// One part of a key.
struct Part {
    scratch: Scratch,
    error: Zeroizing<Vec<i64>>,
    seed: Zeroizing<[u8; SEED_LEN]>,
    /// Indexes below the degree with their bits in reversed order.
    reversed: Vec<usize>,
}

impl Part {
    fn new(parameters: &Parameters) -> Self {
        let degree = parameters.degree();
        Self {
            scratch: Scratch::new(parameters, parameters.key_level()),
            error: Zeroizing::new(vec![0; degree]),
            seed: Zeroizing::new([0; SEED_LEN]),
            reversed: (0..degree).map(|index| reversed(index, degree)).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keys_of_tenseals_operations_are_these() {
        let rotations = |selection: Selection| selection.rotations.into_iter().collect::<Vec<_>>();
        assert_eq!(rotations(Selection::for_dot(64)), [1, 2, 4, 8, 16, 32]);
        assert_eq!(rotations(Selection::for_dot(24)), [1, 2, 4, 8, 16]);
        assert_eq!(
            rotations(Selection::for_matmul(64)),
            [-16, -8, -4, -2, -1, 1, 2, 4, 8, 16, 32, 64]
        );
        assert!(rotations(Selection::for_dot(1)).is_empty());
        assert!(rotations(Selection::for_matmul(0)).is_empty());
        assert!(rotations(Selection::for_dot(usize::MAX)).len() <= 31);
    }

    #[test]
    fn non_adjacent_forms_add_up() {
        for number in 1..3000 {
            let terms = non_adjacent_form(number);
            assert_eq!(terms.iter().sum::<i32>(), number);
            assert!(terms.windows(2).all(|pair| pair[1].abs() >= 4 * pair[0].abs()));
        }
    }
}

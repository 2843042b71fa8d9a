//! The negacyclic number-theoretic transform in SEAL's order.
//!
//! With ψ the smallest primitive 2N-th root of unity modulo q and brv the reversal of log2(N) bits,
//! entry i of the transform of a(X) is a(ψ^(2·brv(i)+1)). Butterflies are Harvey's (Faster arithmetic
//! for number-theoretic transforms, 2014): numbers stay below 4q until the end.
//!
//! Invariant: no branch and no index depends on a coefficient.

use crate::modulus::{Factor, Modulus, subtract_once};
use crate::prime::minimal_root;

/// A prime and the tables of its transform.
pub(crate) struct Ntt {
    modulus: Modulus,
    /// ψ^brv(i).
    forward: Vec<Factor>,
    /// ψ^-brv(i).
    inverse: Vec<Factor>,
    /// 1 / N.
    scale: Factor,
    /// ψ^-brv(1) / N, the root of the last layer.
    scaled_root: Factor,
}

impl Ntt {
    /// Tables for a degree (a power of two, at least 8) and a prime; `None` unless the prime is 1
    /// modulo 2N.
    pub(crate) fn new(degree: usize, modulus: Modulus) -> Option<Self> {
        let root = minimal_root(modulus, degree)?;
        let forward = powers_in_reversed_order(degree, modulus, root);
        let inverse = powers_in_reversed_order(degree, modulus, modulus.inverse(root));
        let scale = modulus.inverse(u64::try_from(degree).ok()?);
        let scaled_root = modulus.multiply(inverse.get(1)?.value, scale);
        Some(Self {
            modulus,
            forward,
            inverse,
            scale: modulus.factor(scale),
            scaled_root: modulus.factor(scaled_root),
        })
    }

    #[inline]
    pub(crate) fn modulus(&self) -> Modulus {
        self.modulus
    }

    /// Transforms N coefficients below 4q in place, to values below 4q.
    pub(crate) fn forward_below_4q(&self, values: &mut [u64]) {
        let degree = values.len();
        assert_eq!(degree, self.forward.len());
        let q = self.modulus;
        let twice = 2 * q.value();
        let mut half = degree / 2;
        while half >= 4 {
            let groups = degree / (2 * half);
            for (group, root) in
                values.chunks_exact_mut(2 * half).zip(&self.forward[groups..2 * groups])
            {
                let (left, right) = group.split_at_mut(half);
                for (a, b) in left.iter_mut().zip(right) {
                    (*a, *b) = butterfly(q, twice, *a, *b, *root);
                }
            }
            half /= 2;
        }
        let (wide, narrow) = (&self.forward[degree / 4..], &self.forward[degree / 2..]);
        let roots = wide.iter().zip(narrow.as_chunks::<2>().0);
        for (group, (root, ends)) in values.as_chunks_mut::<4>().0.iter_mut().zip(roots) {
            let (first, third) = butterfly(q, twice, group[0], group[2], *root);
            let (second, fourth) = butterfly(q, twice, group[1], group[3], *root);
            (group[0], group[1]) = butterfly(q, twice, first, second, ends[0]);
            (group[2], group[3]) = butterfly(q, twice, third, fourth, ends[1]);
        }
    }

    /// Transforms N coefficients in place, to reduced values.
    pub(crate) fn forward(&self, values: &mut [u64]) {
        self.forward_below_4q(values);
        for value in values {
            *value = self.reduce_4q(*value);
        }
    }

    /// Reduces what is below 4q.
    #[inline]
    pub(crate) fn reduce_4q(&self, value: u64) -> u64 {
        let q = self.modulus.value();
        subtract_once(subtract_once(value, 2 * q), q)
    }

    /// Transforms N values below 2q back in place, to reduced coefficients.
    pub(crate) fn inverse(&self, values: &mut [u64]) {
        let degree = values.len();
        assert_eq!(degree, self.inverse.len());
        let q = self.modulus;
        let twice = 2 * q.value();
        let (wide, narrow) = (&self.inverse[degree / 4..], &self.inverse[degree / 2..]);
        let roots = wide.iter().zip(narrow.as_chunks::<2>().0);
        for (group, (root, ends)) in values.as_chunks_mut::<4>().0.iter_mut().zip(roots) {
            let (first, second) = reverse_butterfly(q, twice, group[0], group[1], ends[0]);
            let (third, fourth) = reverse_butterfly(q, twice, group[2], group[3], ends[1]);
            (group[0], group[2]) = reverse_butterfly(q, twice, first, third, *root);
            (group[1], group[3]) = reverse_butterfly(q, twice, second, fourth, *root);
        }
        let mut half = 4;
        while half < degree / 2 {
            let groups = degree / (2 * half);
            for (group, root) in
                values.chunks_exact_mut(2 * half).zip(&self.inverse[groups..2 * groups])
            {
                let (left, right) = group.split_at_mut(half);
                for (a, b) in left.iter_mut().zip(right) {
                    (*a, *b) = reverse_butterfly(q, twice, *a, *b, *root);
                }
            }
            half *= 2;
        }
        // The last layer brings the factor 1/N along.
        let (left, right) = values.split_at_mut(degree / 2);
        for (a, b) in left.iter_mut().zip(right) {
            let (sum, difference) = (*a + *b, *a + twice - *b);
            (*a, *b) = (q.times(sum, self.scale), q.times(difference, self.scaled_root));
        }
    }
}

/// Cooley and Tukey's butterfly: below 4q to below 4q.
#[inline]
fn butterfly(q: Modulus, twice: u64, a: u64, b: u64, root: Factor) -> (u64, u64) {
    let a = subtract_once(a, twice);
    let b = q.times_below_2q(b, root);
    (a + b, a + twice - b)
}

/// Gentleman and Sande's butterfly: below 2q to below 2q.
#[inline]
fn reverse_butterfly(q: Modulus, twice: u64, a: u64, b: u64, root: Factor) -> (u64, u64) {
    (subtract_once(a + b, twice), q.times_below_2q(a + twice - b, root))
}

fn powers_in_reversed_order(degree: usize, modulus: Modulus, root: u64) -> Vec<Factor> {
    let step = modulus.factor(root);
    let mut powers = vec![Factor::default(); degree];
    let mut power = 1;
    for index in 0..degree {
        powers[reversed(index, degree)] = modulus.factor(power);
        power = modulus.times(power, step);
    }
    powers
}

/// An index below a power of two with its bits in reversed order.
pub(crate) fn reversed(index: usize, count: usize) -> usize {
    index.reverse_bits() >> (usize::BITS - count.trailing_zeros())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::prime::coefficient_modulus;

    fn tables(degree: usize, bits: u32) -> Ntt {
        let q = coefficient_modulus(degree, &[bits]).unwrap()[0];
        Ntt::new(degree, Modulus::new(q)).unwrap()
    }

    /// The product modulo X^N + 1, by definition.
    fn schoolbook(modulus: Modulus, a: &[u64], b: &[u64]) -> Vec<u64> {
        let degree = a.len();
        let mut product = vec![0; degree];
        for (i, a) in a.iter().enumerate() {
            for (j, b) in b.iter().enumerate() {
                let term = modulus.multiply(*a, *b);
                let place = &mut product[(i + j) % degree];
                *place = if i + j < degree {
                    modulus.add(*place, term)
                } else {
                    modulus.sub(*place, term)
                };
            }
        }
        product
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn pointwise_products_are_negacyclic(
            log_degree in 3_u32..8,
            bits in prop::sample::select(vec![20_u32, 31, 40, 50, 60]),
            seed: u64,
        ) {
            let degree = 1 << log_degree;
            let ntt = tables(degree, bits);
            let q = ntt.modulus();
            let word = |index: usize| {
                q.reduce((seed ^ index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
                    .wrapping_mul(0xbf58_476d_1ce4_e5b9))
            };
            let a: Vec<u64> = (0..degree).map(word).collect();
            let b: Vec<u64> = (degree..2 * degree).map(word).collect();
            let expected = schoolbook(q, &a, &b);
            let (mut left, mut right) = (a.clone(), b);
            ntt.forward(&mut left);
            ntt.forward(&mut right);
            prop_assert!(left.iter().all(|value| *value < q.value()));
            let mut product: Vec<u64> =
                left.iter().zip(&right).map(|(a, b)| q.multiply(*a, *b)).collect();
            ntt.inverse(&mut product);
            prop_assert_eq!(product, expected);
            ntt.inverse(&mut left);
            prop_assert_eq!(left, a);
        }
    }

    #[test]
    fn entries_are_values_at_odd_powers_of_the_root_in_reversed_order() {
        let degree = 1024;
        let ntt = tables(degree, 60);
        let q = ntt.modulus();
        let psi = minimal_root(q, degree).unwrap();
        let coefficients: Vec<u64> = (0..degree as u64).map(|k| q.reduce(k * k * k + 7)).collect();
        let mut values = coefficients.clone();
        ntt.forward(&mut values);
        for index in [0, 1, 2, 511, 512, 1023] {
            let point = q.pow(psi, 2 * reversed(index, degree) as u64 + 1);
            let horner =
                coefficients.iter().rev().fold(0, |sum, c| q.add(q.multiply(sum, point), *c));
            assert_eq!(values[index], horner, "entry {index}");
        }
    }

    #[test]
    fn extreme_coefficients_stay_in_bounds() {
        for bits in [18, 60] {
            let ntt = tables(4096, bits);
            let q = ntt.modulus().value();
            for fill in [0, 1, q - 1, 2 * q - 1, 4 * q - 1] {
                let mut values = vec![fill; 4096];
                ntt.forward_below_4q(&mut values);
                assert!(values.iter().all(|value| *value < 4 * q));
                for value in &mut values {
                    *value = ntt.reduce_4q(*value);
                }
                ntt.inverse(&mut values);
                assert!(values.iter().all(|value| *value == fill % q), "{bits} {fill}");
            }
        }
    }
}

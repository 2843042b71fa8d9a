//! The canonical embedding as a fast Fourier transform of half size.
//!
//! A real polynomial m(X) of N coefficients is folded to the complex c(X) of n = N/2 coefficients
//! `c_k = m_k + i·m_{k+n}`. At the roots ζ^e of X^n = i, ζ = exp(iπ/N) and e ≡ 1 modulo 4, both have the
//! same value, and the conjugates give the other half. X^n - i is split like X^N + 1 in the NTT:
//! X^2t - ρ² = (X^t - ρ)(X^t + ρ).
//!
//! Invariant: no branch and no index depends on a value.

use std::f64::consts::PI;

use zeroize::Zeroizing;

/// A complex number, for tables.
#[derive(Clone, Copy)]
struct Root {
    re: f64,
    im: f64,
}

/// Tables of the transform of N/2 slots.
pub(crate) struct Embedding {
    /// ρ of the node with this index; the root of the tree has index 1.
    roots: Vec<Root>,
    /// Where the value of each slot stands, or its conjugate: real parts are the same.
    places: Vec<usize>,
}

/// Values of slots, or folded coefficients, real and imaginary parts apart.
pub(crate) struct Values {
    pub(crate) re: Zeroizing<Vec<f64>>,
    pub(crate) im: Zeroizing<Vec<f64>>,
}

impl Values {
    pub(crate) fn zeros(count: usize) -> Self {
        Self { re: Zeroizing::new(vec![0.0; count]), im: Zeroizing::new(vec![0.0; count]) }
    }
}

impl Embedding {
    pub(crate) fn new(degree: usize) -> Self {
        let slots = degree / 2;
        // Exponents of ζ at each node: X^2t = ζ^r splits into X^t = ζ^(r/2) and X^t = ζ^(r/2 + N).
        let mut exponents = vec![0; 2 * slots];
        exponents[1] = slots;
        for node in 1..slots {
            exponents[2 * node] = exponents[node] / 2;
            exponents[2 * node + 1] = exponents[node] / 2 + degree;
        }
        let root = |exponent: usize| {
            let (im, re) = (PI * to_f64(exponent) / to_f64(degree)).sin_cos();
            Root { re, im }
        };
        let mut roots = vec![Root { re: 1.0, im: 0.0 }];
        roots.extend((1..slots).map(|node| root(exponents[2 * node])));
        let mut leaf = vec![0; 2 * degree];
        for (place, exponent) in exponents[slots..].iter().enumerate() {
            leaf[*exponent] = place;
        }
        let powers = std::iter::successors(Some(1), |power| Some(power * 3 % (2 * degree)));
        let place = |power: usize| {
            if power % 4 == 1 { leaf[power] } else { leaf[2 * degree - power] }
        };
        Self { roots, places: powers.take(slots).map(place).collect() }
    }

    /// Places the values cyclically in all slots and transforms them to folded coefficients, times
    /// `scale`.
    pub(crate) fn coefficients(&self, slots: &[f64], scale: f64) -> Values {
        let count = self.places.len();
        let mut values = Values::zeros(count);
        if slots.is_empty() {
            return values;
        }
        for (place, value) in self.places.iter().zip(slots.iter().cycle()) {
            values.re[*place] = *value;
        }
        let mut half = 1;
        while half < count {
            let groups = count / (2 * half);
            let roots = &self.roots[groups..2 * groups];
            let re = values.re.chunks_exact_mut(2 * half);
            let im = values.im.chunks_exact_mut(2 * half);
            for ((re, im), root) in re.zip(im).zip(roots) {
                let (a_re, b_re) = re.split_at_mut(half);
                let (a_im, b_im) = im.split_at_mut(half);
                for ((a_re, b_re), (a_im, b_im)) in
                    a_re.iter_mut().zip(b_re).zip(a_im.iter_mut().zip(b_im))
                {
                    let (re, im) = (*a_re - *b_re, *a_im - *b_im);
                    (*a_re, *a_im) = (*a_re + *b_re, *a_im + *b_im);
                    *b_re = re * root.re + im * root.im;
                    *b_im = im * root.re - re * root.im;
                }
            }
            half *= 2;
        }
        let factor = scale / to_f64(count);
        for value in values.re.iter_mut().chain(values.im.iter_mut()) {
            *value *= factor;
        }
        values
    }

    /// Transforms folded coefficients to the real parts of the first `out.len()` slots. Where these
    /// are few, the transform goes only where they are.
    pub(crate) fn slots(&self, mut values: Values, out: &mut [f64]) {
        const FEW: usize = 8;
        let count = self.places.len();
        let wanted = &self.places[..out.len().min(count)];
        let mut half = count / 2;
        while half >= 1 {
            let groups = count / (2 * half);
            if wanted.len() <= FEW {
                let mut nodes = [0; FEW];
                for (node, place) in nodes.iter_mut().zip(wanted) {
                    *node = place / (2 * half);
                }
                let nodes = &mut nodes[..wanted.len()];
                nodes.sort_unstable();
                for (index, node) in nodes.iter().enumerate() {
                    if index == 0 || nodes[index - 1] != *node {
                        self.split(&mut values, *node, half, groups);
                    }
                }
            } else {
                (0..groups).for_each(|node| self.split(&mut values, node, half, groups));
            }
            half /= 2;
        }
        for (out, place) in out.iter_mut().zip(wanted) {
            *out = values.re[*place];
        }
    }

    /// Splits the polynomial of a node, one of `groups` of its layer, into those of its two children.
    #[inline]
    fn split(&self, values: &mut Values, node: usize, half: usize, groups: usize) {
        let root = self.roots[groups + node];
        let start = 2 * half * node;
        let (a_re, b_re) = values.re[start..start + 2 * half].split_at_mut(half);
        let (a_im, b_im) = values.im[start..start + 2 * half].split_at_mut(half);
        for ((a_re, b_re), (a_im, b_im)) in a_re.iter_mut().zip(b_re).zip(a_im.iter_mut().zip(b_im))
        {
            let re = *b_re * root.re - *b_im * root.im;
            let im = *b_re * root.im + *b_im * root.re;
            (*b_re, *b_im) = (*a_re - re, *a_im - im);
            (*a_re, *a_im) = (*a_re + re, *a_im + im);
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "degrees are far below 2^53")]
fn to_f64(x: usize) -> f64 {
    x as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Slot j is the value at ζ^(3^j), by definition.
    fn by_definition(degree: usize, coefficients: &[f64], slot: u32) -> f64 {
        let exponent = 3_usize.pow(slot) % (2 * degree);
        let terms = coefficients.iter().enumerate().map(|(k, coefficient)| {
            coefficient * (PI * to_f64(exponent * k % (2 * degree)) / to_f64(degree)).cos()
        });
        terms.sum()
    }

    #[test]
    fn slots_are_values_at_powers_of_three() {
        for degree in [8, 64, 1024] {
            let embedding = Embedding::new(degree);
            let slots: Vec<f64> = (0..degree / 2).map(|j| (to_f64(j) * 0.7).sin()).collect();
            let values = embedding.coefficients(&slots, 1.0);
            let coefficients: Vec<f64> =
                values.re.iter().chain(values.im.iter()).copied().collect();
            for slot in 0..4 {
                let error = by_definition(degree, &coefficients, slot) - slots[slot as usize];
                assert!(error.abs() < 1e-12, "degree {degree}, slot {slot}: {error}");
            }
            for count in [degree / 2, 1, 3, 8, 9] {
                let mut back = vec![0.0; count.min(degree / 2)];
                let mut again = Values::zeros(degree / 2);
                again.re.copy_from_slice(&values.re);
                again.im.copy_from_slice(&values.im);
                embedding.slots(again, &mut back);
                for (a, b) in slots.iter().zip(&back) {
                    assert!((a - b).abs() < 1e-13, "{count} of {degree}");
                }
            }
        }
    }

    #[test]
    fn values_repeat_over_all_slots() {
        let embedding = Embedding::new(64);
        let mut out = vec![0.0; 32];
        embedding.slots(embedding.coefficients(&[1.0, 2.0, 3.0], 2.0), &mut out);
        for (index, value) in out.iter().enumerate() {
            assert!((value - [2.0, 4.0, 6.0][index % 3]).abs() < 1e-12);
        }
    }
}

//! Arithmetic modulo a prime of at most 60 bits.
//!
//! Invariants:
//! - No branch and no index depends on an operand, only on the modulus; [`Modulus::inverse`] and
//!   [`Modulus::pow`] branch on the exponent, which is public.
//! - "Reduced" means below q. What returns less is named after its bound.

/// A modulus q, 2 < q < 2^60, with what fast reduction needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Modulus {
    value: u64,
    /// floor(2^128 / q), high word. Equals floor(2^64 / q).
    ratio_high: u64,
    /// floor(2^128 / q), low word.
    ratio_low: u64,
}

/// A constant factor with its quotient floor(factor · 2^64 / q), for Shoup's multiplication.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Factor {
    pub(crate) value: u64,
    pub(crate) quotient: u64,
}

/// The high word of a product of two words.
#[inline]
pub(crate) fn high(a: u64, b: u64) -> u64 {
    a.carrying_mul(b, 0).1
}

/// `x` if below `bound`, else `x - bound`: reduces what is below twice the bound.
#[inline]
pub(crate) fn subtract_once(x: u64, bound: u64) -> u64 {
    // The smaller of the two is the right one, because the other has wrapped around.
    x.min(x.wrapping_sub(bound))
}

impl Modulus {
    /// Takes an odd modulus between 2 and 2^60.
    pub(crate) fn new(value: u64) -> Self {
        debug_assert!(value > 2 && value >> 60 == 0 && value & 1 == 1);
        // q divides no power of two, so floor((2^128 - 1) / q) is floor(2^128 / q).
        let ratio = u128::MAX / u128::from(value);
        Self { value, ratio_high: (ratio >> 64) as u64, ratio_low: (ratio << 64 >> 64) as u64 }
    }

    #[inline]
    pub(crate) fn value(self) -> u64 {
        self.value
    }

    /// Bits of the modulus.
    pub(crate) fn bits(self) -> u32 {
        u64::BITS - self.value.leading_zeros()
    }

    /// Any word, reduced (Barrett).
    #[inline]
    pub(crate) fn reduce(self, x: u64) -> u64 {
        let quotient = high(x, self.ratio_high);
        subtract_once(x.wrapping_sub(quotient.wrapping_mul(self.value)), self.value)
    }

    /// A signed word of magnitude below 2^63, reduced.
    #[inline]
    pub(crate) fn reduce_signed(self, x: i64) -> u64 {
        let magnitude = self.reduce(x.unsigned_abs());
        let sign = (x >> 63).cast_unsigned();
        // q - magnitude where x is negative; 0 stays 0 after the subtraction.
        subtract_once(
            (magnitude ^ sign).wrapping_sub(sign).wrapping_add(sign & self.value),
            self.value,
        )
    }

    #[inline]
    pub(crate) fn add(self, a: u64, b: u64) -> u64 {
        subtract_once(a + b, self.value)
    }

    #[inline]
    pub(crate) fn sub(self, a: u64, b: u64) -> u64 {
        subtract_once(a + self.value - b, self.value)
    }

    /// The product of two reduced numbers, reduced (Barrett, 128 bits).
    #[inline]
    pub(crate) fn multiply(self, a: u64, b: u64) -> u64 {
        let (low, top) = a.carrying_mul(b, 0);
        // floor(product · floor(2^128 / q) / 2^128), at most one too small.
        let carry = high(low, self.ratio_low);
        let (middle, cross) = low.carrying_mul_add(self.ratio_high, carry, 0);
        let (_, upper) = top.carrying_mul_add(self.ratio_low, middle, 0);
        let quotient = top.wrapping_mul(self.ratio_high).wrapping_add(cross).wrapping_add(upper);
        subtract_once(low.wrapping_sub(quotient.wrapping_mul(self.value)), self.value)
    }

    /// Prepares a reduced number as constant factor, without a division.
    #[inline]
    pub(crate) fn factor(self, value: u64) -> Factor {
        // floor(value · floor(2^128 / q) / 2^64) is floor(value · 2^64 / q) or one less.
        let estimate =
            value.wrapping_mul(self.ratio_high).wrapping_add(high(value, self.ratio_low));
        let remainder = 0_u64.wrapping_sub(estimate.wrapping_mul(self.value));
        Factor { value, quotient: estimate + u64::from(remainder >= self.value) }
    }

    /// Any word times a constant factor, below 2q (Shoup; Harvey 2014, algorithm 2).
    #[inline]
    pub(crate) fn times_below_2q(self, x: u64, factor: Factor) -> u64 {
        let quotient = high(x, factor.quotient);
        x.wrapping_mul(factor.value).wrapping_sub(quotient.wrapping_mul(self.value))
    }

    /// Any word times a constant factor, reduced.
    #[inline]
    pub(crate) fn times(self, x: u64, factor: Factor) -> u64 {
        subtract_once(self.times_below_2q(x, factor), self.value)
    }

    /// `base` to a public exponent.
    pub(crate) fn pow(self, base: u64, mut exponent: u64) -> u64 {
        let mut square = self.reduce(base);
        let mut power = 1;
        while exponent > 0 {
            if exponent & 1 == 1 {
                power = self.multiply(power, square);
            }
            square = self.multiply(square, square);
            exponent >>= 1;
        }
        power
    }

    /// The inverse of a number that q, a prime, does not divide.
    pub(crate) fn inverse(self, a: u64) -> u64 {
        self.pow(a, self.value - 2)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Odd moduli of every size there is.
    fn modulus() -> impl Strategy<Value = u64> {
        (2_u32..60, any::<u64>())
            .prop_map(|(bits, x)| ((x >> (63 - bits)) % (1 << bits)) | (1 << bits) | 1)
            .prop_map(|q| q.min((1 << 60) - 1))
    }

    fn remainder(x: u128, q: u64) -> u64 {
        u64::try_from(x % u128::from(q)).unwrap()
    }

    proptest! {
        #[test]
        fn reduction_is_the_remainder(q in modulus(), x: u64, y: i64) {
            let modulus = Modulus::new(q);
            prop_assert_eq!(modulus.reduce(x), x % q);
            let y = y / 2;
            let expected = i128::from(y).rem_euclid(i128::from(q));
            prop_assert_eq!(i128::from(modulus.reduce_signed(y)), expected);
        }

        #[test]
        fn products_agree_with_wide_division(q in modulus(), a: u64, b: u64, x: u64) {
            let modulus = Modulus::new(q);
            let (a, b) = (a % q, b % q);
            prop_assert_eq!(modulus.multiply(a, b), remainder(u128::from(a) * u128::from(b), q));
            let factor = modulus.factor(b);
            prop_assert_eq!(u128::from(factor.quotient), (u128::from(b) << 64) / u128::from(q));
            let expected = remainder(u128::from(x) * u128::from(b), q);
            prop_assert_eq!(modulus.times(x, factor), expected);
            prop_assert!(modulus.times_below_2q(x, factor) < 2 * q);
        }

        #[test]
        fn sums_and_differences_are_reduced(q in modulus(), a: u64, b: u64) {
            let modulus = Modulus::new(q);
            let (a, b) = (a % q, b % q);
            prop_assert_eq!(modulus.add(a, b), (a + b) % q);
            prop_assert_eq!(modulus.sub(a, b), (a + q - b) % q);
        }
    }

    #[test]
    fn the_ends_of_the_range_are_right() {
        for q in [3, (1 << 60) - 1, 1_152_921_504_606_830_593] {
            let modulus = Modulus::new(q);
            for a in [0, 1, q / 2, q - 1] {
                for b in [0, 1, q / 2, q - 1] {
                    let product = remainder(u128::from(a) * u128::from(b), q);
                    assert_eq!(modulus.multiply(a, b), product);
                    assert_eq!(modulus.times(a, modulus.factor(b)), product);
                }
            }
            assert_eq!(modulus.reduce(u64::MAX), u64::MAX % q);
        }
    }

    #[test]
    fn an_inverse_undoes_its_number() {
        let modulus = Modulus::new(1_152_921_504_606_830_593);
        for a in [1, 2, 3, 0xdead_beef, modulus.value() - 1] {
            assert_eq!(modulus.multiply(a, modulus.inverse(a)), 1);
        }
    }
}

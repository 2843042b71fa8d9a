//! How secure parameters are, by the Homomorphic Encryption Standard.
//!
//! Table 1 of Albrecht et al., Homomorphic Encryption Standard (2018): the most bits the product of
//! all primes, the special prime included, may have for a uniform ternary secret against classical
//! attacks. SEAL and TenSEAL use the same table.

/// What the standard says about a degree and a coefficient modulus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Security {
    /// Less than 128 bits, or a degree that the table doesn't have. For tests only.
    Below128,
    /// At least 128 bits.
    Bits128,
    /// At least 192 bits.
    Bits192,
    /// At least 256 bits.
    Bits256,
}

/// Degree, then the most bits at 128, 192 and 256 bits of security.
const TABLE: [(usize, [u32; 3]); 6] = [
    (1024, [27, 19, 14]),
    (2048, [54, 37, 29]),
    (4096, [109, 75, 58]),
    (8192, [218, 152, 118]),
    (16_384, [438, 305, 237]),
    (32_768, [881, 611, 476]),
];

impl Security {
    /// The level of a degree whose primes multiply to a number of `modulus_bits` bits.
    pub(crate) fn of(degree: usize, modulus_bits: u32) -> Self {
        match limits(degree) {
            Some([_, _, most]) if modulus_bits <= most => Self::Bits256,
            Some([_, most, _]) if modulus_bits <= most => Self::Bits192,
            Some([most, _, _]) if modulus_bits <= most => Self::Bits128,
            _ => Self::Below128,
        }
    }

    /// The guaranteed number of bits: 0, 128, 192 or 256.
    #[must_use]
    pub fn bits(self) -> u32 {
        match self {
            Self::Below128 => 0,
            Self::Bits128 => 128,
            Self::Bits192 => 192,
            Self::Bits256 => 256,
        }
    }
}

/// The level between the rows of the table: linear in log q between its entries, inversely
/// proportional to log q outside. An estimate to compare parameters by, not a guarantee.
pub(crate) fn estimate(degree: usize, modulus_bits: u32) -> f64 {
    let Some([low, middle, high]) = limits(degree).map(|limits| limits.map(f64::from)) else {
        return 0.0;
    };
    let bits = f64::from(modulus_bits.max(1));
    if bits > low {
        128.0 * low / bits
    } else if bits > middle {
        128.0 + 64.0 * (low - bits) / (low - middle)
    } else if bits > high {
        192.0 + 64.0 * (middle - bits) / (middle - high)
    } else {
        256.0 * high / bits
    }
}

fn limits(degree: usize) -> Option<[u32; 3]> {
    TABLE.iter().find(|(row, _)| *row == degree).map(|(_, limits)| *limits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_change_exactly_at_the_standards_limits() {
        for (degree, [low, middle, high]) in TABLE {
            assert_eq!(Security::of(degree, low + 1), Security::Below128);
            assert_eq!(Security::of(degree, low), Security::Bits128);
            assert_eq!(Security::of(degree, middle + 1), Security::Bits128);
            assert_eq!(Security::of(degree, middle), Security::Bits192);
            assert_eq!(Security::of(degree, high), Security::Bits256);
            for bits in 1..900 {
                let estimate = estimate(degree, bits);
                assert!(
                    estimate >= f64::from(Security::of(degree, bits).bits()),
                    "{degree} {bits}"
                );
            }
        }
        assert_eq!(Security::of(512, 1), Security::Below128);
    }
}

//! Primes as SEAL's `CoeffModulus::Create` chooses them, and roots of unity.
//!
//! Invariant: everything here is public and runs once for each set of parameters.

use crate::modulus::Modulus;

/// Bases that make Miller and Rabin's test a proof below 2^64 (Sorenson and Webster 2015).
const BASES: [u64; 12] = [2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37];

/// Whether an odd number below 2^60 is prime.
pub(crate) fn is_prime(n: u64) -> bool {
    if n < 3 || n & 1 == 0 || n >> 60 != 0 {
        return false;
    }
    if let Some(base) = BASES.iter().find(|base| n.is_multiple_of(**base)) {
        return n == *base;
    }
    let modulus = Modulus::new(n);
    let twos = (n - 1).trailing_zeros();
    BASES.iter().all(|base| {
        let mut power = modulus.pow(*base, (n - 1) >> twos);
        if power == 1 {
            return true;
        }
        for _ in 0..twos {
            if power == n - 1 {
                return true;
            }
            power = modulus.multiply(power, power);
        }
        false
    })
}

/// The primes SEAL chooses for these sizes in bits (each 2 to 60): of every size the largest that
/// are 1 modulo 2N, handed out smallest first. `None` when there are too few of a size.
pub(crate) fn coefficient_modulus(degree: usize, bit_sizes: &[u32]) -> Option<Vec<u64>> {
    let step = 2 * u64::try_from(degree).ok()?;
    let mut found = std::collections::BTreeMap::<u32, Vec<u64>>::new();
    for bits in bit_sizes {
        if !found.contains_key(bits) {
            let count = bit_sizes.iter().filter(|other| *other == bits).count();
            found.insert(*bits, largest_primes(*bits, count, step)?);
        }
    }
    bit_sizes.iter().map(|bits| found.get_mut(bits)?.pop()).collect()
}

/// The largest primes of a size that are 1 modulo `step`, largest first.
fn largest_primes(bits: u32, count: usize, step: u64) -> Option<Vec<u64>> {
    let top = 1_u64.checked_shl(bits)?;
    let mut candidate = (top - 1) / step * step + 1;
    let mut primes = Vec::with_capacity(count);
    while primes.len() < count {
        if candidate <= top / 2 {
            return None;
        }
        if is_prime(candidate) {
            primes.push(candidate);
        }
        candidate = candidate.checked_sub(step)?;
    }
    Some(primes)
}

/// The smallest primitive root of unity of order 2N modulo a prime that is 1 modulo 2N.
pub(crate) fn minimal_root(modulus: Modulus, degree: usize) -> Option<u64> {
    let degree = u64::try_from(degree).ok()?;
    let q = modulus.value();
    if q % (2 * degree) != 1 {
        return None;
    }
    // Every second base has a root of exactly this order.
    let root = (2..q)
        .map(|base| modulus.pow(base, (q - 1) / (2 * degree)))
        .find(|root| modulus.pow(*root, degree) == q - 1)?;
    let square = modulus.factor(modulus.multiply(root, root));
    let odd_powers = std::iter::successors(Some(root), |power| Some(modulus.times(*power, square)));
    odd_powers.take(usize::try_from(degree).ok()?).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn primes_are_told_from_composites() {
        let sieve = |n: u64| n > 2 && n % 2 == 1 && !(3..n).any(|d| n.is_multiple_of(d));
        for n in 0..2000 {
            assert_eq!(is_prime(n), sieve(n), "{n}");
        }
        // Strong pseudoprimes to the first bases, and a square of a prime.
        for n in [2047, 1_373_653, 25_326_001, 3_215_031_751, 3_825_123_056_546_413_051 % (1 << 60)]
        {
            assert!(!is_prime(n), "{n}");
        }
        assert!(is_prime(0xfff_ffff_ffff_c001));
        assert!(!is_prime(1_000_003 * 1_000_003));
    }

    /// The lists of SEAL 4.1 and 4.3, read from TenSEAL's contexts.
    #[test]
    fn the_choice_is_seals() {
        assert_eq!(
            coefficient_modulus(8192, &[60, 40, 40, 60]).unwrap(),
            [0xfff_ffff_fffe_8001, 0xff_fff4_c001, 0xff_fffd_c001, 0xfff_ffff_ffff_c001]
        );
    }

    #[test]
    fn impossible_sizes_give_nothing() {
        assert_eq!(coefficient_modulus(8192, &[13]), None);
        assert_eq!(coefficient_modulus(8192, &[14; 3]), None);
    }

    #[test]
    fn the_root_is_the_smallest_of_its_order() {
        for q in coefficient_modulus(1024, &[20, 40, 60]).unwrap() {
            let modulus = Modulus::new(q);
            let root = minimal_root(modulus, 1024).unwrap();
            assert_eq!(modulus.pow(root, 1024), q - 1);
            for odd in (1..2048).step_by(2) {
                assert!(modulus.pow(root, odd) >= root);
            }
        }
        assert_eq!(minimal_root(Modulus::new(7), 1024), None);
    }
}

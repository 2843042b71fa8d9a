//! Where sessions get their engine, injected so that tests and simulations can do with tiny keys.

use moai_fhe::{Context, Engine, EngineError, KeySeed};

/// Makes engines.
pub trait Engines: Send + Sync {
    /// The engine of a context with the keys of a seed; deterministic.
    ///
    /// # Errors
    /// It refuses the context.
    fn setup(&self, context: &Context, seed: &KeySeed) -> Result<Box<dyn Engine>, EngineError>;
}

/// The engines of `moai-fhe`.
pub struct FheEngines;

impl Engines for FheEngines {
    fn setup(&self, context: &Context, seed: &KeySeed) -> Result<Box<dyn Engine>, EngineError> {
        moai_fhe::setup(context, seed)
    }
}

/// What the engines lack on this machine, with the remedy.
#[must_use]
pub fn gap() -> Option<&'static str> {
    if cfg!(feature = "tfhe") { gap_at(usize::BITS) } else { None }
}

fn gap_at(pointer_bits: u32) -> Option<&'static str> {
    (pointer_bits < 64).then_some(
        "TFHE on a 32 bit processor is slow and without its makers' support, who name x86-64 and \
         64 bit ARM alone: give such a robot models of the scheme ckks",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_32_bit_processors_lack_something() {
        assert_eq!(gap_at(64), None);
        assert!(gap_at(32).is_some_and(|gap| gap.contains("models of the scheme ckks")));
    }
}

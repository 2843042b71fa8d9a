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

//! Everything that works with a secret, for `secret_trace.sh`: keys, encryption, evaluation keys and
//! decryption under the secret seed that the argument names, and of values that it chooses.

use std::hint::black_box;

use moai_ckks::{
    Compression, Entropy, EntropyError, EvaluationKeys, Expected, KeySeed, Parameters, Policy,
    SecretKey, Selection,
};

/// The same for all secrets.
struct Fixed(u8);

impl Entropy for Fixed {
    fn fill(&mut self, out: &mut [u8]) -> Result<(), EntropyError> {
        self.0 += 1;
        out.fill(self.0);
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Secrets of the same length, so that the process's own memory is laid out alike.
    let secret = std::env::args().nth(1).and_then(|argument| argument.bytes().next());
    let secret = secret.ok_or("name a secret of one character")?;
    // Small, because every instruction of the run is written down.
    let parameters = Parameters::new(1024, &[60, 40, 40, 60], 2_f64.powi(40), Policy::AnyForTests)?;
    let key = SecretKey::from_seed(&parameters, &KeySeed::from_bytes([secret; 32]));
    let value = f64::from(secret) / 100.0 - 1.0;
    let values = [value, -value, 0.5 * value, 0.0, value * value];
    let ciphertext = key.encrypt(&values, &mut Fixed(0))?;
    let selection = Selection { relinearization: true, ..Selection::for_matmul(3) };
    let keys = EvaluationKeys::new(&key, selection, Compression::Packed)?;
    black_box(keys.context());
    let expected = Expected { level: 3, size: 2, scale: 2_f64.powi(40), values: 5, range: 100.0 };
    black_box(key.decrypt(&ciphertext, &expected)?.expose());
    Ok(())
}

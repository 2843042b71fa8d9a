//! Against a real TenSEAL: it loads our contexts, keys and vectors, computes, and we decrypt.
//!
//! `TENSEAL_PYTHON` names a Python with TenSEAL 0.3.16 or 0.3.18. Both read the same bytes.

use std::path::{Path, PathBuf};
use std::process::Command;

use moai_ckks::{
    Compression, Entropy, EntropyError, EvaluationKeys, Expected, KeySeed, Parameters, Policy,
    SecretKey, Selection, Vector,
};

/// A scratch directory that goes when it is done with.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("moai-ckks-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.0.join(name), bytes).unwrap();
    }

    /// Has the peer compute, and reads what it made.
    fn compute(&self, operation: &str, arguments: &str) -> Vec<u8> {
        let python = std::env::var("TENSEAL_PYTHON").expect("TENSEAL_PYTHON names a Python");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop/peer.py");
        let output = Command::new(python)
            .arg(script)
            .arg(&self.0)
            .args([operation, arguments])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        std::fs::read(self.0.join("result")).unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Bytes that differ from call to call. Secrets of these tests keep nothing secret.
struct Counting(u8);

impl Entropy for Counting {
    fn fill(&mut self, out: &mut [u8]) -> Result<(), EntropyError> {
        self.0 = self.0.wrapping_add(1);
        out.fill(self.0);
        Ok(())
    }
}

fn matched(degree: usize, sizes: &[u32]) -> Parameters {
    let scale = Parameters::matched_scale(degree, sizes).unwrap();
    Parameters::new(degree, sizes, scale, Policy::Secure).unwrap()
}

fn secret(parameters: &Parameters) -> SecretKey {
    SecretKey::from_seed(parameters, &KeySeed::from_bytes([42; 32]))
}

/// Values between -1 and 1 that follow no pattern the encoding knows.
fn numbers(count: usize, seed: u64) -> Vec<f64> {
    let number = |index: usize| {
        let word = (seed + index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        f64::from(i32::try_from(word >> 33 & 0xffff).unwrap()) / 32_768.0 - 1.0
    };
    (0..count).map(number).collect()
}

/// Runs a computation over the context of a selection and compares its first values.
fn agrees(
    name: &str,
    secret: &SecretKey,
    selection: Selection,
    compression: Compression,
    (operation, arguments): (&str, &str),
    inputs: &[f64],
    (level, expected): (usize, &[f64]),
    tolerance: f64,
) {
    let parameters = secret.parameters();
    let scratch = Scratch::new(name);
    let keys = EvaluationKeys::new(secret, selection, compression).unwrap();
    let context = keys.context();
    assert_eq!(context.len() as u64, keys.context_len());
    scratch.write("context", &context);
    let vector = secret.encrypt_vector(inputs, &mut Counting(0)).unwrap();
    scratch.write("input", &vector.encode(parameters, compression));
    let result = scratch.compute(operation, arguments);
    let result = Vector::decode(parameters, &result, 64).unwrap();
    assert_eq!(result.len(), expected.len());
    let expectation = Expected {
        level,
        size: 2,
        scale: parameters.global_scale(),
        values: expected.len(),
        range: 1000.0,
    };
    let values = secret.decrypt(&result.ciphertexts()[0], &expectation).unwrap();
    let error = values.expose().iter().zip(expected).map(|(a, b)| (a - b).abs());
    let error = error.fold(0.0, f64::max);
    println!(
        "{name}: context {} bytes, result {} bytes, largest error {error:.1e}",
        context.len(),
        result.encode(parameters, Compression::None).len(),
    );
    assert!(error < tolerance, "{name}: {error}, {:?} {expected:?}", values.expose());
}

fn times(inputs: &[f64], matrix: &[Vec<f64>], bias: &[f64]) -> Vec<f64> {
    let mut outputs = bias.to_vec();
    for (input, row) in inputs.iter().zip(matrix) {
        for (output, weight) in outputs.iter_mut().zip(row) {
            *output += input * weight;
        }
    }
    outputs
}

#[test]
fn vectors_come_back_as_they_were() {
    let parameters = matched(8192, &[60, 40, 40, 60]);
    for compression in [Compression::None, Compression::Packed] {
        let inputs = numbers(64, 1);
        agrees(
            &format!("echo {compression:?}"),
            &secret(&parameters),
            Selection::default(),
            compression,
            ("echo", "{}"),
            &inputs,
            (3, &inputs),
            1e-7,
        );
    }
}

#[test]
fn dot_products_need_a_handful_of_rotations() {
    // Rotations come after the rescaling: the special prime must be larger than the first.
    for (degree, sizes) in [(4096, [33, 28, 45]), (8192, [60, 40, 60])] {
        let (inputs, weights) = (numbers(24, 2), numbers(24, 3));
        let sum = inputs.iter().zip(&weights).map(|(a, b)| a * b).sum();
        agrees(
            &format!("dot {degree}"),
            &secret(&matched(degree, &sizes)),
            Selection::for_dot(24),
            Compression::Packed,
            ("dot", &format!("{{\"weights\": {weights:?}}}")),
            &inputs,
            (1, &[sum]),
            1e-4,
        );
    }
}

#[test]
fn matrices_multiply() {
    let (inputs, bias) = (numbers(64, 4), numbers(3, 5));
    let matrix: Vec<_> = (0..64).map(|row| numbers(3, 100 + 3 * row)).collect();
    for (degree, sizes) in [(4096, [37, 32, 37]), (8192, [60, 40, 60])] {
        agrees(
            &format!("matmul {degree}"),
            &secret(&matched(degree, &sizes)),
            Selection::for_matmul(64),
            Compression::Packed,
            ("matmul", &format!("{{\"matrix\": {matrix:?}, \"bias\": {bias:?}}}")),
            &inputs,
            (1, &times(&inputs, &matrix, &bias)),
            1e-5,
        );
    }
}

#[test]
fn two_layers_with_a_square_between_them_compute() {
    let parameters = matched(16_384, &[60, 40, 40, 40, 40, 60]);
    let (inputs, first_bias, second_bias) = (numbers(24, 6), numbers(8, 7), numbers(3, 8));
    let first: Vec<_> = (0..24).map(|row| numbers(8, 200 + 8 * row)).collect();
    let second: Vec<_> = (0..8).map(|row| numbers(3, 500 + 3 * row)).collect();
    let hidden = times(&inputs, &first, &first_bias).iter().map(|x| x * x).collect::<Vec<_>>();
    let mut selection = Selection::for_matmul(24).union(Selection::for_matmul(8));
    selection.relinearization = true;
    agrees(
        "mlp 16384",
        &secret(&parameters),
        selection,
        Compression::Packed,
        (
            "mlp",
            &format!(
                "{{\"first\": {first:?}, \"first_bias\": {first_bias:?}, \
                 \"second\": {second:?}, \"second_bias\": {second_bias:?}}}"
            ),
        ),
        &inputs,
        (2, &times(&hidden, &second, &second_bias)),
        1e-3,
    );
}

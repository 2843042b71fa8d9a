//! Against a real TenSEAL: it loads our contexts, keys and vectors, computes, and we decrypt.
//!
//! `TENSEAL_PYTHON` names a Python with TenSEAL 0.3.16 or 0.3.18. Both read the same bytes.

use std::path::{Path, PathBuf};
use std::process::Command;

use moai_ckks::{
    BatchLayout, Ciphertext, Compression, EvaluationKeys, Expected, SecretKey, Selection, Vector,
};

use crate::common::{Counting, error, matched, numbers, secret};

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
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/suite/peer.py");
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

/// One computation of the peer.
struct Computation<'a> {
    name: &'a str,
    selection: Selection,
    compression: Compression,
    operation: &'a str,
    arguments: String,
    /// What is left of the primes.
    level: usize,
}

impl Computation<'_> {
    /// The largest error of the peer's answer.
    fn error(self, secret: &SecretKey, inputs: &[f64], expected: &[f64]) -> f64 {
        let parameters = secret.parameters();
        let scratch = Scratch::new(self.name);
        let keys = EvaluationKeys::new(secret, self.selection, self.compression).unwrap();
        let context = keys.context();
        assert_eq!(context.len() as u64, keys.context_len());
        scratch.write("context", &context);
        let vector = secret.encrypt_vector(inputs, &mut Counting(0)).unwrap();
        scratch.write("input", &vector.encode(parameters, self.compression));
        let result = scratch.compute(self.operation, &self.arguments);
        let result = Vector::decode(parameters, &result, 64).unwrap();
        assert_eq!(result.len(), expected.len());
        let expectation = Expected {
            level: self.level,
            size: 2,
            scale: parameters.global_scale(),
            values: expected.len(),
            range: 1000.0,
        };
        let values = secret.decrypt(&result.ciphertexts()[0], &expectation).unwrap();
        error(values.expose(), expected)
    }
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
    let secret = secret(&matched(8192, &[60, 40, 40, 60]));
    let inputs = numbers(64, 1);
    for (name, compression) in [("plain", Compression::None), ("packed", Compression::Packed)] {
        let echo = Computation {
            name,
            selection: Selection::default(),
            compression,
            operation: "echo",
            arguments: "{}".into(),
            level: 3,
        };
        assert!(echo.error(&secret, &inputs, &inputs) < 1e-8);
    }
}

#[test]
fn dot_products_need_a_handful_of_rotations() {
    // Rotations come after the rescaling: the special prime must be larger than the first.
    for (name, degree, sizes) in
        [("dot low", 4096, [33, 28, 45]), ("dot standard", 8192, [60, 40, 60])]
    {
        let (inputs, weights) = (numbers(24, 2), numbers(24, 3));
        let sum = inputs.iter().zip(&weights).map(|(a, b)| a * b).sum();
        let dot = Computation {
            name,
            selection: Selection::for_dot(24),
            compression: Compression::Packed,
            operation: "dot",
            arguments: format!("{{\"weights\": {weights:?}}}"),
            level: 1,
        };
        assert!(dot.error(&secret(&matched(degree, &sizes)), &inputs, &[sum]) < 1e-4);
    }
}

#[test]
fn matrices_multiply() {
    let (inputs, bias) = (numbers(64, 4), numbers(3, 5));
    let matrix: Vec<_> = (0..64).map(|row| numbers(3, 100 + 3 * row)).collect();
    for (name, degree, sizes) in
        [("matmul low", 4096, [37, 32, 37]), ("matmul standard", 8192, [60, 40, 60])]
    {
        let matmul = Computation {
            name,
            selection: Selection::for_matmul(64),
            compression: Compression::Packed,
            operation: "matmul",
            arguments: format!("{{\"matrix\": {matrix:?}, \"bias\": {bias:?}}}"),
            level: 1,
        };
        let expected = times(&inputs, &matrix, &bias);
        assert!(matmul.error(&secret(&matched(degree, &sizes)), &inputs, &expected) < 1e-5);
    }
}

#[test]
fn two_layers_with_a_square_between_them_compute() {
    let parameters = matched(16_384, &[60, 40, 40, 40, 40, 60]);
    let (mut inputs, second_bias) = (numbers(24, 6), numbers(3, 8));
    inputs.push(1.0);
    let first: Vec<_> = (0..25).map(|row| numbers(8, 200 + 8 * row)).collect();
    let second: Vec<_> = (0..8).map(|row| numbers(3, 500 + 3 * row)).collect();
    let hidden: Vec<_> = times(&inputs, &first, &[0.0; 8]).iter().map(|x| x * x).collect();
    let mut selection = Selection::for_matmul(25).union(Selection::for_matmul(8));
    selection.relinearization = true;
    let mlp = Computation {
        name: "mlp",
        selection,
        compression: Compression::Packed,
        operation: "mlp",
        arguments: format!(
            "{{\"first\": {first:?}, \"second\": {second:?}, \"second_bias\": {second_bias:?}}}"
        ),
        level: 2,
    };
    let expected = times(&hidden, &second, &second_bias);
    assert!(mlp.error(&secret(&parameters), &inputs, &expected) < 1e-3);
}

#[test]
fn windows_share_a_ciphertext() {
    let parameters = matched(8192, &[60, 40, 60]);
    let secret = secret(&parameters);
    let layout = BatchLayout::new(&parameters, 24).unwrap();
    let windows: Vec<_> = (0..layout.capacity() as u64).map(|w| numbers(24, 24 * w)).collect();
    let weights = numbers(24, 9);
    let scratch = Scratch::new("batch");
    let packed = layout.pack(windows.iter().map(Vec::as_slice)).unwrap();
    let ciphertext = secret.encrypt(&packed, &mut Counting(0)).unwrap();
    scratch.write("input", &ciphertext.encode(&parameters, Compression::Packed));
    let keys = EvaluationKeys::new(&secret, layout.selection(), Compression::Packed).unwrap();
    scratch.write("galois", &keys.galois_keys());
    let tiled = layout.pack(std::iter::repeat_n(&weights[..], layout.capacity())).unwrap();
    let rotations: Vec<_> = layout.selection().rotations.into_iter().collect();
    let primes: Vec<_> = parameters.primes().collect();
    let arguments = format!(
        "{{\"degree\": 8192, \"primes\": {primes:?}, \"weights\": {:?}, \"scale\": {:?}, \
         \"rotations\": {rotations:?}}}",
        &tiled[..],
        parameters.global_scale(),
    );
    let result = scratch.compute("rotate", &arguments);
    let result = Ciphertext::decode(&parameters, &result).unwrap();
    let expectation = Expected {
        level: 1,
        size: 2,
        scale: parameters.global_scale(),
        values: parameters.slots(),
        range: 100.0,
    };
    let values = secret.decrypt(&result, &expectation).unwrap();
    let sums = layout.unpack(values.expose(), 1);
    assert_eq!(sums.len(), layout.capacity());
    for (window, sum) in windows.iter().zip(sums) {
        let expected: f64 = window.iter().zip(&weights).map(|(a, b)| a * b).sum();
        assert!((sum[0] - expected).abs() < 1e-4, "{} {expected}", sum[0]);
    }
}

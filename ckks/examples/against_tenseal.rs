//! The crate against TenSEAL on the same machine, in turns within the same rounds.
//!
//! `TENSEAL_PYTHON=… cargo run --example against_tenseal --features interop [ROUNDS]`
//!
//! Every figure is the median of the rounds' ratios of CPU time, or a number of bytes. Nothing is
//! asserted: a slow machine gets a table, not a failure.

use std::hint::black_box;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use moai_ckks::{
    Compression, Entropy, EntropyError, EvaluationKeys, Expected, KeySeed, Parameters, Policy,
    SecretKey, Selection, Vector,
};
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

type Failure = Box<dyn std::error::Error>;

/// Degree and primes of a comparison.
const SETS: [(usize, &[u32]); 4] = [
    (4096, &[37, 32, 37]),
    (8192, &[60, 40, 60]),
    (8192, &[60, 40, 40, 60]),
    (16_384, &[60, 40, 40, 40, 40, 60]),
];
/// Inputs of the linear model.
const INPUTS: usize = 24;

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let first = arguments.next();
    if first.as_deref() == Some("keys") {
        return memory_of_keys();
    }
    let rounds = first.map_or(Ok(9), |rounds| rounds.parse())?;
    for (degree, sizes) in SETS {
        compare(degree, sizes, rounds)?;
    }
    Ok(())
}

/// Pseudo-random bytes: a bench needs no secrecy, only that no two calls agree.
struct Counting(u64);

impl Entropy for Counting {
    fn fill(&mut self, out: &mut [u8]) -> Result<(), EntropyError> {
        for chunk in out.chunks_mut(8) {
            self.0 += 1;
            chunk.copy_from_slice(&self.0.to_le_bytes()[..chunk.len()]);
        }
        Ok(())
    }
}

fn cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    let seconds = Duration::from_secs(u64::try_from(time.tv_sec).unwrap_or(0));
    seconds + Duration::from_nanos(u64::try_from(time.tv_nsec).unwrap_or(0))
}

/// CPU seconds of one call.
fn time(
    repeats: u32,
    mut operation: impl FnMut() -> Result<usize, Failure>,
) -> Result<f64, Failure> {
    let start = cpu();
    for _ in 0..repeats {
        black_box(operation()?);
    }
    Ok(cpu().saturating_sub(start).as_secs_f64() / f64::from(repeats))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

/// TenSEAL in a process of its own.
struct Peer {
    process: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Peer {
    fn start(degree: usize, sizes: &[u32]) -> Result<Self, Failure> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/tenseal_peer.py");
        let mut process = Command::new(std::env::var("TENSEAL_PYTHON")?)
            .arg(script)
            .args([json!(degree).to_string(), json!(sizes).to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let requests = process.stdin.take().ok_or("no input")?;
        let answers = BufReader::new(process.stdout.take().ok_or("no output")?);
        Ok(Self { process, requests, answers })
    }

    /// CPU seconds of one operation, and the bytes it put out.
    fn ask(&mut self, operation: &str, repeats: u32) -> Result<(f64, f64), Failure> {
        writeln!(self.requests, "{}", json!({"operation": operation, "repeats": repeats}))?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        let answer: Value = serde_json::from_str(&line)?;
        let number = |name: &str| answer[name].as_f64().ok_or("no number");
        Ok((number("seconds")?, number("bytes")?))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn secret(degree: usize, sizes: &[u32]) -> Result<SecretKey, Failure> {
    let scale = Parameters::matched_scale(degree, sizes)?;
    let parameters = Parameters::new(degree, sizes, scale, Policy::Secure)?;
    Ok(SecretKey::from_seed(&parameters, &KeySeed::from_bytes([1; 32])))
}

/// One comparison of times.
struct Line {
    what: &'static str,
    ours: Vec<f64>,
    theirs: Vec<f64>,
}

impl Line {
    fn new(what: &'static str) -> Self {
        Self { what, ours: Vec::new(), theirs: Vec::new() }
    }

    fn push(&mut self, ours: f64, theirs: f64) {
        self.ours.push(ours);
        self.theirs.push(theirs);
    }

    fn print(self) {
        let ratio = self.ours.iter().zip(&self.theirs).map(|(a, b)| b / a).collect();
        println!(
            "  {:42} {:>9.3} ms {:>9.3} ms {:>8.2} ×",
            self.what,
            1e3 * median(self.ours),
            1e3 * median(self.theirs),
            median(ratio)
        );
    }
}

fn bytes(what: &str, ours: f64, theirs: f64) {
    println!("  {what:42} {ours:>10.0} B {theirs:>10.0} B {:>8.2} ×", theirs / ours);
}

#[expect(clippy::cast_precision_loss, reason = "lengths are far below 2^53")]
fn float(length: usize) -> f64 {
    length as f64
}

fn compare(degree: usize, sizes: &[u32], rounds: usize) -> Result<(), Failure> {
    println!("{degree} {sizes:?}{:>36} {:>12} {:>9}", "moai-ckks", "TenSEAL", "ratio");
    let key = secret(degree, sizes)?;
    let parameters = key.parameters().clone();
    let mut peer = Peer::start(degree, sizes)?;
    let inputs: Vec<f64> = (0..24).map(|i| f64::from(i * 37 % 101) / 50.0 - 1.0).collect();
    let mut entropy = Counting(0);
    let result = packed_result(&parameters, &inputs, &mut entropy)?;
    let all: Vec<i32> = (0..degree.ilog2() - 1).flat_map(|bit| [1 << bit, -(1 << bit)]).collect();
    let all = Selection { rotations: all.into_iter().collect(), ..Selection::default() };
    let all_keys = EvaluationKeys::new(&key, all, Compression::Packed)?;
    let theirs_result = peer_result(degree, sizes)?;
    let expected = Expected {
        level: parameters.data_level() - 1,
        size: 2,
        scale: 2_f64.powi(sizes[sizes.len() - 2].cast_signed()),
        values: 3,
        range: 1e6,
    };
    let mut lines = [
        "encrypt + serialise, against symmetric",
        "encrypt + serialise, against default",
        "parse + decrypt a packed result",
        "parse + decrypt TenSEAL's result",
        "make Galois keys, each",
        "make and serialise Galois keys, each",
        "MOAI's pattern: context read per window",
    ]
    .map(Line::new);
    let encrypt = |entropy: &mut Counting| -> Result<usize, Failure> {
        let vector = key.encrypt_vector(&inputs, entropy)?;
        Ok(vector.encode(key.parameters(), Compression::Packed).len())
    };
    let (mut sent, mut theirs_sent) = (0, 0.0);
    for _ in 0..rounds {
        let (symmetric, _) = peer.ask("encrypt symmetric", 20)?;
        let ours = time(40, || {
            sent = encrypt(&mut entropy)?;
            Ok(sent)
        })?;
        let (default, length) = peer.ask("encrypt asymmetric", 20)?;
        theirs_sent = length;
        lines[0].push(ours, symmetric);
        lines[1].push(ours, default);
        let (theirs, _) = peer.ask("decrypt", 40)?;
        let packed = time(40, || {
            let (key, bytes) = &result;
            let ciphertext = moai_ckks::Ciphertext::decode(key.parameters(), bytes)?;
            let scale = ciphertext.scale();
            Ok(key.decrypt(&ciphertext, &Expected { scale, ..expected })?.expose().len())
        })?;
        lines[2].push(packed, theirs);
        let full = time(40, || {
            let (key, bytes) = &theirs_result;
            let vector = Vector::decode(key.parameters(), bytes, 3)?;
            Ok(key.decrypt(&vector.ciphertexts()[0], &expected)?.expose().len())
        })?;
        lines[3].push(full, theirs);
        // TenSEAL makes one more: the conjugation.
        let (ours_each, theirs_each) =
            (f64::from(2 * degree.ilog2() - 3), f64::from(2 * degree.ilog2() - 2));
        let (theirs, _) = peer.ask("galois", 1)?;
        let ours = time(1, || {
            all_keys.write_context(&mut std::io::sink())?;
            Ok(0)
        })?;
        lines[4].push(ours / ours_each, theirs / theirs_each);
        let (theirs, _) = peer.ask("galois bytes", 1)?;
        let ours = time(1, || Ok(all_keys.context().len()))?;
        lines[5].push(ours / ours_each, theirs / theirs_each);
    }
    for _ in 0..3 {
        let (theirs, _) = peer.ask("pattern", 1)?;
        lines[6].push(time(40, || encrypt(&mut entropy))?, theirs);
    }
    for line in lines {
        line.print();
    }
    bytes("one input", float(sent), theirs_sent);
    compare_bytes(&key, &mut peer, sizes)
}

/// What is uploaded once, and what it takes to make it.
fn compare_bytes(key: &SecretKey, peer: &mut Peer, sizes: &[u32]) -> Result<(), Failure> {
    let (_, context) = peer.ask("context", 1)?;
    for (what, selection) in [
        ("upload: linear model by dot", Selection::for_dot(INPUTS)),
        ("upload: linear model by matmul", Selection::for_matmul(INPUTS)),
    ] {
        let keys = EvaluationKeys::new(key, selection, Compression::Packed)?;
        bytes(what, f64::from(u32::try_from(keys.context_len())?), context);
    }
    let (_, memory) = peer.ask("memory", 1)?;
    let ours = Command::new(std::env::current_exe()?)
        .arg("keys")
        .env("DEGREE", key.parameters().degree().to_string())
        .env("SIZES", json!(sizes).to_string())
        .output()?;
    let ours: f64 = String::from_utf8(ours.stdout)?.trim().parse()?;
    bytes("peak memory with keys", ours, memory);
    Ok(())
}

/// A key and what a result under it looks like: as many primes as after one product, unseeded.
fn packed_result(
    parameters: &Parameters,
    inputs: &[f64],
    entropy: &mut Counting,
) -> Result<(SecretKey, Vec<u8>), Failure> {
    let lower: Vec<u64> = parameters.primes().take(parameters.data_level()).collect();
    let scale = parameters.global_scale().min(1e9);
    let lower = Parameters::from_primes(parameters.degree(), &lower, scale, Policy::Secure)?;
    let key = SecretKey::from_seed(&lower, &KeySeed::from_bytes([1; 32]));
    let full = key.encrypt(inputs, entropy)?.expanded(&lower);
    Ok((key, full.encode(&lower, Compression::Packed)))
}

/// TenSEAL's secret key and a result under it, made by the test peer.
fn peer_result(degree: usize, sizes: &[u32]) -> Result<(SecretKey, Vec<u8>), Failure> {
    let script = "import sys, json, tenseal as ts\n\
        degree, sizes = json.loads(sys.argv[1]), json.loads(sys.argv[2])\n\
        c = ts.context(ts.SCHEME_TYPE.CKKS, degree, coeff_mod_bit_sizes=sizes, n_threads=1)\n\
        c.global_scale = 2.0 ** sizes[-2]\n\
        c.generate_galois_keys()\n\
        x = [((i * 37) % 101) / 50 - 1 for i in range(24)]\n\
        m = [[((i * 7 + j * 13) % 41) / 20 - 1 for j in range(3)] for i in range(24)]\n\
        r = ts.ckks_vector(c, x).matmul(m).serialize()\n\
        k = c.serialize(save_public_key=False, save_secret_key=True, save_galois_keys=False, \
        save_relin_keys=False)\n\
        sys.stdout.buffer.write(len(k).to_bytes(8, 'little') + k + r)\n";
    let output = Command::new(std::env::var("TENSEAL_PYTHON")?)
        .args(["-c", script, &json!(degree).to_string(), &json!(sizes).to_string()])
        .output()?;
    let (length, rest) = output.stdout.split_first_chunk().ok_or("no result")?;
    let (context, result) = rest.split_at(usize::try_from(u64::from_le_bytes(*length))?);
    Ok((SecretKey::decode_context(context, Policy::Secure)?, result.to_vec()))
}

/// Makes and drops the keys of the linear model, and prints the peak of resident memory.
fn memory_of_keys() -> Result<(), Failure> {
    let degree = std::env::var("DEGREE")?.parse()?;
    let sizes: Vec<u32> = serde_json::from_str(&std::env::var("SIZES")?)?;
    let key = secret(degree, &sizes)?;
    let selection = Selection::for_matmul(INPUTS);
    let keys = EvaluationKeys::new(&key, selection, Compression::Packed)?;
    keys.write_context(&mut std::io::sink())?;
    let status = std::fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = peak.and_then(|peak| peak.split_whitespace().next()).ok_or("no peak")?;
    println!("{}", kilobytes.parse::<u64>()? * 1024);
    Ok(())
}

//! Looks for what must not be there: secrets and samples in files, logs and captured traffic.
//!
//! Invariants:
//! - a byte string is looked for as it is, in hexadecimal of both cases, and in both base64
//!   alphabets at each of the three alignments, so that it is found inside a longer encoded text;
//! - a needle that could occur by chance is refused.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use aho_corasick::{AhoCorasick, AhoCorasickBuilder};
use anyhow::{Context, Result, ensure};

/// The shortest needle: 8 random bytes occur in a gigabyte by chance once in 10^10 times.
const MIN_LEN: usize = 8;

/// Coefficients in a row: 64 random ones are as good as 8 random bytes.
const RUN: usize = 64;

/// One place where a needle was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What was found and how it was written, such as `root secret (hex)`.
    pub what: String,
    /// The file, log or stream.
    pub place: String,
    /// Offset in bytes.
    pub offset: usize,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} in {} at byte {}", self.what, self.place, self.offset)
    }
}

/// What is looked for.
#[derive(Default)]
pub struct Needles {
    patterns: Vec<(String, Vec<u8>)>,
}

impl Needles {
    /// Looks for a byte string in every rendering.
    ///
    /// # Errors
    /// It is too short to mean anything.
    pub fn bytes(&mut self, name: &str, bytes: &[u8]) -> Result<&mut Self> {
        self.add(name, "raw", bytes.to_vec())?;
        self.add(name, "hex", hex::encode(bytes).into_bytes())?;
        self.add(name, "HEX", hex::encode_upper(bytes).into_bytes())?;
        for alignment in 0..3 {
            for (alphabet, name_of_alphabet) in [(STANDARD, "base64"), (URL_SAFE, "base64url")] {
                let text = base64_inside(alphabet, alignment, bytes);
                self.add(name, name_of_alphabet, text)?;
            }
        }
        Ok(self)
    }

    /// Looks for a run of numbers as binary integers and floats of both byte orders, as CBOR, and
    /// as JSON.
    ///
    /// # Errors
    /// There are too few to mean anything.
    pub fn numbers(&mut self, name: &str, numbers: &[i16]) -> Result<&mut Self> {
        ensure!(numbers.len() >= MIN_LEN / 2, "{name}: too few numbers");
        let concat = |encode: &dyn Fn(i16) -> Vec<u8>| -> Vec<u8> {
            numbers.iter().flat_map(|number| encode(*number)).collect()
        };
        self.add(name, "i16 le", concat(&|n| n.to_le_bytes().to_vec()))?;
        self.add(name, "i16 be", concat(&|n| n.to_be_bytes().to_vec()))?;
        self.add(name, "i32 le", concat(&|n| i32::from(n).to_le_bytes().to_vec()))?;
        self.add(name, "i32 be", concat(&|n| i32::from(n).to_be_bytes().to_vec()))?;
        self.add(name, "i64 le", concat(&|n| i64::from(n).to_le_bytes().to_vec()))?;
        self.add(name, "f32 le", concat(&|n| f32::from(n).to_le_bytes().to_vec()))?;
        self.add(name, "f32 be", concat(&|n| f32::from(n).to_be_bytes().to_vec()))?;
        self.add(name, "f64 le", concat(&|n| f64::from(n).to_le_bytes().to_vec()))?;
        self.add(name, "f64 be", concat(&|n| f64::from(n).to_be_bytes().to_vec()))?;
        self.add(name, "cbor f32", tagged(numbers, |n| (0xfa, f32::from(n).to_be_bytes())))?;
        self.add(name, "cbor f64", tagged(numbers, |n| (0xfb, f64::from(n).to_be_bytes())))?;
        for separator in [",", ", "] {
            let whole: Vec<String> = numbers.iter().map(i16::to_string).collect();
            self.add(name, "text", whole.join(separator).into_bytes())?;
            let decimal: Vec<String> = numbers.iter().map(|n| format!("{n}.0")).collect();
            self.add(name, "decimal text", decimal.join(separator).into_bytes())?;
        }
        Ok(self)
    }

    /// Looks for each eighth byte of a secret on, so that a part of it is found too.
    ///
    /// # Errors
    /// It is too short to mean anything.
    pub fn parts(&mut self, name: &str, secret: &[u8]) -> Result<&mut Self> {
        ensure!(secret.len() >= MIN_LEN, "{name}: {} bytes are too few", secret.len());
        for (index, part) in secret.chunks_exact(MIN_LEN).enumerate() {
            self.bytes(&format!("{name}, part {index}"), part)?;
        }
        Ok(self)
    }

    /// Looks for runs of 64 coefficients that are 0 or 1, one after the other, as integers of
    /// 64, 32 and 8 bits and packed in both bit orders.
    ///
    /// # Errors
    /// There are too few to mean anything.
    pub fn bits(&mut self, name: &str, bits: &[u8]) -> Result<&mut Self> {
        ensure!(bits.len() >= RUN, "{name}: {} coefficients are too few", bits.len());
        for (index, run) in bits.chunks_exact(RUN).enumerate() {
            let name = format!("{name}, coefficients from {}", index * RUN);
            let widened = |zeros: usize| -> Vec<u8> {
                run.iter().flat_map(|bit| [*bit].into_iter().chain(vec![0; zeros])).collect()
            };
            self.add(&name, "u64 le", widened(7))?;
            self.add(&name, "u32 le", widened(3))?;
            self.add(&name, "u8", run.to_vec())?;
            let packed = |order: fn(u8, u8) -> u8| -> Vec<u8> {
                run.chunks(8)
                    .map(|bits| bits.iter().fold(0, |byte, bit| order(byte, *bit)))
                    .collect()
            };
            self.add(&name, "packed, first bit highest", packed(|byte, bit| byte << 1 | bit))?;
            self.add(&name, "packed, first bit lowest", packed(|byte, bit| byte >> 1 | bit << 7))?;
        }
        Ok(self)
    }

    /// Builds the search, which finds all needles in one pass.
    ///
    /// # Errors
    /// There are no needles.
    pub fn build(self) -> Result<Scanner> {
        ensure!(!self.patterns.is_empty(), "nothing to look for");
        let automaton =
            AhoCorasickBuilder::new().build(self.patterns.iter().map(|(_, pattern)| pattern))?;
        let names = self.patterns.into_iter().map(|(name, _)| name).collect();
        Ok(Scanner { automaton, names })
    }

    fn add(&mut self, name: &str, rendering: &str, pattern: Vec<u8>) -> Result<()> {
        ensure!(pattern.len() >= MIN_LEN, "{name}: {} bytes are too few", pattern.len());
        self.patterns.push((format!("{name} ({rendering})"), pattern));
        Ok(())
    }
}

/// A search for all needles at once.
pub struct Scanner {
    automaton: AhoCorasick,
    names: Vec<String>,
}

impl Scanner {
    /// Searches a buffer; `place` is what the findings call it.
    #[must_use]
    pub fn bytes(&self, place: &str, haystack: &[u8]) -> Vec<Finding> {
        self.automaton
            .find_overlapping_iter(haystack)
            .map(|found| Finding {
                what: self.names.get(found.pattern().as_usize()).cloned().unwrap_or_default(),
                place: place.to_owned(),
                offset: found.start(),
            })
            .collect()
    }

    /// Searches a file, or every file below a directory. Symbolic links and sockets are skipped.
    ///
    /// # Errors
    /// Something cannot be read.
    pub fn path(&self, path: &Path) -> Result<Vec<Finding>> {
        let kind = fs::symlink_metadata(path)
            .with_context(|| format!("cannot search {}", path.display()))?
            .file_type();
        let mut findings = Vec::new();
        if kind.is_dir() {
            for entry in fs::read_dir(path)? {
                findings.extend(self.path(&entry?.path())?);
            }
        } else if kind.is_file() {
            let content =
                fs::read(path).with_context(|| format!("cannot search {}", path.display()))?;
            findings = self.bytes(&path.display().to_string(), &content);
        }
        Ok(findings)
    }
}

fn tagged<const N: usize>(numbers: &[i16], encode: impl Fn(i16) -> (u8, [u8; N])) -> Vec<u8> {
    let encoded = numbers.iter().map(|number| encode(*number));
    encoded.flat_map(|(tag, bytes)| std::iter::once(tag).chain(bytes)).collect()
}

const STANDARD: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
const URL_SAFE: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// The base64 characters that depend on nothing but `bytes` when they stand `before` bytes after
/// a multiple of three in a longer text.
fn base64_inside(alphabet: &[u8; 64], before: usize, bytes: &[u8]) -> Vec<u8> {
    // Group the bits by six, counted from the multiple of three; leave out the groups that also
    // hold bits of neighbours.
    let bits = before * 8..(before + bytes.len()) * 8;
    (bits.start.div_ceil(6)..bits.end / 6)
        .map(|group| {
            let value = (group * 6..group * 6 + 6).fold(0, |value, bit| {
                let bit = bit - bits.start;
                let byte = bytes.get(bit / 8).copied().unwrap_or_default();
                value << 1 | usize::from(byte >> (7 - bit % 8) & 1)
            });
            alphabet.get(value).copied().unwrap_or_default()
        })
        .collect()
}

/// Lists findings one a line, for assertion messages.
#[must_use]
pub fn list(findings: &[Finding]) -> String {
    let mut text = String::new();
    for finding in findings {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{finding}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &[u8; 16] = b"\x00\xff\x10secret\x80\x81\x82\x83\x84\x85\x86";
    const SAMPLES: [i16; 6] = [-1, 0, 63, -300, 1016, 5];

    fn scanner() -> Scanner {
        let mut needles = Needles::default();
        needles.bytes("secret", SECRET).unwrap().numbers("sample", &SAMPLES).unwrap();
        needles.build().unwrap()
    }

    fn found(haystack: &[u8]) -> Vec<String> {
        scanner().bytes("here", haystack).into_iter().map(|finding| finding.what).collect()
    }

    #[test]
    fn bytes_are_found_raw_and_in_hexadecimal() {
        assert_eq!(found(&[b"ab".as_slice(), SECRET, b"cd"].concat()), ["secret (raw)"]);
        assert_eq!(found(hex::encode(SECRET).as_bytes()), ["secret (hex)"]);
        assert_eq!(found(hex::encode_upper(SECRET).as_bytes()), ["secret (HEX)"]);
        assert!(found(&SECRET[1..]).is_empty());
    }

    /// The expected texts come from coreutils' base64, with 0 to 2 bytes "x" before and "y" after.
    #[test]
    fn bytes_are_found_inside_longer_base64() {
        for text in
            ["AP8Qc2VjcmV0gIGCg4SFhnk=", "eAD/EHNlY3JldICBgoOEhYZ5", "eHgA/xBzZWNyZXSAgYKDhIWGeQ=="]
        {
            assert!(found(text.as_bytes()).contains(&"secret (base64)".to_owned()), "{text}");
            let url_safe = text.replace('/', "_");
            assert!(
                found(url_safe.as_bytes()).contains(&"secret (base64url)".to_owned()),
                "{text}"
            );
        }
    }

    #[test]
    fn numbers_are_found_in_json_and_binary() {
        assert_eq!(found(b"{\"values\":[-1,0,63,-300,1016,5]}"), ["sample (text)"]);
        assert_eq!(found(b"[-1.0, 0.0, 63.0, -300.0, 1016.0, 5.0]"), ["sample (decimal text)"]);
        let floats: Vec<u8> = SAMPLES.iter().flat_map(|n| f64::from(*n).to_le_bytes()).collect();
        assert_eq!(found(&floats), ["sample (f64 le)"]);
        assert!(found(b"-1,0,63,-300,1016,6").is_empty());
    }

    #[test]
    fn parts_of_a_secret_are_found() {
        let mut needles = Needles::default();
        needles.parts("secret", SECRET).unwrap();
        let findings = needles.build().unwrap().bytes("here", &SECRET[6..]);
        assert_eq!(findings[0].what, "secret, part 1 (raw)");
        assert_eq!(findings.len(), 1);
    }

    #[test]
    fn coefficients_are_found_in_every_width() {
        // A linear congruential generator's highest bits repeat late (Knuth's MMIX).
        let step = |state: &u64| {
            Some(
                state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407),
            )
        };
        let states = std::iter::successors(Some(1_u64), step);
        let bits: Vec<u8> = states.map(|state| u8::from(state >> 63 == 1)).take(200).collect();
        let mut needles = Needles::default();
        needles.bits("key", &bits).unwrap();
        let scanner = needles.build().unwrap();
        let found = |haystack: Vec<u8>| -> Vec<String> {
            scanner.bytes("here", &haystack).into_iter().map(|finding| finding.what).collect()
        };
        let wide = bits.iter().skip(1).flat_map(|bit| u64::from(*bit).to_le_bytes()).collect();
        let expected = [64, 128].map(|from| format!("key, coefficients from {from} (u64 le)"));
        assert_eq!(found(wide), expected);
        let narrow = bits.iter().flat_map(|bit| u32::from(*bit).to_le_bytes()).collect();
        assert_eq!(found(narrow).len(), 3);
        assert_eq!(found(bits.clone()).len(), 3);
        for bit in [|index: usize| index, |index: usize| 7 - index] {
            let byte = |bits: &[u8]| (0..8).fold(0, |byte, i| byte | bits[bit(i)] << i);
            assert_eq!(found(bits.chunks_exact(8).map(byte).collect()).len(), 3);
        }
        assert!(found(vec![0; 1000]).is_empty());
    }

    #[test]
    fn files_below_a_directory_are_searched() {
        let scratch = tempfile::tempdir().unwrap();
        fs::create_dir(scratch.path().join("below")).unwrap();
        fs::write(scratch.path().join("below/clean"), "nothing").unwrap();
        fs::write(scratch.path().join("below/leak"), [b"123", SECRET.as_slice()].concat()).unwrap();
        let findings = scanner().path(scratch.path()).unwrap();
        assert_eq!(findings.len(), 1, "{}", list(&findings));
        assert!(findings[0].place.ends_with("below/leak"));
        assert_eq!(findings[0].offset, 3);
    }

    #[test]
    fn needles_that_occur_by_chance_are_refused() {
        assert!(Needles::default().bytes("short", &[1, 2, 3]).is_err());
        assert!(Needles::default().numbers("short", &[1, 2, 3]).is_err());
        assert!(Needles::default().build().is_err());
    }
}

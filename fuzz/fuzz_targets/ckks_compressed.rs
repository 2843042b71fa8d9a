//! Whatever stands where compressed data should, decompressing it returns, and within its cap. The
//! header says that it is a Zstandard frame or a zlib stream, so that the fuzzer need not find out.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use moai_ckks::{Ciphertext, Parameters, Policy};

static PARAMETERS: LazyLock<Parameters> = LazyLock::new(|| {
    Parameters::new(1024, &[18, 19, 20], 1000.0, Policy::AnyForTests).expect("they are valid")
});

fuzz_target!(|bytes: &[u8]| {
    let Some((mode, body)) = bytes.split_first() else { return };
    let mode = 1 + mode % 2;
    let mut object = vec![0x5e, 0xa1, 16, 4, 3, mode, 0, 0];
    let frame: &[u8] = if mode == 2 { &[0x28, 0xb5, 0x2f, 0xfd] } else { &[] };
    object.extend((16 + frame.len() as u64 + body.len() as u64).to_le_bytes());
    object.extend(frame);
    object.extend(body);
    let _ = Ciphertext::decode(&PARAMETERS, &object);
});

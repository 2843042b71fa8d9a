//! What a reading weighs in the encoding that tfhe's documentation begins with.

use anyhow::Result;
use tfhe::prelude::FheTryEncrypt;
use tfhe::safe_serialization::safe_serialize;
use tfhe::{ClientKey, CompressedFheInt16, ConfigBuilder};

/// More than a reading can take.
const LIMIT: u64 = 1 << 20;

/// Bytes of one 16-bit reading, encrypted and serialised as a `CompressedFheInt16` with tfhe's
/// default parameters, whose security is that of ours. Takes some CPU time.
///
/// # Errors
/// tfhe cannot encrypt or serialise.
pub fn bytes_per_reading() -> Result<u64> {
    let key = ClientKey::generate(ConfigBuilder::default().build());
    // The size does not depend on the value; this one is the data set's smallest.
    let reading = CompressedFheInt16::try_encrypt(-3617_i16, &key)?;
    let mut bytes = Vec::new();
    safe_serialize(&reading, &mut bytes, LIMIT)?;
    Ok(bytes.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reading_takes_more_than_a_kilobyte() {
        let bytes = bytes_per_reading().unwrap();
        assert!((1_024..4_096).contains(&bytes), "{bytes}");
    }
}

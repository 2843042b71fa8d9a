//! Whatever a key file holds, reading it returns.

#![no_main]

use libfuzzer_sys::fuzz_target;
use moai_transport::keys::{ServerKeys, ServerSigningKey, SessionPublicKey};

fuzz_target!(|bytes: &[u8]| {
    let _ = ServerKeys::from_pem(bytes);
    if let Some(first) = bytes.first_chunk() {
        let _ = SessionPublicKey::from_bytes(first);
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = ServerSigningKey::from_pem(text);
    }
});

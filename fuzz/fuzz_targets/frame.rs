//! Whatever bytes come, decoding returns; a chunk that is taken has that one encoding, and what is
//! signed is believed of nobody whose key the fuzzer does not have.

#![no_main]

use libfuzzer_sys::fuzz_target;
use moai_transport::frame::Received;
use moai_transport::keys::{ServerSigningKey, SessionSigningKey};

const NOW: u64 = 1_799_999_940;

fuzz_target!(|bytes: &[u8]| match Received::decode(bytes) {
    Err(_) => {}
    Ok(Received::Chunk(frame)) => assert_eq!(frame.frame().encode().as_deref(), Ok(bytes)),
    Ok(Received::Signed(signed)) => {
        let session = SessionSigningKey::from_seed(&[0xa1; 32]).public();
        let servers = ServerSigningKey::from_seed(&[0xa2; 32]).public().into();
        assert!(signed.clone().verify_session(&session, NOW).is_err());
        assert!(signed.verify_server(&servers, NOW).is_err());
    }
});

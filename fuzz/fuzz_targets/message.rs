//! Whatever a body or a status holds, decoding returns, and what it takes can be written again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use moai_transport::message::{
    Challenge, Command, ErrorBody, Have, Manifest, Report, RobotState, WorkerState,
};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(manifest) = Manifest::decode(bytes, u64::MAX) {
        let again = manifest.encode().expect("it was decoded");
        assert_eq!(Manifest::decode(&again, u64::MAX), Ok(manifest));
    }
    if let Ok(have) = Have::decode(bytes) {
        assert_eq!(Have::decode(&have.encode().expect("it was decoded")), Ok(have));
    }
    if let Ok(challenge) = Challenge::decode(bytes) {
        let again = challenge.encode().expect("it was decoded");
        assert_eq!(Challenge::decode(&again), Ok(challenge));
    }
    if let Ok(error) = ErrorBody::decode(bytes) {
        assert_eq!(ErrorBody::decode(&error.encode().expect("it was decoded")), Ok(error));
    }
    if let Ok(command) = Command::decode(bytes) {
        assert_eq!(Command::decode(&command.encode().expect("it was decoded")), Ok(command));
    }
    if let Ok(report) = Report::decode(bytes) {
        assert_eq!(Report::decode(&report.encode().expect("it was decoded")), Ok(report));
    }
    if let Ok(state) = WorkerState::decode(bytes) {
        assert_eq!(WorkerState::decode(&state.encode().expect("it was decoded")), Ok(state));
    }
    if let Ok(state) = RobotState::decode(bytes) {
        assert_eq!(RobotState::decode(&state.encode().expect("it was decoded")), Ok(state));
    }
});

//! The crate against a real software TPM (swtpm), through its public surface.

mod bus;
mod faults;
mod file;
mod forgery;
mod identity;
mod proxy;
mod sealing;
mod software_tpm;
mod text;

use moai_tpm::{Options, RootSecret, Tcti, Tpm};

const SECRET: [u8; 32] = *b"thirty-two bytes nobody may see!";

fn secret() -> RootSecret {
    RootSecret::from_bytes(SECRET)
}

fn start(tcti: Tcti) -> Tpm {
    Tpm::start(tcti, Options::default()).expect("the TPM starts")
}

//! The crate against a real software TPM (swtpm), through its public surface.

mod bus;
mod faults;
mod forgery;
mod identity;
mod keys;
mod memory;
mod proxy;
mod recovery;
mod rotation;
mod sealing;
mod signed;
mod software_tpm;
mod text;

use moai_tpm::{
    Epoch, Options, PcrSelection, Protection, RootSecret, SealedRoot, Tcti, Tpm, TpmError,
};

const SECRET: [u8; 32] = *b"thirty-two bytes nobody may see!";

fn secret() -> RootSecret {
    RootSecret::from_bytes(SECRET)
}

fn start(tcti: Tcti) -> Tpm {
    Tpm::start(tcti, Options::default()).expect("the TPM starts")
}

/// To the PCRs that are selected by default, as they are.
fn plain() -> Protection {
    Protection { pcrs: PcrSelection::default(), policy_key: None }
}

/// Seals [`SECRET`] in the first epoch, without recovery code.
fn seal(tpm: &Tpm) -> SealedRoot {
    tpm.seal(Epoch::FIRST, &secret(), None, &plain()).expect("sealed")
}

/// Whether [`SECRET`] comes out.
fn opens(tpm: &Tpm, sealed: &SealedRoot) -> bool {
    tpm.unseal(sealed, &[]).is_ok_and(|unsealed| unsealed.root.expose() == &SECRET)
}

/// Why nothing comes out.
fn refusal(tpm: &Tpm, sealed: &SealedRoot) -> TpmError {
    tpm.unseal(sealed, &[]).err().expect("refused")
}

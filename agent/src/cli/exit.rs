//! How a failure is told: one message, and an exit code (those of sysexits.h where one fits).

use moai_settings::SettingsError;
use moai_tpm::{Advice, TpmError};

use crate::identity::IdentityError;
use crate::identity::attestation::AttestError;
use crate::{control, custody};

pub(super) const HELP: &str = "\
Exit status:
  0   done
  1   something failed; the message says what
  2   the command line is wrong
  69  no agent answers on the control socket (status)
  75  the root secret's custodian is not reachable or busy just now; trying again can help
  77  the root secret or the identity cannot be used: changed boot measurements, another TPM, an old
      copy of the disk, no certificate, or never provisioned
  78  the configuration is wrong; every problem is listed with its line";

/// The exit code that tells a supervisor what kind of failure it was.
pub(crate) fn code(error: &anyhow::Error) -> u8 {
    for cause in error.chain() {
        if cause.is::<SettingsError>() {
            return 78;
        }
        if let Some(error) = cause.downcast_ref::<control::ControlError>() {
            return match error {
                control::ControlError::NotRunning { .. } => 69,
                control::ControlError::Refused(refused) => refused.exit_code,
                _ => 1,
            };
        }
        if let Some(error) = cause.downcast_ref::<custody::CustodyError>() {
            return if error.heals() { 75 } else { 77 };
        }
        if let Some(error) = cause.downcast_ref() {
            return of_tpm(error);
        }
        if let Some(error) = cause.downcast_ref() {
            return of_identity(error);
        }
        match cause.downcast_ref() {
            Some(AttestError::Identity(error)) => return of_identity(error),
            Some(AttestError::Tpm(error)) => return of_tpm(error),
            Some(_) => return 77,
            None => {}
        }
    }
    1
}

fn of_identity(error: &IdentityError) -> u8 {
    if let IdentityError::Tpm(error) = error { of_tpm(error) } else { 77 }
}

fn of_tpm(error: &TpmError) -> u8 {
    if error.advice() == Advice::Retry { 75 } else { 77 }
}

/// Everything the error says, outermost first; a cause that its effect quotes is not said twice.
pub(crate) fn message(error: &anyhow::Error) -> String {
    let mut message = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if message.is_empty() {
            message = cause;
        } else if !message.contains(&cause) {
            message.push_str(": ");
            message.push_str(&cause);
        }
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_told_once() {
        let quoted = anyhow::anyhow!("no such file").context("cannot read x: no such file; do y");
        assert_eq!(message(&quoted), "cannot read x: no such file; do y");
        let unquoted = anyhow::anyhow!("no such file").context("cannot read x");
        assert_eq!(message(&unquoted), "cannot read x: no such file");
    }
}

//! Loading the module, finding the token by its label, logging in.
//!
//! Invariants:
//! - a PIN is read from a file that nobody but its owner may read, used once and wiped;
//! - the last try before a token locks is left to a person.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::Slot;
use cryptoki::types::RawAuthPin;
use zeroize::Zeroizing;

use super::error::{PinFileProblem, Pkcs11Error, describe as what};
use crate::config::Pkcs11Config;

/// PKCS #11 states no limit; no token takes more.
const MAX_PIN_LEN: usize = 255;

/// What a session may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Use keys.
    Read,
    /// Make and destroy keys too.
    Write,
}

/// Loads and initialises the module.
pub(super) fn load(path: &Path) -> Result<Pkcs11, Pkcs11Error> {
    let unusable = |error| Pkcs11Error::Module { module: path.into(), reason: what(&error) };
    let module = Pkcs11::new(path).map_err(unusable)?;
    match module.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
        // Another user of the module in this process was first.
        Ok(()) | Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => Ok(module),
        Err(error) => Err(unusable(error)),
    }
}

/// Finds the slot of the one token with this label.
pub(super) fn find(module: &Pkcs11, token: &str) -> Result<Slot, Pkcs11Error> {
    let mut found = Vec::new();
    let mut labels = Vec::new();
    for slot in module.get_slots_with_initialized_token()? {
        let info = module.get_token_info(slot)?;
        if info.label() == token {
            found.push(slot);
        }
        labels.push(info.label().to_owned());
    }
    match found.as_slice() {
        [slot] => Ok(*slot),
        [] => Err(Pkcs11Error::TokenMissing { token: token.to_owned(), labels }),
        several => {
            Err(Pkcs11Error::TokenAmbiguous { token: token.to_owned(), count: several.len() })
        }
    }
}

/// Opens a session of the token's user.
pub(super) fn log_in(
    module: &Pkcs11,
    slot: Slot,
    access: Access,
    config: &Pkcs11Config,
) -> Result<Session, Pkcs11Error> {
    let token = config.token.clone();
    let info = module.get_token_info(slot)?;
    if info.user_pin_locked() {
        return Err(Pkcs11Error::PinLocked { token });
    }
    if info.user_pin_final_try() {
        return Err(Pkcs11Error::PinLastTry { token });
    }
    if !info.user_pin_initialized() {
        return Err(Pkcs11Error::PinUnset { token });
    }
    let pin = read_pin(&config.pin_file)
        .map_err(|problem| Pkcs11Error::PinFile { path: config.pin_file.clone(), problem })?;
    let session = match access {
        Access::Read => module.open_ro_session(slot),
        Access::Write => module.open_rw_session(slot),
    };
    let session = session?;
    match session.login_with_raw(UserType::User, &pin) {
        Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => Ok(session),
        Err(error) => Err(login_error(error, config)),
    }
}

fn login_error(error: Error, config: &Pkcs11Config) -> Pkcs11Error {
    let token = config.token.clone();
    match error {
        Error::Pkcs11(
            RvError::PinIncorrect
            | RvError::PinInvalid
            | RvError::PinLenRange
            | RvError::PinExpired,
            _,
        ) => Pkcs11Error::PinWrong { token, path: config.pin_file.clone() },
        Error::Pkcs11(RvError::PinLocked, _) => Pkcs11Error::PinLocked { token },
        Error::Pkcs11(RvError::UserPinNotInitialized, _) => Pkcs11Error::PinUnset { token },
        other => other.into(),
    }
}

/// Token, maker and model; for people.
pub(super) fn describe(module: &Pkcs11, config: &Pkcs11Config) -> Result<String, Pkcs11Error> {
    let slot = find(module, &config.token)?;
    let info = module.get_token_info(slot)?;
    let (maker, model) = (info.manufacturer_id().trim(), info.model().trim());
    Ok(format!("pkcs11 token {} ({maker} {model})", config.token))
}

fn read_pin(path: &Path) -> Result<RawAuthPin, PinFileProblem> {
    let mut file = File::open(path)?;
    let mode = file.metadata()?.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(PinFileProblem::Mode { mode });
    }
    // One more than may be there, so that a longer file is seen.
    let mut content = Zeroizing::new([0; MAX_PIN_LEN + 2]);
    let mut length = 0;
    while let Some(room) = content.get_mut(length..).filter(|room| !room.is_empty()) {
        match file.read(room)? {
            0 => break,
            count => length += count,
        }
    }
    let text = content.get(..length).unwrap_or_default();
    let pin = text.strip_suffix(b"\n").unwrap_or(text);
    if pin.is_empty() || pin.len() > MAX_PIN_LEN || pin.contains(&b'\n') {
        return Err(PinFileProblem::Content);
    }
    Ok(RawAuthPin::new(Box::new(pin.to_vec())))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn config(directory: &Path) -> Pkcs11Config {
        let pin_file = directory.join("pin");
        Pkcs11Config { module: "/no/module.so".into(), token: "robot".to_owned(), pin_file }
    }

    #[test]
    fn a_pin_file_that_others_can_read_or_that_holds_no_pin_is_refused() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("pin");
        assert!(matches!(read_pin(&path), Err(PinFileProblem::Io(_))));
        fs::write(&path, "1234\n").unwrap();
        for mode in [0o640, 0o604, 0o660] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            let problem = read_pin(&path).err();
            assert!(matches!(problem, Some(PinFileProblem::Mode { mode: m }) if m == mode));
        }
        fs::set_permissions(&path, Permissions::from_mode(0o400)).unwrap();
        read_pin(&path).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        for (content, good) in [
            (String::new(), false),
            ("\n".to_owned(), false),
            ("12\n34\n".to_owned(), false),
            ("1".repeat(MAX_PIN_LEN), true),
            ("1".repeat(MAX_PIN_LEN + 1), false),
            ("1".repeat(70_000), false),
        ] {
            fs::write(&path, &content).unwrap();
            assert_eq!(read_pin(&path).is_ok(), good, "{} bytes", content.len());
        }
    }

    #[test]
    fn a_wrong_pin_is_no_reason_to_try_again() {
        let config = config(Path::new("/etc"));
        let error =
            |code| login_error(Error::Pkcs11(code, cryptoki::context::Function::Login), &config);
        for code in [RvError::PinIncorrect, RvError::PinLocked, RvError::UserPinNotInitialized] {
            let error = error(code);
            assert!(!error.heals(), "{error}");
        }
        assert!(error(RvError::DeviceRemoved).heals());
    }
}

//! The file of the key that signs what servers say.
//!
//! Invariants:
//! - a key file is created with mode 0600 and never replaces another;
//! - one that everybody may read is refused: a key that may have been copied signs for anybody.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use moai_transport::keys::{KeyError, MAX_KEY_FILE_LEN, ServerSigningKey};
use zeroize::Zeroizing;

/// Why there is no key to sign with.
#[derive(Debug, thiserror::Error)]
pub enum SigningKeyError {
    /// The operating system refused.
    #[error("cannot use the signing key {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// The file holds no key.
    #[error("the signing key {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: KeyError,
    },
    /// Everybody may read it.
    #[error("everybody may read the signing key {}: chmod 600 it", path.display())]
    Open {
        /// The file.
        path: PathBuf,
    },
    /// No randomness.
    #[error("the operating system gave no randomness: {0}")]
    Randomness(#[from] getrandom::Error),
}

/// The key in a file.
///
/// # Errors
/// The file cannot be read, everybody may read it, or it holds no key.
pub fn read(path: &Path) -> Result<ServerSigningKey, SigningKeyError> {
    let io = |source| SigningKeyError::Io { path: path.to_owned(), source };
    let file = File::open(path).map_err(io)?;
    if file.metadata().map_err(io)?.permissions().mode() & 0o007 != 0 {
        return Err(SigningKeyError::Open { path: path.to_owned() });
    }
    let mut text = Zeroizing::new(String::with_capacity(MAX_KEY_FILE_LEN));
    file.take(MAX_KEY_FILE_LEN as u64).read_to_string(&mut text).map_err(io)?;
    ServerSigningKey::from_pem(&text)
        .map_err(|source| SigningKeyError::File { path: path.to_owned(), source })
}

/// A new key in a new file.
///
/// # Errors
/// The file exists already or cannot be written, or there is no randomness.
pub fn generate(path: &Path) -> Result<ServerSigningKey, SigningKeyError> {
    let io = |source| SigningKeyError::Io { path: path.to_owned(), source };
    let mut seed = Zeroizing::new([0; 32]);
    getrandom::fill(&mut *seed)?;
    let key = ServerSigningKey::from_seed(&seed);
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(path).map_err(io)?;
    file.write_all(key.to_pem().as_bytes()).and_then(|()| file.sync_all()).map_err(io)?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};

    #[test]
    fn a_new_key_is_read_again_and_is_its_owners_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("server.key");
        let made = generate(&path).unwrap();
        assert_eq!(read(&path).unwrap().public(), made.public());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(generate(&path), Err(SigningKeyError::Io { .. })), "it was replaced");
        assert_eq!(read(&path).unwrap().public(), made.public());
    }

    #[test]
    fn what_is_no_key_or_not_private_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("server.key");
        assert!(matches!(read(&path), Err(SigningKeyError::Io { .. })));
        let public = generate(&path).unwrap().public().to_pem();
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(read(&path), Err(SigningKeyError::Open { .. })));
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        for text in [public.as_str(), "", "-----BEGIN PRIVATE KEY-----\n"] {
            fs::write(&path, text).unwrap();
            assert!(matches!(read(&path), Err(SigningKeyError::File { .. })));
        }
    }
}

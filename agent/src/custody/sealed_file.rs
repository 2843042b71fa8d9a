//! The sealed root secret as it lies on disk, whoever sealed it.
//!
//! Invariants:
//! - a file is `"MOAIROOT" ‖ version u8 = 1 ‖ custodian u8 ‖ epoch u32 ‖ length u16 ‖ body ‖ SHA-256
//!   of all before`, integers big-endian, nothing after it. The digest finds damage; forgery is
//!   found by the custodian;
//! - parsing never panics and takes no more than [`MAX_FILE_LEN`] bytes.

use moai_tpm::{Advice, Epoch};
use sha2::{Digest, Sha256};

use super::custodian::CustodianKind;

const MAGIC: &[u8; 8] = b"MOAIROOT";
const VERSION: u8 = 1;
/// Magic, version, custodian, epoch, length of the body.
const HEADER_LEN: usize = 8 + 1 + 1 + 4 + 2;
const DIGEST_LEN: usize = 32;
/// No custodian's body comes near this.
const MAX_BODY_LEN: usize = 16 * 1024;

/// The longest file that is read, in bytes.
pub const MAX_FILE_LEN: usize = HEADER_LEN + MAX_BODY_LEN + DIGEST_LEN;

/// A root secret that a custodian sealed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedFile {
    /// Who sealed it.
    pub custodian: CustodianKind,
    /// The life of the root secret in it.
    pub epoch: Epoch,
    /// What the custodian made of it.
    pub body: Vec<u8>,
}

/// A sealed root secret that cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum SealedFileError {
    /// Longer than anything that is written.
    #[error("longer than any sealed root secret: restore the file from a copy")]
    TooLarge,
    /// Other magic bytes.
    #[error(
        "no sealed root secret: the file is another one, or was overwritten; restore it from a copy"
    )]
    NotSealedRoot,
    /// Written by another version of the format.
    #[error(
        "sealed root secret of format {found}, this program reads {VERSION}: use the version of the \
         program that wrote it"
    )]
    Version {
        /// The version found.
        found: u8,
    },
    /// The digest does not fit.
    #[error(
        "the sealed root secret is damaged or cut short: check the storage, restore the file from a \
         copy or provision anew"
    )]
    Damaged,
    /// The digest fits, the content does not.
    #[error("the sealed root secret has an invalid {0}: restore the file from a copy")]
    Malformed(&'static str),
    /// The operating system refused.
    #[error("{0}: check the state directory's owner and free space")]
    Io(#[from] std::io::Error),
}

impl SealedFileError {
    /// Retry, fix or stop?
    #[must_use]
    pub fn advice(&self) -> Advice {
        match self {
            Self::Io(_) | Self::Version { .. } => Advice::Fix,
            Self::TooLarge | Self::NotSealedRoot | Self::Damaged | Self::Malformed(_) => {
                Advice::Stop
            }
        }
    }
}

impl SealedFile {
    /// The bytes of the file.
    ///
    /// # Errors
    /// The body is longer than any custodian's.
    pub fn to_bytes(&self) -> Result<Vec<u8>, SealedFileError> {
        let length = u16::try_from(self.body.len()).map_err(|_| SealedFileError::TooLarge)?;
        if self.body.len() > MAX_BODY_LEN {
            return Err(SealedFileError::TooLarge);
        }
        let mut bytes = MAGIC.to_vec();
        bytes.extend([VERSION, self.custodian.code()]);
        bytes.extend(self.epoch.0.to_be_bytes());
        bytes.extend(length.to_be_bytes());
        bytes.extend(&self.body);
        let digest = Sha256::digest(&bytes);
        bytes.extend(digest);
        Ok(bytes)
    }

    /// Reads what [`Self::to_bytes`] wrote.
    ///
    /// # Errors
    /// It is something else, or damaged.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SealedFileError> {
        if bytes.len() > MAX_FILE_LEN {
            return Err(SealedFileError::TooLarge);
        }
        let rest = bytes.strip_prefix(MAGIC).ok_or(SealedFileError::NotSealedRoot)?;
        match rest.first() {
            Some(&VERSION) => {}
            Some(&found) => return Err(SealedFileError::Version { found }),
            None => return Err(SealedFileError::Damaged),
        }
        let (content, digest) =
            bytes.split_last_chunk::<DIGEST_LEN>().ok_or(SealedFileError::Damaged)?;
        if Sha256::digest(content).as_slice() != digest {
            return Err(SealedFileError::Damaged);
        }
        let (header, body) = content
            .split_first_chunk::<HEADER_LEN>()
            .ok_or(SealedFileError::Malformed("header"))?;
        let [.., custodian, e0, e1, e2, e3, l0, l1] = *header;
        let custodian =
            CustodianKind::from_code(custodian).ok_or(SealedFileError::Malformed("custodian"))?;
        if body.len() != usize::from(u16::from_be_bytes([l0, l1])) {
            return Err(SealedFileError::Malformed("length"));
        }
        let epoch = Epoch(u32::from_be_bytes([e0, e1, e2, e3]));
        Ok(Self { custodian, epoch, body: body.to_vec() })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_file() -> impl Strategy<Value = SealedFile> {
        let kind = (1..=4_u8).prop_map(|code| CustodianKind::from_code(code).unwrap());
        (kind, any::<u32>(), prop::collection::vec(any::<u8>(), 0..600)).prop_map(
            |(custodian, epoch, body)| SealedFile { custodian, epoch: Epoch(epoch), body },
        )
    }

    /// Bytes whose digest fits, so that parsing gets beyond it.
    fn with_digest(content: &[u8]) -> Vec<u8> {
        [content, Sha256::digest(content).as_slice()].concat()
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(file in any_file()) {
            let bytes = file.to_bytes().unwrap();
            prop_assert_eq!(SealedFile::from_bytes(&bytes).unwrap(), file);
        }

        #[test]
        fn a_changed_or_cut_file_is_refused(
            file in any_file(), at in any::<prop::sample::Index>(), bit in 0..8_u8,
        ) {
            let mut bytes = file.to_bytes().unwrap();
            let at = at.index(bytes.len());
            prop_assert!(SealedFile::from_bytes(&bytes[..at]).is_err());
            bytes[at] ^= 1 << bit;
            prop_assert!(SealedFile::from_bytes(&bytes).is_err());
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = SealedFile::from_bytes(&bytes);
            let _ = SealedFile::from_bytes(&with_digest(&[MAGIC.as_slice(), &bytes].concat()));
            let content = [MAGIC.as_slice(), &[VERSION], &bytes].concat();
            if let Ok(file) = SealedFile::from_bytes(&with_digest(&content)) {
                prop_assert_eq!(file.to_bytes().unwrap(), with_digest(&content));
            }
        }
    }

    #[test]
    fn each_mistake_has_a_name_of_its_own() {
        let file = SealedFile { custodian: CustodianKind::Env, epoch: Epoch(1), body: vec![7; 3] };
        let content = |change: fn(&mut Vec<u8>)| {
            let mut bytes = file.to_bytes().unwrap();
            bytes.truncate(bytes.len() - DIGEST_LEN);
            change(&mut bytes);
            SealedFile::from_bytes(&with_digest(&bytes)).unwrap_err().to_string()
        };
        for (message, words) in [
            (content(|bytes| bytes[0] = b'X'), "no sealed root secret"),
            (content(|bytes| bytes[8] = 2), "format 2"),
            (content(|bytes| bytes[9] = 9), "invalid custodian"),
            (content(|bytes| bytes.push(0)), "invalid length"),
            (SealedFile::from_bytes(&vec![0; MAX_FILE_LEN + 1]).unwrap_err().to_string(), "longer"),
        ] {
            assert!(message.contains(words), "{words} is not in: {message}");
        }
        let huge = SealedFile { body: vec![0; MAX_BODY_LEN + 1], ..file };
        assert!(matches!(huge.to_bytes(), Err(SealedFileError::TooLarge)));
    }
}

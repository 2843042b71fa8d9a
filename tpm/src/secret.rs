//! The root secret.
//!
//! Invariants: the bytes live in one heap allocation, so that moving a [`RootSecret`] leaves no
//! copy behind; they are wiped on drop; nothing prints, clones or serialises them;
//! [`RootSecret::expose`] is the only way to them.

use zeroize::Zeroize;

use crate::recovery::RecoveryCode;

/// 32 secret bytes from which everything else secret derives.
pub struct RootSecret(Box<[u8; RootSecret::LEN]>);

impl RootSecret {
    /// Length in bytes.
    pub const LEN: usize = 32;

    /// Takes the secret over. The caller wipes its own copy.
    #[must_use]
    pub fn from_bytes(mut bytes: [u8; Self::LEN]) -> Self {
        let secret = Self::copy_of(&bytes);
        bytes.zeroize();
        secret
    }

    /// Copies from one place in memory to the other, without a stop on the stack.
    #[must_use]
    pub fn copy_of(bytes: &[u8; Self::LEN]) -> Self {
        let mut secret = Self(Box::new([0; Self::LEN]));
        secret.0.copy_from_slice(bytes);
        secret
    }

    /// The secret bytes.
    #[must_use]
    pub fn expose(&self) -> &[u8; Self::LEN] {
        &self.0
    }
}

impl Drop for RootSecret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// What comes out of a sealed root.
pub struct Unsealed {
    /// The root secret.
    pub root: RootSecret,
    /// The code it was sealed with, so that it can be sealed anew with the same one.
    pub recovery: Option<RecoveryCode>,
}

impl Unsealed {
    /// The sealed data: the root secret, then the recovery code if there is one.
    pub(crate) fn from_sealed_data(data: &[u8]) -> Option<Self> {
        let (root, rest) = data.split_first_chunk()?;
        let recovery = match rest {
            [] => None,
            code => Some(RecoveryCode::copy_of(code.try_into().ok()?)),
        };
        Some(Self { root: RootSecret::copy_of(root), recovery })
    }
}

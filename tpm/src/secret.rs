//! The root secret.
//!
//! Invariants: the bytes live in one heap allocation, so that moving a [`RootSecret`] leaves no
//! copy behind; they are wiped on drop; nothing prints, clones or serialises them;
//! [`RootSecret::expose`] is the only way to them.

use zeroize::Zeroize;

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
    pub(crate) fn copy_of(bytes: &[u8; Self::LEN]) -> Self {
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

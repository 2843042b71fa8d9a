//! Making the C library forget secrets.
//!
//! It copies them to buffers of its own and wipes none: its record of the last `TPM2_Create`'s
//! input, its record of an object's password, its buffer of the last command and answer, heap that
//! it frees, and the stack (which `owner` overwrites). None of these can be reached from here,
//! but each is overwritten by using the library again in the same way without a secret, and the
//! freed heap by taking it from the allocator.
//!
//! What the allocator does with freed heap is its own business, so that part is a best effort,
//! made for glibc. A test scans the memory of the process after every call that succeeds.

use std::hint::black_box;

use tss_esapi::constants::CapabilityType;
use tss_esapi::handles::{KeyHandle, ObjectHandle};
use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::structures::{Auth, Public, SensitiveData};

use crate::device::Device;
use crate::error::TpmError;
use crate::recovery::RecoveryCode;
use crate::secret::RootSecret;

/// `TPM_PT_FIXED` (TPM 2.0 Part 2, 6.13).
const PROPERTIES_FIRST: u32 = 0x100;
/// An answer of some 500 bytes, longer than any with a secret.
const PROPERTIES: u32 = 64;

/// How many blocks of each length are taken from the allocator: more than glibc keeps of one
/// length for a thread (seven), since a block may have been merged with others.
const BLOCKS: usize = 32;

impl Device {
    /// Runs `f`, which handles secrets, then has what it left behind overwritten.
    pub(crate) fn with_forgetting<T>(
        &mut self,
        f: impl FnOnce(&mut Self) -> Result<T, TpmError>,
    ) -> Result<T, TpmError> {
        let outcome = f(self);
        // The answer does not matter. If the connection broke, it is closed anyway.
        let _ = self.attempt(|context| {
            context.get_capability(CapabilityType::TpmProperties, PROPERTIES_FIRST, PROPERTIES)
        });
        overwrite_freed_heap();
        outcome
    }

    /// Unseals, and overwrites the block of heap in which the library returned the secret.
    pub(crate) fn unseal_once(
        &mut self,
        authorizing: AuthSession,
        encrypting: Option<AuthSession>,
        object: ObjectHandle,
    ) -> tss_esapi::Result<SensitiveData> {
        let data = self.attempt(|context| {
            let sessions = (Some(authorizing), encrypting, None);
            context.execute_with_sessions(sessions, |context| context.unseal(object))
        });
        overwrite_freed_heap();
        data
    }

    /// Overwrites the record of a `TPM2_Create` by another one, of the same template with zeros
    /// to seal.
    pub(crate) fn forget_input(&mut self, parent: KeyHandle, template: Public) {
        let _ = self.attempt(|context| {
            let password = Auth::try_from(vec![0; RecoveryCode::LEN])?;
            let data = SensitiveData::try_from(vec![0; RootSecret::LEN + RecoveryCode::LEN])?;
            context.execute_with_session(Some(AuthSession::Password), |context| {
                context.create(parent, template, Some(password), Some(data), None, None)
            })
        });
    }

    /// Overwrites the record of an object's password.
    pub(crate) fn forget_password(&mut self, object: ObjectHandle) {
        let _ = self.attempt(|context| context.tr_set_auth(object, Auth::default()));
    }
}

/// Takes blocks that were freed from the allocator, overwrites and returns them.
#[inline(never)]
fn overwrite_freed_heap() {
    let overwritten = |len| {
        // Not `vec![0; len]`, which asks for zeroed memory and may get other blocks.
        let mut block: Vec<u8> = Vec::with_capacity(len);
        block.extend(std::iter::repeat_n(0, len));
        black_box(block)
    };
    // The library's answers and, longer, its records of sessions and objects.
    let blocks: Vec<Vec<u8>> = (24..=1032_usize)
        .step_by(16)
        .chain((1024..=4096).step_by(256))
        .flat_map(|len| std::iter::repeat_n(len, BLOCKS))
        .map(overwritten)
        .collect();
    black_box(blocks);
}

//! One open connection to a TPM.
//!
//! Invariants:
//! 1. Sessions and transient objects live inside a closure and are flushed when it returns,
//!    whatever it returns.
//! 2. Sessions are salted to the SRK and encrypt parameters both ways.
//! 3. After an error below the TPM layer the connection is of no use; the owner drops it.

use std::fmt;

use tracing::{debug, warn};
use tss_esapi::attributes::SessionAttributesBuilder;
use tss_esapi::constants::{CapabilityType, PropertyTag, SessionType};
use tss_esapi::handles::{KeyHandle, ObjectHandle, PersistentTpmHandle, SessionHandle, TpmHandle};
use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::interface_types::resource_handles::Provision;
use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::structures::{CapabilityData, SymmetricDefinition};
use tss_esapi::{Context, Error, WrapperErrorKind};
use zeroize::Zeroizing;

use crate::code;
use crate::command::Command;
use crate::error::TpmError;
use crate::measurements::Measurements;
use crate::pcr::PcrSelection;
use crate::srk::Name;
use crate::tcti::Tcti;

/// First handles of the ranges that occupy slots (TPM 2.0 Part 2, 7.2).
const TRANSIENT_FIRST: u32 = 0x8000_0000;
const LOADED_SESSION_FIRST: u32 = 0x0200_0000;
const MAX_HANDLES: u32 = 64;

/// Who made a TPM and what runs on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Properties {
    /// Manufacturer's id in the TCG vendor registry, such as `IFX` or `STM`.
    pub manufacturer: String,
    /// The manufacturer's name for the part.
    pub vendor: String,
    /// Firmware version, four numbers.
    pub firmware: String,
    /// Whether this is a software TPM (libtpms), which protects nothing from who owns the
    /// machine it runs on.
    pub is_swtpm: bool,
}

impl fmt::Display for Properties {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {}, firmware {}{}",
            self.manufacturer,
            self.vendor,
            self.firmware,
            if self.is_swtpm { ", software TPM" } else { "" }
        )
    }
}

/// What occupies the slots of a TPM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loaded {
    /// Transient objects.
    pub objects: usize,
    /// Sessions.
    pub sessions: usize,
}

pub(crate) struct Device {
    context: Context,
    open: Vec<Open>,
}

/// The library's record of a persistent object. There is one for all nested users: whether the
/// library counts them itself depends on its version.
struct Open {
    handle: u32,
    object: ObjectHandle,
    users: usize,
}

impl Device {
    pub(crate) fn open(tcti: &Tcti) -> Result<Self, TpmError> {
        let absent = || TpmError::Absent { tcti: tcti.clone(), absence: tcti.absence() };
        let conf = tcti.name_conf().map_err(|_| absent())?;
        let context = Context::new(conf).map_err(|_| absent())?;
        let mut device = Self { context, open: Vec::new() };
        if tcti.is_swtpm() {
            device.flush_leaked()?;
        }
        debug!(%tcti, "TPM opened");
        Ok(device)
    }

    /// Executes one command.
    pub(crate) fn execute<T>(
        &mut self,
        command: Command,
        f: impl FnOnce(&mut Context) -> tss_esapi::Result<T>,
    ) -> Result<T, TpmError> {
        self.attempt(f).map_err(|error| code::translate(command, error))
    }

    /// Executes one command whose refusal the caller interprets itself.
    pub(crate) fn attempt<T>(
        &mut self,
        f: impl FnOnce(&mut Context) -> tss_esapi::Result<T>,
    ) -> tss_esapi::Result<T> {
        f(&mut self.context)
    }

    /// Runs `f` with a session salted to `srk` that encrypts parameters both ways.
    pub(crate) fn with_session<T>(
        &mut self,
        kind: SessionType,
        srk: KeyHandle,
        f: impl FnOnce(&mut Self, AuthSession) -> Result<T, TpmError>,
    ) -> Result<T, TpmError> {
        let command = Command::StartAuthSession;
        let session = self
            .execute(command, |context| {
                context.start_auth_session(
                    Some(srk),
                    None,
                    None,
                    kind,
                    SymmetricDefinition::AES_128_CFB,
                    HashingAlgorithm::Sha256,
                )
            })?
            .ok_or(TpmError::Malformed { command })?;
        self.with_flushed(SessionHandle::from(session).into(), |device| {
            device.encrypt_parameters(session, true)?;
            f(device, session)
        })
    }

    /// Has a session encrypt parameters both ways, or leave that to another one.
    pub(crate) fn encrypt_parameters(
        &mut self,
        session: AuthSession,
        encrypt: bool,
    ) -> Result<(), TpmError> {
        let (attributes, mask) = SessionAttributesBuilder::new()
            .with_decrypt(encrypt)
            .with_encrypt(encrypt)
            .with_continue_session(true)
            .build();
        self.execute(Command::StartAuthSession, |context| {
            context.tr_sess_set_attributes(session, attributes, mask)
        })
    }

    /// Runs `f`, then flushes `handle`.
    pub(crate) fn with_flushed<T>(
        &mut self,
        handle: ObjectHandle,
        f: impl FnOnce(&mut Self) -> Result<T, TpmError>,
    ) -> Result<T, TpmError> {
        let outcome = f(self);
        let flushed = self.execute(Command::FlushContext, |context| context.flush_context(handle));
        let value = outcome?;
        flushed?;
        Ok(value)
    }

    /// Looks for a persistent object. What is found is to be closed.
    pub(crate) fn find(&mut self, handle: u32) -> Result<Option<ObjectHandle>, TpmError> {
        if let Some(open) = self.open.iter_mut().find(|open| open.handle == handle) {
            open.users += 1;
            return Ok(Some(open.object));
        }
        let command = Command::ReadPublic;
        let persistent = self.execute(command, |_| PersistentTpmHandle::new(handle))?;
        match self.attempt(|context| context.tr_from_tpm_public(TpmHandle::Persistent(persistent)))
        {
            Ok(object) => {
                self.open.push(Open { handle, object, users: 1 });
                Ok(Some(object))
            }
            Err(error) if code::is_missing_handle(error) => Ok(None),
            Err(error) => Err(code::translate(command, error)),
        }
    }

    /// Runs `f` with what [`Self::find`] found, then closes the record of it.
    pub(crate) fn with_closed<T>(
        &mut self,
        object: ObjectHandle,
        f: impl FnOnce(&mut Self, ObjectHandle) -> Result<T, TpmError>,
    ) -> Result<T, TpmError> {
        let outcome = f(self, object);
        let closed = self.close(object);
        let value = outcome?;
        closed?;
        Ok(value)
    }

    fn close(&mut self, mut object: ObjectHandle) -> Result<(), TpmError> {
        if let Some(index) = self.open.iter().position(|open| open.object == object)
            && let Some(open) = self.open.get_mut(index)
        {
            open.users -= 1;
            if open.users > 0 {
                return Ok(());
            }
            self.open.swap_remove(index);
        }
        self.execute(Command::ReadPublic, |context| context.tr_close(&mut object))
    }

    /// Makes a transient object persistent.
    pub(crate) fn persist(&mut self, key: KeyHandle, handle: u32) -> Result<(), TpmError> {
        let object = self.execute(Command::EvictControl, |context| {
            let handle = PersistentTpmHandle::new(handle)?.into();
            context.execute_with_session(Some(AuthSession::Password), |context| {
                context.evict_control(Provision::Owner, key.into(), handle)
            })
        })?;
        self.close(object)
    }

    /// Removes a persistent object, if it is there.
    pub(crate) fn evict(&mut self, handle: u32) -> Result<(), TpmError> {
        let Some(mut object) = self.find(handle)? else {
            return Ok(());
        };
        let evicted = self.execute(Command::EvictControl, |context| {
            let handle = PersistentTpmHandle::new(handle)?.into();
            context.execute_with_session(Some(AuthSession::Password), |context| {
                context.evict_control(Provision::Owner, object, handle)
            })
        });
        if let Err(error) = evicted {
            return self.with_closed(object, |_, _| Err(error));
        }
        self.open.retain(|open| open.object != object);
        // Some versions of the library keep the record of what was evicted, which would be in
        // the way of the next object there; some do not, and say so.
        let _ = self.attempt(|context| context.tr_close(&mut object));
        Ok(())
    }

    /// Name of an object, which the library derives from its public area; `None` if it is not
    /// one with SHA-256.
    pub(crate) fn name_of(&mut self, object: ObjectHandle) -> Result<Option<Name>, TpmError> {
        let name = self.execute(Command::ReadPublic, |context| context.tr_get_name(object))?;
        Ok(name.value().try_into().ok())
    }

    /// Reads PCRs; the answer is not authenticated.
    pub(crate) fn read_pcrs(&mut self, selection: PcrSelection) -> Result<Measurements, TpmError> {
        let command = Command::PcrRead;
        let mut concatenated = Vec::with_capacity(selection.values_len());
        for batch in selection.batches() {
            let (_, _, digests) =
                self.execute(command, |context| context.pcr_read(batch.to_list()?))?;
            let before = concatenated.len();
            for digest in digests.value() {
                concatenated.extend_from_slice(digest.value());
            }
            // A TPM leaves out what it does not keep.
            if concatenated.len() - before != batch.values_len() {
                return Err(TpmError::PcrBank { selection });
            }
        }
        Measurements::new(selection, concatenated).ok_or(TpmError::Malformed { command })
    }

    pub(crate) fn random(&mut self) -> Result<Box<Zeroizing<[u8; 32]>>, TpmError> {
        self.ensure_srk()?;
        self.with_srk(|device, srk, _| {
            device.with_session(SessionType::Hmac, srk, |device, session| {
                let command = Command::GetRandom;
                let bytes = device.execute(command, |context| {
                    context.execute_with_session(Some(session), |context| context.get_random(32))
                })?;
                let mut random = Box::new(Zeroizing::new([0; 32]));
                if bytes.value().len() != random.len() {
                    return Err(TpmError::Malformed { command });
                }
                random.copy_from_slice(bytes.value());
                Ok(random)
            })
        })
    }

    pub(crate) fn properties(&mut self) -> Result<Properties, TpmError> {
        let manufacturer = text(&[self.property(PropertyTag::Manufacturer)?]);
        let vendor = text(&[
            self.property(PropertyTag::VendorString1)?,
            self.property(PropertyTag::VendorString2)?,
            self.property(PropertyTag::VendorString3)?,
            self.property(PropertyTag::VendorString4)?,
        ]);
        let firmware = [
            self.property(PropertyTag::FirmwareVersion1)?,
            self.property(PropertyTag::FirmwareVersion2)?,
        ]
        .map(|half| format!("{}.{}", half >> 16, half & 0xffff))
        .join(".");
        Ok(Properties {
            // libtpms says so of itself.
            is_swtpm: manufacturer == "IBM" && vendor.starts_with("SW"),
            manufacturer,
            vendor,
            firmware,
        })
    }

    fn property(&mut self, tag: PropertyTag) -> Result<u32, TpmError> {
        let command = Command::GetCapability;
        self.execute(command, |context| context.get_tpm_property(tag))?
            .ok_or(TpmError::Malformed { command })
    }

    pub(crate) fn loaded(&mut self) -> Result<Loaded, TpmError> {
        Ok(Loaded {
            objects: self.handles(TRANSIENT_FIRST)?.len(),
            sessions: self.handles(LOADED_SESSION_FIRST)?.len(),
        })
    }

    fn handles(&mut self, first: u32) -> Result<Vec<TpmHandle>, TpmError> {
        let command = Command::GetCapability;
        let (data, _) = self.execute(command, |context| {
            context.get_capability(CapabilityType::Handles, first, MAX_HANDLES)
        })?;
        match data {
            CapabilityData::Handles(handles) => Ok(handles.into_inner()),
            _ => Err(TpmError::Malformed { command }),
        }
    }

    /// Frees slots of a TPM without resource manager, whose few slots programs that were killed
    /// leave occupied.
    fn flush_leaked(&mut self) -> Result<(), TpmError> {
        for first in [TRANSIENT_FIRST, LOADED_SESSION_FIRST] {
            for handle in self.handles(first)? {
                warn!("flushing {:#x}, left in the software TPM", u32::from(handle));
                let object = self
                    .execute(Command::ReadPublic, |context| context.tr_from_tpm_public(handle))?;
                match self.attempt(|context| context.flush_context(object)) {
                    // The wrapper has no record of policy sessions it did not start, and says so
                    // after the TPM has flushed them.
                    Ok(()) | Err(Error::WrapperError(WrapperErrorKind::InvalidHandleState)) => {}
                    Err(error) => return Err(code::translate(Command::FlushContext, error)),
                }
            }
        }
        Ok(())
    }
}

/// Text that a TPM packs into numbers, four characters each.
fn text(words: &[u32]) -> String {
    words
        .iter()
        .flat_map(|word| word.to_be_bytes())
        .filter(|byte| byte.is_ascii_graphic() || *byte == b' ')
        .map(char::from)
        .collect::<String>()
        .trim()
        .to_owned()
}

//! Custodian `pkcs11`: a secure element, OP-TEE or an HSM behind PKCS #11 (OASIS, 2.40 and later).
//!
//! Invariants:
//! - each epoch has an AES-256 key that the token made and never gives out (sensitive, not
//!   extractable), labelled `moai-epoch-N`; its `CKA_ID` names the robot, so robots that share a
//!   token do not touch each other's keys;
//! - the root secret is sealed with `CKM_AES_GCM`; robot and epoch are authenticated with it;
//! - a key is destroyed only after the key that is to stay has opened the body that is to stay;
//! - one call at a time, each in a session of its own; no PIN is kept between calls.
//!
//! A body is `version u8 = 1 ‖ nonce 12 ‖ ciphertext 32 ‖ tag 16`. Only a token with its keys can
//! make one, so a forged body is refused, not opened.
//!
//! The module is a C library in this process: what it copies is outside the reach of the zeroizing
//! allocator.

mod error;
mod token;

use std::sync::{Mutex, PoisonError};

use cryptoki::context::Pkcs11;
use cryptoki::mechanism::Mechanism;
use cryptoki::mechanism::aead::GcmParams;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;
use moai_tpm::{Epoch, RootSecret};
use moai_transport::ids::Identity;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

pub use self::error::{PinFileProblem, Pkcs11Error};
use self::token::Access;
use super::{Custodian, CustodianKind, CustodyError};
use crate::config::Pkcs11Config;

const VERSION: u8 = 1;
const NONCE_LEN: usize = 12;
/// Version, nonce, ciphertext and tag.
const BODY_LEN: usize = 1 + NONCE_LEN + 32 + 16;
const LABEL_PREFIX: &str = "moai-epoch-";

/// A PKCS #11 token as custodian.
pub struct Pkcs11Custodian {
    config: Pkcs11Config,
    identity: Identity,
    /// The loaded module; the lock is held for a whole call.
    module: Mutex<Option<Pkcs11>>,
}

impl Pkcs11Custodian {
    /// Does not touch the token yet.
    #[must_use]
    pub fn new(config: Pkcs11Config, identity: Identity) -> Self {
        Self { config, identity, module: Mutex::new(None) }
    }

    /// `CKA_ID` of this robot's keys: short enough for every token.
    fn key_id(&self) -> Vec<u8> {
        let digest = Sha256::digest(format!("moai/v1/pkcs11/{}", self.identity));
        digest.iter().copied().take(16).collect()
    }

    fn associated_data(&self, epoch: Epoch) -> Vec<u8> {
        format!("moai/v1/root {} {}", self.identity, label(epoch)).into_bytes()
    }

    fn with_module<T>(
        &self,
        call: impl FnOnce(&Pkcs11) -> Result<T, Pkcs11Error>,
    ) -> Result<T, Pkcs11Error> {
        let mut slot = self.module.lock().unwrap_or_else(PoisonError::into_inner);
        let module = match slot.take() {
            Some(module) => module,
            None => token::load(&self.config.module)?,
        };
        let result = call(&module);
        if result.as_ref().err().is_some_and(Pkcs11Error::heals) {
            // Many modules look for tokens only while they are initialised.
            let _ = module.finalize();
        } else {
            *slot = Some(module);
        }
        result
    }

    fn with_session<T>(
        &self,
        access: Access,
        call: impl FnOnce(&Session) -> Result<T, Pkcs11Error>,
    ) -> Result<T, Pkcs11Error> {
        self.with_module(|module| {
            let slot = token::find(module, &self.config.token)?;
            call(&token::log_in(module, slot, access, &self.config)?)
        })
    }

    /// The keys of this robot and of `epoch`: more than one if a start was cut off after the key
    /// was made and before its body was written.
    fn keys(&self, session: &Session, epoch: Epoch) -> Result<Vec<ObjectHandle>, Pkcs11Error> {
        let mut template = self.template();
        template.push(Attribute::Label(label(epoch).into_bytes()));
        Ok(session.find_objects(&template)?)
    }

    fn template(&self) -> Vec<Attribute> {
        vec![
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(KeyType::AES),
            Attribute::Token(true),
            Attribute::Id(self.key_id()),
        ]
    }

    fn generate_key(&self, session: &Session, epoch: Epoch) -> Result<ObjectHandle, Pkcs11Error> {
        let mut template = self.template();
        template.extend([
            Attribute::Label(label(epoch).into_bytes()),
            Attribute::ValueLen(32.into()),
            Attribute::Private(true),
            Attribute::Sensitive(true),
            Attribute::Extractable(false),
            Attribute::Encrypt(true),
            Attribute::Decrypt(true),
            Attribute::Wrap(false),
            Attribute::Unwrap(false),
        ]);
        Ok(session.generate_key(&Mechanism::AesKeyGen, &template)?)
    }

    fn encrypt(
        &self,
        session: &Session,
        key: ObjectHandle,
        epoch: Epoch,
        root: &RootSecret,
    ) -> Result<Vec<u8>, Pkcs11Error> {
        let mut nonce = [0; NONCE_LEN];
        session.generate_random_slice(&mut nonce)?;
        let associated_data = self.associated_data(epoch);
        let mechanism = gcm(&mut nonce, &associated_data)?;
        let ciphertext = session.encrypt(&mechanism, key, root.expose())?;
        // Read only now: some tokens insist on a nonce of their own and put it in place of ours.
        let mut body = vec![VERSION];
        body.extend(nonce);
        body.extend(ciphertext);
        if body.len() == BODY_LEN { Ok(body) } else { Err(Pkcs11Error::Body) }
    }

    /// Opens a body with the one of `keys` that made it, and returns that key too.
    fn decrypt(
        &self,
        session: &Session,
        keys: &[ObjectHandle],
        epoch: Epoch,
        body: &[u8],
    ) -> Result<(RootSecret, ObjectHandle), Pkcs11Error> {
        let body: &[u8; BODY_LEN] = body.try_into().map_err(|_| Pkcs11Error::Body)?;
        let [VERSION, sealed @ ..] = body else { return Err(Pkcs11Error::Body) };
        let (nonce, ciphertext) = sealed.split_at(NONCE_LEN);
        let associated_data = self.associated_data(epoch);
        for &key in keys {
            let mut nonce = nonce.to_vec();
            let mechanism = gcm(&mut nonce, &associated_data)?;
            match session.decrypt(&mechanism, key, ciphertext).map(Zeroizing::new) {
                Ok(root) => {
                    let root = root.as_slice().try_into().map_err(|_| Pkcs11Error::Body)?;
                    return Ok((RootSecret::copy_of(root), key));
                }
                Err(error) => match Pkcs11Error::from_decryption(error) {
                    Pkcs11Error::Tampered => {}
                    other => return Err(other),
                },
            }
        }
        Err(if keys.is_empty() {
            Pkcs11Error::KeyGone { label: label(epoch), token: self.config.token.clone() }
        } else {
            Pkcs11Error::Tampered
        })
    }
}

impl Custodian for Pkcs11Custodian {
    fn kind(&self) -> CustodianKind {
        CustodianKind::Pkcs11
    }

    fn describe(&self) -> Result<String, CustodyError> {
        Ok(self.with_module(|module| token::describe(module, &self.config))?)
    }

    fn random(&self) -> Result<Box<Zeroizing<[u8; 32]>>, CustodyError> {
        let mut bytes = Box::new(Zeroizing::new([0; 32]));
        self.with_session(Access::Read, |session| {
            Ok(session.generate_random_slice(bytes.as_mut_slice())?)
        })?;
        Ok(bytes)
    }

    fn seal(
        &self,
        epoch: Epoch,
        root: &RootSecret,
        _previous: Option<&[u8]>,
    ) -> Result<Vec<u8>, CustodyError> {
        // A key of this epoch that is there already stays until `retire`: it may be the one of the
        // body in use, which is replaced only later.
        Ok(self.with_session(Access::Write, |session| {
            let key = self.generate_key(session, epoch)?;
            self.encrypt(session, key, epoch, root).inspect_err(|_| {
                // The first error counts; a key that stays behind goes with the next `retire`.
                let _ = session.destroy_object(key);
            })
        })?)
    }

    fn unseal(&self, epoch: Epoch, body: &[u8]) -> Result<RootSecret, CustodyError> {
        Ok(self.with_session(Access::Read, |session| {
            let keys = self.keys(session, epoch)?;
            self.decrypt(session, &keys, epoch, body).map(|(root, _)| root)
        })?)
    }

    fn retire(&self, keep: Epoch, body: &[u8]) -> Result<(), CustodyError> {
        Ok(self.with_session(Access::Write, |session| {
            let (_, kept) = self.decrypt(session, &self.keys(session, keep)?, keep, body)?;
            for key in session.find_objects(&self.template())? {
                if key != kept && is_epoch_key(session, key)? {
                    session.destroy_object(key)?;
                }
            }
            Ok(())
        })?)
    }

    fn shreds(&self) -> bool {
        true
    }
}

fn gcm<'a>(nonce: &'a mut [u8], associated_data: &'a [u8]) -> Result<Mechanism<'a>, Pkcs11Error> {
    Ok(Mechanism::AesGcm(GcmParams::new(nonce, associated_data, 128.into())?))
}

fn label(epoch: Epoch) -> String {
    format!("{LABEL_PREFIX}{epoch}")
}

fn is_epoch_key(session: &Session, key: ObjectHandle) -> Result<bool, Pkcs11Error> {
    let attributes = session.get_attributes(key, &[AttributeType::Label])?;
    Ok(attributes.iter().any(|attribute| {
        matches!(attribute, Attribute::Label(text) if text.starts_with(LABEL_PREFIX.as_bytes()))
    }))
}

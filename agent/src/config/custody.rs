//! What keeps the root secret: `[custody]` and the sections of the custodian and the escrow it
//! names.
//!
//! Invariant: a custodian or an escrow is chosen only together with everything it needs.

use std::path::PathBuf;
use std::time::Duration;

use moai_settings::Section;

/// `[custody]`, with the sections of the custodian and the escrow it names.
#[derive(Debug)]
pub struct CustodyConfig {
    /// What keeps the root secret.
    pub custodian: CustodianConfig,
    /// How often the next epoch begins by itself; never if absent.
    pub rotate_every: Option<Duration>,
    /// Who can open a copy of the root secret when the custodian is lost.
    pub escrow: Option<EscrowConfig>,
}

/// What keeps the root secret.
#[derive(Debug, PartialEq, Eq)]
pub enum CustodianConfig {
    /// The TPM of `[tpm]`.
    Tpm,
    /// A PKCS #11 token: secure element, OP-TEE or HSM.
    Pkcs11(Pkcs11Config),
    /// A cloud's key management service.
    Kms(KmsConfig),
    /// An environment variable; for development.
    Env,
}

/// `[pkcs11]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pkcs11Config {
    /// The token's shared library.
    pub module: PathBuf,
    /// Label of the token.
    pub token: String,
    /// File with the user PIN.
    pub pin_file: PathBuf,
}

/// `[kms]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KmsConfig {
    /// Id, ARN or alias of the symmetric key.
    pub key: String,
    /// Region of the key.
    pub region: String,
    /// Another endpoint than the region's own.
    pub endpoint: Option<String>,
}

/// `[escrow]`
#[derive(Debug, PartialEq, Eq)]
pub enum EscrowConfig {
    /// File with an X25519 public key whose private half is kept offline.
    PublicKey(PathBuf),
    /// The key of `[kms]`.
    Kms(KmsConfig),
}

pub(super) fn read(root: &mut Section<'_>, development: bool) -> Option<CustodyConfig> {
    let chosen = root.section("custody", |custody| {
        let word = custody.optional("custodian", CustodianWord::Tpm);
        if word == Some(CustodianWord::Env) && !development {
            custody.problem(
                "`custody.custodian` = \"env\" is for development: use another custodian, or set \
                 `development = true` on a machine that holds nothing worth protecting",
            );
            return None;
        }
        let hours = custody.integer("rotate_hours", 0..=8760, Some(24));
        Some((word?, hours?))
    });
    let pkcs11 = optional_section(root, "pkcs11", |pkcs11| {
        let module = pkcs11.required("module");
        let token = pkcs11.required("token");
        let pin_file = pkcs11.required("pin_file");
        Some(Pkcs11Config { module: module?, token: token?, pin_file: pin_file? })
    });
    let kms = optional_section(root, "kms", |kms| {
        let key = kms.required("key");
        let region = kms.required("region");
        let endpoint = kms.maybe("endpoint");
        Some(KmsConfig { key: key?, region: region?, endpoint: endpoint? })
    });
    let recipient =
        optional_section(root, "escrow", |escrow| escrow.required::<String>("recipient"));
    let (word, hours) = chosen?;
    let (pkcs11, kms, recipient) = (pkcs11?, kms?, recipient?);
    let custodian = match (word, pkcs11, &kms) {
        (CustodianWord::Tpm, ..) => CustodianConfig::Tpm,
        (CustodianWord::Env, ..) => CustodianConfig::Env,
        (CustodianWord::Pkcs11, Some(pkcs11), _) => CustodianConfig::Pkcs11(pkcs11),
        (CustodianWord::Kms, _, Some(kms)) => CustodianConfig::Kms(kms.clone()),
        (CustodianWord::Pkcs11, None, _) => return missing(root, "pkcs11"),
        (CustodianWord::Kms, _, None) => return missing(root, "kms"),
    };
    let escrow = match (recipient.as_deref(), kms) {
        (None, _) => None,
        (Some("kms"), Some(kms)) => Some(EscrowConfig::Kms(kms)),
        (Some("kms"), None) => return missing(root, "kms"),
        (Some(path), _) => Some(EscrowConfig::PublicKey(path.into())),
    };
    let rotate_every = (hours > 0).then(|| Duration::from_hours(hours));
    Some(CustodyConfig { custodian, rotate_every, escrow })
}

fn missing<T>(root: &Section<'_>, section: &str) -> Option<T> {
    root.problem(format_args!(
        "the section [{section}] is missing, which the configuration asks for"
    ));
    None
}

/// A section that need not be there.
#[expect(clippy::option_option, reason = "the outer one says whether there are problems")]
fn optional_section<T>(
    root: &mut Section<'_>,
    key: &'static str,
    build: impl FnOnce(&mut Section<'_>) -> Option<T>,
) -> Option<Option<T>> {
    if root.has(key) { root.section(key, build).map(Some) } else { Some(None) }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CustodianWord {
    Tpm,
    Pkcs11,
    Kms,
    Env,
}

impl std::str::FromStr for CustodianWord {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "tpm" => Ok(Self::Tpm),
            "pkcs11" => Ok(Self::Pkcs11),
            "kms" => Ok(Self::Kms),
            "env" => Ok(Self::Env),
            _ => Err("it must be \"tpm\", \"pkcs11\", \"kms\" or \"env\""),
        }
    }
}

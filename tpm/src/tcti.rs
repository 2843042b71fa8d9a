//! Where the TPM is: the TPM Command Transmission Interface (TCTI).
//!
//! Invariant: a [`Tcti`] is exactly what the TSS library will open. The library's own parser
//! falls back to defaults when it meets something it does not know (`swtpm:path=…` becomes
//! `localhost:2321`), so only the two forms below are accepted and each is compared with what
//! the library made of it.

use std::ffi::CString;
use std::fmt;
use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::net::{IpAddr, TcpStream, ToSocketAddrs as _};
use std::str::FromStr;
use std::time::Duration;

use tss_esapi::tcti_ldr::TctiNameConf;

use crate::error::Absence;

const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// Address of a TPM: `device:/dev/tpmrm0` or `swtpm:host=127.0.0.1,port=2321`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tcti(Form);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Form {
    Device { path: String },
    Swtpm { host: String, port: u16 },
}

/// A TCTI text that is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TctiError {
    /// Neither `device:` nor `swtpm:`.
    #[error("unknown TCTI {0:?}: write \"device:/dev/tpmrm0\" or \"swtpm:host=HOST,port=PORT\"")]
    Kind(String),
    /// `device:` without an absolute path.
    #[error("TCTI device {0:?} is not an absolute path: write \"device:/dev/tpmrm0\"")]
    Path(String),
    /// `swtpm:` with other settings than one host and one port.
    #[error(
        "TCTI setting {0:?} is not supported: give a software TPM as \"swtpm:host=HOST,port=PORT\""
    )]
    Setting(String),
    /// The TSS library would open something else.
    #[error("the TSS library misreads the TCTI {0:?}: use another path or host name")]
    Misread(String),
}

impl Tcti {
    /// Whether this is a software TPM reached over TCP, which has no resource manager.
    pub(crate) fn is_swtpm(&self) -> bool {
        matches!(self.0, Form::Swtpm { .. })
    }

    /// What the TSS library opens, if it reads the text as we do.
    pub(crate) fn name_conf(&self) -> Result<TctiNameConf, TctiError> {
        let text = self.to_string();
        let misread = || TctiError::Misread(text.clone());
        let conf = TctiNameConf::from_str(&text).map_err(|_| misread())?;
        let opened = CString::try_from(conf.clone()).map_err(|_| misread())?;
        if opened.as_bytes() == text.as_bytes() { Ok(conf) } else { Err(misread()) }
    }

    /// Why nothing could be opened here. The library knows only "I/O error", so this looks
    /// itself.
    pub(crate) fn absence(&self) -> Absence {
        let attempt = match &self.0 {
            Form::Device { path } => OpenOptions::new().read(true).write(true).open(path).map(drop),
            Form::Swtpm { host, port } => (host.as_str(), *port)
                .to_socket_addrs()
                .and_then(|mut addresses| addresses.next().ok_or(ErrorKind::NotFound.into()))
                .and_then(|address| TcpStream::connect_timeout(&address, PROBE_TIMEOUT).map(drop)),
        };
        match (&self.0, attempt.map_err(|error| error.kind())) {
            (_, Ok(())) => Absence::Library,
            (Form::Swtpm { .. }, Err(_)) => Absence::Unreachable,
            (_, Err(ErrorKind::NotFound)) => Absence::NoDevice,
            (_, Err(ErrorKind::PermissionDenied)) => Absence::Permission,
            (_, Err(ErrorKind::ResourceBusy)) => Absence::InUse,
            (_, Err(kind)) => Absence::Other(kind),
        }
    }
}

impl FromStr for Tcti {
    type Err = TctiError;

    fn from_str(text: &str) -> Result<Self, TctiError> {
        let form = if let Some(path) = text.strip_prefix("device:") {
            parse_device(path)?
        } else if let Some(settings) = text.strip_prefix("swtpm:") {
            parse_swtpm(settings)?
        } else {
            return Err(TctiError::Kind(text.to_owned()));
        };
        let tcti = Self(form);
        tcti.name_conf()?;
        Ok(tcti)
    }
}

fn parse_device(path: &str) -> Result<Form, TctiError> {
    let plain = path.chars().all(|c| c.is_ascii_graphic());
    if !path.starts_with('/') || path.ends_with('/') || !plain {
        return Err(TctiError::Path(path.to_owned()));
    }
    Ok(Form::Device { path: path.to_owned() })
}

fn parse_swtpm(settings: &str) -> Result<Form, TctiError> {
    let mut host = None;
    let mut port = None;
    for setting in settings.split(',') {
        let refused = || TctiError::Setting(setting.to_owned());
        let (key, value) = setting.split_once('=').ok_or_else(refused)?;
        match key {
            "host" if host.is_none() && is_host(value) => host = Some(value.to_owned()),
            "port" if port.is_none() => {
                let number: u16 = value.parse().map_err(|_| refused())?;
                port = Some(number).filter(|&number| number != 0);
            }
            _ => return Err(refused()),
        }
    }
    let refused = || TctiError::Setting(settings.to_owned());
    Ok(Form::Swtpm { host: host.ok_or_else(refused)?, port: port.ok_or_else(refused)? })
}

/// An IP address or a host name (RFC 1123).
fn is_host(text: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
    };
    text.parse::<IpAddr>().is_ok() || (text.len() <= 253 && text.split('.').all(is_label))
}

impl fmt::Display for Tcti {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Form::Device { path } => write!(f, "device:{path}"),
            Form::Swtpm { host, port } => write!(f, "swtpm:host={host},port={port}"),
        }
    }
}

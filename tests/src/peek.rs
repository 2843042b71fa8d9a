//! A look into frames that nobody verifies, as a broker has it: for tests only.

use anyhow::{Context, Result, ensure};
use ciborium::Value;
use moai_transport::frame::{Claims, Frame, FrameKind, PREFIX_LEN};
use moai_transport::ids::{ContextId, Digest, SessionId};

/// The frame in these bytes, whoever made it.
///
/// # Errors
/// The bytes are no frame.
pub fn peek(bytes: &[u8]) -> Result<Frame> {
    let (prefix, rest) = bytes.split_first_chunk::<PREFIX_LEN>().context("no prefix")?;
    let [b'M', b'O', b'A', b'I', 1, kind, high, low] = *prefix else {
        anyhow::bail!("no frame of version 1");
    };
    let kind = FrameKind::ALL.into_iter().find(|known| *known as u8 == kind);
    let len = usize::from(u16::from_be_bytes([high, low]));
    let (header, body) = rest.split_at_checked(len).context("the header is cut")?;
    let header: Value = ciborium::from_reader(header)?;
    let payload = header.as_array().and_then(|parts| parts.get(2)?.as_bytes());
    let claims: Value = ciborium::from_reader(payload.context("no payload")?.as_slice())?;
    let mut read = Claims::default();
    for (key, value) in claims.as_map().context("claims are a map")? {
        let text = || value.as_text().context("a text");
        let number = || anyhow::Ok(u64::try_from(value.as_integer().context("a number")?)?);
        match i128::from(key.as_integer().context("a numbered claim")?) {
            1 => read.identity = Some(text()?.parse()?),
            2 => read.session = SessionId::from_bytes(array(value)?),
            3 => read.number = number()?,
            4 => read.model = Some(text()?.parse()?),
            5 => read.context = Some(ContextId(Digest(array(value)?))),
            6 => ensure!(Digest(array(value)?) == Digest::of(body), "another body"),
            7 => read.expires_at = number()?,
            8 => read.compute_micros = Some(number()?),
            9 => read.tenant = Some(text()?.parse()?),
            other => anyhow::bail!("claim {other}"),
        }
    }
    Ok(Frame { kind: kind.context("an unknown kind")?, claims: read, body: body.to_vec() })
}

fn array<const N: usize>(value: &Value) -> Result<[u8; N]> {
    Ok(value.as_bytes().context("bytes")?.as_slice().try_into()?)
}

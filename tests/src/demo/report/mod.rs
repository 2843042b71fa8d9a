//! stub
use super::play::Job;
use super::summary::Summary;
use anyhow::Result;
use std::path::Path;
/// x
pub fn write(_p: &Path, _s: &Summary, _j: &[Job]) -> Result<()> {
    Ok(())
}

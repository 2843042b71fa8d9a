//! Writes the manual of the agent's command line.

use std::fs;

use anyhow::{Context, Result};
use moai_tests::manual::{directory, files};

fn main() -> Result<()> {
    let directory = directory();
    if directory.exists() {
        // Commands that are there no more have no page.
        fs::remove_dir_all(&directory)?;
    }
    fs::create_dir_all(&directory)?;
    let files = files()?;
    for (name, content) in &files {
        let path = directory.join(name);
        fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
    }
    println!("{} files are in {}", files.len(), directory.display());
    Ok(())
}

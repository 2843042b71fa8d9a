//! The licences of what is linked into a program.
//!
//! Invariant: no crate is left out: one without a text is named with its licence's identifier.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::cargo::cargo;

/// What files with licences and notices are called, in any case.
const NAMES: [&str; 6] = ["license", "licence", "copying", "copyright", "notice", "unlicense"];

/// Names and licences of all crates that `package` is built of but for our own, and then their texts, each
/// once.
///
/// # Errors
/// Cargo does not say, or a text cannot be read.
pub(crate) fn of(package: &str) -> Result<String> {
    let metadata = output(&["metadata", "--format-version", "1", "--locked"])?;
    let metadata: Value = serde_json::from_str(&metadata)?;
    let manifests = manifests(&metadata).context("cargo metadata has another form")?;
    let tree = ["tree", "--locked", "--edges", "normal", "--prefix", "none", "--package", package];
    let tree = output(&[&tree[..], &["--format", "{p}|{l}"]].concat())?;
    let mut list = String::new();
    let mut texts: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let lines: BTreeSet<&str> = tree.lines().map(|line| line.trim_end_matches(" (*)")).collect();
    for (crate_name, licence) in lines.iter().filter_map(|line| line.split_once('|')) {
        let mut words = crate_name.split(' ');
        let (Some(name), Some(version)) = (words.next(), words.next()) else { continue };
        let version = version.trim_start_matches('v');
        let manifest = manifests.get(&(name.to_owned(), version.to_owned()));
        // Our own come from no registry.
        let Some(manifest) = manifest else { continue };
        // Writing to a String cannot fail.
        let _ = writeln!(list, "{name} {version}: {licence}");
        for text in read(Path::new(manifest))? {
            texts.entry(text).or_default().insert(format!("{name} {version}"));
        }
    }
    ensure!(!list.is_empty(), "{package} is built of nothing");
    for (text, crates) in texts {
        let crates: Vec<String> = crates.into_iter().collect();
        let _ = write!(list, "\n{:=<80}\n{}:\n\n{}\n", "", crates.join(", "), text.trim_end());
    }
    Ok(list)
}

/// Where the manifests of crates of registries lie, by name and version.
fn manifests(metadata: &Value) -> Option<BTreeMap<(String, String), String>> {
    let packages = metadata["packages"].as_array()?.iter().filter(|it| !it["source"].is_null());
    packages
        .map(|package| {
            let text = |key: &str| package[key].as_str().map(str::to_owned);
            Some(((text("name")?, text("version")?), text("manifest_path")?))
        })
        .collect()
}

/// The texts beside a manifest.
fn read(manifest: &Path) -> Result<Vec<String>> {
    let directory = manifest.parent().context("a manifest lies in a directory")?;
    let mut texts = BTreeMap::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().to_lowercase();
        if NAMES.iter().any(|wanted| name.starts_with(wanted)) && entry.file_type()?.is_file() {
            let text = fs::read(entry.path())?;
            texts.insert(name, String::from_utf8_lossy(&text).replace("\r\n", "\n"));
        }
    }
    Ok(texts.into_values().collect())
}

fn output(arguments: &[&str]) -> Result<String> {
    let output = cargo().args(arguments).output().context("cannot start cargo")?;
    let problem = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "cargo {} failed: {problem}", arguments.join(" "));
    Ok(String::from_utf8(output.stdout)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crates_are_named_with_their_licences_and_texts() {
        let text = of("xtask").unwrap();
        let (list, texts) = text.split_once("\n\n").unwrap();
        let clap = list.lines().find(|line| line.starts_with("clap ")).unwrap();
        assert!(clap.ends_with(": MIT OR Apache-2.0"), "{clap}");
        assert!(!list.contains("xtask"), "our own are no third party's");
        assert!(texts.contains("Permission is hereby granted, free of charge"));
        let mit = texts.matches("Permission is hereby granted, free of charge").count();
        assert!(mit < list.lines().count(), "a text that many have is there once");
    }
}

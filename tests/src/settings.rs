//! Configuration files of the processes under test: defaults of the harness, changed by snippets.

use std::path::Path;

use anyhow::{Context, Result};
use toml::{Table, Value};

/// A TOML configuration that snippets of TOML are laid over.
#[derive(Debug, Clone, Default)]
pub struct Settings(Table);

impl Settings {
    /// Lays `toml` over what is there: tables are merged, anything else is replaced.
    ///
    /// # Errors
    /// It is not TOML.
    pub fn overlay(&mut self, toml: &str) -> Result<()> {
        let layer = toml.parse().with_context(|| format!("this is not TOML:\n{toml}"))?;
        merge(&mut self.0, layer);
        Ok(())
    }

    /// Takes a key of the top level out, a section for one.
    pub fn remove(&mut self, key: &str) {
        self.0.remove(key);
    }

    /// Writes the file.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        std::fs::write(path, self.0.to_string())
            .with_context(|| format!("cannot write {}", path.display()))
    }
}

fn merge(below: &mut Table, layer: Table) {
    for (key, value) in layer {
        match (below.get_mut(&key), value) {
            (Some(Value::Table(inner)), Value::Table(layer)) => merge(inner, layer),
            (_, value) => drop(below.insert(key, value)),
        }
    }
}

/// A path as a TOML string.
#[must_use]
pub fn quoted(path: &Path) -> String {
    Value::from(path.to_string_lossy().into_owned()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snippet_changes_one_key_and_leaves_its_neighbours() {
        let mut settings = Settings::default();
        settings.overlay("top = 1\n[log]\nlevel = \"info\"\nformat = \"text\"").unwrap();
        settings.overlay("[log]\nlevel = \"trace\"\n[new]\nkey = 2").unwrap();
        let expected: Table =
            "top = 1\n[log]\nlevel = \"trace\"\nformat = \"text\"\n[new]\nkey = 2".parse().unwrap();
        assert_eq!(settings.0, expected);
    }
}

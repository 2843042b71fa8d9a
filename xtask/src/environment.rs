//! Python environments of tests and benches, in the target directory.
//!
//! Invariants:
//! - versions are pinned; an environment made for other requirements is replaced;
//! - the file `version` is written last, so an environment that has it is complete.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cargo::{step, target_directory};

/// The AWS KMS of tests; pip compares every digest.
pub(crate) const MOTO: Environment = Environment {
    name: "moto",
    what: "the AWS KMS of tests",
    duration: "15 seconds",
    requirements: include_str!("moto.requirements.txt"),
};

/// The CKKS server and what CKKS is measured against; pip compares every digest.
pub(crate) const TENSEAL: Environment = Environment {
    name: "tenseal",
    what: "with which the CKKS server computes",
    duration: "half a minute",
    requirements: include_str!("../../server/tenseal/requirements.txt"),
};

/// What knows how recipes of the Yocto Project are to be written; pip compares every digest.
pub(crate) const OELINT: Environment = Environment {
    name: "oelint",
    what: "which checks the recipes",
    duration: "10 seconds",
    requirements: include_str!("oelint.requirements.txt"),
};

/// A set of Python packages with an interpreter of their own.
pub(crate) struct Environment {
    pub(crate) name: &'static str,
    pub(crate) what: &'static str,
    duration: &'static str,
    requirements: &'static str,
}

impl Environment {
    /// Whether it is there, complete and made for these requirements.
    pub(crate) fn is_there(&self) -> bool {
        self.directory().is_ok_and(|directory| self.is_complete(&directory))
    }

    /// Makes it unless it is there.
    ///
    /// # Errors
    /// There is no Python, or no package registry can be reached.
    pub(crate) fn install(&self) -> Result<()> {
        if self.is_there() {
            return Ok(());
        }
        let Self { name, what, duration, requirements } = self;
        let directory = self.directory()?;
        println!(
            "Installing {name}, {what}, for this target directory alone (once, about {duration}):"
        );
        if directory.exists() {
            fs::remove_dir_all(&directory)
                .with_context(|| format!("cannot replace {}", directory.display()))?;
        }
        step(Command::new("python3").args(["-m", "venv"]).arg(&directory))?;
        let file = directory.join("requirements.txt");
        fs::write(&file, requirements)?;
        let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"];
        let mut install = Command::new(directory.join("bin/python"));
        if let Err(error) = step(install.args(pip).arg("--requirement").arg(&file)) {
            bail!("{error}; {name} is {what}, and pip needs to reach PyPI or a mirror");
        }
        fs::write(directory.join("version"), requirements)?;
        Ok(())
    }

    /// The interpreter, once it is installed.
    ///
    /// # Errors
    /// Nobody can tell where it is.
    pub(crate) fn python(&self) -> Result<PathBuf> {
        Ok(self.directory()?.join("bin/python"))
    }

    fn is_complete(&self, directory: &Path) -> bool {
        fs::read_to_string(directory.join("version")).is_ok_and(|text| text == self.requirements)
    }

    fn directory(&self) -> Result<PathBuf> {
        Ok(target_directory()?.join("python").join(self.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_environment_of_other_requirements_is_not_complete() {
        let directory = std::env::temp_dir().join(format!("xtask-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        assert!(!MOTO.is_complete(&directory));
        fs::write(directory.join("version"), TENSEAL.requirements).unwrap();
        assert!(!MOTO.is_complete(&directory));
        assert!(TENSEAL.is_complete(&directory));
        fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn every_package_has_a_version_and_digests() {
        for Environment { name, requirements, .. } in [&MOTO, &TENSEAL, &OELINT] {
            let mut packages = requirements.lines().filter(|line| line.contains("==")).peekable();
            assert!(packages.peek().is_some(), "{name}");
            for line in packages {
                assert!(line.ends_with(" \\"), "{name}: {line} has no digest");
            }
            for line in requirements.lines().filter(|line| !line.starts_with('#')) {
                let digest = line.trim_end_matches(" \\").strip_prefix("    --hash=sha256:");
                assert!(line.contains("==") || digest.is_some_and(|it| it.len() == 64), "{line}");
            }
        }
    }
}

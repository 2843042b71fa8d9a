//! Unsealing the root secret on a software TPM, in process, against tpm2-tools.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use moai_tpm::{Options, PcrSelection, RootSecret, SRK_HANDLE, SealedRoot, Tpm};

use super::Run;
use super::measure::{Series, Stopwatch};
use super::report::Figure;
use crate::process::program;
use crate::swtpm::Swtpm;

const SECTION: &str = "unseal";
/// A persistent handle of the owner's range that is not the storage root key's.
const HANDLE: &str = "0x81010010";
const POLICY: &str = "pcr:sha256:7";

/// Measures the section.
///
/// # Errors
/// swtpm does not come up, or unsealing fails.
pub async fn run(run: &mut Run) -> Result<()> {
    run.step("unsealing on a software TPM");
    let scratch = tempfile::tempdir()?;
    let mut tpm = Swtpm::start(&scratch.path().join("tpm")).await?;
    let tcti = tpm.tcti();
    let tools = program("tpm2_unseal").is_ok();
    if tools {
        seal_with_tools(&tcti, scratch.path())?;
    }
    let sealed =
        connect(&tcti)?.seal(&RootSecret::from_bytes([5; 32]), &PcrSelection::default())?;
    let [mut cold, mut warm, mut seal, mut clear, mut salted] = <[Series; 5]>::default();
    let session = scratch.path().join("session.ctx").to_string_lossy().into_owned();
    for _ in 0..run.repeats(25, 5) {
        let watch = Stopwatch::start();
        let connected = connect(&tcti)?;
        unseal(&connected, &sealed)?;
        cold.push(watch.cost());
        let watch = Stopwatch::start();
        unseal(&connected, &sealed)?;
        warm.push(watch.cost());
        let watch = Stopwatch::start();
        connected.seal(&RootSecret::from_bytes([5; 32]), &PcrSelection::default())?;
        seal.push(watch.cost());
        // The software TPM serves one connection at a time.
        drop(connected);
        if tools {
            let watch = Stopwatch::start();
            let secret = tool(&tcti, "tpm2_unseal", &["-c", HANDLE, "-p", POLICY])?;
            clear.push(watch.cost());
            ensure!(secret == [5; 32], "tpm2_unseal gives another secret");
            let watch = Stopwatch::start();
            let secret = unseal_salted(&tcti, &session)?;
            salted.push(watch.cost());
            ensure!(secret == [5; 32], "tpm2_unseal gives another secret");
        }
    }
    let figure = |name, series: &Series| Figure::new(SECTION, name, series.wall() * 1e3, "ms");
    if tools {
        for (what, baseline) in
            [("tpm2-tools, salted and encrypted", &salted), ("tpm2_unseal, in the clear", &clear)]
        {
            let ratio = baseline.wall_over(&cold);
            run.add(figure("connect and unseal", &cold).against(
                what,
                baseline.wall() * 1e3,
                ratio,
                "times as fast",
            ));
        }
    } else {
        run.add(figure("connect and unseal", &cold));
    }
    run.add(figure("unseal, connected", &warm));
    run.add(figure("seal, connected", &seal));
    run.note(
        SECTION,
        if tools {
            "ours salts the session to the storage root key and encrypts the secret on the bus: \
         so do five commands of tpm2-tools in a row, while one alone sends it in the clear; \
         their times include starting processes"
        } else {
            "tpm2-tools is not installed, so there is nothing to compare with"
        },
    );
    tpm.power_off().await
}

fn connect(tcti: &str) -> Result<Tpm> {
    Ok(Tpm::start(tcti.parse()?, Options::default())?)
}

fn unseal(tpm: &Tpm, sealed: &SealedRoot) -> Result<()> {
    ensure!(tpm.unseal(sealed)?.expose() == &[5; 32], "another secret came out");
    Ok(())
}

/// The same secret under the same PCR policy, made persistent by tpm2-tools.
fn seal_with_tools(tcti: &str, directory: &Path) -> Result<()> {
    let path = |name: &str| directory.join(name).to_string_lossy().into_owned();
    let [parent, policy, secret, public, private, object] =
        ["parent.ctx", "policy", "secret", "public", "private", "object.ctx"].map(path);
    std::fs::write(&secret, [5; 32])?;
    for (name, arguments) in [
        ("tpm2_createprimary", vec!["-C", "o", "-G", "ecc", "-c", &parent]),
        ("tpm2_createpolicy", vec!["--policy-pcr", "-l", "sha256:7", "-L", &policy]),
        (
            "tpm2_create",
            vec!["-C", &parent, "-L", &policy, "-i", &secret, "-u", &public, "-r", &private],
        ),
        ("tpm2_flushcontext", vec!["-t"]),
        ("tpm2_load", vec!["-C", &parent, "-u", &public, "-r", &private, "-c", &object]),
        ("tpm2_evictcontrol", vec!["-C", "o", "-c", &object, HANDLE]),
        ("tpm2_flushcontext", vec!["-t"]),
    ] {
        tool(tcti, name, &arguments)?;
    }
    Ok(())
}

/// What [`unseal`] does, with tpm2-tools.
fn unseal_salted(tcti: &str, session: &str) -> Result<Vec<u8>> {
    let key = format!("{SRK_HANDLE:#x}");
    let start = ["--policy-session", "--tpmkey-context", &key, "-S", session];
    tool(tcti, "tpm2_startauthsession", &start)?;
    tool(tcti, "tpm2_sessionconfig", &["--enable-encrypt", "--enable-decrypt", session])?;
    tool(tcti, "tpm2_policypcr", &["-S", session, "-l", "sha256:7"])?;
    let secret = tool(tcti, "tpm2_unseal", &["-c", HANDLE, "-p", &format!("session:{session}")])?;
    tool(tcti, "tpm2_flushcontext", &[session])?;
    Ok(secret)
}

fn tool(tcti: &str, name: &str, arguments: &[&str]) -> Result<Vec<u8>> {
    let output = Command::new(program(name)?)
        .args(arguments)
        .env("TPM2TOOLS_TCTI", tcti)
        .output()
        .with_context(|| format!("cannot start {name}"))?;
    ensure!(
        output.status.success(),
        "{name} ended with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(output.stdout)
}

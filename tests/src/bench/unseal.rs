//! Unsealing the root secret on a software TPM, in process, against tpm2-tools and systemd-creds.
//!
//! Invariants:
//! - all unseal the same 32 bytes from the same TPM, in turns;
//! - ours counts from nothing to the secret, connection included, as the tools do.

use std::path::Path;

use anyhow::{Result, ensure};
use moai_tpm::{
    Epoch, Options, PcrSelection, PolicyKey, Protection, RecoveryCode, RootSecret, SealedRoot,
    SignedPolicy, Tpm, sign_policy,
};

use super::Run;
use super::measure::{Series, Stopwatch};
use super::report::Figure;
use super::tpm_tools::{SystemdCreds, Tpm2Tools};
use crate::swtpm::Swtpm;

const SECTION: &str = "unseal";
const SECRET: [u8; 32] = [5; 32];
const GOAL: &str = "≥ 2 times as fast";

/// Measures the section.
///
/// # Errors
/// swtpm does not come up, or unsealing fails.
pub async fn run(run: &mut Run) -> Result<()> {
    run.step("unsealing on a software TPM");
    let scratch = tempfile::tempdir()?;
    let mut tpm = Swtpm::start(&scratch.path().join("tpm")).await?;
    // As firmware does: systemd-creds takes a PCR of zeros for one that nobody measures into.
    tpm.extend_pcr(7, &[7; 32]).await?;
    let mut ours = Ours::seal(&mut tpm).await?;
    let baselines = Baselines::seal(&tpm.tcti(), scratch.path(), run);
    let mut times = Times::default();
    for _ in 0..run.repeats(25, 5) {
        ours.measure(&mut times)?;
        baselines.measure(&mut times)?;
    }
    add_figures(run, &times, &baselines);
    tpm.power_off().await
}

/// What took how long, in the same rounds.
#[derive(Default)]
struct Times {
    plain: Series,
    signed: Series,
    plain_connected: Series,
    signed_connected: Series,
    new_epoch: Series,
    in_the_clear: Series,
    salted: Series,
    systemd: Series,
}

fn time<T>(series: &mut Series, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let watch = Stopwatch::start();
    let value = work()?;
    series.push(watch.cost());
    Ok(value)
}

/// The least and the most that a robot's policy may be, each under an epoch key of its own.
struct Ours {
    tcti: String,
    /// Under PCR values alone.
    plain: SealedRoot,
    /// Under PCR values that a policy key signed, or a recovery code.
    signed: SealedRoot,
    policies: Vec<SignedPolicy>,
}

impl Ours {
    async fn seal(swtpm: &mut Swtpm) -> Result<Self> {
        let tcti = swtpm.tcti();
        let tpm = connect(&tcti)?;
        let plain = tpm.seal(Epoch::FIRST, &root(), None, &plain())?;
        let key = rcgen::KeyPair::generate()?;
        let policy_key = Some(PolicyKey::from_pem(&key.public_key_pem())?);
        let protection = Protection { pcrs: "sha256:7,8".parse()?, policy_key };
        let signed = tpm.seal(Epoch::FIRST.next(), &root(), Some(&code()), &protection)?;
        drop(tpm);
        // Another boot state than that of sealing, so that the signature is what opens.
        swtpm.extend_pcr(8, &[8; 32]).await?;
        let present = connect(&tcti)?.measurements(protection.pcrs)?;
        let policies = vec![sign_policy(&key.serialize_pem(), &present)?];
        Ok(Self { tcti, plain, signed, policies })
    }

    fn measure(&mut self, times: &mut Times) -> Result<()> {
        let tcti = &self.tcti;
        time(&mut times.plain, || unseal(&connect(tcti)?, &self.plain, &[]))?;
        time(&mut times.signed, || unseal(&connect(tcti)?, &self.signed, &self.policies))?;
        // The software TPM serves one connection at a time, so this one must end before others.
        let tpm = connect(tcti)?;
        time(&mut times.plain_connected, || unseal(&tpm, &self.plain, &[]))?;
        time(&mut times.signed_connected, || unseal(&tpm, &self.signed, &self.policies))?;
        self.plain =
            time(&mut times.new_epoch, || Ok(tpm.seal(Epoch::FIRST, &root(), None, &plain())?))?;
        Ok(())
    }
}

fn plain() -> Protection {
    Protection { pcrs: PcrSelection::default(), policy_key: None }
}

fn root() -> RootSecret {
    RootSecret::from_bytes(SECRET)
}

fn code() -> RecoveryCode {
    RecoveryCode::from_bytes([6; 16])
}

fn connect(tcti: &str) -> Result<Tpm> {
    Ok(Tpm::start(tcti.parse()?, Options::default())?)
}

fn unseal(tpm: &Tpm, sealed: &SealedRoot, policies: &[SignedPolicy]) -> Result<()> {
    check(tpm.unseal(sealed, policies)?.root.expose())
}

fn check(secret: &[u8]) -> Result<()> {
    ensure!(secret == SECRET, "another secret came out");
    Ok(())
}

/// What there is to compare with on this machine.
struct Baselines {
    tools: Option<Tpm2Tools>,
    systemd: Option<SystemdCreds>,
}

impl Baselines {
    fn seal(tcti: &str, directory: &Path, run: &mut Run) -> Self {
        let tools = Tpm2Tools::seal(tcti, directory, &SECRET);
        let tools = or_note(run, "tpm2-tools", tools);
        let systemd = SystemdCreds::seal(tcti, directory, &SECRET);
        let systemd = or_note(run, "systemd-creds", systemd);
        Self { tools, systemd }
    }

    fn measure(&self, times: &mut Times) -> Result<()> {
        if let Some(tools) = &self.tools {
            check(&time(&mut times.in_the_clear, || tools.unseal_in_the_clear())?)?;
            check(&time(&mut times.salted, || tools.unseal_salted())?)?;
        }
        if let Some(systemd) = &self.systemd {
            check(&time(&mut times.systemd, || systemd.unseal())?)?;
        }
        Ok(())
    }
}

fn or_note<T>(run: &mut Run, name: &str, baseline: Result<T>) -> Option<T> {
    match baseline {
        Ok(baseline) => Some(baseline),
        Err(error) => {
            run.note(SECTION, format!("skipped: no comparison with {name} ({error:#})"));
            None
        }
    }
}

fn add_figures(run: &mut Run, times: &Times, baselines: &Baselines) {
    let figure = |name, series: &Series| Figure::new(SECTION, name, series.wall() * 1e3, "ms");
    for (name, series) in [
        ("connect and unseal, PCR policy", &times.plain),
        ("connect and unseal, signed policy or recovery code", &times.signed),
    ] {
        let against = |what: &str, baseline: &Series| {
            let ratio = baseline.wall_over(series);
            let value = baseline.wall() * 1e3;
            figure(name, series)
                .against(what, value, ratio, "times as fast")
                .goal(GOAL, ratio >= 2.0)
        };
        if baselines.tools.is_some() {
            run.add(against("tpm2_unseal, in the clear", &times.in_the_clear));
            run.add(against("tpm2-tools, salted and encrypted", &times.salted));
        }
        if baselines.systemd.is_some() {
            run.add(against("systemd-creds decrypt", &times.systemd));
        }
        if baselines.tools.is_none() && baselines.systemd.is_none() {
            run.add(figure(name, series));
        }
    }
    run.add(figure("unseal, connected, PCR policy", &times.plain_connected));
    run.add(figure("unseal, connected, signed policy", &times.signed_connected));
    run.add(figure("seal in a new epoch, connected", &times.new_epoch));
    run.note(
        SECTION,
        "all baselines keep their secret under PCR 7 alone, and their times include starting \
         processes; one tpm2_unseal sends it over the bus in the clear, five tpm2-tools in a row \
         and systemd-creds encrypt it, as ours does",
    );
}

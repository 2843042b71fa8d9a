//! The Helm chart of the server, linted and rendered by helm itself; and what it renders is a
//! configuration that the server takes.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use moai_tests::broker::SERVER;
use moai_tests::pki::Pki;
use moai_tests::process::{Finished, Launch, STEP, binary};
use moai_tests::repository;

/// What a site has to say, and some of what it may.
const SITE: &str = "
replicas: 3
moai:
  workerGroup: a-name-nobody-guesses
  sessionTtlSeconds: 900
  tenants:
    acme: {}
    globex: {models: [grasp], maxSessions: 5, maxBytes: 8589934592, maxJobs: 4}
broker: {host: broker.example, tlsSecretName: broker-tls, robotsCaSecretName: robots-ca}
signingKey: {secretName: signing}
store: {urlSecretName: redis-url, caSecretName: redis-ca}
";

struct Chart {
    directory: tempfile::TempDir,
    helm: PathBuf,
}

impl Chart {
    /// None where there is no helm for the machine.
    fn new() -> Result<Option<Self>> {
        if !cfg!(target_arch = "x86_64") {
            return Ok(None);
        }
        let executable = std::env::current_exe()?;
        let mut places = executable.ancestors().skip(1).map(|directory| directory.join("helm"));
        // Written last, so what has it is complete.
        let Some(place) = places.find(|place| place.join("version").is_file()) else {
            bail!("helm is not installed; run `cargo xtask setup`")
        };
        Ok(Some(Self { directory: tempfile::tempdir()?, helm: place.join("helm") }))
    }

    /// Runs a helm command on the chart with these values.
    async fn run(&self, command: &[&str], values: &str) -> Result<Finished> {
        let path = self.directory.path().join("values.yaml");
        fs::write(&path, values)?;
        let chart = repository().join("server/helm/moai-server");
        Launch::new("helm", &self.helm, &self.directory.path().join("logs"))
            .args(command)
            .args([chart.as_os_str(), "--values".as_ref(), path.as_os_str()])
            .env("HOME", self.directory.path())
            .run(STEP)
            .await
    }

    /// What it renders.
    async fn render(&self, values: &str) -> Result<String> {
        Ok(self.run(&["template", "site"], values).await?.success()?.text())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_chart_is_clean_and_refuses_values_that_it_does_not_know() -> Result<()> {
    let Some(chart) = Chart::new()? else { return Ok(()) };
    chart.run(&["lint", "--strict"], SITE).await?.success()?;
    for (wrong, words) in [
        (SITE.replace("900", "14401"), "sessionTtlSeconds"),
        (SITE.replace("replicas: 3", "replicas: -1"), "replicas"),
        (SITE.replace("maxJobs: 4", "maxJob: 4"), "maxJob"),
        (SITE.replace("acme", "Acme"), "Acme"),
        (SITE.replace("workerGroup: a-name-nobody-guesses", "workerGroup: \"\""), "workerGroup"),
        (SITE.replace("host: broker.example, ", ""), "broker.host"),
        (SITE.replace("secretName: signing", ""), "signingKey"),
        (format!("{SITE}\nreplica: 3\n"), "replica"),
    ] {
        let refused = chart.run(&["template", "site"], &wrong).await?;
        assert!(!refused.status.success(), "{words}: it was taken");
        assert!(refused.log.contains(words), "{words} is not in:\n{}", refused.log.text());
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_have_no_rights_that_they_do_not_need() -> Result<()> {
    let Some(chart) = Chart::new()? else { return Ok(()) };
    let rendered = chart.render(SITE).await?;
    for line in [
        "runAsNonRoot: true",
        "allowPrivilegeEscalation: false",
        "readOnlyRootFilesystem: true",
        "automountServiceAccountToken: false",
        "type: RuntimeDefault",
        "ingress: []",
        "replicas: 3",
        "kind: PodDisruptionBudget",
        "kind: NetworkPolicy",
    ] {
        assert!(rendered.lines().any(|found| found.trim() == line), "{line} is not rendered");
    }
    // The name of the subscription stands in the Secret and nowhere else.
    assert_eq!(rendered.matches("a-name-nobody-guesses").count(), 1);

    let one = chart.render(&SITE.replace("replicas: 3", "replicas: 1")).await?;
    assert!(!one.contains("PodDisruptionBudget"), "it would keep its node from being drained");
    let attesting = SITE.replace("Seconds: 900", "Seconds: 900\n  requireAttestation: true");
    let refused = chart.run(&["template", "site"], &attesting).await?;
    assert!(refused.log.contains("enrolmentsConfigMap"), "{}", refused.log.text());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_takes_the_configuration_that_the_chart_renders() -> Result<()> {
    let Some(chart) = Chart::new()? else { return Ok(()) };
    let rendered = chart.render(SITE).await?;
    let (_, secret) = rendered.split_once("server.toml: |\n").context("no configuration")?;
    let lines = secret.lines().take_while(|line| line.is_empty() || line.starts_with("    "));
    let config: Vec<&str> = lines.map(str::trim).collect();
    let config = config.join("\n");
    assert!(config.contains("max_ttl_seconds = 900"), "{config}");

    // The files of a pod, elsewhere.
    let mounts = chart.directory.path().join("etc");
    let pki = Pki::new(&chart.directory.path().join("pki"))?;
    let credentials = pki.client(SERVER)?;
    for (file, content) in [
        ("broker/ca.crt", fs::read(&credentials.ca)?),
        ("broker/tls.crt", fs::read(&credentials.certificate)?),
        ("broker/tls.key", fs::read(&credentials.key)?),
        ("robots-ca/ca.crt", fs::read(&credentials.ca)?),
        ("store-ca/ca.crt", fs::read(&credentials.ca)?),
        ("store/url", b"rediss://:password@redis:6379/0\n".to_vec()),
        ("signing-key/signing.key", fs::read(pki.signing_key())?),
    ] {
        let path = mounts.join(file);
        fs::create_dir_all(path.parent().context("a directory")?)?;
        fs::write(&path, content)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o440))?;
    }
    let models = repository().join("server/models");
    let config = config
        .replace("/etc/moai-server", &mounts.display().to_string())
        .replace("/usr/share/moai-server/models", &models.display().to_string());
    let path = chart.directory.path().join("server.toml");
    fs::write(&path, config)?;
    let checked =
        Launch::new("check", &binary("moai-server")?, &chart.directory.path().join("logs"))
            .args(["--config".as_ref(), path.as_os_str()])
            .args(["config", "check"])
            .run(STEP)
            .await?;
    checked.success().map(drop)
}

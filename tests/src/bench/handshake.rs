//! TLS 1.3 handshakes with certificates on both sides: the robot's identity key in a software TPM
//! against one in memory.
//!
//! Invariants:
//! - both keys have a certificate by the same authority and meet the same server on loopback;
//! - no handshake resumes an earlier one;
//! - a handshake counts from connecting until the client has read a byte that the server sends
//!   once it has verified the client's certificate.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, anyhow, ensure};
use moai_agent::config::Config;
use moai_agent::identity::{CertificateStore, IdentityKey};
use moai_tpm::{Options, Tpm};
use moai_transport::tls;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{
    ClientConfig, ClientConnection, HandshakeKind, ProtocolVersion, RootCertStore, ServerConfig,
    ServerConnection, Stream,
};

use super::Run;
use super::measure::compare;
use super::report::Figure;
use super::subject;
use crate::pki::Pki;
use crate::settings::quoted;
use crate::swtpm::Swtpm;

const SECTION: &str = "handshake";
const A_DAY: std::ops::Range<i64> = -3600..24 * 3600;

/// Measures the section.
///
/// # Errors
/// swtpm does not come up, or a handshake fails.
pub async fn run(run: &mut Run) -> Result<()> {
    run.step("handshakes with the key in the TPM and in memory");
    let scratch = tempfile::tempdir()?;
    let mut swtpm = Swtpm::start(&scratch.path().join("tpm")).await?;
    let pki = Pki::new(&scratch.path().join("pki"))?;
    let tpm = Tpm::start(swtpm.tcti().parse()?, Options::default())?;
    let (key, in_tpm) = robot(scratch.path(), &tpm, &pki)?;
    let in_memory = pki.client(subject::IDENTITY)?.tls()?;
    let server = server(&pki)?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let [with_tpm, with_memory, signature] = compare(
        run.repeats(25, 3),
        [
            &mut || handshake(&listener, &server, &in_tpm),
            &mut || handshake(&listener, &server, &in_memory),
            &mut || Ok(key.sign([7; 32])?.len()),
        ],
    )?;
    run.add(
        Figure::new(SECTION, "handshake, key in the TPM", with_tpm.wall() * 1e3, "ms").against(
            "key in memory",
            with_memory.wall() * 1e3,
            with_tpm.wall_over(&with_memory),
            "times as long",
        ),
    );
    run.add(Figure::new(SECTION, "… of it the TPM's signature", signature.wall() * 1e3, "ms"));
    run.note(
        SECTION,
        "TLS 1.3, certificates on both sides, no resumption, P-256 keys; a TPM chip takes longer for \
         its signature than this software TPM does, and a connection needs one",
    );
    drop((in_tpm, key, tpm));
    swtpm.power_off().await
}

/// A robot as the agent is one: its identity key, and TLS that asks the TPM for each signature.
fn robot(directory: &Path, tpm: &Tpm, pki: &Pki) -> Result<(Arc<IdentityKey>, Arc<ClientConfig>)> {
    let file = directory.join("agent.toml");
    let text = format!(
        "identity = {:?}\nstate_directory = {}\n\
         [uplink]\nhost = \"localhost\"\nca = {}\ncertificate = {}\n",
        subject::IDENTITY,
        quoted(directory),
        quoted(&pki.ca()),
        quoted(&directory.join("robot.pem")),
    );
    std::fs::write(&file, text)?;
    let config = Config::load(&file)?;
    let key = Arc::new(IdentityKey::open_or_create(&config, || Ok(tpm.clone()))?);
    let chain = pki.robot(subject::IDENTITY, key.public_key(), A_DAY)?;
    std::fs::write(&config.uplink.certificate, chain)?;
    let store = Arc::new(CertificateStore::open(&config, Arc::clone(&key))?);
    let client = tls::client_config_resolving(&std::fs::read(pki.ca())?, store)?;
    Ok((key, client))
}

fn server(pki: &Pki) -> Result<Arc<ServerConfig>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut robots = RootCertStore::empty();
    robots.add(CertificateDer::from_pem_file(pki.ca())?)?;
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(robots), Arc::clone(&provider));
    let credentials = pki.server()?;
    let chain = CertificateDer::pem_file_iter(&credentials.certificate)?;
    let key = PrivateKeyDer::from_pem_file(&credentials.key)?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier.build()?)
        .with_single_cert(chain.collect::<Result<_, _>>()?, key)?;
    // Without tickets there is nothing to resume.
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

fn handshake(
    listener: &TcpListener,
    server: &Arc<ServerConfig>,
    client: &Arc<ClientConfig>,
) -> Result<usize> {
    let mut socket = TcpStream::connect(listener.local_addr()?)?;
    socket.set_nodelay(true)?;
    std::thread::scope(|scope| {
        let other_end = scope.spawn(|| answer(listener, server));
        let seen = ask(&mut socket, client);
        // A server that still waits for the client is told that nothing will come.
        let _ = socket.shutdown(Shutdown::Both);
        let answered = other_end.join().map_err(|_| anyhow!("the server's side panicked"))?;
        seen.and(answered).map(|()| 0)
    })
}

fn ask(socket: &mut TcpStream, config: &Arc<ClientConfig>) -> Result<()> {
    let mut tls = ClientConnection::new(Arc::clone(config), ServerName::try_from("localhost")?)?;
    Stream::new(&mut tls, socket).read_exact(&mut [0])?;
    ensure!(tls.protocol_version() == Some(ProtocolVersion::TLSv1_3), "not TLS 1.3");
    ensure!(tls.handshake_kind() == Some(HandshakeKind::Full), "not a full handshake");
    Ok(())
}

fn answer(listener: &TcpListener, config: &Arc<ServerConfig>) -> Result<()> {
    let (mut socket, _) = listener.accept()?;
    socket.set_nodelay(true)?;
    let mut tls = ServerConnection::new(Arc::clone(config))?;
    Stream::new(&mut tls, &mut socket).write_all(&[0])?;
    ensure!(tls.peer_certificates().is_some(), "the client showed no certificate");
    Ok(())
}

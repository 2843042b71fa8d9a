//! A pipe between a link and its broker that is as narrow as one likes, and can break.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

/// What passes at once.
const PIECE: usize = 2048;

/// A running pipe; it breaks when it is dropped.
pub(crate) struct Pipe {
    port: u16,
    connections: watch::Receiver<usize>,
    cut: watch::Sender<CancellationToken>,
    _all: DropGuard,
}

impl Pipe {
    /// Leads to a local port; each way takes `rate` bytes a second, or all there is.
    pub(crate) async fn start(upstream: u16, rate: Option<u32>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let all = CancellationToken::new();
        let cut = watch::Sender::new(all.child_token());
        let (count, connections) = watch::channel(0);
        let cuts = cut.subscribe();
        tokio::spawn(all.clone().run_until_cancelled_owned(async move {
            while let Ok((client, _)) = listener.accept().await {
                count.send_modify(|count| *count += 1);
                let token = cuts.borrow().clone();
                tokio::spawn(token.run_until_cancelled_owned(serve(client, upstream, rate)));
            }
        }));
        Self { port, connections, cut, _all: all.drop_guard() }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// How many connections there have been.
    pub(crate) fn connections(&self) -> usize {
        *self.connections.borrow()
    }

    /// Breaks the connections of the moment.
    pub(crate) fn cut(&self) {
        let fresh = CancellationToken::new();
        self.cut.send_replace(fresh).cancel();
    }
}

async fn serve(client: TcpStream, upstream: u16, rate: Option<u32>) -> std::io::Result<()> {
    let server = TcpStream::connect(("127.0.0.1", upstream)).await?;
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::select! {
        ended = pump(from_client, to_server, rate) => ended,
        ended = pump(from_server, to_client, rate) => ended,
    }
}

async fn pump(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    rate: Option<u32>,
) -> std::io::Result<()> {
    let mut piece = [0; PIECE];
    let mut free_at = tokio::time::Instant::now();
    loop {
        let len = from.read(&mut piece).await?;
        if len == 0 {
            return Ok(());
        }
        if let Some(rate) = rate {
            free_at = free_at.max(tokio::time::Instant::now())
                + Duration::from_secs(1) * u32::try_from(len).unwrap() / rate;
            tokio::time::sleep_until(free_at).await;
        }
        to.write_all(&piece[..len]).await?;
    }
}

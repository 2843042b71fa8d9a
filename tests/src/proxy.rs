//! A TCP proxy that records what passes, can hold it up or cut it at an exact byte, and can be as
//! slow and as far away as one likes.
//!
//! Invariants:
//! - a byte is recorded before it is forwarded, so what arrived anywhere is in the record;
//! - held bytes are neither lost nor reordered: after a release they follow;
//! - what is ahead of the rate or on its delayed way is bounded, so that senders feel a slow link.

use std::net::Ipv4Addr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Result, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::ports::Ports;

/// Most bytes that are read at once.
const PIECE: usize = 16 * 1024;
/// Most pieces on their way in one direction of one connection: 4 MiB.
const PIECES: usize = 256;

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the server.
    Up,
    /// From the server to the client.
    Down,
}

#[derive(Debug, Default)]
struct Lane {
    recorded: Vec<u8>,
    /// How many bytes may still pass; unlimited if none.
    budget: Option<usize>,
    /// Somebody has bytes that may not pass.
    held: bool,
    /// Bytes a second; unlimited if none.
    rate: Option<u32>,
    /// How long a byte is on its way.
    delay: Duration,
    /// Whether what passes is not recorded.
    unrecorded: bool,
    passed: usize,
}

#[derive(Debug, Default)]
struct Traffic {
    up: Lane,
    down: Lane,
    closed_to_new: bool,
    connections: usize,
}

impl Traffic {
    fn lane(&mut self, direction: Direction) -> &mut Lane {
        match direction {
            Direction::Up => &mut self.up,
            Direction::Down => &mut self.down,
        }
    }
}

/// A running proxy. Dropping it cuts its connections.
#[derive(Debug)]
pub struct Proxy {
    ports: Ports,
    traffic: watch::Sender<Traffic>,
    /// Cancelled to cut all present connections, then replaced.
    connections: Mutex<CancellationToken>,
    all: CancellationToken,
}

impl Proxy {
    /// Listens on a free loopback port and connects whoever comes to `upstream_port`.
    ///
    /// # Errors
    /// There is no free port.
    pub async fn start(upstream_port: u16) -> Result<std::sync::Arc<Self>> {
        let ports = Ports::reserve()?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, ports.first())).await?;
        let all = CancellationToken::new();
        let proxy = std::sync::Arc::new(Self {
            ports,
            traffic: watch::Sender::default(),
            connections: Mutex::new(all.child_token()),
            all: all.clone(),
        });
        let weak = std::sync::Arc::downgrade(&proxy);
        tokio::spawn(all.run_until_cancelled_owned(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Some(proxy) = weak.upgrade() else { return };
                if !proxy.traffic.borrow().closed_to_new {
                    proxy.serve(client, upstream_port);
                }
            }
        }));
        Ok(proxy)
    }

    /// The port to connect to.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.ports.first()
    }

    /// Everything that passed in one direction, over all connections.
    #[must_use]
    pub fn recorded(&self, direction: Direction) -> Vec<u8> {
        let traffic = self.traffic.borrow();
        match direction {
            Direction::Up => traffic.up.recorded.clone(),
            Direction::Down => traffic.down.recorded.clone(),
        }
    }

    /// How many bytes passed in one direction, over all connections.
    #[must_use]
    pub fn passed(&self, direction: Direction) -> usize {
        let traffic = self.traffic.borrow();
        match direction {
            Direction::Up => traffic.up.passed,
            Direction::Down => traffic.down.passed,
        }
    }

    /// Limits each direction to so many bytes a second from now on, or no longer.
    pub fn limit(&self, rate: Option<u32>) {
        self.traffic.send_modify(|traffic| {
            traffic.up.rate = rate;
            traffic.down.rate = rate;
        });
    }

    /// Lets every byte take so long in each direction from now on.
    pub fn delay(&self, delay: Duration) {
        self.traffic.send_modify(|traffic| {
            traffic.up.delay = delay;
            traffic.down.delay = delay;
        });
    }

    /// Only counts what passes from now on.
    pub fn stop_recording(&self) {
        self.traffic.send_modify(|traffic| {
            traffic.up.unrecorded = true;
            traffic.down.unrecorded = true;
        });
    }

    /// How many connections have been made through it.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.traffic.borrow().connections
    }

    /// Lets `bytes` more pass and holds up what follows.
    pub fn hold_after(&self, direction: Direction, bytes: usize) {
        self.traffic.send_modify(|traffic| traffic.lane(direction).budget = Some(bytes));
    }

    /// Waits until something is held up.
    ///
    /// # Errors
    /// Nothing is within `limit`.
    pub async fn wait_until_held(&self, direction: Direction, limit: Duration) -> Result<()> {
        let mut traffic = self.traffic.subscribe();
        let held = traffic.wait_for(|traffic| match direction {
            Direction::Up => traffic.up.held,
            Direction::Down => traffic.down.held,
        });
        if tokio::time::timeout(limit, held).await.is_err() {
            let passed = self.passed(direction);
            bail!("the proxy held nothing up within {limit:?}; {passed} bytes passed");
        }
        Ok(())
    }

    /// Lets everything pass again.
    pub fn release(&self, direction: Direction) {
        self.traffic.send_modify(|traffic| {
            let lane = traffic.lane(direction);
            lane.budget = None;
            lane.held = false;
        });
    }

    /// Breaks all present connections. What is held up on them is lost.
    pub fn cut(&self) {
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *connections, self.all.child_token()).cancel();
        drop(connections);
        self.traffic.send_modify(|traffic| {
            traffic.up.held = false;
            traffic.down.held = false;
        });
    }

    /// Hangs up on every new connection, or no longer does.
    pub fn close_to_new(&self, closed: bool) {
        self.traffic.send_modify(|traffic| traffic.closed_to_new = closed);
    }

    fn serve(self: std::sync::Arc<Self>, client: TcpStream, upstream_port: u16) {
        let cut = self.connections.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let traffic = self.traffic.clone();
        traffic.send_modify(|traffic| traffic.connections += 1);
        tokio::spawn(cut.run_until_cancelled_owned(async move {
            let upstream = TcpStream::connect((Ipv4Addr::LOCALHOST, upstream_port)).await?;
            client.set_nodelay(true)?;
            upstream.set_nodelay(true)?;
            let (from_client, to_client) = client.into_split();
            let (from_server, to_server) = upstream.into_split();
            // One side that ends ends the connection: MQTT has no half-closed state.
            tokio::select! {
                ended = pump(&traffic, Direction::Up, from_client, to_server) => ended,
                ended = pump(&traffic, Direction::Down, from_server, to_client) => ended,
            }
        }));
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.all.cancel();
    }
}

/// Carries one direction of one connection until its sender closes it.
async fn pump(
    traffic: &watch::Sender<Traffic>,
    direction: Direction,
    from: OwnedReadHalf,
    to: OwnedWriteHalf,
) -> std::io::Result<()> {
    let (pieces, arriving) = mpsc::channel(PIECES);
    tokio::try_join!(let_in(traffic, direction, from, pieces), let_out(to, arriving)).map(drop)
}

/// Bytes on their way, and when they are at the other end.
type Piece = (Instant, Vec<u8>);

async fn let_in(
    traffic: &watch::Sender<Traffic>,
    direction: Direction,
    mut from: OwnedReadHalf,
    pieces: mpsc::Sender<Piece>,
) -> std::io::Result<()> {
    let mut buffer = vec![0; PIECE];
    let mut changes = traffic.subscribe();
    let mut free_at = Instant::now();
    loop {
        let length = from.read(&mut buffer).await?;
        if length == 0 {
            return Ok(());
        }
        let mut pending = buffer.get(..length).unwrap_or_default();
        while !pending.is_empty() {
            changes.mark_unchanged();
            let (mut allowed, mut rate, mut delay) = (0, None, Duration::ZERO);
            traffic.send_modify(|traffic| {
                let lane = traffic.lane(direction);
                allowed = pending.len().min(lane.budget.unwrap_or(usize::MAX));
                lane.budget = lane.budget.map(|budget| budget - allowed);
                lane.held = allowed == 0;
                lane.passed += allowed;
                if !lane.unrecorded {
                    lane.recorded.extend(pending.iter().take(allowed));
                }
                (rate, delay) = (lane.rate, lane.delay);
            });
            if allowed == 0 {
                let open = |traffic: &Traffic| match direction {
                    Direction::Up => traffic.up.budget != Some(0),
                    Direction::Down => traffic.down.budget != Some(0),
                };
                if changes.wait_for(open).await.is_err() {
                    return Ok(());
                }
                continue;
            }
            let (now, later) = pending.split_at(allowed);
            pending = later;
            if let Some(rate) = rate {
                let takes = Duration::from_secs(1) * u32::try_from(allowed).unwrap_or(0) / rate;
                free_at = free_at.max(Instant::now()) + takes;
                tokio::time::sleep_until(free_at).await;
            }
            if pieces.send((Instant::now() + delay, now.to_vec())).await.is_err() {
                return Ok(());
            }
        }
    }
}

async fn let_out(
    mut to: OwnedWriteHalf,
    mut arriving: mpsc::Receiver<Piece>,
) -> std::io::Result<()> {
    while let Some((due, bytes)) = arriving.recv().await {
        tokio::time::sleep_until(due).await;
        to.write_all(&bytes).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::STEP;

    /// A server that sends everything back.
    async fn echo() -> u16 {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut from, mut to) = stream.split();
                    tokio::io::copy(&mut from, &mut to).await
                });
            }
        });
        port
    }

    async fn connect(proxy: &Proxy) -> TcpStream {
        TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port())).await.unwrap()
    }

    #[tokio::test]
    async fn bytes_are_recorded_held_up_at_the_exact_place_and_released() {
        let proxy = Proxy::start(echo().await).await.unwrap();
        let mut stream = connect(&proxy).await;
        proxy.hold_after(Direction::Up, 3);
        stream.write_all(b"abcdef").await.unwrap();
        proxy.wait_until_held(Direction::Up, STEP).await.unwrap();
        assert_eq!(proxy.recorded(Direction::Up), b"abc");
        proxy.release(Direction::Up);
        let mut echoed = [0; 6];
        stream.read_exact(&mut echoed).await.unwrap();
        assert_eq!(&echoed, b"abcdef");
        assert_eq!(proxy.recorded(Direction::Down), b"abcdef");
        assert_eq!(proxy.passed(Direction::Up), 6);
    }

    #[tokio::test]
    async fn a_slow_and_distant_link_takes_its_time() {
        let proxy = Proxy::start(echo().await).await.unwrap();
        let mut stream = connect(&proxy).await;
        proxy.limit(Some(100_000));
        proxy.delay(Duration::from_millis(100));
        proxy.stop_recording();
        let start = Instant::now();
        stream.write_all(&vec![7; 20_000]).await.unwrap();
        let mut echoed = vec![0; 20_000];
        stream.read_exact(&mut echoed).await.unwrap();
        assert_eq!(echoed, vec![7; 20_000]);
        // There, and what comes last back.
        assert!(start.elapsed() >= Duration::from_millis(400), "{:?}", start.elapsed());
        assert_eq!(proxy.passed(Direction::Up), 20_000);
        assert!(proxy.recorded(Direction::Up).is_empty());
        assert_eq!(proxy.connections(), 1);
    }

    #[tokio::test]
    async fn a_cut_ends_connections_and_a_closed_proxy_takes_no_new_ones() {
        let proxy = Proxy::start(echo().await).await.unwrap();
        let mut stream = connect(&proxy).await;
        stream.write_all(b"a").await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), b'a');
        proxy.cut();
        assert!(stream.read_u8().await.is_err());
        proxy.close_to_new(true);
        assert!(connect(&proxy).await.read_u8().await.is_err());
        proxy.close_to_new(false);
        let mut stream = connect(&proxy).await;
        stream.write_all(b"b").await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), b'b');
    }
}

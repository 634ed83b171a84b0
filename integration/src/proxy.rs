//! A TCP connection that can be made worse.
//!
//! A follower is told the proxy's port instead of its leader's. What is done to the stream counts in
//! bytes, not in time: a cut or a flipped bit lies at a place that a seed has chosen, as a rule in
//! the middle of a message.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};

/// How much is passed on at once; a delay holds up each such piece.
const PIECE_BYTES: usize = 4 << 10;

/// Passes connections on to a port of 127.0.0.1; ends with all of them on drop.
///
/// "Downstream" is what comes from that port: from a leader's agent to its follower's.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    plan: Mutex<Plan>,
    stopping: AtomicBool,
    connections: AtomicU64,
    downstream_bytes: AtomicU64,
    cuts: AtomicU64,
    flips: AtomicU64,
}

/// What happens to connections, present and future.
#[derive(Debug, Default)]
struct Plan {
    target: u16,
    /// How often all connections were cut.
    times_cut: u64,
    delay: Duration,
    /// Downstream bytes to pass on before the connection is cut.
    cut_after: Option<u64>,
    /// Downstream bytes to pass on before the byte of which this bit is flipped.
    flip_after: Option<(u64, u8)>,
    /// Both ends of each connection, by its number.
    open: BTreeMap<u64, [TcpStream; 2]>,
}

impl Proxy {
    /// Passes on to `target`, a port of 127.0.0.1.
    ///
    /// # Errors
    /// The operating system's.
    pub fn start(target: u16) -> Result<Self> {
        let listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no port for a proxy")?;
        let port = listener.local_addr().context("a listener without address")?.port();
        let plan = Plan { target, ..Plan::default() };
        let shared = Arc::new(Shared { plan: Mutex::new(plan), ..Shared::default() });
        let accepting = Arc::clone(&shared);
        let acceptor = thread::spawn(move || accept(&listener, &accepting));
        Ok(Self { port, shared, acceptor: Some(acceptor) })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> String {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port)).to_string()
    }

    /// From now on passes new connections on to another port, and cuts the present ones.
    pub fn retarget(&self, target: u16) {
        self.shared.plan().target = target;
        self.cut();
    }

    /// Holds up each downstream piece of 4 kB for this long.
    pub fn set_delay(&self, delay: Duration) {
        self.shared.plan().delay = delay;
    }

    /// Cuts every connection now.
    pub fn cut(&self) {
        let open = {
            let mut plan = self.shared.plan();
            plan.times_cut += 1;
            std::mem::take(&mut plan.open)
        };
        for stream in open.values().flatten() {
            let _ = stream.shutdown(Shutdown::Both);
        }
        self.shared.cuts.fetch_add(open.len() as u64, Ordering::SeqCst);
    }

    /// Cuts the connection after so many more downstream bytes.
    pub fn cut_after(&self, bytes: u64) {
        self.shared.plan().cut_after = Some(bytes);
    }

    /// Flips bit `bit` (0 to 7) of the byte that comes after so many more downstream bytes.
    pub fn flip_after(&self, bytes: u64, bit: u8) {
        self.shared.plan().flip_after = Some((bytes, bit));
    }

    /// How many connections were passed on so far.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// How many bytes were passed on downstream.
    #[must_use]
    pub fn downstream_bytes(&self) -> u64 {
        self.shared.downstream_bytes.load(Ordering::SeqCst)
    }

    /// How many connections were cut by [`Proxy::cut`] and [`Proxy::cut_after`].
    #[must_use]
    pub fn cuts(&self) -> u64 {
        self.shared.cuts.load(Ordering::SeqCst)
    }

    /// How many bits were flipped.
    #[must_use]
    pub fn flips(&self) -> u64 {
        self.shared.flips.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        // Wakes the acceptor, who then sees that it is over.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
        self.cut();
    }
}

impl Shared {
    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for client in listener.incoming() {
        if shared.stopping.load(Ordering::SeqCst) {
            return;
        }
        // An end that fails looks to the other like a leader that is away, which is no lie.
        let _ = client.and_then(|client| pass_on(client, shared));
    }
}

/// Starts the two threads that serve a connection; they end with it.
fn pass_on(client: TcpStream, shared: &Arc<Shared>) -> std::io::Result<()> {
    let (target, times_cut) = {
        let plan = shared.plan();
        (plan.target, plan.times_cut)
    };
    let server = TcpStream::connect((Ipv4Addr::LOCALHOST, target))?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let number = shared.connections.fetch_add(1, Ordering::SeqCst);
    {
        let mut plan = shared.plan();
        if plan.times_cut != times_cut {
            // Cut while it was made: both ends close, as if it had been open by then.
            shared.cuts.fetch_add(1, Ordering::SeqCst);
            return Ok(());
        }
        plan.open.insert(number, [client.try_clone()?, server.try_clone()?]);
    }

    let (mut upstream_from, mut upstream_to) = (client.try_clone()?, server.try_clone()?);
    thread::spawn(move || {
        let _ = std::io::copy(&mut upstream_from, &mut upstream_to);
        let _ = upstream_to.shutdown(Shutdown::Both);
    });
    let shared = Arc::clone(shared);
    thread::spawn(move || {
        let _ = downstream(&server, &client, &shared);
        shared.plan().open.remove(&number);
        let _ = client.shutdown(Shutdown::Both);
        let _ = server.shutdown(Shutdown::Both);
    });
    Ok(())
}

fn downstream(mut from: &TcpStream, mut to: &TcpStream, shared: &Shared) -> std::io::Result<()> {
    let mut buffer = [0; PIECE_BYTES];
    loop {
        let length = from.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        let delay = shared.plan().delay;
        thread::sleep(delay);
        let (kept, cut) = spoil(&mut buffer[..length], shared);
        to.write_all(&buffer[..kept])?;
        shared.downstream_bytes.fetch_add(kept as u64, Ordering::SeqCst);
        if cut {
            shared.cuts.fetch_add(1, Ordering::SeqCst);
            return Ok(());
        }
    }
}

/// Does to a piece what is planned for it; gives how much of it is passed on, and whether the
/// connection is cut behind that.
fn spoil(piece: &mut [u8], shared: &Shared) -> (usize, bool) {
    let mut plan = shared.plan();
    let length = piece.len() as u64;
    if let Some((before, bit)) = plan.flip_after {
        match piece.get_mut(usize::try_from(before).unwrap_or(usize::MAX)) {
            Some(byte) => {
                *byte ^= 1 << bit;
                plan.flip_after = None;
                shared.flips.fetch_add(1, Ordering::SeqCst);
            }
            None => plan.flip_after = Some((before - length, bit)),
        }
    }
    match plan.cut_after {
        Some(before) if before < length => {
            plan.cut_after = None;
            (before as usize, true)
        }
        Some(before) => {
            plan.cut_after = Some(before - length);
            (piece.len(), false)
        }
        None => (piece.len(), false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that sends `text` to whoever connects; gives its port.
    fn server(text: &'static [u8]) -> u16 {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let port = listener.local_addr().expect("an address").port();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let _ = stream.and_then(|mut stream| stream.write_all(text));
            }
        });
        port
    }

    fn read(proxy: &Proxy) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut stream = TcpStream::connect(proxy.address()).expect("the proxy listens");
        let _ = stream.read_to_end(&mut bytes);
        bytes
    }

    #[test]
    fn bytes_pass_are_flipped_and_cut_where_it_was_said() {
        let proxy = Proxy::start(server(b"abcdefgh")).expect("a proxy");
        assert_eq!(read(&proxy), b"abcdefgh");
        proxy.flip_after(2, 0);
        assert_eq!(read(&proxy), b"abbdefgh");
        proxy.cut_after(3);
        assert_eq!(read(&proxy), b"abc");
        assert_eq!(read(&proxy), b"abcdefgh");
        proxy.cut_after(11);
        assert_eq!((read(&proxy), read(&proxy)), (b"abcdefgh".to_vec(), b"abc".to_vec()));
        assert_eq!((proxy.connections(), proxy.cuts(), proxy.flips()), (6, 2, 1));
        assert_eq!(proxy.downstream_bytes(), 8 + 8 + 3 + 8 + 8 + 3);
        proxy.retarget(server(b"other"));
        assert_eq!(read(&proxy), b"other");
    }
}

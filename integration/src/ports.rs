//! TCP ports nobody listens on.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Result, bail};

/// Below those that the kernel gives to connections and to listeners that ask for any: a server that is
/// down for a while finds its port free when it is started again.
const FIRST: u16 = 18_000;
/// The next range is for the next test that runs at the same time.
const RANGE: u16 = 1_000;
const RANGES: u16 = 14;

/// A port of 127.0.0.1 that is free, and that no other call of this process has given, nor of a test that
/// the runner has beside this one.
///
/// # Errors
/// All of them are taken.
pub fn free_port() -> Result<u16> {
    static GIVEN: AtomicU16 = AtomicU16::new(0);
    // Which of the tests at the same time this is; without that runner, there is one.
    let slot = std::env::var("NEXTEST_TEST_GLOBAL_SLOT");
    let slot: u16 = slot.ok().and_then(|slot| slot.parse().ok()).unwrap_or(0);
    let first = FIRST + slot % RANGES * RANGE;
    // Processes in the same slot follow each other: where one begins, the last one's may still be closing.
    let offset = (std::process::id() % u32::from(RANGE)) as u16;
    for _ in 0..RANGE {
        let given = GIVEN.fetch_add(1, Ordering::Relaxed);
        let port = first + offset.wrapping_add(given) % RANGE;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no free TCP port from {first} on")
}

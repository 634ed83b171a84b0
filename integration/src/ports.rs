//! TCP ports nobody listens on.

use std::net::{Ipv4Addr, TcpListener};

use anyhow::{Context, Result};

/// A port of 127.0.0.1 that was free a moment ago. Somebody else may take it before it is used;
/// the kernel gives such ports out at random, so that is rare.
///
/// # Errors
/// The operating system's.
pub fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free TCP port")?;
    Ok(listener.local_addr().context("a listener without address")?.port())
}

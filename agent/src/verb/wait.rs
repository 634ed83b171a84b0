//! `walferry wait`

use std::path::Path;
use std::time::Duration;

use walfmt::Lsn;

use crate::config::Config;
use crate::control::{self, Status};
use crate::trouble::Trouble;

#[derive(Debug, clap::Args)]
#[group(id = "position", required = true, multiple = false)]
pub(crate) struct Positions {
    /// Wait until WAL up to here has been replayed.
    #[arg(long, value_name = "LSN")]
    replayed: Option<Lsn>,
    /// Wait until WAL up to here is durable in this node's archive.
    #[arg(long, value_name = "LSN")]
    durable: Option<Lsn>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    positions: Positions,
    /// Give up after this long.
    #[arg(long, default_value = "30s", value_parser = humantime::parse_duration)]
    timeout: Duration,
}

pub(crate) fn run(config: &Path, arguments: Arguments) -> Result<(), Trouble> {
    let config = Config::load(config)?;
    let (position, lsn) = match (arguments.positions.replayed, arguments.positions.durable) {
        (Some(lsn), _) => ("replayed", lsn),
        (None, Some(lsn)) => ("durable", lsn),
        (None, None) => return Err(Trouble::misuse("give --replayed or --durable")),
    };
    let millis = arguments.timeout.as_millis();
    let path = format!("/wait?position={position}&lsn={lsn}&timeout_millis={millis}");
    let _: Status = control::ask(&config, "GET", &path, None)?;
    Ok(())
}

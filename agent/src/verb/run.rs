//! `walferry run`

use std::io::IsTerminal;
use std::path::Path;

use tracing_subscriber::EnvFilter;

use crate::config::Config;
use crate::node;
use crate::trouble::Trouble;

/// Runs the node until it is told to stop. `RUST_LOG` sets what is logged.
pub(crate) fn run(config: &Path) -> Result<(), Trouble> {
    let config = Config::load(config)?;
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    node::run(config)
}

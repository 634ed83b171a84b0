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
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    // The journal has the time of each line.
    if std::env::var_os("JOURNAL_STREAM").is_some() {
        log.without_time().init();
    } else {
        log.init();
    }
    // A panic is a broken invariant of ours, wherever it happens: nothing that goes on after it can
    // be trusted, and what is on disk is safe.
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
    node::run(config)
}

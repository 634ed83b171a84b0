//! walferry: a PostgreSQL backup that is already restored.
//!
//! One node is one source, one archive, any number of readers of the archive:
//!
//! ```text
//!  SOURCE NODE                                FOLLOWER NODE
//!  pg_wal ─► tail ─► archive ─► send ═══════► receive ─► archive ─┬─► replay ─► page store
//!                                                                 └─► fetch ─► restore_command
//!  positions flow back:       received ≥ durable ≥ replayed
//! ```
//!
//! Two worlds, two doors: tokio has sockets, timers and signals; everything that touches files or
//! pages is a named thread. They meet in bounded channels and in [`positions`]. No file call runs
//! on a tokio worker.
//!
//! This file turns arguments into a verb, and a verb's [`Trouble`] into words and an exit status.

mod clock;
mod config;
mod configuration;
mod control;
mod identity;
mod locales;
mod metrics;
mod node;
mod peer;
mod positions;
mod server;
mod service;
mod spool;
mod stage;
mod stop;
mod tls;
mod trouble;
mod verb;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::parser::ValueSource;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::trouble::Trouble;

/// A PostgreSQL backup that is already restored.
///
/// One agent runs beside each node. On the server's machine it reads the WAL as it is written,
/// checks every record, compresses it and keeps and sends it; on another machine it replays what
/// it receives into a second data directory that a stock PostgreSQL opens.
#[derive(Debug, Parser)]
#[command(name = "walferry", version)]
struct Arguments {
    /// The node's configuration file.
    #[arg(
        long,
        short,
        global = true,
        env = "WALFERRY_CONFIG",
        default_value = "/etc/walferry/walferry.toml",
        value_name = "FILE"
    )]
    config: PathBuf,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run this node's agent until it is told to stop.
    ///
    /// Example: walferry run --config /etc/walferry/walferry.toml
    Run,
    /// Make the store from a base backup, which the leader's agent sends, or from one that is there.
    ///
    /// The store must be empty. The WAL that the backup needs is in the archive when this is done.
    /// Interrupted, it leaves nothing under the store's name, and is simply run again.
    ///
    /// Example: walferry bootstrap --fast-checkpoint
    Bootstrap(verb::bootstrap::Arguments),
    /// Show where this node stands.
    ///
    /// Example: walferry status --json
    Status(verb::status::Arguments),
    /// Check what stands in this node's way: configuration, permissions, settings, disks, clocks,
    /// certificates, peers.
    ///
    /// Changes nothing, and needs no running agent. Exit status 0 if nothing has failed (with
    /// --strict: and there is nothing to warn of), 1 otherwise, 2 for a wrong configuration. Run it
    /// as the user of the service.
    ///
    /// Example: sudo -u postgres walferry check
    Check(verb::check::Arguments),
    /// Wait until this node has replayed, or made durable, a WAL position.
    ///
    /// Exit status 3 if it was not reached in time.
    ///
    /// Example: walferry wait --replayed 0/5000060 --timeout 30s
    Wait(verb::wait::Arguments),
    /// Check the store on disk: every page, and every file that says whether it is whole.
    ///
    /// Exit status 0 if all is sound, 1 if something is damaged, 3 if that cannot be asked yet: the
    /// agent runs, or the store was not stopped cleanly and has not replayed to the archive's end
    /// since.
    ///
    /// Example: walferry verify --store
    Verify(verb::verify::Arguments),
    /// Open the store as a primary, on a new timeline, with the installed PostgreSQL.
    ///
    /// Example: walferry promote --leader-is-dead --port 5433
    Promote(verb::promote::Arguments),
    /// Print the rows that changed, as JSON lines: whole transactions in the order of their commits.
    ///
    /// Needs [decode] in the configuration: the agent captures rows while it replays, whatever the
    /// leader's wal_level.
    ///
    /// Example: walferry decode --database shop --table 'public.*' --follow
    Decode(verb::decode::Arguments),
    /// Copy a WAL file out of the archive, for use as restore_command.
    ///
    /// Exit status 3 if the archive does not hold it, 126 if that cannot be told.
    ///
    /// Example: restore_command = 'walferry fetch %f %p'
    Fetch(verb::fetch::Arguments),
    /// Print WAL records as pg_waldump does: of PostgreSQL 15 to 18, from segments, .partial files and
    /// archives of walferry.
    ///
    /// Needs neither an agent nor a configuration, and changes nothing. The text is that of the major's
    /// own pg_waldump. Unlike it, this goes on where a timeline was left for another, and why it ends is
    /// on the standard error.
    ///
    /// Exit status 0 if all that was asked for was printed, or, where no --end was given, all up to the
    /// end of the WAL; 1 if WAL is damaged or cannot be read; 2 for wrong usage; 3 if what was asked for
    /// is not there: no record from --start on, a segment in between, or WAL up to --end.
    ///
    /// Example: walferry waldump -p /var/lib/postgresql/15/main -s 0/5000060 --rmgr Heap
    Waldump(verb::waldump::Arguments),
}

fn main() -> ExitCode {
    let matches = Arguments::command().get_matches(); // wrong usage: exit status 2
    let arguments = match Arguments::from_arg_matches(&matches) {
        Ok(arguments) => arguments,
        Err(error) => error.exit(),
    };
    // For a verb that does not need one.
    let is_config_given = matches.value_source("config") == Some(ValueSource::CommandLine);
    let result = match arguments.verb {
        Verb::Run => verb::run::run(&arguments.config),
        Verb::Bootstrap(of) => verb::bootstrap::run(&arguments.config, of),
        Verb::Status(of) => verb::status::run(&arguments.config, of),
        Verb::Check(of) => verb::check::run(&arguments.config, of),
        Verb::Wait(of) => verb::wait::run(&arguments.config, of),
        Verb::Verify(of) => verb::verify::run(&arguments.config, of),
        Verb::Promote(of) => verb::promote::run(&arguments.config, of),
        Verb::Decode(of) => verb::decode::run(&arguments.config, of),
        Verb::Fetch(of) => verb::fetch::run(&arguments.config, of),
        Verb::Waldump(of) => verb::waldump::run(is_config_given.then_some(&*arguments.config), &of),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(trouble) => report(&trouble),
    }
}

fn report(trouble: &Trouble) -> ExitCode {
    eprintln!("walferry: {trouble}");
    if let Some(hint) = trouble.hint() {
        eprintln!("hint: {hint}");
    }
    ExitCode::from(trouble.exit_status())
}

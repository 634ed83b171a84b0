//! `walferry status`

use std::path::Path;

use crate::config::Config;
use crate::control::{self, Status};
use crate::trouble::Trouble;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// One JSON object instead of text.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(config: &Path, arguments: Arguments) -> Result<(), Trouble> {
    let config = Config::load(config)?;
    let status: Status = control::ask(&config, "GET", "/status", None)?;
    if arguments.json {
        let text = serde_json::to_string_pretty(&status)
            .map_err(|error| Trouble::io("writing JSON", error))?;
        println!("{text}");
    } else {
        print(&status);
    }
    Ok(())
}

fn print(status: &Status) {
    println!("node      {}  (walferry {})", status.node, status.version);
    if let (Some(system), Some(timeline)) = (&status.system_identifier, status.timeline) {
        println!("cluster   {system}, timeline {timeline}");
    }
    for (name, lsn) in &status.positions {
        println!("{name:<15} {lsn}");
    }
    if let Some(bytes) = status.lag_bytes {
        match status.lag_seconds {
            Some(seconds) => println!("{:<15} {bytes} bytes, {seconds:.3} s", "lag"),
            None => println!("{:<15} {bytes} bytes", "lag"),
        }
    }
    for stage in &status.stages {
        println!("{:<15} {}  {}", stage.stage, stage.state, stage.detail);
        if let Some(hint) = &stage.hint {
            println!("{:<15} hint: {hint}", "");
        }
    }
    for follower in &status.followers {
        let connected = if follower.connected { "connected" } else { "not connected" };
        print!(
            "follower {:<10} {connected}, shipped {}, received {}, durable {}, replayed {}",
            follower.name, follower.shipped, follower.received, follower.durable, follower.replayed
        );
        match (follower.lag_bytes, follower.lag_seconds) {
            (Some(bytes), Some(seconds)) => println!(", {bytes} bytes, {seconds:.3} s behind"),
            _ => println!(),
        }
    }
}

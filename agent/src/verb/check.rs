//! `walferry check`: everything that stands in this node's way, at once.
//!
//! It changes nothing, needs no running agent, and tells of each thing that it looked at in one line:
//! that it is as it should be, or what is wrong and what to do. It looks as the user who runs it, so
//! it must be run as the user of the service.

mod certificates;
mod finding;
pub(crate) mod machine;
mod peers;
mod server;
mod store;

use std::path::Path;
use std::sync::Arc;

use crate::config::{Config, Problem, Source};
use crate::control::{self, Status};
use crate::tls::Tls;
use crate::trouble::{Kind, Trouble};

use self::finding::{Code, Findings};

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// One JSON object instead of text.
    #[arg(long)]
    json: bool,
    /// Warnings count as failures for the exit status.
    #[arg(long)]
    strict: bool,
}

pub(crate) fn run(path: &Path, arguments: Arguments) -> Result<(), Trouble> {
    let mut findings = Findings::default();
    let config = Config::read(path);
    match &config {
        Ok(config) => {
            findings.ok("configuration", format_args!("{}", path.display()));
            check(config, &mut findings)?;
        }
        Err(problems) => findings.extend(path, problems),
    }
    if arguments.json {
        let text = serde_json::to_string_pretty(&findings.to_json())
            .map_err(|error| Trouble::io("writing JSON", error))?;
        println!("{text}");
    } else {
        findings.print();
    }
    let (failed, warnings) = (findings.failed(), findings.warnings());
    if config.is_err() {
        return Err(Trouble::misuse(format_args!("problems in the configuration: {failed}")));
    }
    if failed == 0 && (warnings == 0 || !arguments.strict) {
        return Ok(());
    }
    Err(Trouble::new(Kind::Refused, format_args!("{failed} failed, {warnings} warnings")))
}

impl Findings {
    fn extend(&mut self, path: &Path, problems: &[Problem]) {
        for Problem { line, words, hint } in problems {
            let line = line.map(|line| format!(":{line}")).unwrap_or_default();
            let remedy = hint.as_deref().unwrap_or("see the README's section on using it");
            self.add(
                Code::Configuration,
                format_args!("{}{line}: {words}", path.display()),
                remedy,
            );
        }
    }
}

fn check(config: &Config, findings: &mut Findings) -> Result<(), Trouble> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Trouble::io("starting the runtime", error))?;
    let runs = agent(config, findings);
    machine::account(config, findings);
    machine::clock(config, findings);
    machine::disks(config, findings);
    if !runs {
        machine::addresses(config, findings);
    }
    let tls = match config.tls.clone().map(Tls::new).transpose() {
        Ok(tls) => tls.map(Arc::new),
        Err(trouble) => {
            let remedy = "the paths in [tls] must lead to PEM files that this user may read";
            findings.add_trouble(Code::TlsFiles, &trouble, remedy);
            None
        }
    };
    certificates::check(config, tls.as_ref(), findings);
    match config.source()? {
        Source::Tail(directory) => server::check(config, &directory, &runtime, findings),
        // With certificates that cannot be used there is nobody to ask.
        Source::Receive(peers) if tls.is_some() || config.tls.is_none() => {
            runtime.block_on(peers::check(config, &peers, tls.as_ref(), findings));
        }
        Source::Receive(_) => {}
    }
    if let Some(store) = &config.store {
        store::check(store, findings);
    }
    Ok(())
}

/// Whether the agent runs, and what its stages say.
fn agent(config: &Config, findings: &mut Findings) -> bool {
    let status: Status = match control::ask(config, "GET", "/status", None) {
        Ok(status) => status,
        Err(trouble) => {
            findings.add_trouble(Code::AgentDown, &trouble, "start it: walferry run");
            return false;
        }
    };
    let mut sound = true;
    for stage in status.stages {
        if matches!(
            stage.state.as_str(),
            "stopped" | "retrying" | "gap" | "needs_bootstrap" | "diverged"
        ) {
            sound = false;
            findings.add(
                Code::AgentStage,
                format_args!("{} is {}: {}", stage.stage, stage.state, stage.detail),
                stage.hint.as_deref().unwrap_or("see its log"),
            );
        }
    }
    if sound {
        findings.ok("agent", "it runs, and nothing of it has stopped");
    }
    true
}

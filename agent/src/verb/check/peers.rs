//! The agents that this one receives from: are they there, whose WAL have they, may this node have it?

use std::sync::Arc;
use std::time::{Duration, Instant};

use walferry_archive::OsFiles;
use walferry_wire::{ProbeAnswer, Refused, Standing};

use super::finding::{Code, Findings};
use crate::config::Config;
use crate::locales;
use crate::peer::{self, Answer};
use crate::stage::tail;
use crate::tls::Tls;
use crate::trouble::Trouble;

const NOBODY: &str = "does its agent run and listen there? does a firewall stand between?";
/// Clocks that differ by more, in seconds, are worth a word.
const CLOCK_TOLERANCE: f64 = 2.0;
/// How long a peer may take to know its server. One without `conninfo` never asks it for its version.
const START_LIMIT: Duration = Duration::from_secs(3);
const START_PAUSE: Duration = Duration::from_millis(200);

pub(super) async fn check(
    config: &Config,
    peers: &[String],
    tls: Option<&Arc<Tls>>,
    findings: &mut Findings,
) {
    for peer in peers {
        match ask(config, peer, tls).await {
            Ok(Answer { answer: ProbeAnswer::Standing(standing), .. })
                if standing.system_identifier == 0 =>
            {
                findings.add(
                    Code::PeerUnreachable,
                    format_args!(
                        "{} at {peer} does not know yet whose WAL it has",
                        standing.node.as_str()
                    ),
                    "its own `walferry status` says what it waits for",
                );
            }
            Ok(Answer { answer: ProbeAnswer::Standing(standing), ahead }) => {
                judge(config, peer, &standing, ahead, findings);
            }
            Ok(Answer { answer: ProbeAnswer::Refused(Refused { text, .. }), .. }) => findings.add(
                Code::PeerRole,
                format_args!("peer {peer} refuses this node: {text}"),
                "the name in this node's certificate must be [node] name",
            ),
            Err(trouble) => findings.add_trouble(Code::PeerUnreachable, &trouble, NOBODY),
        }
    }
}

/// Asks a peer; one that was started a moment ago and does not know its server yet, for some time.
async fn ask(config: &Config, peer: &str, tls: Option<&Arc<Tls>>) -> Result<Answer, Trouble> {
    let deadline = Instant::now() + START_LIMIT;
    loop {
        let name = config.node.name.parse().expect("the configuration was checked");
        let answer = peer::probe(tls, peer, name).await?;
        let is_starting = match &answer.answer {
            ProbeAnswer::Standing(standing) => {
                standing.system_identifier == 0 || standing.server_version_num == 0
            }
            ProbeAnswer::Refused(_) => false,
        };
        if !is_starting || Instant::now() >= deadline {
            return Ok(answer);
        }
        tokio::time::sleep(START_PAUSE).await;
    }
}

fn judge(config: &Config, peer: &str, standing: &Standing, ahead: f64, findings: &mut Findings) {
    let leader = standing.node.as_str();
    if ahead.abs() > CLOCK_TOLERANCE {
        let than = if ahead > 0.0 { "ahead of" } else { "behind" };
        findings.add(
            Code::ClockPeer,
            format_args!("the clock of {leader} is {:.1} s {than} this machine's", ahead.abs()),
            "let a time service keep both: certificates and recovery targets are judged by them",
        );
    }
    let missing = match (standing.may_follow, standing.may_bootstrap) {
        (true, true) => None,
        (false, _) => Some("follower"),
        (true, false) => Some("bootstrap"),
    };
    if let Some(role) = missing {
        let name = &config.node.name;
        findings.add(
            Code::PeerRole,
            format_args!("{name} has not the role {role} at {leader}"),
            format_args!("add it to [tls.roles] there, and restart that agent"),
        );
    }
    let store = config.store.as_ref().map(|store| &store.data_directory);
    let ours = store.and_then(|directory| tail::read_control_file(&OsFiles, directory).ok());
    if let Some(ours) = ours
        && (ours.system_identifier != standing.system_identifier
            || ours.segment_size != standing.segment_size)
    {
        findings.add(
            Code::PeerCluster,
            format_args!(
                "the store is of system {}, with segments of {} bytes, {leader} has WAL of system \
                 {}, with {} bytes",
                ours.system_identifier,
                ours.segment_size.bytes(),
                standing.system_identifier,
                standing.segment_size.bytes()
            ),
            "correct [source] peers, or bootstrap another store",
        );
        return;
    }
    if config.store.is_some()
        && let Some(words) = locales::objection(&standing.locales)
    {
        findings.add(Code::StoreLocale, words, locales::REMEDY);
    }
    let version = match standing.server_version_num {
        0 => "of a version that it does not know".to_owned(),
        version => format!("{}.{}", version / 10_000, version % 10_000),
    };
    findings.ok(
        "peer",
        format_args!(
            "{leader} at {peer} answers: system {}, timeline {}, PostgreSQL {version}",
            standing.system_identifier, standing.timeline,
        ),
    );
}

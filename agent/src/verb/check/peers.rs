//! The agents that this one receives from: are they there, whose WAL have they, may this node have it?

use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use walferry_archive::OsFiles;
use walferry_wire::{PlainText, Probe, ProbeAnswer, Prober, Refused, Standing};

use super::finding::{Code, Findings};
use crate::clock;
use crate::config::Config;
use crate::stage::tail;
use crate::tls::{self, Tls};
use crate::trouble::{Kind, Trouble};

const ANSWER_LIMIT: Duration = Duration::from_secs(5);
const NOBODY: &str = "does its agent run and listen there? does a firewall stand between?";
const READ_BYTES: usize = 8 << 10;
/// Clocks that differ by more, in seconds, are worth a word.
const CLOCK_TOLERANCE: f64 = 2.0;

pub(super) async fn check(
    config: &Config,
    peers: &[String],
    tls: Option<&Arc<Tls>>,
    findings: &mut Findings,
) {
    for peer in peers {
        match tokio::time::timeout(ANSWER_LIMIT, probe(config, peer, tls)).await {
            Ok(Ok(Answer { answer: ProbeAnswer::Standing(standing), ahead })) => {
                judge(config, peer, &standing, ahead, findings);
            }
            Ok(Ok(Answer { answer: ProbeAnswer::Refused(Refused { text, .. }), .. })) => findings
                .add(
                    Code::PeerRole,
                    format_args!("peer {peer} refuses this node: {text}"),
                    "the name in this node's certificate must be [node] name",
                ),
            Ok(Err(trouble)) => findings.add_trouble(Code::PeerUnreachable, &trouble, NOBODY),
            Err(_) => findings.add(
                Code::PeerUnreachable,
                format_args!("peer {peer} does not answer"),
                NOBODY,
            ),
        }
    }
}

struct Answer {
    answer: ProbeAnswer,
    /// How far the peer's clock is ahead of ours, in seconds; half the way there and back is not
    /// counted as a difference.
    ahead: f64,
}

async fn probe(config: &Config, peer: &str, tls: Option<&Arc<Tls>>) -> Result<Answer, Trouble> {
    let lost = |error: &dyn std::fmt::Display| {
        Trouble::new(Kind::Io, format_args!("peer {peer}: {error}")).with_hint(
            "does its agent run and listen there? has one side [tls] and the other not? is it as \
             new as this one?",
        )
    };
    let mut connection = tls::connect(tls, peer).await?;
    let mut prober = Prober::new(Probe {
        node: config.node.name.parse().expect("the configuration was checked"),
        agent_version: PlainText::fitted(env!("CARGO_PKG_VERSION")),
    });
    let asked = clock::now().wall.0;
    while let Some(bytes) = prober.poll_transmit() {
        connection.write(&bytes).await.map_err(|error| lost(&error))?;
    }
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let read = connection.stream.read(&mut buffer).await.map_err(|error| lost(&error))?;
        if read == 0 {
            return Err(lost(&"it closes the connection without an answer"));
        }
        prober.handle_bytes(&buffer[..read]).map_err(|error| lost(&error))?;
        let Some(answer) = prober.answer() else { continue };
        let answered = clock::now().wall.0;
        if let ProbeAnswer::Standing(standing) = &answer
            && let Some(objection) = connection.objection_to_name(&standing.node)
        {
            return Err(lost(&objection));
        }
        let ahead = match &answer {
            ProbeAnswer::Standing(standing) if standing.stamp.0 > answered => {
                standing.stamp.0 - answered
            }
            ProbeAnswer::Standing(standing) if standing.stamp.0 < asked => standing.stamp.0 - asked,
            _ => 0,
        };
        connection.close().await;
        return Ok(Answer { answer, ahead: ahead as f64 / 1e6 });
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
        && standing.system_identifier != 0
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
    let version = standing.server_version_num;
    findings.ok(
        "peer",
        format_args!(
            "{leader} at {peer} answers: system {}, timeline {}, PostgreSQL {}.{}",
            standing.system_identifier,
            standing.timeline,
            version / 10_000,
            version % 10_000
        ),
    );
}

//! Asking a peer how this node stands with it, before anything else is wanted.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use walferry_wire::{NodeName, PlainText, Probe, ProbeAnswer, Prober};

use crate::clock;
use crate::tls::{self, Tls};
use crate::trouble::{Kind, Trouble};

const ANSWER_LIMIT: Duration = Duration::from_secs(5);
const READ_BYTES: usize = 8 << 10;

/// What a peer answers.
pub(crate) struct Answer {
    pub(crate) answer: ProbeAnswer,
    /// How far the peer's clock is ahead of ours, in seconds; the way there and back counts as no
    /// difference.
    pub(crate) ahead: f64,
}

/// Asks a peer.
pub(crate) async fn probe(
    tls: Option<&Arc<Tls>>,
    peer: &str,
    name: NodeName,
) -> Result<Answer, Trouble> {
    match tokio::time::timeout(ANSWER_LIMIT, exchange(tls, peer, name)).await {
        Ok(answer) => answer,
        Err(_) => Err(Trouble::io(format_args!("peer {peer}"), "no answer")),
    }
}

async fn exchange(tls: Option<&Arc<Tls>>, peer: &str, name: NodeName) -> Result<Answer, Trouble> {
    let lost = |error: &dyn std::fmt::Display| {
        Trouble::new(Kind::Io, format_args!("peer {peer}: {error}")).with_hint(
            "does its agent run and listen there? has one side [tls] and the other not? is it as \
             new as this one?",
        )
    };
    let mut connection = tls::connect(tls, peer).await?;
    let mut prober = Prober::new(Probe {
        node: name,
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
        let mut ahead = 0;
        if let ProbeAnswer::Standing(standing) = &answer {
            if let Some(objection) = connection.objection_to_name(&standing.node) {
                return Err(lost(&objection));
            }
            let stamp = standing.stamp.0;
            ahead = stamp.saturating_sub(stamp.clamp(asked.min(answered), answered));
        }
        connection.close().await;
        return Ok(Answer { answer, ahead: ahead as f64 / 1e6 });
    }
}

//! Horizon: what the server itself says of its WAL, and the slot by which it holds WAL for this agent.
//!
//! Its positions are a metric and evidence, never a bound for what may be shipped: that is `tail`'s
//! own `fdatasync`.
//!
//! **The slot.** While the agent is down, a physical slot has the server keep the WAL that the archive
//! does not have yet. It is used only while `max_slot_wal_keep_size` is bounded, and dropped when it no
//! longer is: a dead agent must never fill the disk of a primary. It is moved to what is durable in the
//! archive when a segment ends, and once a minute. Whoever removes it (an HA manager may) finds it
//! made anew.

use std::sync::Arc;
use std::time::{Duration, Instant};

use walfmt::Lsn;

use crate::node::Node;
use crate::positions::Position;
use crate::server::Server;
use crate::stage::State;
use crate::trouble::{Kind, Trouble};

const STAGE: &str = "horizon";
const FIRST_ANSWER_LIMIT: Duration = Duration::from_secs(2);
const ASK_EVERY: Duration = Duration::from_millis(500);
const MOVE_SLOT_EVERY: Duration = Duration::from_secs(60);
/// How often it is asked whether the slot may still be there.
const CHECK_HOLD_EVERY: Duration = Duration::from_secs(5);
/// How often it is asked which locales its databases need: who makes a database seldom asks at once.
const ASK_LOCALES_EVERY: Duration = Duration::from_secs(60);

/// Asks until the node stops. A server that cannot be reached is asked again; one that must not be
/// followed stops this stage and shipping.
pub(crate) async fn run(node: Arc<Node>, conninfo: String) {
    while !node.stopping() {
        if let Err(trouble) = follow(&node, &conninfo).await {
            if trouble.kind() == Kind::Misuse {
                node.stages.fail(STAGE, State::Stopped, &trouble);
                node.forbid_shipping(trouble);
                return;
            }
            node.stages.fail(STAGE, State::Retrying, &trouble);
        }
        node.pause(Duration::from_secs(1)).await;
    }
}

/// Before anything is shipped: a server that answers, and must not be followed, ends the agent. One
/// that does not answer is asked later.
pub(crate) async fn refuse_misuse(conninfo: &str) -> Result<(), Trouble> {
    let ask = async { Server::connect(conninfo).await?.settings().await };
    match tokio::time::timeout(FIRST_ANSWER_LIMIT, ask).await {
        Ok(Err(trouble)) if trouble.kind() == Kind::Misuse => Err(trouble),
        _ => Ok(()),
    }
}

async fn follow(node: &Node, conninfo: &str) -> Result<(), Trouble> {
    let server = Server::connect(conninfo).await?;
    let mut holding = Holding::new(node.config.slot()?);
    let mut asked_locales: Option<Instant> = None;
    loop {
        // Who must not be followed, or is no primary, is not to hold WAL for nothing.
        let settings = match server.settings().await {
            Ok(settings) => settings,
            Err(trouble) => {
                holding.release(&server).await;
                return Err(trouble);
            }
        };
        if settings.in_recovery {
            holding.release(&server).await;
            node.stages.set(STAGE, State::Waiting, "the server is in recovery");
            return Ok(());
        }
        node.set_server_version(settings.version_num);
        if node.stopping() {
            return Ok(());
        }
        if asked_locales.is_none_or(|at| at.elapsed() >= ASK_LOCALES_EVERY) {
            asked_locales = Some(Instant::now());
            // At once: a follower may be checked before the first WAL is. Less than the slot, which goes
            // on without.
            match server.locales().await {
                Ok(locales) => node.set_locales(locales),
                Err(trouble) => tracing::warn!("{trouble}"),
            }
        }
        // Before it is known whose WAL this is, nothing of this server's means anything.
        let Some(identity) = node.identity() else {
            node.pause(ASK_EVERY).await;
            continue;
        };
        if settings.system_identifier != identity.system_identifier {
            let words = format_args!(
                "[source] conninfo leads to system {}, data_directory is of system {}",
                settings.system_identifier, identity.system_identifier
            );
            return Err(Trouble::new(Kind::Refused, words)
                .with_hint("correct one of them: they must be the same server"));
        }
        node.positions.advance(Position::ServerFlush, server.flush_position().await?);
        match holding.look(node, &server).await {
            Ok(Some(words)) => node.stages.set(STAGE, State::Streaming, words),
            Ok(None) => {}
            // What the server says of its WAL is worth having without a slot, too.
            Err(trouble) => node.stages.fail(STAGE, State::Streaming, &trouble),
        }
        node.pause(ASK_EVERY).await;
    }
}

/// The slot, as it was last seen.
struct Holding {
    name: Option<String>,
    /// From where on it holds WAL.
    restart: Option<Lsn>,
    moved_at: Instant,
    checked_at: Option<Instant>,
}

impl Holding {
    fn new(name: Option<String>) -> Self {
        Self { name, restart: None, moved_at: Instant::now(), checked_at: None }
    }

    /// Drops the slot, if there is one. That it is still there harms only as long as the server keeps
    /// its bound, and is said.
    async fn release(&mut self, server: &Server) {
        let Some(name) = &self.name else { return };
        self.restart = None;
        let released = match server.slot(name).await {
            Ok(Some(slot)) if slot.is_ours => server.drop_slot(name).await,
            Ok(_) => return,
            Err(trouble) => Err(trouble),
        };
        match released {
            Ok(()) => tracing::warn!(slot = name, "dropped: this server's WAL is not followed"),
            Err(trouble) => tracing::warn!(slot = name, "not dropped: {trouble}"),
        }
    }

    /// Makes the slot, moves it or drops it, if that is due. Says what holds WAL when it has looked.
    async fn look(&mut self, node: &Node, server: &Server) -> Result<Option<String>, Trouble> {
        if self.checked_at.is_none_or(|at| at.elapsed() >= CHECK_HOLD_EVERY) {
            self.checked_at = Some(Instant::now());
            return self.check(server).await.map(Some);
        }
        let (Some(name), Some(restart), Some(identity)) =
            (&self.name, self.restart, node.identity())
        else {
            return Ok(None);
        };
        let durable = node.positions.get(Position::Durable);
        let size = identity.segment_size;
        let is_due = size.segment_of(durable) > size.segment_of(restart)
            || self.moved_at.elapsed() >= MOVE_SLOT_EVERY;
        if is_due && durable > restart {
            if let Err(trouble) = server.move_slot(name, durable).await {
                self.checked_at = None; // gone, or given up: it is made anew at once
                return Err(trouble);
            }
            (self.restart, self.moved_at) = (Some(durable), Instant::now());
        }
        Ok(None)
    }

    async fn check(&mut self, server: &Server) -> Result<String, Trouble> {
        self.restart = None;
        let hold = server.hold().await?;
        let Some(name) = &self.name else {
            return Ok(hold.without_slot());
        };
        let slot = server.slot(name).await?;
        if let Some((words, remedy)) = hold.objection() {
            if slot.is_some_and(|slot| slot.is_ours) {
                server.drop_slot(name).await?;
                tracing::warn!(slot = name, "dropped: {words}");
            }
            return Ok(format!("{words}: {remedy}"));
        }
        let slot = match slot {
            Some(slot) if !slot.is_ours => {
                return Err(Trouble::new(
                    Kind::Refused,
                    format_args!("slot {name} is not physical, or in use by somebody else"),
                )
                .with_hint("give this agent one of its own: [source] slot"));
            }
            Some(slot) if slot.restart.is_some() => slot,
            lost => {
                if lost.is_some() {
                    tracing::warn!(slot = name, "the server has given up what it held: made anew");
                    server.drop_slot(name).await?;
                }
                server.create_slot(name).await?;
                tracing::info!(slot = name, "made: {hold}");
                let made = server.slot(name).await?;
                made.ok_or_else(|| Trouble::io("the slot that holds WAL", "it is gone again"))?
            }
        };
        self.restart = slot.restart;
        Ok(format!("{hold} (slot {name})"))
    }
}

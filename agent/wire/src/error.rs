//! What can go wrong on a connection, by who is to blame.

use std::time::Duration;

use walfmt::Lsn;

use crate::chain::BrokenChain;
use crate::decoder::DecodeError;
use crate::message::{InvalidField, MessageKind};
use crate::positions::MisorderedPositions;

/// Why a connection cannot go on. The state machine that gave it takes nothing more; what it still
/// has to send (a goodbye that names the reason) may be sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectionError {
    /// The peer's bytes are not this protocol.
    #[error("cannot read the peer's message: {0}")]
    Decode(#[from] DecodeError),
    /// The peer's bytes are well formed, but it may not say that.
    #[error("peer broke the protocol: {0}")]
    PeerMisbehaved(#[from] Misbehaviour),
    /// The leader welcomed us, but it is not the leader we follow.
    #[error("leader's {what} is {theirs}, expected {ours}")]
    PeerIncompatible {
        /// What differs.
        what: &'static str,
        /// Our value.
        ours: u64,
        /// The leader's.
        theirs: u64,
    },
    /// Not a byte for too long.
    #[error("nothing heard from the peer for {0:?}")]
    PeerSilent(Duration),
    /// The connection is over already.
    #[error("bytes after the end of the connection")]
    Closed,
}

/// A well-formed message that the peer may not send, or not now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Misbehaviour {
    /// A message at a time when it has no meaning.
    #[error("unexpected {kind:?} message while {state}")]
    Unexpected {
        /// The message.
        kind: MessageKind,
        /// What we were doing.
        state: &'static str,
    },
    /// WAL that does not go on where the WAL before ended.
    #[error(transparent)]
    Chain(#[from] BrokenChain),
    /// WAL that its source could still lose.
    #[error("WAL data ends at {end}, its source is durable only up to {source_durable}")]
    NotDurable {
        /// Where the data ends.
        end: Lsn,
        /// The durable position that came with it.
        source_durable: Lsn,
    },
    /// Positions that contradict each other.
    #[error(transparent)]
    Misordered(#[from] MisorderedPositions),
    /// A position that only ever grows became smaller.
    #[error("position {position} went back from {before} to {now}")]
    WentBack {
        /// Which.
        position: &'static str,
        /// What it was.
        before: Lsn,
        /// What it is said to be.
        now: Lsn,
    },
    /// The follower acknowledges WAL that was never sent to it.
    #[error("received position {received} acknowledged, only WAL up to {sent} was sent")]
    NeverSent {
        /// What it acknowledges.
        received: Lsn,
        /// Where the data sent so far ends.
        sent: Lsn,
    },
    /// The leader welcomes a follower at a position that its archive does not have.
    #[error("welcomed at {start}, but the leader's archive has {first} to {appended}")]
    NotInArchive {
        /// Where we asked to go on.
        start: Lsn,
        /// Where the archive starts.
        first: Lsn,
        /// Where it ends.
        appended: Lsn,
    },
}

/// A call that the caller must not make: a mistake in this agent, never a matter of the peer's
/// bytes. Nothing was changed or sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Misuse {
    /// The call has no meaning in this state.
    #[error("{call} called while {state}")]
    State {
        /// The method.
        call: &'static str,
        /// The state.
        state: &'static str,
    },
    /// A field that we would not accept from a peer either.
    #[error(transparent)]
    Field(#[from] InvalidField),
    /// WAL that does not go on where the WAL before ended.
    #[error(transparent)]
    Chain(#[from] BrokenChain),
    /// WAL that is not known to be durable at its source.
    #[error("WAL data ends at {end}, source_durable was set to {source_durable}")]
    NotDurable {
        /// Where the data ends.
        end: Lsn,
        /// What was set.
        source_durable: Lsn,
    },
    /// The window is full: `can_send` says no.
    #[error("{in_flight} bytes are not acknowledged, the window is {window}")]
    WindowFull {
        /// What is out.
        in_flight: usize,
        /// What may be.
        window: usize,
    },
    /// A position became smaller.
    #[error("position {position} set back from {before} to {now}")]
    WentBack {
        /// Which.
        position: &'static str,
        /// What it was.
        before: Lsn,
        /// What it would be.
        now: Lsn,
    },
    /// More received than arrived.
    #[error("received position set to {received}, only WAL up to {arrived} arrived")]
    NeverArrived {
        /// What was set.
        received: Lsn,
        /// The end of what arrived.
        arrived: Lsn,
    },
}

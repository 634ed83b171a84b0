//! The follower's side of a connection that fetches a base backup.

use std::collections::VecDeque;
use std::time::Instant;

use bytes::Bytes;

use crate::decoder::{Decoder, Side};
use crate::error::{ConnectionError, Misbehaviour};
use crate::limits::Limits;
use crate::message::{
    BackupArchive, BackupContent, BackupEnd, BackupRequest, BackupStarted, Goodbye, Message,
    Refused,
};
use crate::receiver::pop_bytes;
use crate::text::PlainText;

/// What a leader said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackupEvent {
    /// The backup has begun. Always the first, unless refused.
    Started(BackupStarted),
    /// An archive begins. The first may be the configuration, the last one is the manifest.
    Archive(BackupArchive),
    /// Bytes of the archive that began last.
    Data(Bytes),
    /// All of it was there. The last event.
    Ended(BackupEnd),
    /// The leader gives no backup. The last event.
    Refused(Refused),
    /// The backup has failed; the reason says why. The last event.
    Goodbye(Goodbye),
}

/// One connection to a leader, without the connection. Used like [`Receiver`](crate::Receiver).
///
/// The leader waits for its server's checkpoint, and then for its follower's disk: nothing is
/// acknowledged, what is under way is bounded by the connection's own buffers.
#[derive(Debug)]
pub struct BackupReceiver {
    limits: Limits,
    state: State,
    decoder: Decoder,
    events: VecDeque<BackupEvent>,
    outgoing: VecDeque<Bytes>,
    heard_at: Instant,
}

#[derive(Clone, Copy, Debug)]
enum State {
    AwaitStart,
    BetweenArchives,
    InArchive(BackupContent),
    Closed,
}

impl State {
    const fn name(self) -> &'static str {
        match self {
            Self::AwaitStart => "waiting for the backup to begin",
            Self::BetweenArchives => "waiting for the backup's first archive",
            Self::InArchive(_) => "receiving a backup",
            Self::Closed => "closed",
        }
    }
}

impl BackupReceiver {
    /// A connection that was just made; the request is the first thing to send.
    #[must_use]
    pub fn new(request: BackupRequest, limits: Limits, now: Instant) -> Self {
        Self {
            limits,
            state: State::AwaitStart,
            decoder: Decoder::new(Side::Leader),
            events: VecDeque::new(),
            outgoing: Message::BackupRequest(request).encode().into(),
            heard_at: now,
        }
    }

    /// Takes bytes from the leader, all of them. Events that came before an error are still there.
    pub fn handle_bytes(&mut self, now: Instant, bytes: &[u8]) -> Result<(), ConnectionError> {
        let mut rest = bytes;
        while !rest.is_empty() {
            if self.is_closed() {
                return Err(ConnectionError::Closed);
            }
            self.heard_at = now;
            let handled = match self.decoder.poll(&mut rest) {
                Ok(None) => Ok(()),
                Ok(Some(message)) => self.handle_message(message),
                Err(error) => Err(error.into()),
            };
            handled.inspect_err(|error| self.goodbye(&error.to_string()))?;
        }
        Ok(())
    }

    /// The next thing the leader said.
    pub fn poll_event(&mut self) -> Option<BackupEvent> {
        self.events.pop_front()
    }

    /// The next bytes to send.
    pub fn poll_transmit(&mut self) -> Option<Bytes> {
        pop_bytes(&mut self.outgoing)
    }

    /// When [`handle_timeout`](Self::handle_timeout) is to be called, if nothing happens before.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        (!self.is_closed()).then(|| self.heard_at + self.limits.peer_timeout)
    }

    /// Time has passed. May be called at any time.
    pub fn handle_timeout(&mut self, now: Instant) -> Result<(), ConnectionError> {
        let silence = now.saturating_duration_since(self.heard_at);
        if self.is_closed() || silence < self.limits.peer_timeout {
            return Ok(());
        }
        let error = ConnectionError::PeerSilent(silence);
        self.goodbye(&error.to_string());
        Err(error)
    }

    /// The caller was busy, as with a slow disk, and has not looked for bytes: that is no silence.
    pub fn resume_listening(&mut self, now: Instant) {
        self.heard_at = now;
    }

    /// Closes the connection with a word why. What [`poll_transmit`](Self::poll_transmit) gives is
    /// still to be sent.
    pub fn goodbye(&mut self, reason: &str) {
        if !self.is_closed() {
            let goodbye = Goodbye { reason: PlainText::fitted(reason) };
            self.outgoing.extend(Message::Goodbye(goodbye).encode());
            self.state = State::Closed;
        }
    }

    /// Whether the connection is over.
    #[must_use]
    pub const fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed)
    }

    fn handle_message(&mut self, message: Message) -> Result<(), ConnectionError> {
        let (state, event) = match (self.state, message) {
            // Before a backup begins there is a checkpoint to wait for.
            (_, Message::Heartbeat(_)) => return Ok(()),
            (_, Message::Goodbye(goodbye)) => (State::Closed, BackupEvent::Goodbye(goodbye)),
            (State::AwaitStart, Message::Refused(refused)) => {
                (State::Closed, BackupEvent::Refused(refused))
            }
            (State::AwaitStart, Message::BackupStarted(started)) => {
                self.decoder.accept_greeting();
                (State::BetweenArchives, BackupEvent::Started(started))
            }
            (
                State::BetweenArchives
                | State::InArchive(
                    BackupContent::Configuration
                    | BackupContent::Base
                    | BackupContent::Tablespace(_),
                ),
                Message::BackupArchive(archive),
            ) if archive.content != BackupContent::Configuration
                || matches!(self.state, State::BetweenArchives) =>
            {
                (State::InArchive(archive.content), BackupEvent::Archive(archive))
            }
            (State::InArchive(content), Message::BackupData(bytes)) => {
                (State::InArchive(content), BackupEvent::Data(bytes))
            }
            (State::InArchive(BackupContent::Manifest), Message::BackupEnd(end)) => {
                (State::Closed, BackupEvent::Ended(end))
            }
            (state, message) => {
                let (kind, state) = (message.kind(), state.name());
                return Err(Misbehaviour::Unexpected { kind, state }.into());
            }
        };
        self.state = state;
        self.events.push_back(event);
        Ok(())
    }
}

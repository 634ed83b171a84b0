//! The leader's side of one connection.

use std::collections::VecDeque;
use std::time::Instant;

use bytes::Bytes;
use walfmt::{Lsn, SegmentSize, Timeline};

use crate::chain::Chain;
use crate::decoder::{DecodeError, Decoder, Side};
use crate::error::{ConnectionError, Misbehaviour, Misuse};
use crate::limits::Limits;
use crate::message::{
    Acknowledgement, BackupArchive, BackupEnd, BackupRequest, BackupStarted, Chunk, Data, Goodbye,
    Heartbeat, Hello, LocaleName, Message, Probe, RefusalCode, Refused, Standing, Welcome,
};
use crate::positions::{Archived, FollowerPositions, LeaderPositions};
use crate::receiver::pop_bytes;
use crate::text::{NodeName, PlainText};
use crate::time::{Now, Stamp};

/// Who a leader is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its name.
    pub node: NodeName,
    /// The version of its agent.
    pub agent_version: PlainText<64>,
    /// The cluster (`pg_control`'s `system_identifier`); 0 while it does not know, and then it
    /// serves nobody.
    pub system_identifier: u64,
    /// The newest timeline it knows.
    pub timeline: Timeline,
    /// The cluster's segment size.
    pub segment_size: SegmentSize,
    /// The server's major version; 0 if unknown.
    pub server_major: u16,
    /// The server's `server_version_num`; 0 if unknown.
    pub server_version_num: u32,
}

/// What a leader brings to a connection.
#[derive(Clone, Debug)]
pub struct SenderConfig {
    /// Who it is.
    pub identity: Identity,
    /// How far it is.
    pub positions: LeaderPositions,
    /// Its limits.
    pub limits: Limits,
}

/// A part of a base backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackupPart {
    /// It has begun.
    Started(BackupStarted),
    /// An archive begins; the last one is the manifest.
    Archive(BackupArchive),
    /// Some bytes of it, at most [`BACKUP_DATA_MAX`](crate::BACKUP_DATA_MAX).
    Data(Bytes),
    /// It is complete.
    Ended(BackupEnd),
}

/// What the caller knows of how a node stands; the rest is known here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeReply {
    /// Whether the node may have WAL.
    pub may_follow: bool,
    /// Whether the node may have a base backup.
    pub may_bootstrap: bool,
    /// Where the leader's archive begins; invalid if it has none yet.
    pub first: Lsn,
    /// The locales that the server's databases need; more than
    /// [`LOCALES_MAX`](crate::LOCALES_MAX) are not told.
    pub locales: Vec<LocaleName>,
}

/// What a follower said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SenderEvent {
    /// Somebody wants a base backup. To be answered with [`Sender::send_backup`] or
    /// [`Sender::refuse`].
    BackupRequested(BackupRequest),
    /// Somebody asks how it stands. To be answered with [`Sender::answer_probe`] or
    /// [`Sender::refuse`].
    Probed(Probe),
    /// The follower is of this cluster. Does its resume point lie in the archive of its timeline,
    /// and is its WAL ours? To be answered with [`Sender::resume_accepted`] or [`Sender::refuse`].
    CheckResume(Hello),
    /// How far the follower is: in order, never less than before, never more than was sent.
    Acknowledged {
        /// Its positions.
        positions: FollowerPositions,
        /// The newest of our clock stamps that had arrived; 0 before the first.
        echo: Stamp,
    },
    /// The follower was refused. The last event.
    Refused(Refused),
    /// The follower closes the connection. The last event.
    Goodbye(Goodbye),
}

/// One connection to a follower, without the connection.
///
/// The caller sends what [`poll_transmit`](Self::poll_transmit) gives, passes what arrives to
/// [`handle_bytes`](Self::handle_bytes) and takes the events with
/// [`poll_event`](Self::poll_event); it calls [`handle_timeout`](Self::handle_timeout) at
/// [`poll_timeout`](Self::poll_timeout). While [`can_send`](Self::can_send) it reads the archive
/// and calls [`send_data`](Self::send_data).
///
/// What may never leave this node does not: data must lie in an unbroken chain and below
/// `source_durable`, and it is a caller's error if it does not.
#[derive(Debug)]
pub struct Sender {
    identity: Identity,
    limits: Limits,
    state: State,
    decoder: Decoder,
    events: VecDeque<SenderEvent>,
    outgoing: VecDeque<Bytes>,
    positions: LeaderPositions,
    follower: FollowerPositions,
    in_flight: InFlight,
    heard_at: Instant,
    sent_at: Instant,
}

#[derive(Debug)]
enum State {
    AwaitHello,
    /// The caller looks at the resume point.
    Checking(Hello),
    Streaming(Chain),
    /// A backup was asked for, or is being sent.
    Backup {
        is_started: bool,
    },
    /// The caller answers a question.
    Probed,
    Closed,
}

impl State {
    const fn name(&self) -> &'static str {
        match self {
            Self::AwaitHello => "waiting for the follower's hello",
            Self::Checking(_) => "checking the follower's resume point",
            Self::Streaming(_) => "sending WAL",
            Self::Backup { .. } => "sending a backup",
            Self::Probed => "answering a probe",
            Self::Closed => "closed",
        }
    }
}

impl Sender {
    /// A connection that was just accepted.
    #[must_use]
    pub fn new(config: SenderConfig, now: Now) -> Self {
        Self {
            identity: config.identity,
            limits: config.limits,
            state: State::AwaitHello,
            decoder: Decoder::new(Side::Follower),
            events: VecDeque::new(),
            outgoing: VecDeque::new(),
            positions: config.positions,
            follower: FollowerPositions::default(),
            in_flight: InFlight::default(),
            heard_at: now.monotonic,
            sent_at: now.monotonic,
        }
    }

    /// Takes bytes from the follower, all of them. Events that came before an error are still
    /// there.
    pub fn handle_bytes(&mut self, now: Now, bytes: &[u8]) -> Result<(), ConnectionError> {
        let mut rest = bytes;
        while !rest.is_empty() {
            if self.is_closed() {
                return Err(ConnectionError::Closed);
            }
            self.heard_at = now.monotonic;
            let handled = match self.decoder.poll(&mut rest) {
                Ok(None) => Ok(()),
                Ok(Some(message)) => self.handle_message(message),
                Err(error) => Err(error.into()),
            };
            handled.map_err(|error| self.fail(error))?;
        }
        Ok(())
    }

    /// The next thing the follower said.
    pub fn poll_event(&mut self) -> Option<SenderEvent> {
        self.events.pop_front()
    }

    /// The next bytes to send.
    pub fn poll_transmit(&mut self) -> Option<Bytes> {
        pop_bytes(&mut self.outgoing)
    }

    /// When [`handle_timeout`](Self::handle_timeout) is to be called, if nothing happens before.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let silent = self.heard_at + self.limits.peer_timeout;
        match self.state {
            State::AwaitHello => Some(silent),
            State::Streaming(_) => Some(silent.min(self.sent_at + self.limits.heartbeat_interval)),
            // The follower has nothing to say; that it is gone shows when it takes nothing.
            State::Backup { .. } => Some(self.sent_at + self.limits.heartbeat_interval),
            // While it is checked the follower has nothing to say.
            State::Checking(_) | State::Probed | State::Closed => None,
        }
    }

    /// Time has passed. May be called at any time.
    pub fn handle_timeout(&mut self, now: Now) -> Result<(), ConnectionError> {
        if matches!(self.state, State::Checking(_) | State::Probed | State::Closed) {
            return Ok(());
        }
        let silence = now.monotonic.saturating_duration_since(self.heard_at);
        let is_backup = matches!(self.state, State::Backup { .. });
        if silence >= self.limits.peer_timeout && !is_backup {
            return Err(self.fail(ConnectionError::PeerSilent(silence)));
        }
        let idle = now.monotonic.saturating_duration_since(self.sent_at);
        let is_due = idle >= self.limits.heartbeat_interval;
        if is_due && (is_backup || matches!(self.state, State::Streaming(_))) {
            // Bytes that wait to be sent are a sign of life too; more of them are none.
            if self.outgoing.is_empty() {
                let heartbeat = Heartbeat { stamp: now.wall, positions: self.positions };
                self.outgoing.extend(Message::Heartbeat(heartbeat).encode());
            }
            self.sent_at = now.monotonic;
        }
        Ok(())
    }

    /// Answers [`SenderEvent::CheckResume`]: the follower's WAL is ours. A follower that asks for
    /// what is not in the archive is refused all the same.
    pub fn resume_accepted(&mut self, now: Now, archived: Archived) -> Result<(), Misuse> {
        let State::Checking(hello) = &self.state else {
            return Err(Misuse::State { call: "resume_accepted", state: self.state.name() });
        };
        let start = hello.resume.start();
        if start < archived.first {
            let text = format!(
                "follower asks for WAL from {start}, the archive here starts at {}",
                archived.first
            );
            self.push_refusal(RefusalCode::NOT_ARCHIVED, &text);
            return Ok(());
        }
        if start > archived.appended {
            let text = format!(
                "follower asks for WAL from {start}, the archive here ends at {}",
                archived.appended
            );
            self.push_refusal(RefusalCode::AHEAD_OF_LEADER, &text);
            return Ok(());
        }
        let identity = self.identity.clone();
        let welcome = Welcome {
            node: identity.node,
            agent_version: identity.agent_version,
            system_identifier: identity.system_identifier,
            timeline: identity.timeline,
            segment_size: identity.segment_size,
            server_major: identity.server_major,
            server_version_num: identity.server_version_num,
            archived,
        };
        self.state = State::Streaming(Chain::new(hello.timeline, hello.segment_size, start));
        self.decoder.accept_greeting();
        self.outgoing.extend(Message::Welcome(welcome).encode());
        self.heard_at = now.monotonic;
        self.sent_at = now.monotonic;
        Ok(())
    }

    /// Refuses the follower, as the answer to [`SenderEvent::CheckResume`] or even before its
    /// hello. `text` is for the follower's operator and names both sides' values.
    pub fn refuse(&mut self, code: RefusalCode, text: &str) -> Result<(), Misuse> {
        match self.state {
            State::AwaitHello
            | State::Checking(_)
            | State::Probed
            | State::Backup { is_started: false } => {
                self.push_refusal(code, text);
                Ok(())
            }
            _ => Err(Misuse::State { call: "refuse", state: self.state.name() }),
        }
    }

    /// Sets how far this leader is.
    pub fn set_positions(&mut self, positions: LeaderPositions) -> Result<(), Misuse> {
        if let Some((position, before, now)) = positions.went_back_from(self.positions) {
            return Err(Misuse::WentBack { position, before, now });
        }
        self.positions = positions;
        Ok(())
    }

    /// Whether [`send_data`](Self::send_data) would take a chunk: the follower is welcome and the
    /// window is not full.
    #[must_use]
    pub const fn can_send(&self) -> bool {
        matches!(self.state, State::Streaming(_)) && self.in_flight.bytes < self.limits.window_bytes
    }

    /// Where the next chunk must start, once the follower is welcome.
    #[must_use]
    pub const fn next_start(&self) -> Option<Lsn> {
        match &self.state {
            State::Streaming(chain) => Some(chain.next()),
            _ => None,
        }
    }

    /// Sends the next chunk of the archive.
    pub fn send_data(&mut self, now: Now, chunk: Chunk) -> Result<(), Misuse> {
        let State::Streaming(chain) = &mut self.state else {
            return Err(Misuse::State { call: "send_data", state: self.state.name() });
        };
        let (in_flight, window) = (self.in_flight.bytes, self.limits.window_bytes);
        if in_flight >= window {
            return Err(Misuse::WindowFull { in_flight, window });
        }
        chunk.check()?;
        let source_durable = self.positions.source_durable;
        if chunk.end > source_durable {
            return Err(Misuse::NotDurable { end: chunk.end, source_durable });
        }
        chain.advance(&chunk)?;
        self.in_flight.push(chunk.end, chunk.bytes.len());
        let data = Data { chunk, source_durable, stamp: now.wall };
        self.outgoing.extend(Message::Data(data).encode());
        self.sent_at = now.monotonic;
        Ok(())
    }

    /// Sends the next part of the backup that was asked for. The first is [`BackupPart::Started`];
    /// [`BackupPart::Ended`] closes the connection.
    pub fn send_backup(&mut self, now: Now, part: BackupPart) -> Result<(), Misuse> {
        let State::Backup { is_started } = &mut self.state else {
            return Err(Misuse::State { call: "send_backup", state: self.state.name() });
        };
        if *is_started == matches!(part, BackupPart::Started(_)) {
            return Err(Misuse::State { call: "send_backup", state: "in another part of it" });
        }
        *is_started = true;
        let message = match part {
            BackupPart::Started(started) => Message::BackupStarted(started),
            BackupPart::Archive(archive) => Message::BackupArchive(archive),
            BackupPart::Data(bytes) => Message::BackupData(bytes),
            BackupPart::Ended(end) => {
                self.state = State::Closed;
                Message::BackupEnd(end)
            }
        };
        self.outgoing.extend(message.encode());
        self.sent_at = now.monotonic;
        Ok(())
    }

    /// Answers [`SenderEvent::Probed`], and closes the connection.
    pub fn answer_probe(&mut self, now: Now, reply: ProbeReply) -> Result<(), Misuse> {
        if !matches!(self.state, State::Probed) {
            return Err(Misuse::State { call: "answer_probe", state: self.state.name() });
        }
        let identity = self.identity.clone();
        let standing = Standing {
            node: identity.node,
            agent_version: identity.agent_version,
            stamp: now.wall,
            system_identifier: identity.system_identifier,
            timeline: identity.timeline,
            segment_size: identity.segment_size,
            server_major: identity.server_major,
            server_version_num: identity.server_version_num,
            first: reply.first,
            may_follow: reply.may_follow,
            may_bootstrap: reply.may_bootstrap,
            locales: reply.locales,
        };
        self.outgoing.extend(Message::Standing(standing).encode());
        self.state = State::Closed;
        Ok(())
    }

    /// Closes the connection with a word why; a follower that is not welcome yet is told to come
    /// again. What [`poll_transmit`](Self::poll_transmit) gives is still to be sent.
    pub fn goodbye(&mut self, reason: &str) {
        match self.state {
            State::Closed => {}
            State::AwaitHello
            | State::Checking(_)
            | State::Probed
            | State::Backup { is_started: false } => {
                self.push_refusal(RefusalCode::NOT_READY, reason);
            }
            State::Streaming(_) | State::Backup { is_started: true } => {
                self.push_goodbye(reason);
                self.state = State::Closed;
            }
        }
    }

    /// Whether the connection is over.
    #[must_use]
    pub const fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed)
    }

    fn handle_message(&mut self, message: Message) -> Result<(), ConnectionError> {
        match (&mut self.state, message) {
            (State::AwaitHello, Message::Hello(hello)) => match self.objection(&hello) {
                Some((code, text)) => self.push_refusal(code, &text),
                None => {
                    self.events.push_back(SenderEvent::CheckResume(hello.clone()));
                    self.state = State::Checking(hello);
                }
            },
            (State::AwaitHello, Message::BackupRequest(request)) => {
                self.decoder.accept_greeting();
                self.events.push_back(SenderEvent::BackupRequested(request));
                self.state = State::Backup { is_started: false };
            }
            (State::AwaitHello, Message::Probe(probe)) => {
                self.events.push_back(SenderEvent::Probed(probe));
                self.state = State::Probed;
            }
            (
                State::Checking(_) | State::Streaming(_) | State::Backup { .. },
                Message::Goodbye(goodbye),
            ) => {
                self.state = State::Closed;
                self.events.push_back(SenderEvent::Goodbye(goodbye));
            }
            (State::Streaming(chain), Message::Acknowledgement(acknowledgement)) => {
                let Acknowledgement { received, durable, replayed, echo } = acknowledgement;
                let positions = FollowerPositions::new(received, durable, replayed)
                    .map_err(Misbehaviour::from)?;
                if let Some((position, before, now)) = positions.went_back_from(self.follower) {
                    return Err(Misbehaviour::WentBack { position, before, now }.into());
                }
                let sent = chain.next();
                if received > sent {
                    return Err(Misbehaviour::NeverSent { received, sent }.into());
                }
                self.follower = positions;
                self.in_flight.received(received);
                self.events.push_back(SenderEvent::Acknowledged { positions, echo });
            }
            (state, message) => {
                let (kind, state) = (message.kind(), state.name());
                return Err(Misbehaviour::Unexpected { kind, state }.into());
            }
        }
        Ok(())
    }

    /// Why this follower is none of ours, as far as the hello alone tells.
    ///
    /// A follower on an older timeline is the caller's to judge: the archive may hold that timeline
    /// up to where ours left it.
    fn objection(&self, hello: &Hello) -> Option<(RefusalCode, String)> {
        let ours = &self.identity;
        if ours.system_identifier == 0 {
            let text = "the leader does not know its own system identifier yet".to_owned();
            return Some((RefusalCode::NOT_READY, text));
        }
        if hello.system_identifier != 0 && hello.system_identifier != ours.system_identifier {
            let text = format!(
                "follower belongs to system identifier {}, leader to {}",
                hello.system_identifier, ours.system_identifier
            );
            return Some((RefusalCode::WRONG_SYSTEM_IDENTIFIER, text));
        }
        if hello.timeline > ours.timeline {
            let text = format!(
                "follower is on timeline {}, the newest that the leader knows is {}",
                hello.timeline, ours.timeline
            );
            return Some((RefusalCode::WRONG_TIMELINE, text));
        }
        if hello.segment_size != ours.segment_size {
            let text = format!(
                "follower has WAL segments of {} bytes, leader of {}",
                hello.segment_size.bytes(),
                ours.segment_size.bytes()
            );
            return Some((RefusalCode::WRONG_SEGMENT_SIZE, text));
        }
        let known = hello.server_major != 0 && ours.server_major != 0;
        if known && hello.server_major != ours.server_major {
            let text = format!(
                "follower is of PostgreSQL {}, leader of {}",
                hello.server_major, ours.server_major
            );
            return Some((RefusalCode::WRONG_SERVER_VERSION, text));
        }
        None
    }

    fn push_refusal(&mut self, code: RefusalCode, text: &str) {
        let refused = Refused { code, text: PlainText::fitted(text) };
        self.outgoing.extend(Message::Refused(refused.clone()).encode());
        self.events.push_back(SenderEvent::Refused(refused));
        self.state = State::Closed;
    }

    fn push_goodbye(&mut self, reason: &str) {
        let goodbye = Goodbye { reason: PlainText::fitted(reason) };
        self.outgoing.extend(Message::Goodbye(goodbye).encode());
    }

    /// Ends the connection and tells the follower why, if it is one of ours. A stranger gets no
    /// answer, except for an agent of another age.
    fn fail(&mut self, error: ConnectionError) -> ConnectionError {
        match (&self.state, &error) {
            (
                State::AwaitHello,
                ConnectionError::Decode(version @ DecodeError::ProtocolVersion { .. }),
            ) => self.push_refusal(RefusalCode::PROTOCOL_VERSION, &version.to_string()),
            (State::Streaming(_) | State::Backup { is_started: true }, _) => {
                self.push_goodbye(&error.to_string());
            }
            _ => {}
        }
        self.state = State::Closed;
        error
    }
}

/// Data that was sent and is not acknowledged as received.
#[derive(Debug, Default)]
struct InFlight {
    chunks: VecDeque<(Lsn, usize)>,
    /// The sum over `chunks`.
    bytes: usize,
}

impl InFlight {
    /// What a chunk takes beside its bytes, so that many tiny ones are bounded as well.
    const CHUNK_OVERHEAD: usize = 128;

    fn push(&mut self, end: Lsn, len: usize) {
        let cost = len + Self::CHUNK_OVERHEAD;
        self.chunks.push_back((end, cost));
        self.bytes += cost;
    }

    fn received(&mut self, received: Lsn) {
        while let Some(&(end, cost)) = self.chunks.front()
            && end <= received
        {
            self.chunks.pop_front();
            self.bytes -= cost;
        }
    }
}

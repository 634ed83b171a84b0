//! The follower's side of one connection.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;
use walfmt::Lsn;

use crate::chain::Chain;
use crate::decoder::{Decoder, Side};
use crate::error::{ConnectionError, Misbehaviour, Misuse};
use crate::limits::Limits;
use crate::message::{Acknowledgement, Data, Goodbye, Heartbeat, Hello, Message, Refused, Welcome};
use crate::positions::{FollowerPositions, LeaderPositions};
use crate::text::PlainText;
use crate::time::Stamp;

/// What a follower brings to a connection.
#[derive(Clone, Debug)]
pub struct ReceiverConfig {
    /// Who it is and where its archive ends.
    pub hello: Hello,
    /// Where it is now. Nothing beyond the resume point can have been received.
    pub positions: FollowerPositions,
    /// Its limits.
    pub limits: Limits,
}

/// What a leader said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReceiverEvent {
    /// The leader is the right one and data will follow. Always the first, unless refused.
    Welcomed(Welcome),
    /// The next piece of WAL: it continues the one before without gap or overlap, the first one
    /// starts at the resume point, and its source has it durable.
    Data(Data),
    /// How far the leader is.
    Heartbeat(Heartbeat),
    /// The leader does not serve us. The last event.
    Refused(Refused),
    /// The leader closes the connection. The last event.
    Goodbye(Goodbye),
}

/// One connection to a leader, without the connection.
///
/// The caller sends what [`poll_transmit`](Self::poll_transmit) gives, passes what arrives to
/// [`handle_bytes`](Self::handle_bytes) and takes all events with
/// [`poll_event`](Self::poll_event) before it reads on; it calls
/// [`handle_timeout`](Self::handle_timeout) at [`poll_timeout`](Self::poll_timeout), and
/// [`set_positions`](Self::set_positions) whenever one of its positions moves.
///
/// Nothing is written on the leader's word alone: data that breaks the chain never becomes an event.
#[derive(Debug)]
pub struct Receiver {
    hello: Hello,
    limits: Limits,
    state: State,
    decoder: Decoder,
    events: VecDeque<ReceiverEvent>,
    outgoing: VecDeque<Bytes>,
    positions: FollowerPositions,
    leader: LeaderPositions,
    /// The newest of the leader's clock stamps.
    echo: Stamp,
    heard_at: Instant,
    /// When an acknowledgement last became due.
    acknowledged_at: Instant,
    acknowledgement_due: bool,
    /// What the last one said of the replayed position.
    acknowledged_replayed: Lsn,
    /// Data bytes since an acknowledgement last covered all that had arrived.
    unacknowledged_bytes: usize,
}

#[derive(Debug)]
enum State {
    /// The hello is out, or on its way.
    AwaitWelcome,
    Streaming(Chain),
    Closed,
}

impl State {
    const fn name(&self) -> &'static str {
        match self {
            Self::AwaitWelcome => "waiting for the leader's welcome",
            Self::Streaming(_) => "receiving WAL",
            Self::Closed => "closed",
        }
    }
}

impl Receiver {
    /// A connection that was just made; its hello is the first thing to send.
    pub fn new(config: ReceiverConfig, now: Instant) -> Result<Self, Misuse> {
        let ReceiverConfig { hello, positions, limits } = config;
        hello.check()?;
        check_arrived(positions, hello.resume.start())?;
        let outgoing = VecDeque::from(Message::Hello(hello.clone()).encode());
        Ok(Self {
            hello,
            limits,
            state: State::AwaitWelcome,
            decoder: Decoder::new(Side::Leader),
            events: VecDeque::new(),
            outgoing,
            positions,
            leader: LeaderPositions::default(),
            echo: Stamp::default(),
            heard_at: now,
            acknowledged_at: now,
            acknowledgement_due: false,
            acknowledged_replayed: Lsn::INVALID,
            unacknowledged_bytes: 0,
        })
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
                Ok(Some(message)) => self.handle_message(now, message),
                Err(error) => Err(error.into()),
            };
            handled.map_err(|error| self.fail(error))?;
        }
        Ok(())
    }

    /// The next thing the leader said.
    pub fn poll_event(&mut self) -> Option<ReceiverEvent> {
        self.events.pop_front()
    }

    /// The next bytes to send.
    pub fn poll_transmit(&mut self) -> Option<Bytes> {
        let queued = pop_bytes(&mut self.outgoing);
        if queued.is_some() || !self.acknowledgement_due {
            return queued;
        }
        self.push_acknowledgement();
        pop_bytes(&mut self.outgoing)
    }

    /// When [`handle_timeout`](Self::handle_timeout) is to be called, if nothing happens before.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let silent = self.heard_at + self.limits.peer_timeout;
        match self.state {
            State::AwaitWelcome => Some(silent),
            State::Streaming(_) => {
                Some(silent.min(self.acknowledged_at + self.acknowledgement_interval()))
            }
            State::Closed => None,
        }
    }

    /// Time has passed. May be called at any time.
    pub fn handle_timeout(&mut self, now: Instant) -> Result<(), ConnectionError> {
        if self.is_closed() {
            return Ok(());
        }
        let silence = now.saturating_duration_since(self.heard_at);
        if silence >= self.limits.peer_timeout {
            return Err(self.fail(ConnectionError::PeerSilent(silence)));
        }
        let since = now.saturating_duration_since(self.acknowledged_at);
        if since >= self.acknowledgement_interval() {
            self.acknowledge_soon(now);
        }
        Ok(())
    }

    /// For how long nothing need be said: replay comes after durability, and is told a little later.
    fn acknowledgement_interval(&self) -> Duration {
        if self.positions.replayed() > self.acknowledged_replayed {
            self.limits.replayed_interval
        } else {
            self.limits.heartbeat_interval
        }
    }

    /// Sets how far this follower is. An acknowledgement becomes due when the durable position
    /// moved, or when much has been received since the last one; a little after the last one when
    /// only the replayed position moved.
    pub fn set_positions(
        &mut self,
        now: Instant,
        positions: FollowerPositions,
    ) -> Result<(), Misuse> {
        if let Some((position, before, now)) = positions.went_back_from(self.positions) {
            return Err(Misuse::WentBack { position, before, now });
        }
        match &self.state {
            State::AwaitWelcome => check_arrived(positions, self.hello.resume.start())?,
            State::Streaming(chain) => check_arrived(positions, chain.next())?,
            State::Closed => {}
        }
        let much_received = positions.received() > self.positions.received()
            && self.unacknowledged_bytes >= self.limits.acknowledge_bytes;
        let synced = positions.durable() > self.positions.durable();
        self.positions = positions;
        if synced || much_received {
            self.acknowledge_soon(now);
        }
        Ok(())
    }

    /// Closes the connection: a last acknowledgement, and a word why. What
    /// [`poll_transmit`](Self::poll_transmit) gives is still to be sent.
    pub fn goodbye(&mut self, reason: &str) {
        match self.state {
            State::Closed => return,
            State::Streaming(_) => self.push_acknowledgement(),
            State::AwaitWelcome => {}
        }
        self.push_goodbye(reason);
        self.close();
    }

    /// Whether the connection is over.
    #[must_use]
    pub const fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed)
    }

    fn handle_message(&mut self, now: Instant, message: Message) -> Result<(), ConnectionError> {
        let event = match (&mut self.state, message) {
            (_, Message::Goodbye(goodbye)) => {
                self.close();
                ReceiverEvent::Goodbye(goodbye)
            }
            (State::AwaitWelcome, Message::Refused(refused)) => {
                self.close();
                ReceiverEvent::Refused(refused)
            }
            (State::AwaitWelcome, Message::Welcome(welcome)) => {
                check_welcome(&self.hello, &welcome)?;
                let Hello { timeline, segment_size, ref resume, .. } = self.hello;
                self.state = State::Streaming(Chain::new(timeline, segment_size, resume.start()));
                self.decoder.accept_greeting();
                self.acknowledge_soon(now);
                ReceiverEvent::Welcomed(welcome)
            }
            (State::Streaming(chain), Message::Data(data)) => {
                let Data { ref chunk, source_durable, stamp } = data;
                if chunk.end > source_durable {
                    let end = chunk.end;
                    return Err(Misbehaviour::NotDurable { end, source_durable }.into());
                }
                check_leader(LeaderPositions { source_durable, ..self.leader }, self.leader)?;
                chain.advance(chunk).map_err(Misbehaviour::from)?;
                self.leader.source_durable = source_durable;
                self.echo = stamp;
                self.unacknowledged_bytes =
                    self.unacknowledged_bytes.saturating_add(chunk.bytes.len());
                ReceiverEvent::Data(data)
            }
            (State::Streaming(_), Message::Heartbeat(heartbeat)) => {
                check_leader(heartbeat.positions, self.leader)?;
                self.leader = heartbeat.positions;
                self.echo = heartbeat.stamp;
                ReceiverEvent::Heartbeat(heartbeat)
            }
            (state, message) => {
                let (kind, state) = (message.kind(), state.name());
                return Err(Misbehaviour::Unexpected { kind, state }.into());
            }
        };
        self.events.push_back(event);
        Ok(())
    }

    fn acknowledge_soon(&mut self, now: Instant) {
        self.acknowledgement_due = matches!(self.state, State::Streaming(_));
        self.acknowledged_at = now;
    }

    fn push_acknowledgement(&mut self) {
        self.acknowledgement_due = false;
        self.acknowledged_replayed = self.positions.replayed();
        let positions = self.positions;
        if let State::Streaming(chain) = &self.state
            && positions.received() == chain.next()
        {
            self.unacknowledged_bytes = 0;
        }
        let acknowledgement = Acknowledgement {
            received: positions.received(),
            durable: positions.durable(),
            replayed: positions.replayed(),
            echo: self.echo,
        };
        self.outgoing.extend(Message::Acknowledgement(acknowledgement).encode());
    }

    fn push_goodbye(&mut self, reason: &str) {
        let goodbye = Goodbye { reason: PlainText::fitted(reason) };
        self.outgoing.extend(Message::Goodbye(goodbye).encode());
    }

    /// Ends the connection and tells the leader why, so that its log says it too.
    fn fail(&mut self, error: ConnectionError) -> ConnectionError {
        self.push_goodbye(&error.to_string());
        self.close();
        error
    }

    fn close(&mut self) {
        self.state = State::Closed;
        self.acknowledgement_due = false;
    }
}

/// That the leader is the one we follow, and has what we asked for.
fn check_welcome(hello: &Hello, welcome: &Welcome) -> Result<(), ConnectionError> {
    let checks = [
        ("system identifier", hello.system_identifier, welcome.system_identifier),
        ("segment size", hello.segment_size.bytes(), welcome.segment_size.bytes()),
        ("server major", u64::from(hello.server_major), u64::from(welcome.server_major)),
    ];
    for (what, ours, theirs) in checks {
        if ours != theirs && ours != 0 && theirs != 0 {
            return Err(ConnectionError::PeerIncompatible { what, ours, theirs });
        }
    }
    if welcome.timeline < hello.timeline {
        let (what, ours, theirs) = ("timeline", hello.timeline.0, welcome.timeline.0);
        let (ours, theirs) = (u64::from(ours), u64::from(theirs));
        return Err(ConnectionError::PeerIncompatible { what, ours, theirs });
    }
    let start = hello.resume.start();
    let (first, appended) = (welcome.archived.first, welcome.archived.appended);
    if start < first || start > appended {
        return Err(Misbehaviour::NotInArchive { start, first, appended }.into());
    }
    Ok(())
}

fn check_leader(now: LeaderPositions, before: LeaderPositions) -> Result<(), Misbehaviour> {
    match now.went_back_from(before) {
        None => Ok(()),
        Some((position, before, now)) => Err(Misbehaviour::WentBack { position, before, now }),
    }
}

fn check_arrived(positions: FollowerPositions, arrived: Lsn) -> Result<(), Misuse> {
    let received = positions.received();
    if received <= arrived { Ok(()) } else { Err(Misuse::NeverArrived { received, arrived }) }
}

/// The next bytes of a queue; the empty halves of messages without WAL are passed over.
pub(crate) fn pop_bytes(outgoing: &mut VecDeque<Bytes>) -> Option<Bytes> {
    while let Some(bytes) = outgoing.pop_front() {
        if !bytes.is_empty() {
            return Some(bytes);
        }
    }
    None
}

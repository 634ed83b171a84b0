//! The replication protocol between agents: one leader, one follower, one connection.
//!
//! There is no socket, no clock, no thread and no file here. The caller moves bytes and tells the
//! time; this crate says what the bytes mean and what is due. Every state machine has the same
//! doors: `handle_*` takes something that happened, `poll_*` gives something to do, and the time
//! is an argument.
//!
//! ```text
//!   follower (Receiver)                                   leader (Sender)
//!        │ Hello: who I am, where my archive ends ──────────────► │
//!        │                                    CheckResume asks the caller: is that record ours?
//!        │ ◄────────────── Welcome: who I am, what my archive has │   or Refused, and the end
//!        │ ◄───────────────────────── Data: archive bytes, chained │
//!        │ ◄──────────────────────────── Heartbeat: when it is idle │
//!        │ Acknowledgement: received ≥ durable ≥ replayed ────────► │
//!        │ ◄───────────────── Goodbye: a reason, from either ─────► │
//! ```
//!
//! A node that has nothing yet sends a BackupRequest instead ([`BackupReceiver`]):
//!
//! ```text
//!        │ BackupRequest ───────────────────────────────────────► │
//!        │ ◄──────────── Heartbeat: while the server makes a checkpoint │
//!        │ ◄── BackupStarted, archives with their data, BackupEnd │   or Refused, or Goodbye
//! ```
//!
//! A node that only wants to know how it stands sends a Probe ([`Prober`]) and gets a Standing.
//!
//! Start with [`Receiver`] and [`Sender`]; [`Message`] draws the bytes. Beside them stand two small
//! calculators that need the time as well: [`Backoff`] says when to connect again, [`LagClock`] how
//! many seconds behind its leader a follower is.
//!
//! What was left out: encryption and authentication (TLS below does both), compression (the bytes
//! of [`Data`] are the archive's own and compressed already), and any correction of damage. A
//! connection that breaks a rule is closed, and the next one starts from what the archive holds.
#![forbid(unsafe_code)]

mod backoff;
mod backup;
mod chain;
mod decoder;
mod error;
mod lag_clock;
mod limits;
mod message;
mod positions;
mod probe;
mod receiver;
mod sender;
mod text;
mod time;

pub use backoff::Backoff;
pub use backup::{BackupEvent, BackupReceiver};
pub use chain::BrokenChain;
pub use decoder::{DecodeError, Decoder, Side};
pub use error::{ConnectionError, Misbehaviour, Misuse};
pub use lag_clock::LagClock;
pub use limits::Limits;
pub use message::{
    Acknowledgement, BACKUP_DATA_MAX, BackupArchive, BackupContent, BackupEnd, BackupRequest,
    BackupStarted, Chunk, Data, Goodbye, Heartbeat, Hello, InvalidField, LOCALES_MAX, LocaleName,
    Message, MessageKind, PROTOCOL_VERSION, PROTOCOL_VERSION_MIN, Probe, RefusalCode, Refused,
    Resume, Standing, Welcome,
};
pub use positions::{Archived, FollowerPositions, LeaderPositions, MisorderedPositions};
pub use probe::{ProbeAnswer, Prober};
pub use receiver::{Receiver, ReceiverConfig, ReceiverEvent};
pub use sender::{BackupPart, Identity, ProbeReply, Sender, SenderConfig, SenderEvent};
pub use text::{NodeName, PlainText, TextError};
pub use time::{Now, Stamp};

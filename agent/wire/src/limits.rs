//! What one connection may use: memory and patience.

use std::time::Duration;

/// The bounds of one connection. Both sides have their own; the defaults fit each other.
///
/// The sizes of messages are not here: they belong to the protocol and are the same for all
/// ([`MessageKind::payload_max`](crate::MessageKind::payload_max)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Leader: how many bytes of [`Data`](crate::Data) may be sent and not yet acknowledged as
    /// received. A new message is taken while less than this is out, so memory is bounded by this
    /// plus one message. Default 8 MB.
    pub window_bytes: usize,
    /// Leader: a heartbeat goes out when nothing else has for this long. Follower: an
    /// acknowledgement goes out at least this often. Default 1 s.
    pub heartbeat_interval: Duration,
    /// Follower: how long after an acknowledgement another one tells that replay went on. Default
    /// 50 ms.
    pub replayed_interval: Duration,
    /// A peer that sends no byte for this long is given up. Must be several times the *peer's*
    /// heartbeat interval. Default 10 s.
    pub peer_timeout: Duration,
    /// Follower: an acknowledgement goes out after this many received bytes even if nothing became
    /// durable, so that a slow disk does not close the leader's window. Well below the *leader's*
    /// window. Default 1 MB.
    pub acknowledge_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            window_bytes: 8 << 20,
            heartbeat_interval: Duration::from_secs(1),
            replayed_interval: Duration::from_millis(50),
            peer_timeout: Duration::from_secs(10),
            acknowledge_bytes: 1 << 20,
        }
    }
}

//! How far each side is. LSNs that mean different things travel in different structs.

use walfmt::Lsn;

/// How far a follower is with one leader's WAL: `received ≥ durable ≥ replayed`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FollowerPositions {
    received: Lsn,
    durable: Lsn,
    replayed: Lsn,
}

/// Follower positions that contradict each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "positions out of order: received {received}, durable {durable}, replayed {replayed}; \
     expected received >= durable >= replayed"
)]
pub struct MisorderedPositions {
    /// The end of what arrived.
    pub received: Lsn,
    /// The end of what was synced.
    pub durable: Lsn,
    /// The end of what was replayed.
    pub replayed: Lsn,
}

impl FollowerPositions {
    /// Positions in their order, or the error that says how they are not.
    pub fn new(received: Lsn, durable: Lsn, replayed: Lsn) -> Result<Self, MisorderedPositions> {
        if received >= durable && durable >= replayed {
            Ok(Self { received, durable, replayed })
        } else {
            Err(MisorderedPositions { received, durable, replayed })
        }
    }

    /// The end of what arrived.
    #[must_use]
    pub const fn received(self) -> Lsn {
        self.received
    }

    /// The end of what is synced in the follower's archive.
    #[must_use]
    pub const fn durable(self) -> Lsn {
        self.durable
    }

    /// The end of what was replayed into the follower's store; 0 without a store.
    #[must_use]
    pub const fn replayed(self) -> Lsn {
        self.replayed
    }

    /// The first position that is lower than `earlier` has it: its name, then before and now.
    pub(crate) fn went_back_from(self, earlier: Self) -> Option<(&'static str, Lsn, Lsn)> {
        [
            ("received", earlier.received, self.received),
            ("durable", earlier.durable, self.durable),
            ("replayed", earlier.replayed, self.replayed),
        ]
        .into_iter()
        .find(|(_, before, now)| now < before)
    }
}

/// How far a leader is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeaderPositions {
    /// Up to here WAL is known to be durable at its first source. Nothing beyond may be sent.
    pub source_durable: Lsn,
    /// The end of the leader's archive.
    pub appended: Lsn,
    /// What the server itself last said of its flush position; 0 if unknown.
    pub server_flush: Lsn,
}

impl LeaderPositions {
    /// As [`FollowerPositions::went_back_from`]. The server's flush position is only evidence and
    /// may do what it likes.
    pub(crate) fn went_back_from(self, earlier: Self) -> Option<(&'static str, Lsn, Lsn)> {
        [
            ("source_durable", earlier.source_durable, self.source_durable),
            ("appended", earlier.appended, self.appended),
        ]
        .into_iter()
        .find(|(_, before, now)| now < before)
    }
}

/// What a leader's archive holds, from its first byte to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Archived {
    /// The first position that is there.
    pub first: Lsn,
    /// The end.
    pub appended: Lsn,
}

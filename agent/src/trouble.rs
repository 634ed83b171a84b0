//! What went wrong, for the person who has to mend it.
//!
//! Library crates return typed errors without advice. Here alone they become a code, words, a
//! hint, an exit status and a state for `status` and `/metrics`. Errors differ by who must act:
//!
//! | kind | who acts | what the agent does |
//! |---|---|---|
//! | I/O | the machine's keeper | tries again, with growing pauses, and says so |
//! | unsupported | us, or a choice of the user's | that stage stops, the others go on |
//! | corrupt | the data's keeper | that stage stops, the others go on |
//! | misuse | the user | refuses before anything starts: exit status 2 |

use std::fmt;

use walferry_archive::ArchiveError;
use walferry_store::{OpenError, PageFault, PromotionError, ReplayError};
use walfmt_physical::RedoError;

/// Who must act.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A file or connection failed; may pass.
    Io,
    /// Something walferry does not do.
    Unsupported,
    /// Bytes are not what they were.
    Corrupt,
    /// Wrong usage or configuration.
    Misuse,
    /// What was asked for is not there, or not yet.
    NotThere,
    /// What was asked for was refused, to protect data.
    Refused,
}

impl Kind {
    pub(crate) const ALL: [Self; 6] =
        [Self::Io, Self::Unsupported, Self::Corrupt, Self::Misuse, Self::NotThere, Self::Refused];

    /// The `kind` in `status` and logs.
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::Io => "io",
            Self::Unsupported => "unsupported",
            Self::Corrupt => "corrupt",
            Self::Misuse => "misuse",
            Self::NotThere => "not_there",
            Self::Refused => "refused",
        }
    }
}

/// A failure with its remedy.
#[derive(Clone, Debug)]
pub(crate) struct Trouble {
    kind: Kind,
    words: String,
    hint: Option<String>,
    exit_status: Option<u8>,
}

impl Trouble {
    pub(crate) fn new(kind: Kind, words: impl fmt::Display) -> Self {
        Self { kind, words: words.to_string(), hint: None, exit_status: None }
    }

    pub(crate) fn io(what: impl fmt::Display, error: impl fmt::Display) -> Self {
        Self::new(Kind::Io, format_args!("{what}: {error}"))
    }

    pub(crate) fn misuse(words: impl fmt::Display) -> Self {
        Self::new(Kind::Misuse, words)
    }

    /// With advice: what to do next.
    pub(crate) fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// With an exit status of its own, where a caller depends on it.
    pub(crate) const fn with_exit_status(mut self, status: u8) -> Self {
        self.exit_status = Some(status);
        self
    }

    pub(crate) const fn kind(&self) -> Kind {
        self.kind
    }

    pub(crate) fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// 1 failed, 2 wrong usage or configuration, 3 not there (yet).
    pub(crate) fn exit_status(&self) -> u8 {
        self.exit_status.unwrap_or(match self.kind {
            Kind::Misuse => 2,
            Kind::NotThere => 3,
            _ => 1,
        })
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words)
    }
}

impl From<ArchiveError> for Trouble {
    fn from(error: ArchiveError) -> Self {
        let (kind, hint) = match &error {
            // After a failed sync the kernel may have dropped the bytes: nothing that was written can
            // be relied on, and asking again proves nothing.
            ArchiveError::File(error) if error.is_sync() => (
                Kind::Corrupt,
                "check the disk, then restart the agent: it checks what the archive still holds",
            ),
            ArchiveError::File(_) | ArchiveError::Stopped => {
                (Kind::Io, "check the disk: space, permissions, errors in the kernel log")
            }
            ArchiveError::Corrupt { .. } | ArchiveError::LostDurable { .. } => (
                Kind::Corrupt,
                "an archive file is damaged: get it back from another node's archive, or move \
                 the archive away and bootstrap again",
            ),
            ArchiveError::Received { .. } | ArchiveError::NoOpenFrame { .. } => {
                (Kind::Corrupt, "nothing of it was written; it is asked for again")
            }
            ArchiveError::NotArchived { .. } => {
                (Kind::NotThere, "the WAL that is needed is not in the archive: bootstrap again")
            }
            ArchiveError::Locked { .. } => {
                (Kind::Misuse, "is another agent running with the same archive directory?")
            }
            ArchiveError::NotContiguous { .. }
            | ArchiveError::NotASegmentStart { .. }
            | ArchiveError::CannotCut { .. }
            | ArchiveError::Compress(_) => (Kind::Corrupt, "please report this"),
        };
        Self::new(kind, error).with_hint(hint)
    }
}

impl From<OpenError> for Trouble {
    fn from(error: OpenError) -> Self {
        let (kind, hint) = match &error {
            OpenError::File(_) | OpenError::Thread(_) => (Kind::Io, "check the store's disk"),
            OpenError::Lock(_) => (
                Kind::Misuse,
                "a server or another agent has the store; after a promotion it is the server's",
            ),
            OpenError::State { .. } => (
                Kind::Misuse,
                "a server has had this directory: after a promotion it is the server's; for a \
                 follower, bootstrap another one",
            ),
            OpenError::BackupLabel { .. } => {
                (Kind::Misuse, "only a directory made by `walferry bootstrap` can be a store")
            }
            OpenError::Control(_)
            | OpenError::Major { .. }
            | OpenError::TwoPhase { .. }
            | OpenError::Origins { .. } => (Kind::Corrupt, "bootstrap the store again"),
            OpenError::Tablespace { .. } => (
                Kind::Misuse,
                "a store and its .tablespaces directory must stay where bootstrap put them; to \
                 move them, move both and make the links anew",
            ),
            OpenError::Refused(_) => {
                (Kind::Unsupported, "change the leader's setting and bootstrap again")
            }
        };
        Self::new(kind, error).with_hint(hint)
    }
}

impl From<ReplayError> for Trouble {
    fn from(error: ReplayError) -> Self {
        let (kind, hint) = match &error {
            ReplayError::Redo(RedoError::Unsupported { .. }) | ReplayError::Refused { .. } => (
                Kind::Unsupported,
                "the archive goes on and has all WAL; restore from it with PostgreSQL, or \
                 bootstrap again once the leader no longer does this",
            ),
            ReplayError::Copy { .. } => (
                Kind::Unsupported,
                "bootstrap again, and create no database with STRATEGY file_copy nor move one to \
                 another tablespace while the base backup is taken",
            ),
            // As with the archive: what a failed sync lost, the next one does not bring back.
            ReplayError::File { source, .. } if source.is_sync() => (
                Kind::Corrupt,
                "check the disk, then restart the agent: it replays from the last restart point",
            ),
            ReplayError::File { .. } | ReplayError::Page { fault: PageFault::File(_), .. } => {
                (Kind::Io, "check the store's disk: space, permissions, errors in the kernel log")
            }
            ReplayError::Decode { .. }
            | ReplayError::Redo(_)
            | ReplayError::Page { .. }
            | ReplayError::Missing { .. } => (
                Kind::Corrupt,
                "the store does not fit the WAL: bootstrap it again, and report this with the \
                 record (pg_waldump)",
            ),
            ReplayError::Order { .. } | ReplayError::Stopped { .. } | ReplayError::ThreadGone => {
                (Kind::Corrupt, "please report this")
            }
        };
        Self::new(kind, error).with_hint(hint)
    }
}

impl From<PromotionError> for Trouble {
    fn from(error: PromotionError) -> Self {
        match error {
            PromotionError::Replay(error) => error.into(),
            PromotionError::File(_) => Self::new(Kind::Io, error),
            PromotionError::Tablespace { .. } => Self::new(Kind::Refused, error).with_hint(
                "make that directory, empty and owned by the server's user, and promote again; on \
                 the leader's own machine it is the leader's: do not promote there before the \
                 leader's next checkpoint has been replayed",
            ),
            PromotionError::NotConsistent(_) => Self::new(Kind::Refused, error).with_hint(
                "the WAL up to there must be in this node's archive; the store is unharmed",
            ),
        }
    }
}

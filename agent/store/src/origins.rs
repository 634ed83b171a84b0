//! Replication origins: how far changes that the leader applied from elsewhere have come. A server
//! that takes over goes on from there.
//!
//! The file of `pg_logical` is written at restart points with the progress of that moment, which is
//! later than the point: replay from there only finds progress that is made already.
//!
//! Rules: `CheckPointReplicationOrigin`, `StartupReplicationOrigin`, `replorigin_redo` and
//! `replorigin_advance` in `src/backend/replication/logical/origin.c`.

use walfmt::Lsn;
use walfmt::replication_state::{ReplicationState, read_file, to_file};
use walfmt_physical::OriginChange;

use crate::error::{FileError, OpenError};
use crate::layout::Layout;

pub(crate) const NAME: &str = "pg_logical/replorigin_checkpoint";

/// The progress of all origins.
///
/// A place of one that was dropped is taken by the next new one, as in a server: the order of the
/// file comes from there.
#[derive(Clone)]
pub(crate) struct Origins(Vec<Option<ReplicationState>>);

impl Origins {
    /// Reads the file, if it is there.
    pub(crate) fn open(layout: &Layout) -> Result<Self, OpenError> {
        let path = layout.at(NAME);
        layout.remove_replacement(&path)?;
        match layout.read(&path)? {
            None => Ok(Self(Vec::new())),
            Some(bytes) => match read_file(&bytes) {
                Ok(states) => Ok(Self(states.into_iter().map(Some).collect())),
                Err(source) => Err(OpenError::Origins { path, source }),
            },
        }
    }

    pub(crate) fn change(&mut self, change: &OriginChange) {
        match *change {
            OriginChange::Advance { origin, remote_lsn, force } => {
                let state = self.state(origin);
                if force || state.remote_lsn < remote_lsn {
                    state.remote_lsn = remote_lsn;
                }
            }
            OriginChange::Drop { origin } => {
                if let Some(place) = self.place(origin) {
                    self.0[place] = None;
                }
            }
        }
    }

    /// Writes the file. It is synced by itself, as a server refuses to start over a torn one; its
    /// name is durable after the next sync.
    pub(crate) fn write(&self, layout: &Layout) -> Result<(), FileError> {
        layout.replace(&layout.at(NAME), &to_file(self.0.iter().copied().flatten()))
    }

    fn place(&self, origin: u16) -> Option<usize> {
        self.0.iter().position(|state| state.is_some_and(|state| state.origin == origin))
    }

    fn state(&mut self, origin: u16) -> &mut ReplicationState {
        let place = self.place(origin).unwrap_or_else(|| {
            self.0.iter().position(Option::is_none).unwrap_or_else(|| {
                self.0.push(None);
                self.0.len() - 1
            })
        });
        self.0[place].get_or_insert(ReplicationState { origin, remote_lsn: Lsn::INVALID })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn advance(origin: u16, lsn: u64, force: bool) -> OriginChange {
        OriginChange::Advance { origin, remote_lsn: Lsn(lsn), force }
    }

    fn file(directory: &tempfile::TempDir) -> Vec<(u16, u64)> {
        let bytes = std::fs::read(directory.path().join(NAME)).unwrap();
        let states = read_file(&bytes).unwrap();
        states.into_iter().map(|state| (state.origin, state.remote_lsn.0)).collect()
    }

    #[test]
    fn progress_is_kept_in_a_servers_order() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("pg_logical")).unwrap();
        let layout = Layout::new(directory.path()).unwrap();
        let mut origins = Origins::open(&layout).unwrap();
        origins.write(&layout).unwrap();
        assert_eq!(file(&directory), []);
        for change in [advance(7, 100, false), advance(3, 50, false), advance(7, 90, false)] {
            origins.change(&change);
        }
        origins.change(&OriginChange::Drop { origin: 9 });
        origins.write(&layout).unwrap();
        assert_eq!(file(&directory), [(7, 100), (3, 50)]);

        let mut origins = Origins::open(&layout).unwrap();
        origins.change(&advance(3, 40, true));
        origins.change(&OriginChange::Drop { origin: 7 });
        origins.change(&advance(8, 1, false));
        origins.change(&advance(7, 2, false));
        origins.write(&layout).unwrap();
        assert_eq!(file(&directory), [(8, 1), (3, 40), (7, 2)]);

        std::fs::write(directory.path().join(NAME), [0; 7]).unwrap();
        let error = Origins::open(&layout).err().unwrap().to_string();
        assert!(error.contains("7 bytes"), "{error}");
    }
}

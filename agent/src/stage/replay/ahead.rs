//! Reading ahead: the archive is decompressed a few chunks ahead of replay, by whoever is free.
//!
//! ```text
//! archive ─► reader ─► chunk 9 · chunk 8 · chunk 7 ─► replay
//!              ▲
//!              taken by one thread at a time: of the store's, or replay's own if no chunk is there
//! ```
//!
//! The store's threads read the next chunk as soon as the last one is taken, and more when they have
//! nothing else to do.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use walferry_archive::{ArchiveError, ArchiveReader};
use walferry_store::SideWork;
use walfmt::{Lsn, SegmentNumber};

use crate::trouble::{Kind, Trouble};

/// Chunks that wait for replay, of 1 MB each.
const CHUNKS_AHEAD: usize = 4;

pub(super) struct ReadAhead(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// The reader is back, and with it maybe a chunk.
    changed: Condvar,
}

struct State {
    reader: Place,
    /// Never changed but together with `reader`: so they are in order.
    chunks: VecDeque<Chunk>,
    /// What lies before this segment is not wanted.
    from: SegmentNumber,
    /// Emptied buffers.
    spare: Vec<Vec<u8>>,
    bound: Lsn,
    /// There was nothing more up to this bound.
    nothing_up_to: Lsn,
}

struct Chunk {
    segment: SegmentNumber,
    wal: Result<Vec<u8>, ArchiveError>,
}

enum Place {
    Here(Box<ArchiveReader>),
    /// Somebody reads.
    Taken,
    /// Whoever had it has panicked.
    Gone,
}

impl ReadAhead {
    pub(super) fn new(reader: ArchiveReader) -> Self {
        let state = State {
            reader: Place::Here(Box::new(reader)),
            chunks: VecDeque::new(),
            from: SegmentNumber(0),
            spare: Vec::new(),
            bound: Lsn::INVALID,
            nothing_up_to: Lsn::INVALID,
        };
        Self(Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() }))
    }

    /// The next WAL up to `bound`, or nothing if there is none yet. Bounds never decrease. Where
    /// somebody else is reading it, `help` is called for as long as it gives true.
    pub(super) fn next(
        &self,
        bound: Lsn,
        help: impl Fn() -> bool,
    ) -> Result<Option<Vec<u8>>, Trouble> {
        let mut state = self.0.lock();
        state.bound = bound;
        state.nothing_up_to = Lsn::INVALID; // look again, even up to the same bound
        loop {
            if let Some(chunk) = state.chunks.pop_front() {
                return Ok(Some(chunk.wal?));
            }
            if state.nothing_up_to == bound {
                return Ok(None);
            }
            state = match state.reader {
                Place::Here(_) => self.0.read(state),
                Place::Taken => {
                    drop(state);
                    let has_helped = help();
                    let state = self.0.lock();
                    if has_helped || !matches!(state.reader, Place::Taken) {
                        state
                    } else {
                        self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
                    }
                }
                Place::Gone => {
                    return Err(Trouble::new(Kind::Io, "a thread that read the archive has ended"));
                }
            };
        }
    }

    /// Reading ahead, for the store's threads.
    pub(super) fn side_work(&self) -> Arc<dyn SideWork> {
        Arc::<Shared>::clone(&self.0)
    }

    /// Goes on with this segment: what was read of those before it, or is being read, is dropped.
    pub(super) fn skip_to(&self, segment: SegmentNumber) {
        let mut state = self.0.lock();
        state.from = segment;
        while let Some(chunk) = state.chunks.pop_front_if(|chunk| chunk.segment < segment) {
            state.drop_chunk(chunk);
        }
    }

    /// Gives a buffer back whose WAL was used.
    pub(super) fn give_back(&self, buffer: Vec<u8>) {
        self.0.lock().keep_buffer(buffer);
    }
}

impl State {
    fn drop_chunk(&mut self, chunk: Chunk) {
        if let Ok(buffer) = chunk.wal {
            self.keep_buffer(buffer);
        }
    }

    fn keep_buffer(&mut self, buffer: Vec<u8>) {
        if self.spare.len() < CHUNKS_AHEAD && buffer.capacity() > 0 {
            self.spare.push(buffer);
        }
    }
}

impl SideWork for Shared {
    /// Replay has taken the last chunk.
    fn urgent(&self) -> bool {
        self.read_ahead(1)
    }

    fn idle(&self) -> bool {
        self.read_ahead(CHUNKS_AHEAD)
    }
}

impl Shared {
    /// Reads a chunk if there are fewer than this, and nobody else reads.
    fn read_ahead(&self, chunks: usize) -> bool {
        let state = self.lock();
        let is_wanted = state.chunks.len() < chunks && state.nothing_up_to < state.bound;
        if !is_wanted || !matches!(state.reader, Place::Here(_)) {
            return false;
        }
        self.read(state).nothing_up_to == Lsn::INVALID
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the reader, which must be there, reads a chunk, and puts both back.
    fn read<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let Place::Here(mut reader) = std::mem::replace(&mut state.reader, Place::Taken) else {
            return state;
        };
        reader.skip_to(state.from);
        let (bound, spare) = (state.bound, state.spare.pop());
        drop(state);
        let lost = LostInPanic(self);
        let (found, unused) = match reader.next(bound) {
            Ok(Some(_)) => {
                let wal = reader.take_wal(spare.unwrap_or_else(ArchiveReader::wal_buffer));
                (Some(Ok(wal)), None)
            }
            Ok(None) => (None, spare),
            Err(error) => (Some(Err(error)), spare),
        };
        std::mem::forget(lost);
        let mut state = self.lock();
        state.keep_buffer(unused.unwrap_or_default());
        match found.map(|wal| Chunk { segment: reader.segment(), wal }) {
            Some(chunk) if chunk.segment < state.from => state.drop_chunk(chunk),
            Some(chunk) => state.chunks.push_back(chunk),
            None if reader.segment() < state.from => {} // there may be more behind what was skipped
            None => state.nothing_up_to = bound,
        }
        state.reader = Place::Here(reader);
        self.changed.notify_all();
        state
    }
}

struct LostInPanic<'a>(&'a Shared);

impl Drop for LostInPanic<'_> {
    fn drop(&mut self) {
        self.0.lock().reader = Place::Gone;
        self.0.changed.notify_all();
    }
}

//! Reading ahead: a thread of its own decompresses the archive, a few chunks ahead of replay.
//!
//! ```text
//! replay   asks: the next WAL up to this bound, please, and here is an empty buffer     (several at once)
//! thread   answers in the same order: a chunk, or nothing up to that bound
//! ```

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use walferry_archive::{ArchiveError, ArchiveReader};
use walfmt::Lsn;

use crate::trouble::{Kind, Trouble};

/// Chunks under way, of 256 kB and a block each.
const CHUNKS_AHEAD: usize = 16;

pub(super) struct ReadAhead {
    /// Nothing while the thread is being ended.
    requests: Option<Sender<Request>>,
    answers: Receiver<Answer>,
    /// Requests that are not answered yet.
    under_way: usize,
    spare: Vec<Vec<u8>>,
    thread: Option<JoinHandle<()>>,
}

struct Request {
    bound: Lsn,
    buffer: Vec<u8>,
}

struct Answer {
    bound: Lsn,
    buffer: Vec<u8>,
    /// Whether there was WAL; it is in the buffer then.
    found: Result<bool, ArchiveError>,
}

impl ReadAhead {
    pub(super) fn start(reader: ArchiveReader) -> Result<Self, Trouble> {
        let (requests, inbox) = channel();
        let (answers_sender, answers) = channel();
        let thread = std::thread::Builder::new()
            .name("replay-read".to_owned())
            .spawn(move || answer(reader, &inbox, &answers_sender))
            .map_err(|error| Trouble::io("cannot start a thread", error))?;
        Ok(Self {
            requests: Some(requests),
            answers,
            under_way: 0,
            spare: Vec::new(),
            thread: Some(thread),
        })
    }

    /// The next WAL up to `bound`, or nothing if there is none yet. Bounds never decrease.
    pub(super) fn next(&mut self, bound: Lsn) -> Result<Option<Vec<u8>>, Trouble> {
        let gone = || Trouble::new(Kind::Io, "the thread that reads the archive has ended");
        loop {
            while self.under_way < CHUNKS_AHEAD {
                let request = Request { bound, buffer: self.spare.pop().unwrap_or_default() };
                let sent = self.requests.as_ref().is_some_and(|to| to.send(request).is_ok());
                if !sent {
                    return Err(gone());
                }
                self.under_way += 1;
            }
            let Answer { bound: asked, buffer, found } = self.answers.recv().map_err(|_| gone())?;
            self.under_way -= 1;
            if found? {
                return Ok(Some(buffer));
            }
            self.give_back(buffer);
            // An answer to an older request says nothing of what came since.
            if asked == bound {
                return Ok(None);
            }
        }
    }

    /// Gives a buffer back whose WAL was used.
    pub(super) fn give_back(&mut self, buffer: Vec<u8>) {
        self.spare.push(buffer);
    }
}

impl Drop for ReadAhead {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(thread) = self.thread.take() {
            // A panic was reported as a missing thread already.
            drop(thread.join());
        }
    }
}

fn answer(mut reader: ArchiveReader, requests: &Receiver<Request>, answers: &Sender<Answer>) {
    for Request { bound, buffer } in requests {
        let (buffer, found) = match reader.next(bound) {
            Ok(Some(_)) => (reader.take_wal(buffer), Ok(true)),
            Ok(None) => (buffer, Ok(false)),
            Err(error) => (buffer, Err(error)),
        };
        if answers.send(Answer { bound, buffer, found }).is_err() {
            return; // nobody waits any more
        }
    }
}

//! Reading a spool from its beginning, and again what was read.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use walfmt::Lsn;
use walfmt::row::Entry;
use walfmt_logical::{EntrySource, Place};

use super::{CHUNK_HEADER_SIZE, ChunkHeader, FileHeader, HEADER_SIZE, corrupt, list, trouble};
use crate::trouble::{Kind, Trouble};

/// How much of what was read is kept, in bytes: transactions of this size are not read twice.
const KEPT_BYTES_MAX: usize = 16 << 20;
/// How many pieces of memory wait to be used again.
const SPARE_MAX: usize = 4;
/// Places: the file's number above, the offset in it below.
const OFFSET_BITS: u32 = 40;
/// How often at most it is looked which files there are, when one of them has gone before it was opened:
/// the agent removes the oldest, one for each that it has filled.
pub(super) const LOOKS_MAX: usize = 16;
/// How long after a look at what does not check out it is looked at again: the agent may just be
/// cutting off what a crash has left, and writing in its place.
const SECOND_LOOK: Duration = Duration::from_millis(50);

/// A chunk of a spool.
#[derive(Clone)]
pub(crate) struct Chunk {
    /// Where its first entry is.
    pub(crate) place: u64,
    /// All rows before this position are in it or before it.
    pub(crate) end: Lsn,
    crc: u32,
    bytes: Rc<Vec<u8>>,
}

impl Chunk {
    /// Its entries, one behind the other.
    pub(crate) fn entries(&self) -> &[u8] {
        self.bytes.get(CHUNK_HEADER_SIZE..).unwrap_or_default()
    }

    fn holds(&self, place: u64) -> bool {
        (self.place..self.place + self.entries().len() as u64).contains(&place)
    }
}

/// Reads a spool.
pub(crate) struct Reader {
    directory: PathBuf,
    list: List,
    files: Vec<OpenFile>,
    /// The next chunk: in the last file, at this offset.
    next: u64,
    /// The CRC of what stands before it.
    crc: u32,
    /// Up to where rows were read.
    end: Lsn,
    /// Where all chunks read so far begin, and the CRCs of what stands before them.
    known: Vec<(u64, u32)>,
    kept: VecDeque<Chunk>,
    kept_bytes: usize,
    /// The memory of chunks that are not kept any more.
    spare: Vec<Vec<u8>>,
}

/// Gives the files of a spool, see [`list`].
pub(super) type List = Box<dyn FnMut(&Path) -> io::Result<Vec<(Lsn, PathBuf)>>>;

struct OpenFile {
    path: PathBuf,
    file: File,
    header: FileHeader,
}

impl Reader {
    /// Begins with the newest file behind which there is all that comes after `after`; without it, with
    /// the oldest one. Nothing if there is none.
    pub(crate) fn open(directory: &Path, after: Option<Lsn>) -> Result<Option<Self>, Trouble> {
        Self::open_by(Box::new(list), directory, after)
    }

    /// The same, for whoever knows better which files there are.
    pub(super) fn open_by(
        mut list: List,
        directory: &Path,
        after: Option<Lsn>,
    ) -> Result<Option<Self>, Trouble> {
        let mut all = look(|| {
            let files = match list(directory) {
                Ok(files) => files,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
                Err(error) => return Err(trouble("reading", directory, error).into()),
            };
            files.into_iter().filter_map(|(_, path)| open(path).transpose()).collect()
        })?;
        let Some(first) = all.first().map(|open| open.header.start) else { return Ok(None) };
        let mut chosen = 0;
        if let Some(after) = after {
            let newest = |at: Lsn| all.iter().rposition(|open| open.header.start <= at);
            // A transaction that commits after that may have begun long before.
            let oldest = newest(after).and_then(|at| newest(all[at].header.oldest));
            chosen = oldest.ok_or_else(|| {
                gap(first, format_args!("rows from before {first} are not there any more"))
            })?;
        }
        let open = all.swap_remove(chosen);
        let FileHeader { start, .. } = open.header;
        Ok(Some(Self {
            directory: directory.to_owned(),
            list,
            crc: open.header.crc(),
            files: vec![open],
            next: HEADER_SIZE as u64,
            end: start,
            known: Vec::new(),
            kept: VecDeque::new(),
            kept_bytes: 0,
            spare: Vec::new(),
        }))
    }

    /// What the first file says.
    pub(crate) fn header(&self) -> FileHeader {
        self.files[0].header
    }

    /// Before this position all rows were read.
    pub(crate) fn end(&self) -> Lsn {
        self.end
    }

    /// The next chunk, if there is one by now.
    pub(crate) fn next(&mut self) -> Result<Option<Chunk>, Trouble> {
        loop {
            let number = self.files.len() - 1;
            if let Some(chunk) = self.read_now(number)? {
                let crc_before = std::mem::replace(&mut self.crc, chunk.crc);
                self.next += chunk.bytes.len() as u64;
                // Whoever comes from the file before knows the catalogs, and more than they say.
                if number > 0 && chunk.end <= self.files[number].header.start {
                    continue;
                }
                self.known.push((chunk.place, crc_before));
                self.end = chunk.end;
                self.keep(chunk.clone());
                return Ok(Some(chunk));
            }
            if !look(|| self.next_file())? {
                return Ok(None);
            }
        }
    }

    /// The next chunk of a file.
    fn read_now(&mut self, number: usize) -> Result<Option<Chunk>, Trouble> {
        let read = self.read(number, self.next, self.crc);
        if read.as_ref().is_err_and(|trouble| trouble.kind() == Kind::Corrupt) {
            std::thread::sleep(SECOND_LOOK);
            return self.read(number, self.next, self.crc);
        }
        read
    }

    /// Goes on to the next file, if there is one; the one at hand is finished then.
    fn next_file(&mut self) -> Result<bool, Missed> {
        let number = self.files.len() - 1;
        let last = self.files[number].header;
        let files = (self.list)(&self.directory);
        let files = files.map_err(|error| trouble("reading", &self.directory, error))?;
        let mut later = files.into_iter().filter(|(start, _)| *start > last.start);
        let Some((start, path)) = later.next() else { return Ok(false) };
        // It was begun after the last chunk of this one was written.
        if self.read_now(number)?.is_some() {
            return Ok(true);
        }
        let Some(open) = open(path.clone())? else {
            return match later.next() {
                Some(_) => Err(corrupt(&path, 0, "no header").into()),
                None => Ok(false), // not yet
            };
        };
        if !open.header.continues || open.header.start != self.end {
            let words = format_args!("rows from {} to {start} are missing", self.end);
            return Err(gap(start, words).into());
        }
        let there = self.files[number].file.metadata();
        let there = there.map_err(|error| trouble("reading", &self.files[number].path, error))?;
        if there.len() > self.next {
            return Err(corrupt(&self.files[number].path, self.next, "half a chunk").into());
        }
        self.crc = open.header.crc();
        self.files.push(open);
        self.next = HEADER_SIZE as u64;
        Ok(true)
    }

    /// The chunk at an offset of a file, behind what has this CRC; nothing if it is not there, or not
    /// whole, yet.
    fn read(&mut self, number: usize, offset: u64, crc: u32) -> Result<Option<Chunk>, Trouble> {
        let OpenFile { path, file, .. } = &self.files[number];
        let reading = |error| trouble("reading", path, error);
        let mut head = [0; CHUNK_HEADER_SIZE];
        if read_at(file, &mut head, offset).map_err(reading)? < head.len() {
            return Ok(None);
        }
        // So a power cut leaves what was not synced; the agent cuts it off.
        if head == [0; CHUNK_HEADER_SIZE] {
            return Ok(None);
        }
        let Some(header) = ChunkHeader::from_bytes(&head, crc) else {
            return Err(corrupt(
                path,
                offset,
                "what stands there does not follow what is before it",
            ));
        };
        let length = CHUNK_HEADER_SIZE + header.length;
        // Not asked for memory before it is there.
        if file.metadata().map_err(reading)?.len() < offset + length as u64 {
            return Ok(None);
        }
        let mut bytes = self.spare.pop().unwrap_or_default();
        bytes.resize(length, 0);
        if read_at(file, &mut bytes, offset).map_err(reading)? < length {
            return Ok(None);
        }
        if !bytes.starts_with(&head) || !header.fits(&bytes[CHUNK_HEADER_SIZE..]) {
            return Err(corrupt(path, offset, "the chunk's CRC does not match"));
        }
        let place = ((number as u64) << OFFSET_BITS) + offset + CHUNK_HEADER_SIZE as u64;
        let ChunkHeader { end, crc, .. } = header;
        Ok(Some(Chunk { place, end, crc, bytes: Rc::new(bytes) }))
    }

    fn keep(&mut self, chunk: Chunk) {
        self.kept_bytes += chunk.bytes.len();
        self.kept.push_back(chunk);
        while self.kept_bytes > KEPT_BYTES_MAX && self.kept.len() > 1 {
            if let Some(oldest) = self.kept.pop_front() {
                self.kept_bytes -= oldest.bytes.len();
                // Unless somebody still reads it.
                self.spare.extend(Rc::try_unwrap(oldest.bytes));
                self.spare.truncate(SPARE_MAX);
            }
        }
    }

    /// The place among those kept of the chunk that holds `place`, brought there if it has to be.
    fn find(&mut self, place: u64) -> Result<usize, Trouble> {
        // The newest first: small transactions are told right after they were read.
        if let Some(at) = self.kept.iter().rposition(|chunk| chunk.holds(place)) {
            return Ok(at);
        }
        let known = self.known.partition_point(|(begin, _)| *begin <= place);
        let nowhere = || Trouble::new(Kind::Corrupt, "an entry of the row spool is nowhere");
        let (begin, crc) =
            *known.checked_sub(1).and_then(|at| self.known.get(at)).ok_or_else(nowhere)?;
        let number = usize::try_from(begin >> OFFSET_BITS).unwrap_or(usize::MAX);
        let offset = (begin & ((1 << OFFSET_BITS) - 1)) - CHUNK_HEADER_SIZE as u64;
        let chunk = self.read(number, offset, crc)?.filter(|chunk| chunk.holds(place));
        self.keep(chunk.ok_or_else(nowhere)?);
        Ok(self.kept.len() - 1)
    }
}

impl EntrySource for Reader {
    type Error = Trouble;

    fn entry(&mut self, Place(place): Place) -> Result<Entry<'_>, Trouble> {
        let at = self.find(place)?;
        let chunk = &self.kept[at];
        let offset = usize::try_from(place - chunk.place).unwrap_or(usize::MAX);
        let bytes = chunk.entries().get(offset..).unwrap_or_default();
        match Entry::read(bytes) {
            Ok((entry, _)) => Ok(entry),
            Err(error) => Err(Trouble::new(Kind::Corrupt, format_args!("row spool: {error}"))),
        }
    }
}

/// Rows before `start` were not captured, or removed.
fn gap(start: Lsn, words: impl std::fmt::Display) -> Trouble {
    Trouble::new(Kind::NotThere, words).with_hint(format!(
        "they were not captured, or removed ([decode] max_bytes): take a new copy of the tables, \
         then go on with --after {start}/0"
    ))
}

/// Why a look at the files has failed.
enum Missed {
    /// One was there, and is not any more.
    Gone(Trouble),
    Else(Trouble),
}

impl From<Trouble> for Missed {
    fn from(trouble: Trouble) -> Self {
        Self::Else(trouble)
    }
}

/// Looks anew when a file has gone meanwhile.
fn look<T>(mut once: impl FnMut() -> Result<T, Missed>) -> Result<T, Trouble> {
    let mut looks = 1;
    loop {
        match once() {
            Ok(found) => return Ok(found),
            Err(Missed::Gone(_)) if looks < LOOKS_MAX => looks += 1,
            Err(Missed::Gone(trouble) | Missed::Else(trouble)) => return Err(trouble),
        }
    }
}

fn open(path: PathBuf) -> Result<Option<OpenFile>, Missed> {
    let file = File::open(&path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Missed::Gone(trouble("opening", &path, error)),
        _ => Missed::Else(trouble("opening", &path, error)),
    })?;
    let mut header = [0; HEADER_SIZE];
    let read = read_at(&file, &mut header, 0).map_err(|error| trouble("reading", &path, error))?;
    let header = FileHeader::from_bytes(&header).filter(|_| read == HEADER_SIZE);
    Ok(header.map(|header| OpenFile { path, file, header }))
}

fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

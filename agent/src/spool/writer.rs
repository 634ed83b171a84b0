//! The end of the spool that grows.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use walfmt::Lsn;
use walfmt::bytes::{put, u32_at, u64_at};

use super::{CHUNK_HEADER_SIZE, CHUNK_SIZE_MAX, FileHeader, HEADER_SIZE, list, path_of, trouble};
use crate::identity::Identity;
use crate::trouble::{Kind, Trouble};

/// A file is followed by another when it is this long: 128 MB. The catalogs that the next one begins
/// with are a megabyte or two for each database.
const FILE_BYTES_MAX: u64 = 128 << 20;

/// Adds rows to a spool.
pub(crate) struct Writer {
    directory: PathBuf,
    identity: Identity,
    major: u16,
    open: Option<OpenFile>,
    /// Before it, all rows are there. Invalid if there are none at all.
    end: Lsn,
    is_dirty: bool,
    buffer: Vec<u8>,
}

struct OpenFile {
    path: PathBuf,
    file: File,
    length: u64,
}

impl Writer {
    /// Opens a spool to go on where it ends; cuts off what a crash left. `replay` is given the entries of
    /// its last file: the catalogs, and all that has changed since.
    pub(crate) fn open(
        directory: &Path,
        identity: Identity,
        major: u16,
        mut replay: impl FnMut(&[u8]) -> Result<(), Trouble>,
    ) -> Result<Self, Trouble> {
        std::fs::create_dir_all(directory).map_err(|error| trouble("making", directory, error))?;
        let mut writer = Self {
            directory: directory.to_owned(),
            identity,
            major,
            open: None,
            end: Lsn::INVALID,
            is_dirty: false,
            buffer: Vec::new(),
        };
        let files = list(directory).map_err(|error| trouble("reading", directory, error))?;
        // A file whose catalogs a crash has left unfinished says nothing: the one before it ends there.
        for (start, path) in files.iter().rev() {
            if let Some((open, end)) = writer.reopen(path, &mut replay)? {
                (writer.open, writer.end) = (Some(open), end);
                break;
            }
            tracing::warn!(%start, "a file of the row spool was never finished: removed");
            std::fs::remove_file(path).map_err(|error| trouble("removing", path, error))?;
        }
        Ok(writer)
    }

    /// Before it, all rows are there; nothing if there are none.
    pub(crate) fn end(&self) -> Option<Lsn> {
        self.end.is_valid().then_some(self.end)
    }

    /// Gives the file, and up to where it has rows; nothing if it has not even the catalogs.
    fn reopen(
        &self,
        path: &Path,
        replay: &mut impl FnMut(&[u8]) -> Result<(), Trouble>,
    ) -> Result<Option<(OpenFile, Lsn)>, Trouble> {
        let reading = |error| trouble("reading", path, error);
        let mut file = OpenOptions::new().read(true).append(true).open(path).map_err(reading)?;
        let mut header = [0; HEADER_SIZE];
        match file.read_exact(&mut header) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            result => result.map_err(reading)?,
        }
        let Some(header) = FileHeader::from_bytes(&header) else { return Ok(None) };
        if !header.is_of(&self.identity) {
            return Err(Trouble::new(
                Kind::Refused,
                format_args!(
                    "row spool {} is of system {}, timeline {}; this node's is {}, timeline {}",
                    path.display(),
                    header.system_identifier,
                    header.timeline,
                    self.identity.system_identifier,
                    self.identity.timeline
                ),
            )
            .with_hint("give [decode] a directory of its own for each cluster and timeline"));
        }
        let mut reader = io::BufReader::with_capacity(1 << 20, &file);
        let (mut length, mut end) = (HEADER_SIZE as u64, None);
        let mut body = Vec::new();
        while let Some((chunk_end, bytes)) = next_chunk(&mut reader, &mut body).map_err(reading)? {
            replay(&body[8..])?;
            length += bytes;
            end = Some(chunk_end);
        }
        let Some(end) = end else { return Ok(None) };
        let found = file.metadata().map_err(reading)?.len();
        if found > length {
            tracing::info!(path = %path.display(), from = found, to = length, "row spool cut back");
            file.set_len(length).map_err(|error| trouble("cutting back", path, error))?;
            file.sync_all().map_err(|error| trouble("syncing", path, error))?;
        }
        Ok(Some((OpenFile { path: path.to_owned(), file, length }, end)))
    }

    /// Begins anew at `start`, with the catalogs as they are there.
    pub(crate) fn begin(&mut self, start: Lsn, catalogs: &[u8]) -> Result<(), Trouble> {
        self.sync()?;
        self.create(start, start, false)?;
        self.append(catalogs, start)
    }

    /// Whether the file at hand is long enough for another one to follow.
    pub(crate) fn is_full(&self) -> bool {
        self.open.as_ref().is_some_and(|open| open.length >= FILE_BYTES_MAX)
    }

    /// Goes on in another file. `catalogs` are as of the end of this one; `oldest` is where the first row
    /// may be of a transaction that has not ended.
    pub(crate) fn go_on(&mut self, catalogs: &[u8], oldest: Lsn) -> Result<(), Trouble> {
        self.sync()?;
        self.create(self.end, oldest, true)?;
        self.append(catalogs, self.end)
    }

    /// Removes the oldest files while all together have more than `bytes_max`, but never the last two.
    pub(crate) fn remove_oldest(&self, bytes_max: u64) -> Result<(), Trouble> {
        let reading = |error| trouble("reading", &self.directory, error);
        let files = list(&self.directory).map_err(reading)?;
        let mut lengths = Vec::with_capacity(files.len());
        for (_, path) in &files {
            lengths.push(std::fs::metadata(path).map_err(reading)?.len());
        }
        let mut total: u64 = lengths.iter().sum();
        for ((start, path), length) in files.iter().zip(lengths).take(files.len().saturating_sub(2))
        {
            if total <= bytes_max {
                break;
            }
            std::fs::remove_file(path).map_err(|error| trouble("removing", path, error))?;
            tracing::info!(%start, "rows removed: [decode] max_bytes");
            total -= length;
        }
        Ok(())
    }

    fn create(&mut self, start: Lsn, oldest: Lsn, continues: bool) -> Result<(), Trouble> {
        let path = path_of(&self.directory, start);
        let header = FileHeader {
            major: self.major,
            system_identifier: self.identity.system_identifier,
            timeline: self.identity.timeline,
            continues,
            start,
            oldest,
        };
        let create = || -> io::Result<File> {
            let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(&path)?;
            file.set_len(0)?;
            file.write_all(&header.to_bytes())?;
            file.sync_all()?;
            File::open(&self.directory)?.sync_all()?;
            Ok(file)
        };
        let file = create().map_err(|error| trouble("making", &path, error))?;
        self.open = Some(OpenFile { path, file, length: HEADER_SIZE as u64 });
        Ok(())
    }

    /// Adds entries: with them, all before `end` are there.
    pub(crate) fn append(&mut self, entries: &[u8], end: Lsn) -> Result<(), Trouble> {
        let Some(open) = &mut self.open else { return Ok(()) };
        self.buffer.clear();
        self.buffer.resize(CHUNK_HEADER_SIZE, 0);
        self.buffer.extend_from_slice(entries);
        let length = u32::try_from(self.buffer.len() - 8).unwrap_or(u32::MAX);
        put(&mut self.buffer, 0, length.to_le_bytes());
        put(&mut self.buffer, 8, end.0.to_le_bytes());
        let crc = crc32c::crc32c(&self.buffer[8..]);
        put(&mut self.buffer, 4, crc.to_le_bytes());
        if let Err(error) = open.file.write_all(&self.buffer) {
            // Nothing of it may stay: what comes next would stand behind it.
            let cut = open.file.set_len(open.length);
            let error = trouble("writing", &open.path, error);
            return match cut {
                Ok(()) => Err(error),
                Err(cut) => Err(trouble("cutting back", &open.path, cut)),
            };
        }
        open.length += self.buffer.len() as u64;
        self.end = end;
        self.is_dirty = true;
        Ok(())
    }

    /// Makes everything durable. After an error nothing is known of what was not durable before: the
    /// spool must be opened anew.
    pub(crate) fn sync(&mut self) -> Result<(), Trouble> {
        if let Some(open) = self.open.as_ref().filter(|_| self.is_dirty) {
            open.file.sync_data().map_err(|error| trouble("syncing", &open.path, error))?;
            self.is_dirty = false;
        }
        Ok(())
    }

    /// Whether something is not durable yet.
    pub(crate) const fn is_dirty(&self) -> bool {
        self.is_dirty
    }
}

/// Reads the next whole chunk; gives its end and its length. Nothing at the end, or where it is not
/// one.
fn next_chunk(reader: &mut impl Read, body: &mut Vec<u8>) -> io::Result<Option<(Lsn, u64)>> {
    let mut head = [0; 8];
    match reader.read_exact(&mut head) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        result => result?,
    }
    let length = u32_at(&head, 0) as usize;
    if !(8..=CHUNK_SIZE_MAX).contains(&length) {
        return Ok(None);
    }
    body.clear();
    let read = reader.by_ref().take(length as u64).read_to_end(body)?;
    if read < length || crc32c::crc32c(body) != u32_at(&head, 4) {
        return Ok(None);
    }
    Ok(Some((Lsn(u64_at(body, 0)), 8 + length as u64)))
}

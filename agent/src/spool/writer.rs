//! The end of the spool that grows.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use walfmt::Lsn;
use walfmt::row::Entry;

use super::{
    CHUNK_HEADER_SIZE, CHUNK_SIZE_MAX, ChunkHeader, FileHeader, HEADER_SIZE, UNFINISHED_SUFFIX,
    list, path_of, trouble,
};
use crate::identity::Identity;
use crate::trouble::{Kind, Trouble};

/// A file is followed by another when it is this long: 128 MB. The catalogs that the next one begins
/// with are a megabyte or two for each database.
const FILE_BYTES_MAX: u64 = 128 << 20;
/// About how long a chunk of catalogs is, in bytes: readers hold it whole.
const CATALOG_CHUNK_BYTES: usize = 4 << 20;

/// Adds rows to a spool.
pub(crate) struct Writer {
    directory: PathBuf,
    identity: Identity,
    major: u16,
    open: Option<OpenFile>,
    /// Before it, all rows are there. Invalid if there are none at all.
    end: Lsn,
    /// See [`Writer::oldest`].
    oldest: Option<Lsn>,
    is_dirty: bool,
    buffer: Vec<u8>,
    /// [`FILE_BYTES_MAX`].
    pub(super) file_bytes_max: u64,
}

struct OpenFile {
    path: PathBuf,
    file: File,
    start: Lsn,
    length: u64,
    /// Of what was written last.
    crc: u32,
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
            oldest: None,
            is_dirty: false,
            buffer: Vec::new(),
            file_bytes_max: FILE_BYTES_MAX,
        };
        remove_unfinished(directory)?;
        let files = list(directory).map_err(|error| trouble("reading", directory, error))?;
        // One without its catalogs is no use, and what follows cannot be read.
        for (start, path) in files.iter().rev() {
            if let Some(open) = writer.reopen(path, &mut replay)? {
                writer.open = Some(open);
                return Ok(writer);
            }
            tracing::warn!(%start, "a file of the row spool has no header, or no catalogs: removed");
            std::fs::remove_file(path).map_err(|error| trouble("removing", path, error))?;
        }
        Ok(writer)
    }

    /// Before it, all rows are there; nothing if there are none.
    pub(crate) fn end(&self) -> Option<Lsn> {
        self.end.is_valid().then_some(self.end)
    }

    /// Where the first row may be of a transaction that had not ended at the start of the file that was
    /// opened; nothing if rows of such transactions are in no file.
    pub(crate) fn oldest(&self) -> Option<Lsn> {
        self.oldest
    }

    fn reopen(
        &mut self,
        path: &Path,
        replay: &mut impl FnMut(&[u8]) -> Result<(), Trouble>,
    ) -> Result<Option<OpenFile>, Trouble> {
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
        let (mut length, mut crc) = (HEADER_SIZE as u64, header.crc());
        let mut last = None;
        let mut body = Vec::new();
        while let Some(chunk) = next_chunk(&mut reader, crc, &mut body).map_err(reading)? {
            replay(&body)?;
            length += (CHUNK_HEADER_SIZE + chunk.length) as u64;
            crc = chunk.crc;
            last = Some(chunk.end);
        }
        let Some(end) = last else { return Ok(None) };
        let found = file.metadata().map_err(reading)?.len();
        if found > length {
            tracing::info!(path = %path.display(), from = found, to = length, "row spool cut back");
            file.set_len(length).map_err(|error| trouble("cutting back", path, error))?;
            file.sync_all().map_err(|error| trouble("syncing", path, error))?;
        }
        self.end = end;
        self.oldest = header.continues.then_some(header.oldest);
        // Whoever wrote it may have been killed before he synced it.
        self.is_dirty = true;
        Ok(Some(OpenFile { path: path.to_owned(), file, start: header.start, length, crc }))
    }

    /// Begins anew at `start`, with the catalogs as they are there: entries, all of that position.
    pub(crate) fn begin(&mut self, start: Lsn, catalogs: &[u8]) -> Result<(), Trouble> {
        self.begin_file(start, start, false, catalogs)
    }

    /// Whether the file at hand is long enough for another one to follow.
    pub(crate) fn is_full(&self) -> bool {
        // With nothing but catalogs in it, the next file would have this one's name.
        let open = self.open.as_ref();
        open.is_some_and(|open| open.length >= self.file_bytes_max && self.end > open.start)
    }

    /// Goes on in another file. `catalogs` are as of the end of this one; `oldest` is where the first row
    /// may be of a transaction that has not ended.
    pub(crate) fn go_on(&mut self, catalogs: &[u8], oldest: Lsn) -> Result<(), Trouble> {
        self.begin_file(self.end, oldest, true, catalogs)
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
        let removable = files.len().saturating_sub(2);
        for ((start, path), length) in files.iter().zip(lengths).take(removable) {
            if total <= bytes_max {
                break;
            }
            std::fs::remove_file(path).map_err(|error| trouble("removing", path, error))?;
            tracing::info!(%start, "rows removed: [decode] max_bytes");
            total -= length;
        }
        Ok(())
    }

    fn begin_file(
        &mut self,
        start: Lsn,
        oldest: Lsn,
        continues: bool,
        catalogs: &[u8],
    ) -> Result<(), Trouble> {
        self.sync()?;
        // Under another name, until it has all: a reader must not begin with half of them.
        let path = path_of(&self.directory, start);
        let unfinished = path.with_extension(UNFINISHED_SUFFIX);
        self.create(&unfinished, start, oldest, continues)?;
        let mut rest = catalogs;
        while !rest.is_empty() {
            let mut length = 0;
            while length < rest.len().min(CATALOG_CHUNK_BYTES) {
                let (_, behind) = Entry::read(&rest[length..]).map_err(|error| {
                    Trouble::new(Kind::Corrupt, format_args!("catalogs: {error}"))
                })?;
                length = rest.len() - behind.len();
            }
            let (chunk, behind) = rest.split_at(length);
            self.write(chunk, start)?;
            rest = behind;
        }
        self.sync()?;
        let rename = || {
            std::fs::rename(&unfinished, &path)?;
            File::open(&self.directory)?.sync_all()
        };
        rename().map_err(|error| trouble("renaming", &unfinished, error))?;
        if let Some(open) = &mut self.open {
            open.path = path;
        }
        Ok(())
    }

    fn create(
        &mut self,
        path: &Path,
        start: Lsn,
        oldest: Lsn,
        continues: bool,
    ) -> Result<(), Trouble> {
        let header = FileHeader {
            major: self.major,
            system_identifier: self.identity.system_identifier,
            timeline: self.identity.timeline,
            continues,
            start,
            oldest,
        };
        let create = || -> io::Result<File> {
            let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
            file.set_len(0)?;
            file.write_all(&header.to_bytes())?;
            file.sync_all()?;
            File::open(&self.directory)?.sync_all()?;
            Ok(file)
        };
        let file = create().map_err(|error| trouble("making", path, error))?;
        let (path, length, crc) = (path.to_owned(), HEADER_SIZE as u64, header.crc());
        self.open = Some(OpenFile { path, file, start, length, crc });
        Ok(())
    }

    /// Adds entries: with them, all before `end` are there.
    pub(crate) fn append(&mut self, entries: &[u8], end: Lsn) -> Result<(), Trouble> {
        self.write(entries, end)
    }

    fn write(&mut self, entries: &[u8], end: Lsn) -> Result<(), Trouble> {
        let Some(open) = &mut self.open else { return Ok(()) };
        if entries.len() > CHUNK_SIZE_MAX {
            let words = format_args!("{} bytes of rows of one record", entries.len());
            return Err(Trouble::new(Kind::Unsupported, words));
        }
        let header = ChunkHeader::of(entries, end, open.crc);
        self.buffer.clear();
        self.buffer.extend_from_slice(&header.to_bytes());
        self.buffer.extend_from_slice(entries);
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
        open.crc = header.crc;
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

/// Removes what was to become a file with catalogs when a crash came.
fn remove_unfinished(directory: &Path) -> Result<(), Trouble> {
    let entries = std::fs::read_dir(directory);
    for entry in entries.map_err(|error| trouble("reading", directory, error))? {
        let path = entry.map_err(|error| trouble("reading", directory, error))?.path();
        if path.extension().is_some_and(|extension| extension == UNFINISHED_SUFFIX) {
            std::fs::remove_file(&path).map_err(|error| trouble("removing", &path, error))?;
        }
    }
    Ok(())
}

/// Reads the next whole chunk. Nothing at the end, or where it is not one that follows what has this
/// CRC.
fn next_chunk(
    reader: &mut impl Read,
    crc: u32,
    body: &mut Vec<u8>,
) -> io::Result<Option<ChunkHeader>> {
    let mut head = [0; CHUNK_HEADER_SIZE];
    match reader.read_exact(&mut head) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        result => result?,
    }
    let Some(header) = ChunkHeader::from_bytes(&head, crc) else { return Ok(None) };
    body.clear();
    reader.by_ref().take(header.length as u64).read_to_end(body)?;
    Ok(header.fits(body).then_some(header))
}

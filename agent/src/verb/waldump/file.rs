//! One segment's file: the bytes at an offset of the segment, whichever form it has.
//!
//! Files are read with ordinary calls, not mapped: a file that is cut off meanwhile is then the end of a
//! read and not the end of the process, and reading 256 kB at a time into a buffer that stays in the
//! processor's cache takes no longer than a map's page faults.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};

use rustix::buffer::spare_capacity;
use zstd::stream::raw::{Decoder, InBuffer, Operation, OutBuffer};

/// Compressed bytes are read in pieces of this size, and left out content goes by in them.
const PIECE_BYTES: usize = 128 << 10;

/// A segment's file, open.
pub(super) struct SegmentFile {
    path: PathBuf,
    form: Form,
}

enum Form {
    Plain(File),
    Compressed(Box<Compressed>),
}

/// Zstandard frames one after the other, perhaps still growing.
///
/// `position` is how much content has been decoded; it can only go on from there, or begin anew.
struct Compressed {
    file: File,
    decoder: Decoder<'static>,
    /// Read from the file; from `used` on not decoded yet.
    input: Vec<u8>,
    used: usize,
    /// The decoder may hold content that there was no room for.
    has_more: bool,
    position: u64,
    /// Where content goes that is not asked for.
    left_out: Vec<u8>,
}

impl SegmentFile {
    /// Opens a file, whose name says whether it is compressed; nothing if it is not there.
    pub(super) fn open(path: PathBuf) -> io::Result<Option<Self>> {
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let form = if path.extension().is_some_and(|extension| extension == "zst") {
            Form::Compressed(Box::new(Compressed::new(file)?))
        } else {
            Form::Plain(file)
        };
        Ok(Some(Self { path, form }))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether what has been read stays as it is, and the file only grows.
    pub(super) fn only_grows(&self) -> bool {
        matches!(self.form, Form::Compressed(_))
    }

    /// Reads `length` bytes at most, of those from `offset` on, into an empty buffer. None at all mean
    /// that the file ends there.
    pub(super) fn read(
        &mut self,
        offset: u64,
        length: usize,
        buffer: &mut Vec<u8>,
    ) -> io::Result<()> {
        buffer.clear();
        match &mut self.form {
            Form::Plain(file) => {
                if buffer.capacity() < length {
                    buffer.reserve_exact(length);
                }
                rustix::io::retry_on_intr(|| {
                    buffer.clear();
                    rustix::io::pread(&*file, spare_capacity(buffer), offset)
                })?;
                buffer.truncate(length);
                Ok(())
            }
            Form::Compressed(compressed) => {
                buffer.resize(length, 0);
                let read = compressed.read(offset, buffer)?;
                buffer.truncate(read);
                Ok(())
            }
        }
    }
}

impl Compressed {
    fn new(file: File) -> io::Result<Self> {
        Ok(Self {
            file,
            decoder: Decoder::new()?,
            input: Vec::with_capacity(PIECE_BYTES),
            used: 0,
            has_more: false,
            position: 0,
            left_out: Vec::new(),
        })
    }

    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        if offset < self.position {
            self.file.rewind()?;
            self.decoder.reinit()?;
            self.input.clear();
            (self.used, self.position, self.has_more) = (0, 0, false);
        }
        let mut left_out = std::mem::take(&mut self.left_out);
        left_out.resize(PIECE_BYTES, 0);
        while self.position < offset {
            let length = (offset - self.position).min(PIECE_BYTES as u64) as usize;
            if self.decode(&mut left_out[..length])? == 0 {
                break;
            }
        }
        self.left_out = left_out;
        if self.position < offset { Ok(0) } else { self.decode(buffer) }
    }

    /// Fills the buffer, as far as there is content.
    fn decode(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = buffer.len();
        let mut output = OutBuffer::around(buffer);
        while output.pos() < wanted {
            if self.used == self.input.len() && !self.has_more {
                self.input.clear();
                self.used = 0;
                let mut file = (&self.file).take(PIECE_BYTES as u64);
                if file.read_to_end(&mut self.input)? == 0 {
                    break;
                }
            }
            let mut input = InBuffer::around(&self.input[self.used..]);
            self.decoder.run(&mut input, &mut output)?;
            self.used += input.pos();
            // With room left, it gave all it had.
            self.has_more = output.pos() == wanted;
        }
        let decoded = output.pos();
        self.position += decoded as u64;
        Ok(decoded)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn compressed_files_are_read_at_any_offset_while_they_grow() {
        let directory = tempfile::tempdir().expect("scratch directory");
        let path = directory.path().join("000000010000000000000001.zst");
        let content: Vec<u8> =
            (0..3_000_000_u32).map(|n| (n / 1000).wrapping_mul(n) as u8).collect();
        let frames = content.chunks(1 << 20).map(|cell| zstd::encode_all(cell, 1).expect("zstd"));
        let bytes = frames.collect::<Vec<_>>().concat();
        let mut growing = File::create(&path).expect("created");
        let cut = bytes.len() / 2;
        growing.write_all(&bytes[..cut]).expect("written");

        let mut file = SegmentFile::open(path.clone()).expect("opened").expect("there");
        let (mut read, mut buffer) = (Vec::new(), Vec::new());
        for round in 0..60 {
            if round == 30 {
                assert!(!read.is_empty() && read.len() < content.len(), "half of it");
                growing.write_all(&bytes[cut..]).expect("written");
            }
            file.read(read.len() as u64, 300_000, &mut buffer).expect("read");
            read.extend_from_slice(&buffer);
        }
        assert!(read == content);
        for offset in [2_999_999, 7, 1_048_570, 2_000_000, 2_000_001, 0, 3_000_000] {
            file.read(offset as u64, 20, &mut buffer).expect("read");
            assert_eq!(buffer, content[offset..content.len().min(offset + 20)], "{offset}");
        }

        // The control: what does not begin as a frame is not content.
        let mut spoiled = bytes;
        spoiled[0] ^= 1;
        std::fs::write(&path, spoiled).expect("written");
        let mut file = SegmentFile::open(path).expect("opened").expect("there");
        assert!(file.read(2_999_000, 20, &mut buffer).is_err());
        let absent = directory.path().join("000000010000000000000002");
        assert!(SegmentFile::open(absent).expect("no error").is_none());
    }
}

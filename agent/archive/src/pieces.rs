//! The pieces of a file, one after the other.

use crate::files::{File, FileError};
use crate::frame::{FrameFault, PIECE_BYTES_MAX, Piece};

/// How much is read at once. Two pieces fit, so most reads are followed by no copying.
const BUFFER_BYTES: usize = 2 * PIECE_BYTES_MAX;

/// Steps through a file's pieces. The file may grow meanwhile: "no whole piece yet" is an answer
/// that may change.
#[derive(Debug)]
pub(crate) struct Pieces {
    file: Box<dyn File>,
    /// Where in the file the first byte not consumed stands.
    offset: u64,
    /// `buffer[start..end]` are the file's bytes from `offset` on.
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    in_frame: bool,
}

/// Why there is no next piece, beyond "not yet".
#[derive(Debug)]
pub(crate) enum PieceError {
    File(FileError),
    Fault(FrameFault),
}

impl Pieces {
    /// From `offset` on, where a frame begins.
    pub(crate) fn new(file: Box<dyn File>, offset: u64) -> Self {
        let buffer = vec![0; BUFFER_BYTES].into_boxed_slice();
        Self { file, offset, buffer, start: 0, end: 0, in_frame: false }
    }

    /// Where the next piece begins.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// Whether the next piece continues a frame.
    pub(crate) fn in_frame(&self) -> bool {
        self.in_frame
    }

    /// The next piece, if all of it is there, without stepping over it.
    pub(crate) fn peek(&mut self) -> Result<Option<(Piece, &[u8])>, PieceError> {
        let mut found = self.parse()?;
        if found.is_none() {
            self.read_more().map_err(PieceError::File)?;
            found = self.parse()?;
        }
        if found.is_none() {
            // A write that failed half way is cut off again, and other bytes come in its place: what
            // is no whole piece is read anew.
            self.forget_rest();
        }
        Ok(found.map(|piece| (piece, &self.buffer[self.start..self.start + piece.len])))
    }

    /// Steps over the piece that [`Pieces::peek`] gave.
    pub(crate) fn consume(&mut self, piece: Piece) {
        self.start += piece.len;
        self.offset += piece.len as u64;
        self.in_frame = !piece.ends_frame;
    }

    /// Whether bytes are left that are no whole piece, or not yet.
    pub(crate) fn has_rest(&mut self) -> Result<bool, FileError> {
        if self.start == self.end {
            self.read_more()?;
        }
        Ok(self.start < self.end)
    }

    /// What was read beyond the pieces consumed is read anew.
    pub(crate) fn forget_rest(&mut self) {
        self.end = self.start;
    }

    /// The same file from `offset` on, where a frame begins.
    pub(crate) fn restart(&mut self, offset: u64) {
        (self.offset, self.start, self.end, self.in_frame) = (offset, 0, 0, false);
    }

    pub(crate) fn file(&self) -> &dyn File {
        &*self.file
    }

    fn parse(&self) -> Result<Option<Piece>, PieceError> {
        Piece::parse(&self.buffer[self.start..self.end], self.in_frame).map_err(PieceError::Fault)
    }

    fn read_more(&mut self) -> Result<(), FileError> {
        self.buffer.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        let from = self.offset + self.end as u64;
        self.end += self.file.read_at(from, &mut self.buffer[self.end..])?;
        Ok(())
    }
}

//! Decoding of pieces, one at a time.

use std::fmt;

use zstd::zstd_safe::{self, DCtx, DParameter, InBuffer, OutBuffer, ResetDirective};

use crate::frame::{BLOCK_BYTES_MAX, FrameFault, WINDOW_LOG_MAX};

/// How much room a buffer has at least before a piece is decoded into it: a block's content is at most
/// 128 KB, so this is never filled and one call gives all of it.
pub(crate) const DECODING_ROOM: usize = BLOCK_BYTES_MAX + 64;

/// A zstd decoder that is fed whole pieces and gives all of their content at once.
pub(crate) struct Decoder {
    context: DCtx<'static>,
}

impl Decoder {
    pub(crate) fn new() -> Self {
        let mut context = DCtx::create();
        context
            .set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX))
            .expect("the zstd library accepts a window of 8 MB");
        Self { context }
    }

    /// From here on content checksums are stepped over.
    pub(crate) fn ignore_checksums(&mut self) {
        self.context
            .set_parameter(DParameter::ForceIgnoreChecksum(true))
            .expect("the zstd library can always ignore checksums between frames");
    }

    /// Forgets the frame that was begun.
    pub(crate) fn reset(&mut self) {
        self.context
            .reset(ResetDirective::SessionOnly)
            .expect("the zstd library can always reset a session");
    }

    /// Decodes one whole piece and appends its content, at most `room` bytes, to `out`. The
    /// library checks the content checksum when a frame ends, unless told not to. After an error
    /// the decoder must be reset; `out` is as before.
    pub(crate) fn decode(
        &mut self,
        piece: &[u8],
        ends_frame: bool,
        room: u64,
        out: &mut Vec<u8>,
    ) -> Result<(), FrameFault> {
        let before = out.len();
        let decoded = self.decode_into(piece, ends_frame, room, out);
        if decoded.is_err() {
            out.truncate(before);
        }
        decoded
    }

    fn decode_into(
        &mut self,
        piece: &[u8],
        ends_frame: bool,
        room: u64,
        out: &mut Vec<u8>,
    ) -> Result<(), FrameFault> {
        let before = out.len();
        out.reserve(DECODING_ROOM);
        let mut input = InBuffer::around(piece);
        let hint = loop {
            let consumed = input.pos();
            let at = out.len();
            let mut output = OutBuffer::around_pos(out, at);
            let hint = self
                .context
                .decompress_stream(&mut output, &mut input)
                .map_err(|code| FrameFault::Undecodable(zstd_safe::get_error_name(code)))?;
            if (out.len() - before) as u64 > room {
                return Err(FrameFault::TooLong { room });
            }
            if input.pos() == piece.len() {
                break hint;
            }
            if input.pos() == consumed && out.len() == at {
                return Err(FrameFault::Undecodable("a block is longer than its header says"));
            }
            if hint == 0 {
                return Err(FrameFault::Undecodable("a frame ends before its last block"));
            }
            out.reserve(DECODING_ROOM);
        };
        if (hint == 0) != ends_frame {
            return Err(FrameFault::Undecodable("a frame does not end with its last block"));
        }
        Ok(())
    }
}

impl fmt::Debug for Decoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decoder").finish_non_exhaustive()
    }
}

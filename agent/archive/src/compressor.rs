//! Compressing WAL into zstd frames, in memory.

use zstd::zstd_safe::{self, CCtx, CParameter, InBuffer, OutBuffer, SafeResult};

use crate::error::{ArchiveError, Result};

/// Compresses one frame after the other, as the archive's files hold them.
///
/// The writer uses it for its files, and a sender for the rest of a frame that a follower cannot
/// copy.
pub struct FrameCompressor {
    context: CCtx<'static>,
}

impl FrameCompressor {
    /// A compressor with this zstd level, at the start of a frame.
    pub fn new(level: i32) -> Result<Self> {
        let mut context = CCtx::create();
        for parameter in [CParameter::CompressionLevel(level), CParameter::ChecksumFlag(true)] {
            context.set_parameter(parameter).map_err(cannot_compress)?;
        }
        Ok(Self { context })
    }

    /// Adds WAL to the frame. What comes out so far is appended to `out`; it is not whole blocks
    /// before a flush.
    pub fn compress(&mut self, wal: &[u8], out: &mut Vec<u8>) -> Result<()> {
        let mut input = InBuffer::around(wal);
        while input.pos() < wal.len() {
            self.context.compress_stream(&mut room_in(out), &mut input).map_err(cannot_compress)?;
        }
        Ok(())
    }

    /// Ends the block: everything added so far can be decoded from what is in `out` then.
    pub fn flush(&mut self, out: &mut Vec<u8>) -> Result<()> {
        self.drain(out, CCtx::flush_stream)
    }

    /// Ends the frame, with its checksum. The next byte begins another one.
    pub fn end(&mut self, out: &mut Vec<u8>) -> Result<()> {
        self.drain(out, CCtx::end_stream)
    }

    fn drain(
        &mut self,
        out: &mut Vec<u8>,
        finish: fn(&mut CCtx<'static>, &mut OutBuffer<'_, Vec<u8>>) -> SafeResult,
    ) -> Result<()> {
        while finish(&mut self.context, &mut room_in(out)).map_err(cannot_compress)? > 0 {}
        Ok(())
    }
}

impl std::fmt::Debug for FrameCompressor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FrameCompressor").finish_non_exhaustive()
    }
}

fn cannot_compress(code: zstd_safe::ErrorCode) -> ArchiveError {
    ArchiveError::Compress(zstd_safe::get_error_name(code))
}

/// The end of a buffer, with enough room for any block.
fn room_in(buffer: &mut Vec<u8>) -> OutBuffer<'_, Vec<u8>> {
    buffer.reserve(CCtx::out_size());
    let end = buffer.len();
    OutBuffer::around_pos(buffer, end)
}

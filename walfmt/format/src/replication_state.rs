//! `pg_logical/replorigin_checkpoint`: how far each replication origin was applied.
//!
//! ```text
//! offset  size  field
//!      0     4  magic         0x1257DADE
//!      4    16  for each origin: roident u16, 6 unused, remote_lsn u64
//!    end     4  CRC-32C of everything before
//! ```
//!
//! Rules: `CheckPointReplicationOrigin` in `src/backend/replication/logical/origin.c`.

use crate::bytes::{u16_at, u32_at, u64_at};
use crate::lsn::Lsn;

/// How the file begins (`REPLICATION_STATE_MAGIC`).
pub const REPLICATION_STATE_MAGIC: u32 = 0x1257_DADE;

const MAGIC_SIZE: usize = 4;
const CRC_SIZE: usize = 4;
const STATE_SIZE: usize = 16;

/// How far one origin was applied (`ReplicationStateOnDisk`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplicationState {
    /// The origin's number; never 0.
    pub origin: u16,
    /// The end of the last change applied, in the origin's own WAL.
    pub remote_lsn: Lsn,
}

/// A file that is not what it can be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReplicationStateError {
    /// Not a whole number of origins.
    #[error("{0} bytes, expected 8 and 16 for each origin")]
    Length(usize),
    /// Another kind of file.
    #[error("magic is {0:#010x}, expected {REPLICATION_STATE_MAGIC:#010x}")]
    Magic(u32),
    /// The checksum does not fit.
    #[error("checksum {found:#010x}, expected {expected:#010x}")]
    Crc {
        /// Computed over the contents.
        expected: u32,
        /// What the file says.
        found: u32,
    },
}

/// The file that says this of these origins, in this order.
pub fn to_file(states: impl IntoIterator<Item = ReplicationState>) -> Vec<u8> {
    let mut bytes = REPLICATION_STATE_MAGIC.to_le_bytes().to_vec();
    for state in states {
        bytes.extend(state.origin.to_le_bytes());
        bytes.extend([0; 6]);
        bytes.extend(state.remote_lsn.0.to_le_bytes());
    }
    let crc = crc32c::crc32c(&bytes);
    bytes.extend(crc.to_le_bytes());
    bytes
}

/// Checks and reads the file.
///
/// # Errors
/// [`ReplicationStateError`] says what is wrong with it.
pub fn read_file(bytes: &[u8]) -> Result<Vec<ReplicationState>, ReplicationStateError> {
    let wrong_length = ReplicationStateError::Length(bytes.len());
    let (contents, crc) = bytes.split_last_chunk::<CRC_SIZE>().ok_or(wrong_length.clone())?;
    let states = contents.get(MAGIC_SIZE..).ok_or(wrong_length.clone())?;
    let magic = u32_at(contents, 0);
    if magic != REPLICATION_STATE_MAGIC {
        return Err(ReplicationStateError::Magic(magic));
    }
    if !states.len().is_multiple_of(STATE_SIZE) {
        return Err(wrong_length);
    }
    let (expected, found) = (crc32c::crc32c(contents), u32_at(crc, 0));
    if expected != found {
        return Err(ReplicationStateError::Crc { expected, found });
    }
    let read = |state: &[u8]| ReplicationState {
        origin: u16_at(state, 0),
        remote_lsn: Lsn(u64_at(state, 8)),
    };
    Ok(states.chunks_exact(STATE_SIZE).map(read).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        // As initdb leaves it.
        assert_eq!(to_file([]).len(), 8);
        assert_eq!(read_file(&to_file([])), Ok(vec![]));
        let state = |origin, lsn| ReplicationState { origin, remote_lsn: Lsn(lsn) };
        let states = vec![state(2, 0x1_0000_0000), state(1, 7)];
        let file = to_file(states.clone());
        assert_eq!(file.len(), 40);
        assert_eq!(read_file(&file), Ok(states));
        for byte in 0..file.len() {
            let mut spoiled = file.clone();
            spoiled[byte] ^= 1;
            assert!(read_file(&spoiled).is_err(), "{byte}");
            assert!(read_file(&file[..byte]).is_err(), "{byte}");
        }
    }
}

//! Files of `pg_twophase`: transactions that are prepared and wait for their second phase.
//!
//! ```text
//! pg_twophase/<xid, 8 hexadecimal digits>
//!     main data of the PREPARE record     see `rmgr::xact`
//!     CRC-32C of it, u32
//! ```
//!
//! A server writes one at a checkpoint, if the transaction was prepared before it and still is.
//! From 17 on names have 16 digits, with the epoch.
//!
//! Rules: `src/backend/access/transam/twophase.c`.

use crate::bytes::u32_at;
use crate::lsn::TransactionId;
use crate::rmgr::xact::{Prepare, PrepareError};
use crate::version::Version;

const CRC_SIZE: usize = 4;

/// A file that is not the state of a prepared transaction.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TwoPhaseError {
    /// Not even a checksum.
    #[error("{0} bytes, expected at least {CRC_SIZE}")]
    Short(usize),
    /// The checksum does not fit.
    #[error("checksum {found:#010x}, expected {expected:#010x}")]
    Crc {
        /// Computed over the contents.
        expected: u32,
        /// What the file says.
        found: u32,
    },
    /// The contents contradict themselves.
    #[error(transparent)]
    State(#[from] PrepareError),
    /// The file is not the one that its name says.
    #[error("transaction {found}, the file's name says {expected}")]
    Xid {
        /// By the name.
        expected: TransactionId,
        /// By the contents.
        found: TransactionId,
    },
}

/// The name of a prepared transaction's file.
#[must_use]
pub fn file_name(xid: TransactionId) -> String {
    format!("{:08X}", xid.0)
}

/// The transaction whose file has this name, if it is one's.
#[must_use]
pub fn xid_of_file_name(name: &str) -> Option<TransactionId> {
    let is_digit = |byte: u8| byte.is_ascii_digit() || (b'A'..=b'F').contains(&byte);
    (name.len() == 8 && name.bytes().all(is_digit))
        .then(|| u32::from_str_radix(name, 16).ok().map(TransactionId))
        .flatten()
}

/// The file of the transaction whose PREPARE record has these main data.
#[must_use]
pub fn to_file(main_data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(main_data.len() + CRC_SIZE);
    bytes.extend(main_data);
    bytes.extend(crc32c::crc32c(main_data).to_le_bytes());
    bytes
}

/// Checks and reads the file of `xid`.
///
/// # Errors
/// [`TwoPhaseError`] says what is wrong with it.
pub fn read_file<'a>(
    bytes: &'a [u8],
    xid: TransactionId,
    version: &Version,
) -> Result<Prepare<'a>, TwoPhaseError> {
    let (state, crc) =
        bytes.split_last_chunk::<CRC_SIZE>().ok_or(TwoPhaseError::Short(bytes.len()))?;
    let (expected, found) = (crc32c::crc32c(state), u32_at(crc, 0));
    if expected != found {
        return Err(TwoPhaseError::Crc { expected, found });
    }
    let prepare = Prepare::read(state, version)?;
    if prepare.xid != xid {
        return Err(TwoPhaseError::Xid { expected: xid, found: prepare.xid });
    }
    Ok(prepare)
}

#[cfg(test)]
pub(crate) mod fixture {
    use crate::bytes::put;
    use crate::lsn::TransactionId;
    use crate::rmgr::xact::TWO_PHASE_MAGIC;

    /// Main data of a PREPARE record: a commit would drop relation 1/2/3.
    pub(crate) fn state(xid: TransactionId, gid: &[u8], subxacts: &[u32]) -> Vec<u8> {
        let mut main = vec![0; 72];
        put(&mut main, 0, TWO_PHASE_MAGIC.to_le_bytes());
        put(&mut main, 8, xid.0.to_le_bytes());
        put(&mut main, 28, (subxacts.len() as u32).to_le_bytes());
        put(&mut main, 32, 1_u32.to_le_bytes());
        put(&mut main, 54, (gid.len() as u16 + 1).to_le_bytes());
        let align = |main: &mut Vec<u8>| main.resize(main.len().next_multiple_of(8), 0);
        main.extend(gid);
        main.push(0);
        align(&mut main);
        main.extend(subxacts.iter().flat_map(|xid| xid.to_le_bytes()));
        align(&mut main);
        main.extend([1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0]);
        align(&mut main);
        main.extend([0, 0, 0, 0, 0, 0, 0, 0]); // the end of what else there is
        let length = main.len() as u32 + 4;
        put(&mut main, 4, length.to_le_bytes());
        main
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::version::VERSIONS;

    #[test]
    fn a_file_is_its_record_and_a_checksum() {
        let xid = TransactionId(0xAB);
        let state = fixture::state(xid, b"name", &[]);
        let file = to_file(&state);
        assert_eq!(file.len(), state.len() + 4);
        let prepare = read_file(&file, xid, &VERSIONS[0]).expect("well formed");
        assert_eq!(prepare.gid, b"name");
        let other = TransactionId(0xAC);
        let wrong_name = TwoPhaseError::Xid { expected: other, found: xid };
        assert_eq!(read_file(&file, other, &VERSIONS[0]), Err(wrong_name));
        for byte in 0..file.len() {
            let mut spoiled = file.clone();
            spoiled[byte] ^= 1;
            assert!(read_file(&spoiled, xid, &VERSIONS[0]).is_err(), "{byte}");
            assert!(read_file(&file[..byte], xid, &VERSIONS[0]).is_err(), "{byte}");
        }
    }

    #[test]
    fn names_are_eight_digits() {
        assert_eq!(file_name(TransactionId(0x2AB)), "000002AB");
        assert_eq!(xid_of_file_name("000002AB"), Some(TransactionId(0x2AB)));
        for name in ["2AB", "000002ab", "0000002AB", "000002A.", "+00002AB"] {
            assert_eq!(xid_of_file_name(name), None, "{name}");
        }
    }
}

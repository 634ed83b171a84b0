//! LogicalMessage: `src/backend/access/rmgrdesc/logicalmsgdesc.c`.

use super::{Out, TextError};
use crate::record::Record;
use crate::rmgr::logical_message::{MESSAGE, Message};
use crate::version::Version;

pub(super) fn identify(info: u8, _: &Version) -> Option<&'static str> {
    (info == MESSAGE).then_some("MESSAGE")
}

pub(super) fn describe(
    record: &Record<'_>,
    _: &Version,
    out: &mut Out<'_>,
) -> Result<(), TextError> {
    if record.header.opcode() != MESSAGE {
        return Ok(());
    }
    let message = Message::read(record.main_data)?;
    out.text(if message.transactional { "transactional" } else { "non-transactional" });
    // As C sees it: up to the first NUL.
    let prefix = message.prefix.split(|byte| *byte == 0).next().unwrap_or_default();
    out.text(", prefix \"").raw(prefix);
    out.text("\"; payload (").uint(message.contents.len() as u64).text(" bytes): ");
    for (at, byte) in message.contents.iter().enumerate() {
        if at > 0 {
            out.text(" ");
        }
        out.hex_upper_padded(*byte, 2);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{describe, describe_as_all};
    use super::*;
    use crate::rmgr::RmgrId;

    #[test]
    fn a_prefix_is_printed_as_it_is() {
        let text = |prefix: &[u8], contents: &[u8]| {
            let mut main_data = vec![5, 0, 0, 0, u8::from(contents.is_empty()), 0, 0, 0];
            main_data.extend((prefix.len() as u64).to_le_bytes());
            main_data.extend((contents.len() as u64).to_le_bytes());
            main_data.extend([prefix, contents].concat());
            describe(15, RmgrId::LOGICAL_MESSAGE, MESSAGE, &main_data, &[]).expect("exact")
        };
        let told = "non-transactional, prefix \"a \"b\"\n\"; payload (2 bytes): 0A FF";
        assert_eq!(text(b"a \"b\"\n\0", &[10, 255]), told);
        // The space is there even if nothing follows.
        assert_eq!(text(b"\0", &[]), "transactional, prefix \"\"; payload (0 bytes): ");
        assert_eq!(text(b"a\0b\0", &[]), "transactional, prefix \"a\"; payload (0 bytes): ");
    }

    proptest! {
        #[test]
        fn no_bytes_do_harm(
            main_data in proptest::collection::vec(any::<u8>(), 0..60),
            data in proptest::collection::vec(any::<u8>(), 0..60),
        ) {
            describe_as_all(RmgrId::LOGICAL_MESSAGE, &main_data, &data);
        }
    }
}

//! Generic: `src/backend/access/rmgrdesc/genericdesc.c`.

use super::{Out, TextError};
use crate::cursor::Cursor;
use crate::record::Record;
use crate::version::Version;

pub(super) fn identify(_: u8, _: &Version) -> Option<&'static str> {
    Some("Generic")
}

/// Lists the fragments in the main data. That looks like a mistake: records have their fragments in the data
/// of their blocks, and no main data, so nothing is listed.
pub(super) fn describe(
    record: &Record<'_>,
    _: &Version,
    out: &mut Out<'_>,
) -> Result<(), TextError> {
    let mut cursor = Cursor::new(record.main_data);
    while !cursor.is_empty() {
        let (offset, length) = (cursor.u16("offset")?, cursor.u16("length")?);
        out.text("offset ").uint(offset).text(", length ").uint(length);
        // Says it even of a fragment that is not there in full.
        cursor.take(usize::from(length).min(cursor.rest().len()), "fragment")?;
        if !cursor.is_empty() {
            out.text("; ");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{describe, describe_as_all};
    use crate::rmgr::RmgrId;

    #[test]
    fn fragments_would_be_listed_if_they_were_main_data() {
        let text = |main_data: &[u8]| describe(16, RmgrId::GENERIC, 0, main_data, &[1, 0, 0, 0]);
        assert_eq!(text(&[]).as_deref(), Ok(""), "as it is");
        let list = "offset 24, length 2; offset 4096, length 0";
        assert_eq!(text(&[24, 0, 2, 0, 1, 1, 0, 16, 0, 0]).as_deref(), Ok(list));
        assert_eq!(text(&[24, 0, 9, 0, 1]).as_deref(), Ok("offset 24, length 9"));
        assert!(text(&[24, 0, 2]).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_do_harm(
            main_data in proptest::collection::vec(any::<u8>(), 0..60),
            data in proptest::collection::vec(any::<u8>(), 0..60),
        ) {
            describe_as_all(RmgrId::GENERIC, &main_data, &data);
        }
    }
}

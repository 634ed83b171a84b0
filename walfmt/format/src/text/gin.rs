//! Gin.
//!
//! Rules: `src/backend/access/rmgrdesc/gindesc.c`.

use super::{Out, TextError};
use crate::record::Record;
use crate::rmgr::gin::{self, DeleteListPages, Insert, LeafChanges, Payload, SegmentAction, Split};
use crate::version::Version;

pub(super) fn identify(info: u8, _: &Version) -> Option<&'static str> {
    Some(match info {
        gin::XLOG_GIN_CREATE_PTREE => "CREATE_PTREE",
        gin::XLOG_GIN_INSERT => "INSERT",
        gin::XLOG_GIN_SPLIT => "SPLIT",
        gin::XLOG_GIN_VACUUM_PAGE => "VACUUM_PAGE",
        gin::XLOG_GIN_VACUUM_DATA_LEAF_PAGE => "VACUUM_DATA_LEAF_PAGE",
        gin::XLOG_GIN_DELETE_PAGE => "DELETE_PAGE",
        gin::XLOG_GIN_UPDATE_META_PAGE => "UPDATE_META_PAGE",
        gin::XLOG_GIN_INSERT_LISTPAGE => "INSERT_LISTPAGE",
        gin::XLOG_GIN_DELETE_LISTPAGE => "DELETE_LISTPAGE",
        _ => return None,
    })
}

pub(super) fn describe(
    record: &Record<'_>,
    _: &Version,
    out: &mut Out<'_>,
) -> Result<(), TextError> {
    let main_data = record.main_data;
    match record.header.opcode() {
        gin::XLOG_GIN_INSERT => {
            let insert = Insert::read(main_data)?;
            place(insert.flags, out);
            if let Some((left, right)) = insert.children {
                out.text(" children: ").uint(left).text("/").uint(right);
            }
            if let Some(data) = data_or_image(record, out) {
                write_payload(&insert.payload(data)?, out)?;
            }
        }
        gin::XLOG_GIN_SPLIT => {
            let split = Split::read(main_data)?;
            out.text("isrootsplit: ").letter(split.flags & gin::GIN_SPLIT_ROOT != 0).text(" ");
            place(split.flags, out);
        }
        gin::XLOG_GIN_VACUUM_DATA_LEAF_PAGE => {
            if let Some(data) = data_or_image(record, out) {
                write_changes(&LeafChanges::read(data)?, out)?;
            }
        }
        gin::XLOG_GIN_DELETE_LISTPAGE => {
            out.text("ndeleted: ").int(DeleteListPages::read(main_data)?.deleted);
        }
        _ => {}
    }
    Ok(())
}

fn place(flags: u16, out: &mut Out<'_>) {
    out.text("isdata: ").letter(flags & gin::GIN_INSERT_ISDATA != 0);
    out.text(" isleaf: ").letter(flags & gin::GIN_INSERT_ISLEAF != 0);
}

/// The data of block 0, empty if there is no such block. If it is an image, says so instead: its data is not
/// told even if there is some, as with an image for verification.
fn data_or_image<'a>(record: &Record<'a>, out: &mut Out<'_>) -> Option<&'a [u8]> {
    let Some(block) = record.block(0) else { return Some(&[]) };
    let Some(image) = &block.image else { return Some(block.data) };
    out.text(if image.apply {
        " (full page image)"
    } else {
        " (full page image, for WAL verification)"
    });
    None
}

fn write_payload(payload: &Payload<'_>, out: &mut Out<'_>) -> Result<(), TextError> {
    match payload {
        Payload::Entry(entry) => {
            out.text(" isdelete: ").letter(entry.replaces);
            Ok(())
        }
        Payload::Leaf(changes) => write_changes(changes, out),
        Payload::Downlink(downlink) => {
            out.text(" pitem: ").uint(downlink.child).text("-").uint(downlink.key.block);
            out.text("/").uint(downlink.key.offset);
            Ok(())
        }
    }
}

fn write_changes(changes: &LeafChanges<'_>, out: &mut Out<'_>) -> Result<(), TextError> {
    out.text(" ").uint(changes.count).text(" segments:");
    for change in changes.iter() {
        let change = change?;
        out.text(" ").uint(change.segment);
        match change.action {
            SegmentAction::AddItems(items) => {
                out.text(" (add ").uint(items.len() as u64).text(" items)")
            }
            SegmentAction::Delete => out.text(" (delete)"),
            SegmentAction::Insert(_) => out.text(" (insert)"),
            SegmentAction::Replace(_) => out.text(" (replace)"),
            SegmentAction::Unknown(action) => {
                out.text(" unknown action ").uint(action).text(" ???")
            }
        };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rmgr::RmgrId;
    use crate::text::testing;

    fn insert(flags: u8, data: &[u8]) -> String {
        testing::text(17, RmgrId::GIN, gin::XLOG_GIN_INSERT, &[flags, 0], data)
    }

    #[test]
    fn changes_are_said_up_to_one_that_is_unknown() {
        let data = [4, 0, 0, 1, 3, 4, 1, 0, 0, 0, 0, 0, 9, 0, 5, 7];
        let said = "INSERT isdata: T isleaf: T 4 segments: 0 (delete) 3 (add 1 items)";
        assert_eq!(insert(3, &data), format!("{said} 5 unknown action 7 ???"));
        assert!(insert(3, &data[..15]).starts_with(&format!("{said} (cannot be read: action")));
    }

    #[test]
    fn a_page_without_data_is_an_error() {
        // pg_waldump itself dies of it.
        assert!(insert(2, &[]).starts_with("INSERT isdata: F isleaf: T (cannot be read: offset"));
    }
}

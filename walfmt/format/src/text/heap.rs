//! Heap: `heap_desc` in `src/backend/access/rmgrdesc/heapdesc.c`.

use super::{Out, TextError, standby};
use crate::record::Record;
use crate::rmgr::heap::{
    self, Delete, INIT_PAGE, Inplace, Insert, Lock, OPCODE_MASK, Truncate, Update, infobits,
    truncate_flags,
};
use crate::version::Version;

pub(super) fn identify(info: u8, _: &Version) -> Option<&'static str> {
    const INSERT_INIT: u8 = heap::INSERT | INIT_PAGE;
    const UPDATE_INIT: u8 = heap::UPDATE | INIT_PAGE;
    const HOT_UPDATE_INIT: u8 = heap::HOT_UPDATE | INIT_PAGE;
    Some(match info {
        heap::INSERT => "INSERT",
        INSERT_INIT => "INSERT+INIT",
        heap::DELETE => "DELETE",
        heap::UPDATE => "UPDATE",
        UPDATE_INIT => "UPDATE+INIT",
        heap::HOT_UPDATE => "HOT_UPDATE",
        HOT_UPDATE_INIT => "HOT_UPDATE+INIT",
        heap::TRUNCATE => "TRUNCATE",
        heap::CONFIRM => "HEAP_CONFIRM",
        heap::LOCK => "LOCK",
        heap::INPLACE => "INPLACE",
        _ => return None,
    })
}

pub(super) fn describe(
    record: &Record<'_>,
    version: &Version,
    out: &mut Out<'_>,
) -> Result<(), TextError> {
    // Also of an opcode that never builds a page, and then has no name.
    let opcode = record.header.info & OPCODE_MASK;
    if version.text.lists_items {
        list(opcode, record.main_data, version, out)
    } else {
        tell(opcode, record.main_data, out)
    }
}

/// In `key: value` lists.
fn list(
    opcode: u8,
    main_data: &[u8],
    version: &Version,
    out: &mut Out<'_>,
) -> Result<(), TextError> {
    match opcode {
        heap::INSERT => {
            let insert = Insert::read(main_data)?;
            out.text("off: ").uint(insert.offnum);
            list_flags(insert.flags, out);
        }
        heap::DELETE => {
            let delete = Delete::read(main_data)?;
            out.text("xmax: ").xid(delete.xmax).text(", off: ").uint(delete.offnum).text(", ");
            list_infobits("infobits", delete.infobits, out);
            list_flags(delete.flags, out);
        }
        heap::UPDATE | heap::HOT_UPDATE => {
            let update = Update::read(main_data)?;
            out.text("old_xmax: ").xid(update.old_xmax);
            out.text(", old_off: ").uint(update.old_offnum).text(", ");
            list_infobits("old_infobits", update.old_infobits, out);
            list_flags(update.flags, out);
            out.text(", new_xmax: ").xid(update.new_xmax);
            out.text(", new_off: ").uint(update.new_offnum);
        }
        heap::TRUNCATE => {
            let truncate = Truncate::read(main_data)?;
            list_bits("flags", truncate.flags, &TRUNCATE_FLAGS, out);
            let relations = truncate.relations();
            out.text(", nrelids: ").uint(relations.len() as u64).text(", relids:");
            out.array(relations, |out, relation| {
                out.uint(relation);
            });
        }
        heap::CONFIRM => {
            out.text("off: ").uint(heap::read_offnum(main_data)?);
        }
        heap::LOCK => list_lock(main_data, out)?,
        _ => {
            let inplace = Inplace::read(main_data, version)?;
            out.text("off: ").uint(inplace.offnum);
            standby::invalidations(inplace.messages, inplace.init_file, version, out);
        }
    }
    Ok(())
}

/// LOCK and HEAP2's LOCK_UPDATED.
pub(super) fn list_lock(main_data: &[u8], out: &mut Out<'_>) -> Result<(), TextError> {
    let lock = Lock::read(main_data)?;
    out.text("xmax: ").xid(lock.xmax).text(", off: ").uint(lock.offnum).text(", ");
    list_infobits("infobits", lock.infobits, out);
    list_flags(lock.flags, out);
    Ok(())
}

pub(super) fn list_flags(flags: u8, out: &mut Out<'_>) {
    out.text(", flags: 0x").hex_upper_padded(flags, 2);
}

fn list_infobits(key: &str, bits: u8, out: &mut Out<'_>) {
    list_bits(key, bits, &INFOBITS, out);
}

fn list_bits(key: &str, bits: u8, names: &[(u8, &str)], out: &mut Out<'_>) {
    out.text(key).text(":");
    let set = names.iter().filter(|(bit, _)| bits & bit != 0);
    out.array(set, |out, (_, name)| {
        out.text(name);
    });
}

/// In words. Each infobit leaves a space behind it, even the last one.
fn tell(opcode: u8, main_data: &[u8], out: &mut Out<'_>) -> Result<(), TextError> {
    match opcode {
        heap::INSERT => {
            let insert = Insert::read(main_data)?;
            out.text("off ").uint(insert.offnum);
            out.text(" flags 0x").hex_upper_padded(insert.flags, 2);
        }
        heap::DELETE => {
            let delete = Delete::read(main_data)?;
            out.text("off ").uint(delete.offnum);
            tell_flags(delete.flags, delete.infobits, out);
        }
        heap::UPDATE | heap::HOT_UPDATE => {
            let update = Update::read(main_data)?;
            out.text("off ").uint(update.old_offnum).text(" xmax ").xid(update.old_xmax);
            tell_flags(update.flags, update.old_infobits, out);
            out.text("; new off ").uint(update.new_offnum).text(" xmax ").xid(update.new_xmax);
        }
        heap::TRUNCATE => {
            let truncate = Truncate::read(main_data)?;
            if truncate.flags & truncate_flags::CASCADE != 0 {
                out.text("cascade ");
            }
            if truncate.flags & truncate_flags::RESTART_SEQS != 0 {
                out.text("restart_seqs ");
            }
            let relations = truncate.relations();
            out.text("nrelids ").uint(relations.len() as u64).text(" relids");
            for relation in relations {
                out.text(" ").uint(relation);
            }
        }
        heap::LOCK => tell_lock(main_data, " xid ", out)?,
        // CONFIRM and INPLACE.
        _ => {
            out.text("off ").uint(heap::read_offnum(main_data)?);
        }
    }
    Ok(())
}

/// LOCK and HEAP2's LOCK_UPDATED, which do not agree on what to call an xmax.
pub(super) fn tell_lock(main_data: &[u8], xmax: &str, out: &mut Out<'_>) -> Result<(), TextError> {
    let lock = Lock::read(main_data)?;
    out.text("off ").uint(lock.offnum).text(":").text(xmax).xid(lock.xmax).text(":");
    tell_flags(lock.flags, lock.infobits, out);
    Ok(())
}

fn tell_flags(flags: u8, bits: u8, out: &mut Out<'_>) {
    out.text(" flags 0x").hex_upper_padded(flags, 2).text(" ");
    for (_, name) in INFOBITS.iter().filter(|(bit, _)| bits & bit != 0) {
        out.text(name).text(" ");
    }
}

const INFOBITS: [(u8, &str); 5] = [
    (infobits::XMAX_IS_MULTI, "IS_MULTI"),
    (infobits::XMAX_LOCK_ONLY, "LOCK_ONLY"),
    (infobits::XMAX_EXCL_LOCK, "EXCL_LOCK"),
    (infobits::XMAX_KEYSHR_LOCK, "KEYSHR_LOCK"),
    (infobits::KEYS_UPDATED, "KEYS_UPDATED"),
];

const TRUNCATE_FLAGS: [(u8, &str); 2] =
    [(truncate_flags::CASCADE, "CASCADE"), (truncate_flags::RESTART_SEQS, "RESTART_SEQS")];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{describe, describe_as_all};
    use super::*;
    use crate::rmgr::RmgrId;

    fn text(major: u16, opcode: u8, main_data: &[u8]) -> String {
        describe(major, RmgrId::HEAP, opcode, main_data, &[]).expect("long enough")
    }

    #[test]
    fn words_leave_spaces_behind() {
        let update = [9, 0, 0, 0, 3, 0, 0x12, 0x20, 10, 0, 0, 0, 4, 0];
        let told = "off 3 xmax 9 flags 0x20 LOCK_ONLY KEYS_UPDATED ; new off 4 xmax 10";
        assert_eq!(text(15, heap::UPDATE, &update), told);
        let lock = [9, 0, 0, 0, 3, 0, 0x0D, 0];
        let told = "off 3: xid 9: flags 0x00 IS_MULTI EXCL_LOCK KEYSHR_LOCK ";
        assert_eq!(text(15, heap::LOCK, &lock), told);
        assert_eq!(text(15, heap::DELETE, &[9, 0, 0, 0, 3, 0, 0, 0]), "off 3 flags 0x00 ");
    }

    #[test]
    fn lists_are_closed_even_if_empty() {
        let update = [9, 0, 0, 0, 3, 0, 0, 0x20, 10, 0, 0, 0, 4, 0];
        let list =
            "old_xmax: 9, old_off: 3, old_infobits: [], flags: 0x20, new_xmax: 10, new_off: 4";
        assert_eq!(text(16, heap::HOT_UPDATE, &update), list);
        let lock = [9, 0, 0, 0, 3, 0, 0x0D, 1];
        let list = "xmax: 9, off: 3, infobits: [IS_MULTI, EXCL_LOCK, KEYSHR_LOCK], flags: 0x01";
        assert_eq!(text(18, heap::LOCK, &lock), list);
    }

    #[test]
    fn truncate_names_its_flags() {
        let mut truncate = vec![5, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0];
        truncate.extend([7, 0, 0, 0, 8, 0, 0, 0]);
        assert_eq!(
            text(15, heap::TRUNCATE, &truncate),
            "cascade restart_seqs nrelids 2 relids 7 8"
        );
        let list = "flags: [CASCADE, RESTART_SEQS], nrelids: 2, relids: [7, 8]";
        assert_eq!(text(17, heap::TRUNCATE, &truncate), list);
        assert!(describe(15, RmgrId::HEAP, heap::TRUNCATE, &truncate[..19], &[]).is_err());
    }

    #[test]
    fn inplace_says_what_is_to_be_forgotten() {
        let mut inplace = vec![3, 0, 0, 0, 5, 0, 0, 0, 7, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(
            text(18, heap::INPLACE, &inplace),
            "off: 3",
            "not even the file, without messages"
        );
        inplace[16] = 7;
        for id in [55_u8, 0xFF, 0xFE, 0xFC, 0xFB, 0xFA, 0x80] {
            inplace.extend([id, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
        }
        let told = "off: 3; relcache init file inval dbid 5 tsid 7; inval msgs: catcache 55 catalog 2 \
                    relcache 2 relmap db 1 snapshot 2 relsync 2 unrecognized id -128";
        assert_eq!(text(18, heap::INPLACE, &inplace), told);
        assert_eq!(text(17, heap::INPLACE, &inplace), "off: 3");
        assert_eq!(text(15, heap::INPLACE, &inplace), "off 3");
    }

    #[test]
    fn a_page_is_not_built_by_all() {
        let version = Version::from_major(18).expect("known");
        assert_eq!(identify(heap::UPDATE | INIT_PAGE, version), Some("UPDATE+INIT"));
        assert_eq!(identify(heap::DELETE | INIT_PAGE, version), None);
        assert_eq!(
            text(18, heap::CONFIRM | INIT_PAGE, &[3, 0]),
            "off: 3",
            "described all the same"
        );
    }

    proptest! {
        #[test]
        fn no_bytes_do_harm(
            main_data in proptest::collection::vec(any::<u8>(), 0..60),
            data in proptest::collection::vec(any::<u8>(), 0..60),
        ) {
            describe_as_all(RmgrId::HEAP, &main_data, &data);
        }
    }
}

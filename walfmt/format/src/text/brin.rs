//! BRIN.
//!
//! Rules: `src/backend/access/rmgrdesc/brindesc.c`.

use super::{Out, TextError};
use crate::record::Record;
use crate::rmgr::brin::{self, CreateIndex, Desummarize, INIT_PAGE, Insert, Update};
use crate::version::Version;

const INSERT_AND_INIT: u8 = brin::XLOG_BRIN_INSERT | INIT_PAGE;
const UPDATE_AND_INIT: u8 = brin::XLOG_BRIN_UPDATE | INIT_PAGE;

pub(super) fn identify(info: u8, _: &Version) -> Option<&'static str> {
    Some(match info {
        brin::XLOG_BRIN_CREATE_INDEX => "CREATE_INDEX",
        brin::XLOG_BRIN_INSERT => "INSERT",
        INSERT_AND_INIT => "INSERT+INIT",
        brin::XLOG_BRIN_UPDATE => "UPDATE",
        UPDATE_AND_INIT => "UPDATE+INIT",
        brin::XLOG_BRIN_SAMEPAGE_UPDATE => "SAMEPAGE_UPDATE",
        brin::XLOG_BRIN_REVMAP_EXTEND => "REVMAP_EXTEND",
        brin::XLOG_BRIN_DESUMMARIZE => "DESUMMARIZE",
        _ => return None,
    })
}

pub(super) fn describe(
    record: &Record<'_>,
    _: &Version,
    out: &mut Out<'_>,
) -> Result<(), TextError> {
    let main_data = record.main_data;
    match record.header.opcode() & brin::OPCODE_MASK {
        brin::XLOG_BRIN_CREATE_INDEX => {
            let create = CreateIndex::read(main_data)?;
            out.text("v").uint(create.version);
            out.text(" pagesPerRange ").uint(create.pages_per_range);
        }
        brin::XLOG_BRIN_INSERT => {
            let insert = Insert::read(main_data)?;
            range(&insert, out);
            out.text(" offnum ").uint(insert.item);
        }
        brin::XLOG_BRIN_UPDATE => {
            let update = Update::read(main_data)?;
            range(&update.insert, out);
            out.text(" old offnum ").uint(update.old_item);
            out.text(", new offnum ").uint(update.insert.item);
        }
        brin::XLOG_BRIN_SAMEPAGE_UPDATE => {
            out.text("offnum ").uint(brin::read_samepage_update(main_data)?);
        }
        brin::XLOG_BRIN_REVMAP_EXTEND => {
            out.text("targetBlk ").uint(brin::read_revmap_extend(main_data)?);
        }
        brin::XLOG_BRIN_DESUMMARIZE => {
            let gone = Desummarize::read(main_data)?;
            out.text("pagesPerRange ").uint(gone.pages_per_range);
            out.text(", heapBlk ").uint(gone.heap_block);
            out.text(", page offset ").uint(gone.item);
        }
        _ => {}
    }
    Ok(())
}

fn range(insert: &Insert, out: &mut Out<'_>) {
    out.text("heapBlk ").uint(insert.heap_block);
    out.text(" pagesPerRange ").uint(insert.pages_per_range);
}

#[cfg(test)]
mod tests {
    use crate::rmgr::RmgrId;
    use crate::text::testing;

    #[test]
    fn of_page_initialisation_only_the_kind_speaks() {
        for (info, kind) in [(0x10, "INSERT"), (0x90, "INSERT+INIT")] {
            let main_data = [5, 0, 0, 0, 1, 0, 0, 0, 3, 0];
            let text = testing::text(15, RmgrId::BRIN, info, &main_data, &[]);
            assert_eq!(text, format!("{kind} heapBlk 5 pagesPerRange 1 offnum 3"));
        }
        // There is no such kind, and the description does not mind.
        let text = testing::text(18, RmgrId::BRIN, 0xC0, &[9, 0, 0, 0], &[]);
        assert_eq!(text, "UNKNOWN (c0) targetBlk 9");
    }
}

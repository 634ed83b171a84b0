//! Records built by hand, for the tests here.

use proptest::prelude::*;
use smallvec::smallvec;

use super::{Out, TextError, Utc, write};
use crate::record::{BlockReference, Record};
use crate::relation::PageId;
use crate::rmgr::RmgrId;
use crate::version::{VERSIONS, Version};

fn record<'a>(rmgr: RmgrId, info: u8, main_data: &'a [u8], block_data: &'a [u8]) -> Record<'a> {
    let page = PageId::default();
    let block = BlockReference { id: 0, page, will_init: false, image: None, data: block_data };
    let mut record = Record { main_data, blocks: smallvec![block], ..Record::blank() };
    (record.header.rmgr, record.header.info) = (rmgr, info);
    record
}

/// What a major says of a record: its kind and its description. Block 0 has data and no image.
pub(super) fn text(
    major: u16,
    rmgr: RmgrId,
    info: u8,
    main_data: &[u8],
    block_data: &[u8],
) -> String {
    let version = Version::from_major(major).expect("known");
    let mut bytes = Vec::new();
    let _ = write(
        &record(rmgr, info, main_data, block_data),
        version,
        false,
        &mut Out::new(&mut bytes, &Utc),
    );
    let line = String::from_utf8(bytes).expect("text");
    let (_, from) = line.split_once(", desc: ").expect("a description");
    let (text, _) = from.rsplit_once(", blkref #0").expect("a block");
    text.to_owned()
}

/// A description alone, or why it ends.
pub(super) fn describe(
    major: u16,
    rmgr: RmgrId,
    info: u8,
    main_data: &[u8],
    block_data: &[u8],
) -> Result<String, TextError> {
    let version = Version::from_major(major).expect("known");
    let record = record(rmgr, info, main_data, block_data);
    let mut bytes = Vec::new();
    super::describe(&record, version, &mut Out::new(&mut bytes, &Utc))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Describes these bytes as records of every kind of every major: none may panic.
pub(super) fn describe_as_all(rmgr: RmgrId, main_data: &[u8], block_data: &[u8]) {
    for info in (0..=0xF0).step_by(0x10) {
        for version in VERSIONS {
            let _ = describe(version.major, rmgr, info, main_data, block_data);
        }
    }
}

/// The bytes of 16-bit numbers.
pub(super) fn words(words: &[u16]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

proptest! {
    #[test]
    fn no_bytes_make_an_index_record_panic(
        rmgr in prop::sample::select(vec![
            RmgrId::HASH, RmgrId::GIN, RmgrId::GIST, RmgrId::SPGIST, RmgrId::BRIN,
        ]),
        // Numbers in payloads are small more often than not.
        main_data in prop::collection::vec(prop_oneof![0_u8..3, any::<u8>()], 0..100),
        block_data in prop::collection::vec(prop_oneof![0_u8..5, any::<u8>()], 0..40),
    ) {
        describe_as_all(rmgr, &main_data, &block_data);
    }
}

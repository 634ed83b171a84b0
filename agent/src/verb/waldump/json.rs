//! A record as one JSON object.

use std::borrow::Cow;
use std::fmt::Display;

use serde::{Serialize, Serializer};
use walfmt::image::{BlockImage, Compression};
use walfmt::text::{self, Out, TextError, Zone};
use walfmt::{BlockReference, ForkNumber, Lsn, Record, Version};

/// In the order that it is printed in.
#[derive(Serialize)]
struct Line<'a> {
    rmgr: Text<walfmt::rmgr::RmgrId>,
    lsn: Text<Lsn>,
    end_lsn: Text<Lsn>,
    prev: Text<Lsn>,
    xid: u32,
    /// Without page images.
    length: u32,
    total_length: u32,
    /// None if the major knows no such kind.
    kind: Option<&'static str>,
    description: Cow<'a, str>,
    #[serde(serialize_with = "blocks")]
    blocks: &'a [BlockReference<'a>],
    origin: u16,
    toplevel_xid: u32,
}

#[derive(Serialize)]
struct Block {
    id: u8,
    spc: u32,
    db: u32,
    rel: u32,
    fork: &'static str,
    block: u32,
    image: Option<Image>,
}

#[derive(Serialize)]
struct Image {
    /// Replay puts it in place of the page, and does not only compare.
    apply: bool,
    length: usize,
    hole_offset: u16,
    hole_length: u16,
    compression: Option<&'static str>,
}

/// What is text in JSON.
struct Text<T>(T);

impl<T: Display> Serialize for Text<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

/// Appends the record's line. `description` is a buffer to work in.
///
/// # Errors
/// [`TextError`] if the payload is not what the kind needs; the line is whole, with what could be said.
pub(super) fn write(
    record: &Record<'_>,
    version: &Version,
    zone: &dyn Zone,
    description: &mut Vec<u8>,
    out: &mut Vec<u8>,
) -> Result<(), TextError> {
    description.clear();
    let described = text::describe(record, version, &mut Out::new(description, zone));
    let header = &record.header;
    let line = Line {
        rmgr: Text(header.rmgr),
        lsn: Text(record.start),
        end_lsn: Text(record.end),
        prev: Text(header.prev),
        xid: header.xid.0,
        length: header.total_length.saturating_sub(text::image_length(record)),
        total_length: header.total_length,
        kind: text::identify(header.rmgr, header.info, version),
        description: String::from_utf8_lossy(description),
        blocks: &record.blocks,
        origin: record.origin,
        toplevel_xid: record.toplevel_xid.0,
    };
    serde_json::to_writer(&mut *out, &line).expect("a buffer takes all, and keys are text");
    out.push(b'\n');
    described
}

fn blocks<S: Serializer>(blocks: &&[BlockReference<'_>], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(blocks.iter().map(|block| Block {
        id: block.id,
        spc: block.page.locator.tablespace,
        db: block.page.locator.database,
        rel: block.page.locator.relation,
        fork: match block.page.fork {
            ForkNumber::Main => "main",
            ForkNumber::FreeSpace => "fsm",
            ForkNumber::VisibilityMap => "vm",
            ForkNumber::Init => "init",
        },
        block: block.page.block,
        image: block.image.as_ref().map(image),
    }))
}

fn image(image: &BlockImage<'_>) -> Image {
    Image {
        apply: image.apply,
        length: image.bytes.len(),
        hole_offset: image.hole_offset,
        hole_length: image.hole_length,
        compression: match image.compression {
            Compression::None => None,
            Compression::Pglz => Some("pglz"),
            Compression::Lz4 => Some("lz4"),
            Compression::Zstd => Some("zstd"),
        },
    }
}

//! `corpus DIRECTORY SEGMENT...`: inputs for the fuzzer, out of the records of WAL segments.
//!
//! Of each kind of record of each major one is taken, the shortest: as the input of `record`, and without
//! its header as that of `payload`; and of each way to compress an image the shortest.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use walfmt::image::Compression;
use walfmt::version::VERSIONS;
use walfmt::{Lsn, Record, RecordStream, SegmentSize, Step, StreamStart, Version};

/// Longer inputs are left out: a fuzzer is slow with them, and finds the same.
const LENGTH_MAX: usize = 4096;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let directory = arguments.next().context("usage: corpus DIRECTORY SEGMENT...")?;
    let mut inputs: BTreeMap<(&str, String), Vec<u8>> = BTreeMap::new();
    let mut stream: Option<RecordStream> = None;
    for path in arguments {
        let bytes = fs::read(&path)?;
        let magic = walfmt::bytes::u16_at(&bytes, 0);
        let version = Version::from_page_magic(magic).with_context(|| format!("{path}: no WAL"))?;
        let lsn = Lsn(walfmt::bytes::u64_at(&bytes, 8));
        // Segments of another server, or not the next one, begin a stream of their own.
        let goes_on = stream
            .as_ref()
            .is_some_and(|open| open.pushed_end() == lsn && open.version() == Some(version));
        if !goes_on {
            let segment_size = SegmentSize::new(u32::try_from(bytes.len())?).context("its size")?;
            let start = StreamStart { lsn, segment_size, system_identifier: None };
            stream = Some(RecordStream::new(start));
        }
        let stream = stream.as_mut().context("just made")?;
        stream.push(&bytes);
        while let Step::Record(raw) = stream.poll() {
            let record = Record::decode(&raw, version)?;
            add(&record, raw.bytes, version, &mut inputs);
        }
    }
    let mut total = 0;
    for ((target, name), input) in &inputs {
        let target = Path::new(&directory).join(target);
        fs::create_dir_all(&target)?;
        fs::write(target.join(name), input)?;
        total += input.len();
    }
    println!("{} inputs, {total} bytes", inputs.len());
    Ok(())
}

fn add(
    record: &Record<'_>,
    bytes: &[u8],
    version: &Version,
    inputs: &mut BTreeMap<(&'static str, String), Vec<u8>>,
) {
    let mut keep = |target, name: String, input: Vec<u8>| {
        if input.len() <= LENGTH_MAX {
            let known = inputs.entry((target, name)).or_insert_with(|| input.clone());
            if input.len() < known.len() {
                *known = input;
            }
        }
    };
    let Some(row) = VERSIONS.iter().position(|row| row == version) else { return };
    let (rmgr, info) = (record.header.rmgr, record.header.info);
    let name = format!("{}-{rmgr}-{:02x}", version.major, info & 0xF0);
    let head = [row as u8, rmgr.0, info];
    keep("record", name.clone(), [&[head[0], head[1], head[2]][..], &bytes[24..]].concat());
    let blocks: Vec<_> = record.blocks.iter().take(4).collect();
    let mut payload = head.to_vec();
    payload.push(blocks.len() as u8);
    for block in blocks {
        let data = &block.data[..block.data.len().min(255)];
        payload.push(data.len() as u8);
        payload.extend_from_slice(data);
    }
    payload.extend_from_slice(record.main_data);
    keep("payload", name, payload);
    for image in record.blocks.iter().filter_map(|block| block.image.as_ref()) {
        let number = match image.compression {
            Compression::None => 0,
            Compression::Pglz => 1,
            Compression::Lz4 => 2,
            Compression::Zstd => 3,
        };
        let [a, b] = image.hole_offset.to_le_bytes();
        let [c, d] = image.hole_length.to_le_bytes();
        let input = [&[number, a, b, c, d][..], image.bytes].concat();
        keep("image", format!("{:?}", image.compression).to_lowercase(), input);
    }
}

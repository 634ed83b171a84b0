//! The store is what a real standby is, byte for byte. `integration/matrix.sh` does the same under
//! every combination of settings, and more of it.

use anyhow::Result;
use integration::trial::{Trial, known_pieces};
use integration::workload::{Piece, Workload};
use integration::{Scratch, Seed};

/// What the store may hold in memory: less than the workload changes.
const CACHE: &str = "64MB";

#[test]
fn a_store_is_byte_for_byte_a_standby() -> Result<()> {
    judge(&Trial { data_checksums: true, ..trial(known_pieces(), 16, "lz4", 2) }, 100_000)
}

#[test]
fn a_store_without_checksums_is_byte_for_byte_a_standby() -> Result<()> {
    let pieces = known_pieces().into_iter().filter(|piece| *piece != Piece::Wide).collect();
    judge(&trial(pieces, 1, "off", 1), 5_000)
}

fn judge(trial: &Trial, pages: u64) -> Result<()> {
    println!("{trial}");
    let verdict = trial.run(&Scratch::new()?, Seed::take("flipped bits", 3))?;
    println!("{verdict}");
    verdict.ensure_identical(pages)
}

fn trial(pieces: Vec<Piece>, segment_megabytes: u32, compression: &str, scale: u32) -> Trial {
    let store = [("cache_bytes", CACHE), ("restart_point_interval", "2s")];
    Trial {
        data_checksums: false,
        wal_segment_megabytes: segment_megabytes,
        wal_compression: compression.to_owned(),
        commit_timestamps: true,
        workload: Workload { pieces, scale },
        store: store.map(|(key, value)| (key.to_owned(), value.to_owned())).to_vec(),
    }
}

//! The store is what a real standby is, byte for byte. `integration/matrix.sh` does the same under
//! every combination of settings, and more of it.

use anyhow::Result;
use integration::trial::Trial;
use integration::workload::{Piece, Workload};
use integration::{Scratch, Seed};

/// What the store may hold in memory: less than the workload changes.
const CACHE: &str = "64MB";

/// Many pages: what else there is to do is the other test's.
#[test]
fn a_large_store_is_byte_for_byte_a_standby() -> Result<()> {
    let pieces = vec![Piece::Heap, Piece::Wide, Piece::Twophase];
    let trial = Trial {
        data_checksums: true,
        wal_segment_megabytes: 16,
        wal_compression: "lz4".to_owned(),
        commit_timestamps: false,
        workload: Workload { pieces, scale: 2 },
        store: store(),
    };
    judge(&trial, 100_000)
}

/// Everything but large heaps, and without checksums.
#[test]
fn a_store_is_byte_for_byte_a_standby() -> Result<()> {
    let mut workload = Workload::whole(1);
    workload.pieces.retain(|piece| *piece != Piece::Wide);
    let trial = Trial {
        data_checksums: false,
        wal_segment_megabytes: 1,
        wal_compression: "off".to_owned(),
        commit_timestamps: true,
        workload,
        store: store(),
    };
    judge(&trial, 5_000)
}

fn judge(trial: &Trial, pages: u64) -> Result<()> {
    println!("{trial}");
    let verdict = trial.run(&Scratch::new()?, Seed::take("flipped bits", 3))?;
    println!("{verdict}");
    verdict.ensure_identical(pages)
}

fn store() -> Vec<(String, String)> {
    [("cache_bytes", CACHE), ("restart_point_interval", "2s")]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .to_vec()
}

//! `integration/matrix.sh`: store and standby under every setting that changes what the WAL holds.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use clap::Parser;
use integration::trial::Trial;
use integration::workload::{Piece, Workload};
use integration::{Scratch, Seed};

/// Compares a store with a real standby, byte for byte, for each combination of settings.
#[derive(Debug, Parser)]
struct Arguments {
    /// Checksums on data pages.
    #[arg(long, value_delimiter = ',', default_value = "true,false")]
    checksums: Vec<String>,
    /// Sizes of WAL segments in megabytes.
    #[arg(long, value_delimiter = ',', default_value = "1,64")]
    segments: Vec<u32>,
    /// Settings of wal_compression.
    #[arg(long, value_delimiter = ',', default_value = "off,pglz,lz4,zstd")]
    compression: Vec<String>,
    /// Settings of track_commit_timestamp.
    #[arg(long, value_delimiter = ',', default_value = "true,false")]
    commit_timestamps: Vec<String>,
    /// What the leader does; all if not given.
    #[arg(long, value_enum, value_delimiter = ',')]
    pieces: Vec<Piece>,
    /// How much of it.
    #[arg(long, default_value_t = 2)]
    scale: u32,
    /// Memory for the store's pages.
    #[arg(long, default_value = "32MB")]
    cache: String,
    /// Shows all that was compared.
    #[arg(long)]
    verbose: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut workload = Workload::whole(arguments.scale);
    if !arguments.pieces.is_empty() {
        workload.pieces.clone_from(&arguments.pieces);
    }
    let seed = Seed::take("matrix", 3);
    let (mut cells, mut failed) = (0, 0);
    for trial in trials(&arguments, &workload) {
        cells += 1;
        let begun = Instant::now();
        let line = match run(&trial, seed, arguments.verbose) {
            Ok(line) => line,
            Err(error) => {
                failed += 1;
                format!("FAILED: {error:#}").trim_end().to_owned()
            }
        };
        println!("{trial}: {line}, {:.0} s", begun.elapsed().as_secs_f64());
    }
    println!("{} of {cells} cells identical", cells - failed);
    ExitCode::from(u8::from(failed > 0))
}

fn trials(arguments: &Arguments, workload: &Workload) -> Vec<Trial> {
    let mut trials = Vec::new();
    for checksums in &arguments.checksums {
        for segment in &arguments.segments {
            for compression in &arguments.compression {
                for commit_timestamps in &arguments.commit_timestamps {
                    trials.push(Trial {
                        data_checksums: checksums == "true",
                        wal_segment_megabytes: *segment,
                        wal_compression: compression.clone(),
                        commit_timestamps: commit_timestamps == "true",
                        workload: workload.clone(),
                        store: vec![
                            ("cache_bytes".to_owned(), arguments.cache.clone()),
                            ("restart_point_interval".to_owned(), "2s".to_owned()),
                        ],
                    });
                }
            }
        }
    }
    trials
}

fn run(trial: &Trial, seed: Seed, verbose: bool) -> Result<String> {
    let scratch = Scratch::new()?;
    let verdict = trial.run(&scratch, seed)?;
    if verbose {
        println!("{verdict}");
    }
    verdict.ensure_identical(1)?;
    Ok(format!(
        "identical, {} pages, {} changed, {} MB of WAL, {} kinds of records",
        verdict.comparison.pages_compared(),
        verdict.comparison.changed_pages,
        verdict.wal_bytes >> 20,
        verdict.records.len()
    ))
}

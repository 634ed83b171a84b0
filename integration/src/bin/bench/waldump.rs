//! WAL as text: the whole process, beside the server's own `pg_waldump`.
//!
//! `integration/bench.sh waldump` prints, for each workload, on the same segments and in one run:
//!
//! ```text
//! text     every record, to /dev/null
//! stats    --stats=record, to /dev/null
//! ```
//!
//! Both sides take turns and find the segments in the page cache. First it is seen that both print the
//! same.

use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use integration::agent::binary_in;
use integration::{Cluster, ClusterOptions, Scratch, Segments, StopMode};
use walfmt::{Lsn, SegmentName, SegmentSize, Timeline};

use crate::{MEGABYTE, ReplayArguments, WORKLOADS, settle_disk};

#[derive(Debug, clap::Args)]
pub(crate) struct WaldumpArguments {
    /// How often each side does each thing.
    #[arg(long, default_value_t = 7)]
    runs: usize,
    /// How long the workload is, and how large its tables: as for `replay`.
    #[arg(long, default_value_t = 10)]
    scale: u32,
    /// Only this workload.
    #[arg(long)]
    workload: Option<String>,
}

impl WaldumpArguments {
    const fn replay(&self) -> ReplayArguments {
        ReplayArguments {
            runs: self.runs,
            cache_megabytes: 1024,
            workers: 2,
            scale: self.scale,
            workload: None,
            keep: None,
            alone: false,
        }
    }
}

pub(crate) fn waldump(arguments: &WaldumpArguments) -> Result<()> {
    let wanted = |name: &str| arguments.workload.as_ref().is_none_or(|only| only == name);
    let workloads: Vec<_> =
        WORKLOADS.iter().filter(|workload| workload.is_compared && wanted(workload.name)).collect();
    ensure!(!workloads.is_empty(), "no such workload");
    for workload in workloads {
        let scratch = Scratch::new()?;
        let options = ClusterOptions {
            fsync: false,
            settings: ["wal_keep_size = 100GB", "max_wal_size = 8GB", "shared_buffers = 1GB"]
                .map(str::to_owned)
                .to_vec(),
            ..ClusterOptions::default()
        };
        let mut server = Cluster::start_new(&scratch, "server", &options)?;
        (workload.prepare)(&server, &arguments.replay())?;
        (workload.run)(&scratch, &server, &arguments.replay())?;
        server.sql("select pg_switch_wal()")?;
        let end: Lsn = server.sql("select pg_current_wal_insert_lsn()")?.parse()?;
        server.stop(StopMode::Fast)?;
        settle_disk(server.data_directory())?;

        let size = SegmentSize::DEFAULT;
        // Whole segments: at the end of all WAL pg_waldump fails.
        let end = size.start_of(size.segment_of(end));
        let directory = server.wal_directory();
        let segments = Segments::find(&directory, Timeline(1), size)?;
        let name = |lsn| SegmentName::new(Timeline(1), size.segment_before(lsn), size).to_string();
        let range = [name(segments.start().advance(1)), name(end)];
        println!(
            "{}: {:.0} MB of WAL",
            workload.name,
            end.bytes_since(segments.start()) as f64 / MEGABYTE
        );
        let account = scratch.account();
        let command = |is_ours: bool, options: &[&str]| -> Result<Command> {
            let mut command = if is_ours {
                let mut command = account.command(binary_in(&scratch)?);
                command.arg("waldump");
                command
            } else {
                account.command(server.endpoint().binaries.program("pg_waldump"))
            };
            command.args(options).arg("-p").arg(&directory).args(&range).stdin(Stdio::null());
            Ok(command)
        };
        for (what, options) in [("text", &[][..]), ("stats", &["--stats=record"][..])] {
            let theirs = command(false, options)?.output()?;
            let ours = command(true, options)?.output()?;
            ensure!(theirs.status.success() && ours.status.success(), "{what} fails");
            ensure!(theirs.stdout == ours.stdout, "{what} is not the same");
            let mut seconds = [Vec::new(), Vec::new()];
            for run in 1..=arguments.runs {
                for (is_ours, seconds) in [false, true].into_iter().zip(&mut seconds) {
                    let mut command = command(is_ours, options)?;
                    let begin = Instant::now();
                    let status = command.stdout(Stdio::null()).status().context("cannot start")?;
                    ensure!(status.success(), "{what} fails");
                    seconds.push(begin.elapsed().as_secs_f64());
                }
                let [theirs, ours] = [&seconds[0], &seconds[1]].map(|all| all[run - 1]);
                println!("  {run} {what:<5} pg_waldump {theirs:.3} s, walferry {ours:.3} s");
            }
            let [theirs, ours] = seconds.map(median);
            println!("RATIO waldump-{what} {} {:.2}", workload.name, theirs / ours);
        }
    }
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

//! `walferry verify --store`: whether the store on disk is what was written to it.
//!
//! It looks at a store at rest: the agent must be stopped. While one runs, the files are behind what
//! it has in memory, and pages are half written at any moment; nothing here would be proved that
//! its own checks at reading do not prove. What verify adds are the pages that nobody reads.

use std::num::NonZero;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use walferry_store::{Damage, Findings, Inspection, Listing, NotConsistent, OpenError};

use crate::config::Config;
use crate::trouble::{Kind, Trouble};

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The store. The agent must be stopped, and cannot take it meanwhile.
    #[arg(long, required = true)]
    store: bool,
    /// Look even at a store that is not consistent, and list what is not as it should be: replay
    /// may repair it. The exit status is 3 at best.
    #[arg(long)]
    anyway: bool,
    /// How many threads read and check; one for each core, if not given.
    #[arg(long)]
    threads: Option<NonZero<usize>>,
    /// One JSON object instead of text.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(config: &Path, arguments: Arguments) -> Result<(), Trouble> {
    let config = Config::load(config)?;
    let directory = &config.store()?.data_directory;
    let inspection = Inspection::begin(directory).map_err(|error| cannot_look(directory, error))?;
    let not_consistent = inspection.consistency().err();
    if let Some(reason) = &not_consistent
        && !arguments.anyway
    {
        return Err(not_yet(reason));
    }
    let (checksums, newest) = (inspection.has_checksums(), inspection.newest().to_string());
    let threads = arguments
        .threads
        .or_else(|| thread::available_parallelism().ok())
        .unwrap_or(NonZero::<usize>::MIN);
    let begun = Instant::now();
    let findings =
        with_progress(inspection, threads).map_err(|error| cannot_look(directory, error))?;
    let report = Report {
        store: directory.display().to_string(),
        consistent: not_consistent.is_none(),
        min_recovery_point: newest,
        checksums,
        seconds: begun.elapsed().as_secs_f64(),
        not_checked: not_checked(&findings, checksums),
        findings: &findings,
    };
    if arguments.json {
        let text = serde_json::to_string_pretty(&report.to_json())
            .map_err(|error| Trouble::io("writing JSON", error))?;
        println!("{text}");
    } else {
        report.print();
    }
    verdict(&findings, not_consistent.as_ref())
}

/// Everything that is wrong is on standard output already.
fn verdict(findings: &Findings, not_consistent: Option<&NotConsistent>) -> Result<(), Trouble> {
    let damages = &findings.damages;
    match not_consistent {
        Some(reason) if damages.beyond_repair() == 0 => Err(not_yet(reason)),
        None if damages.count() == 0 => Ok(()),
        _ => {
            let words = format_args!("damaged pages and files: {}", damages.count());
            Err(Trouble::new(Kind::Corrupt, words).with_hint(
                "check the disk and its kernel log, then bootstrap the store again from a new \
                 base backup; the archive is not concerned",
            ))
        }
    }
}

fn not_yet(reason: &NotConsistent) -> Trouble {
    Trouble::new(
        Kind::NotThere,
        format_args!("the store is not consistent until replayed to the archive's end: {reason}"),
    )
    .with_hint(
        "pages may be torn or of different times without a fault until then. Start the agent, let \
         it catch up (`walferry wait`), stop it, and verify again; --anyway looks nevertheless",
    )
}

fn cannot_look(directory: &Path, error: OpenError) -> Trouble {
    match &error {
        OpenError::Lock(_) => Trouble::new(Kind::NotThere, &error).with_hint(
            "verify looks at a store at rest: stop the agent first (it stops within seconds, and \
             the archive of its leader keeps what comes meanwhile)",
        ),
        OpenError::File(file) if file.is_not_found() => {
            Trouble::misuse(format_args!("{} is not a store: {error}", directory.display()))
                .with_hint("make the store with `walferry bootstrap`")
        }
        _ => error.into(),
    }
}

/// Runs the inspection with a progress bar on standard error, if that is a terminal.
fn with_progress(inspection: Inspection, threads: NonZero<usize>) -> Result<Findings, OpenError> {
    const STYLE: &str = "{bytes}/{total_bytes} checked {wide_bar} {bytes_per_sec}, {eta} to go";
    let bar = ProgressBar::new(inspection.bytes());
    bar.set_style(ProgressStyle::with_template(STYLE).expect("a valid template"));
    let progress = AtomicU64::new(0);
    let (done, is_done) = mpsc::channel::<()>();
    thread::scope(|scope| {
        scope.spawn(|| {
            let is_done = is_done;
            let tick = Duration::from_millis(100);
            while is_done.recv_timeout(tick) == Err(mpsc::RecvTimeoutError::Timeout) {
                bar.set_position(progress.load(Ordering::Relaxed));
            }
            bar.finish_and_clear();
        });
        let findings = inspection.run(threads, &progress);
        drop(done);
        findings
    })
}

fn not_checked(findings: &Findings, checksums: bool) -> Vec<String> {
    let mut list = vec![
        "pg_wal: the WAL is in the archive".to_owned(),
        "the contents of pg_xact, pg_multixact and pg_commit_ts: they have no checksums".to_owned(),
    ];
    if !checksums {
        list.push("what pages contain: the cluster has no data checksums".to_owned());
    }
    list.extend(findings.not_checked.iter().map(|file| format!("{file}: not a file of the store")));
    list
}

struct Report<'a> {
    store: String,
    consistent: bool,
    min_recovery_point: String,
    checksums: bool,
    seconds: f64,
    not_checked: Vec<String>,
    findings: &'a Findings,
}

impl Report<'_> {
    /// Blocks are counted from the begin of the fork.
    fn to_json(&self) -> serde_json::Value {
        let of = |listing: &Listing| {
            let json = |Damage { file, block, kind }: &Damage| serde_json::json!({ "file": file, "block": block, "what": kind.to_string() });
            listing.listed().iter().map(json).collect::<Vec<_>>()
        };
        let findings = self.findings;
        serde_json::json!({
            "store": self.store,
            "sound": self.consistent && findings.damages.count() == 0,
            "consistent": self.consistent,
            "min_recovery_point": self.min_recovery_point,
            "checksums": self.checksums,
            "files": findings.files,
            "pages": findings.pages,
            "empty_pages": findings.empty_pages,
            "slru_pages": findings.slru_pages,
            "relation_maps": findings.relation_maps,
            "prepared_transactions": findings.prepared_transactions,
            "seconds": self.seconds,
            "pages_per_second": self.per_second(findings.pages),
            "bytes_per_second": self.per_second(self.bytes()),
            "damages": findings.damages.count(),
            "damages_listed": of(&findings.damages),
            "damaged_map_pages": findings.damaged_maps.count(),
            "damaged_map_pages_listed": of(&findings.damaged_maps),
            "not_checked": self.not_checked,
        })
    }

    fn print(&self) {
        let findings = self.findings;
        println!("store      {}, minimum recovery point {}", self.store, self.min_recovery_point);
        println!(
            "pages      {} in {} files, {} of them empty; data checksums {}",
            findings.pages,
            findings.files,
            findings.empty_pages,
            if self.checksums { "on" } else { "off" }
        );
        println!(
            "also       {} pages of transaction logs, {} relation maps, {} prepared transactions",
            findings.slru_pages, findings.relation_maps, findings.prepared_transactions
        );
        println!(
            "speed      {:.0} pages/s, {:.0} MB/s, {:.1} s",
            self.per_second(findings.pages),
            self.per_second(self.bytes()) / 1e6,
            self.seconds
        );
        for what in &self.not_checked {
            println!("unchecked  {what}");
        }
        for (label, listing) in [("map", &findings.damaged_maps), ("DAMAGED", &findings.damages)] {
            for damage in listing.listed() {
                println!("{label:<10} {damage}");
            }
            let more = listing.count() - listing.listed().len() as u64;
            if more > 0 {
                println!("{label:<10} and {more} more");
            }
        }
        if findings.damaged_maps.count() > 0 {
            println!("           damaged pages of free space and visibility maps count as zeros");
        }
        if self.consistent && findings.damages.count() == 0 {
            println!("the store is sound");
        }
    }

    const fn bytes(&self) -> u64 {
        self.findings.pages * walfmt::BLOCK_SIZE as u64
    }

    fn per_second(&self, count: u64) -> f64 {
        count as f64 / self.seconds.max(1e-9)
    }
}

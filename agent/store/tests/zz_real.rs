//! scratch
#![allow(clippy::unwrap_used, missing_docs)]
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use walferry_store::*;
use walfmt::stream::*;
use walfmt::*;

fn each(wal: &Path, from: Lsn, size: SegmentSize, mut f: impl FnMut(&RawRecord<'_>) -> bool) {
    let mut seg = size.segment_of(from);
    let mut stream = RecordStream::new(StreamStart { lsn: size.start_of(seg), segment_size: size, system_identifier: None });
    loop {
        match stream.poll() {
            Step::Record(raw) => { if raw.start >= from && !f(&raw) { return; } }
            Step::NeedMore => {
                let name = SegmentName::new(Timeline(1), seg, size).to_string();
                let Ok(bytes) = std::fs::read(wal.join(name)) else { return };
                stream.push(&bytes);
                seg = seg.next();
            }
            Step::Stop(stop) => { println!("{stop:?}"); return }
        }
    }
}

#[test]
#[ignore]
fn real() {
    let dir = PathBuf::from(std::env::var("STORE").unwrap());
    let wal = PathBuf::from(std::env::var("WAL").unwrap());
    let workers: usize = std::env::var("WORKERS").unwrap_or("2".into()).parse().unwrap();
    let cache: u64 = std::env::var("CACHE_MB").unwrap_or("64".into()).parse().unwrap();
    let crash: usize = std::env::var("CRASH").unwrap_or("0".into()).parse().unwrap();
    let size = SegmentSize::DEFAULT;
    if let Ok(text) = std::fs::read_to_string(dir.join("backup_label")) {
        let label = backup_label::BackupLabel::parse(&text).unwrap();
        let mut found = None;
        each(&wal, label.redo, size, |raw| {
            if raw.start == label.check_point {
                let version = Version::from_major(15).unwrap();
                let record = Record::decode(raw, version).unwrap();
                found = Some(rmgr::xlog::CheckPoint::from_bytes(record.main_data[..88].try_into().unwrap()));
            }
            found.is_none()
        });
        Store::prepare(&dir, &found.unwrap(), label.check_point, &label).unwrap();
    }
    let mut end = Lsn(0);
    if crash > 0 { each(&wal, Store::open(&config(&dir, workers, cache)).unwrap().replay_from(), size, |raw| { end = raw.end; true }); }
    for round in (0..=crash).rev() {
        let mut store = Store::open(&config(&dir, workers, cache)).unwrap();
        if !store.pages_are_bounded() { store.set_consistent_after(end).unwrap(); }
        let refused = std::process::Command::new("runuser").args(["-u", "postgres", "--", "/usr/lib/postgresql/15/bin/pg_ctl", "-D"]).arg(&dir).args(["-w", "-t", "5", "-o", "-p 5999", "start"]).output().unwrap();
        println!("pg_ctl: {} {}", refused.status, String::from_utf8_lossy(&refused.stdout));
        assert!(!refused.status.success());
        let t = Instant::now();
        let (mut n, mut bytes) = (0u64, 0u64);
        each(&wal, store.replay_from(), size, |raw| {
            if let Err(e) = store.replay(raw) { panic!("{e} after {n}") }
            n += 1; bytes += raw.bytes.len() as u64;
            !(round > 0 && n == 200_000 * (crash - round + 1) as u64)
        });
        if round > 0 { println!("crash after {n} records, applied {}", store.applied()); continue }
        store.wait_applied().unwrap();
        let s = t.elapsed().as_secs_f64();
        println!("{n} records, {} MB in {s:.2} s, {:.0} MB/s, {:.0} records/s, applied {}", bytes >> 20, bytes as f64 / 1e6 / s, n as f64 / s, store.applied());
        println!("{:?}", store.consistency());
        let t = Instant::now();
        println!("{:?} in {:?}", store.finish_for_promotion().unwrap(), t.elapsed());
    }
}

fn config(dir: &Path, workers: usize, cache: u64) -> StoreConfig {
    StoreConfig { data_directory: dir.to_owned(), workers, cache_bytes: cache << 20, restart_point_interval: Duration::from_secs(1) }
}

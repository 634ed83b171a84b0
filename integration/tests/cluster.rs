//! The helpers themselves: a server starts, crashes, recovers, is backed up, and leaves nothing.

use std::fs;
use std::path::PathBuf;

use anyhow::Result;
use integration::process::{children_of, is_alive, processes_in, wait_until};
use integration::{BackupWal, Binaries, Cluster, ClusterOptions, PATIENCE, Scratch, StopMode};

#[test]
fn a_cluster_lives_crashes_and_leaves_nothing() -> Result<()> {
    let scratch = Scratch::new()?;
    let options = ClusterOptions {
        wal_segment_megabytes: 1,
        keep_segments: true,
        settings: vec!["checkpoint_timeout = 1h".to_owned()],
        ..ClusterOptions::default()
    };
    let mut leader = Cluster::start_new(&scratch, "leader", &options)?;
    assert_eq!(leader.sql("show wal_segment_size")?, "1MB");
    assert_eq!(leader.sql("show data_checksums")?, "on");
    assert_eq!(leader.sql("show checkpoint_timeout")?, "1h");
    assert_eq!(leader.control_data()?["Bytes per WAL segment"], "1048576");
    assert!(leader.sql("select 1/0").is_err(), "a failing statement is a failure");

    leader.pgbench_init(1, &[])?;
    let mut load = leader.pgbench(&["-c", "2", "-T", "600"])?;
    let rows = || Ok(leader.sql("select count(*) from pgbench_history")? != "0");
    wait_until("the load writes", PATIENCE, rows)?;
    assert!(load.is_running()?);
    leader.crash_and_recover()?;
    load.stop()?;
    let log = fs::read_to_string(leader.log_path())?;
    assert!(log.contains("automatic recovery in progress"), "{log}");

    let kept = leader.kept_segments().expect("asked for").to_owned();
    leader.sql("select pg_switch_wal()")?;
    let segments = || -> Result<Vec<PathBuf>> {
        let paths = fs::read_dir(&kept)?.map(|entry| Ok(entry?.path()));
        let mut paths: Vec<PathBuf> = paths.collect::<Result<_>>()?;
        paths.retain(|path| path.extension().is_none());
        paths.sort();
        Ok(paths)
    };
    wait_until("a segment is kept", PATIENCE, || Ok(!segments()?.is_empty()))?;
    let first = &segments()?[0];
    assert_eq!(fs::metadata(first)?.len(), 1 << 20);
    let name = first.file_name().and_then(|name| name.to_str()).expect("a segment's name");
    assert!(leader.waldump(&kept, &["-n", "5", name])?.contains("rmgr: "));

    let copy = scratch.path().join("copy");
    leader.base_backup(&copy, BackupWal::Stream)?;
    let mut second = Cluster::at(&scratch, "copy", &copy, Binaries::find()?)?;
    second.start()?;
    let count = "select count(*) from pgbench_accounts";
    assert_eq!(second.sql(count)?, leader.sql(count)?);
    assert!(Cluster::adopt(&scratch, "adopted", &copy, second.log_path())?.is_running());
    assert!(!second.is_running(), "whoever adopts a server stops it");

    let without_wal = scratch.path().join("without-wal");
    leader.base_backup(&without_wal, BackupWal::None)?;
    assert_eq!(fs::read_dir(without_wal.join("pg_wal"))?.count(), 1, "archive_status only");

    leader.stop(StopMode::Fast)?;
    assert_eq!(leader.control_data()?["Database cluster state"], "shut down");
    leader.start()?;
    let postmaster = leader.pid().expect("it runs");
    assert!(!children_of(postmaster).is_empty());
    let path = scratch.path().to_owned();
    assert!(processes_in(&path).contains(&postmaster));
    drop((leader, second, scratch));
    assert!(!is_alive(postmaster));
    assert_eq!(processes_in(&path), Vec::<u32>::new());
    assert!(!path.exists());
    Ok(())
}

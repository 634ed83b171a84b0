//! Every metric, declared once.
//!
//! Positions are LSNs as bytes since the cluster's creation (exact up to 9 PB), so that a
//! difference of two is a distance in bytes.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus::{
    Encoder, GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry, TextEncoder,
};

use crate::node::Node;
use crate::positions::Position;
use crate::stage::send;
use crate::trouble::Kind;

/// The node's metrics. Call sites read as sentences: `metrics.observe_flush(duration)`.
pub(crate) struct Metrics {
    registry: Registry,
    /// Held by a scrape: what is put together anew for each would be missed by another.
    scraped: Mutex<()>,
    positions: IntGaugeVec,
    follower_positions: IntGaugeVec,
    lag_bytes: IntGaugeVec,
    lag_seconds: GaugeVec,
    stage_states: IntGaugeVec,
    flush_seconds: Histogram,
    wal_bytes: IntCounter,
    archive_bytes: IntCounter,
    replayed_records: IntCounter,
    verified_images: IntCounter,
    held_toast_pages: IntCounter,
    early_toast_pages: IntCounter,
    reconnects: IntCounter,
    follower_lag_bytes: IntGaugeVec,
    follower_lag_seconds: GaugeVec,
    follower_connected: IntGaugeVec,
    sent_bytes: IntCounterVec,
    errors: IntCounterVec,
    restart_points: IntCounter,
    archive_size: IntGauge,
    disk_size: IntGaugeVec,
    disk_free: IntGaugeVec,
    min_free: IntGauge,
    removed_segments: IntCounter,
}

impl Metrics {
    pub(crate) fn new(node: &str) -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let gauges = |name: &str, help: &str, labels: &[&str]| {
            let gauges = IntGaugeVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(gauges.clone()))?;
            Ok::<_, prometheus::Error>(gauges)
        };
        let counter = |name: &str, help: &str| {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok::<_, prometheus::Error>(counter)
        };
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok::<_, prometheus::Error>(gauge)
        };
        let float_gauges = |name: &str, help: &str, labels: &[&str]| {
            let gauges = GaugeVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(gauges.clone()))?;
            Ok::<_, prometheus::Error>(gauges)
        };
        let counters = |name: &str, help: &str, labels: &[&str]| {
            let counters = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(counters.clone()))?;
            Ok::<_, prometheus::Error>(counters)
        };
        let flush_seconds = Histogram::with_opts(
            HistogramOpts::new(
                "walferry_flush_seconds",
                "Time that fdatasync took: of pg_wal on a leader, of the archive on a follower.",
            )
            .buckets(prometheus::exponential_buckets(0.000_05, 2.0, 16)?),
        )?;
        registry.register(Box::new(flush_seconds.clone()))?;
        let build_info = gauges(
            "walferry_build_info",
            "Always 1; the labels say what is running.",
            &["version", "node"],
        )?;
        build_info.with_label_values(&[env!("CARGO_PKG_VERSION"), node]).set(1);
        registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        Ok(Self {
            positions: gauges(
                "walferry_position_bytes",
                "WAL position of this node, as bytes.",
                &["position"],
            )?,
            follower_positions: gauges(
                "walferry_follower_position_bytes",
                "WAL position that a follower of this node has reported, as bytes; shipped is \
                 what was sent to it.",
                &["follower", "position"],
            )?,
            lag_bytes: gauges(
                "walferry_lag_bytes",
                "WAL that the source is known to have and this node has not yet replayed (or made \
                 durable, on a node without a store).",
                &["to"],
            )?,
            lag_seconds: float_gauges(
                "walferry_lag_seconds",
                "Age, by the leader's clock, of the oldest WAL not yet replayed here (or made \
                 durable, on a node without a store); 0 when caught up.",
                &["to"],
            )?,
            stage_states: gauges(
                "walferry_state",
                "1 for the state a stage is in.",
                &["stage", "state"],
            )?,
            flush_seconds,
            wal_bytes: counter("walferry_wal_bytes_total", "WAL archived, uncompressed.")?,
            archive_bytes: counter("walferry_archive_bytes_total", "WAL archived, compressed.")?,
            replayed_records: counter("walferry_replayed_records_total", "WAL records replayed.")?,
            verified_images: counter(
                "walferry_verified_images_total",
                "Replayed pages found equal to the leader's images of them.",
            )?,
            held_toast_pages: counter(
                "walferry_held_toast_pages_total",
                "Pages of TOAST relations that were not written when their turn came, because the row \
                 spool was not durable up to their LSN.",
            )?,
            early_toast_pages: counter(
                "walferry_early_toast_pages_total",
                "Pages of TOAST relations that were written before the row spool was durable up to \
                 their LSN, for lack of memory: a crash then may cost a value that an update left alone.",
            )?,
            archive_size: gauge(
                "walferry_archive_size_bytes",
                "What the archive's files take on disk, of the timeline that is written.",
            )?,
            disk_size: gauges(
                "walferry_disk_size_bytes",
                "Size of the file system that archive or store is on.",
                &["disk"],
            )?,
            disk_free: gauges(
                "walferry_disk_free_bytes",
                "What is free for this user on the file system that archive or store is on.",
                &["disk"],
            )?,
            min_free: gauge(
                "walferry_archive_min_free_bytes",
                "What is to stay free on the archive's file system: below it WAL is removed, whoever \
                 needs it.",
            )?,
            follower_lag_bytes: gauges(
                "walferry_follower_lag_bytes",
                "WAL that this node has and a follower has not yet replayed (or made durable, if it \
                 has no store).",
                &["follower", "to"],
            )?,
            follower_lag_seconds: float_gauges(
                "walferry_follower_lag_seconds",
                "For how long this node has had the oldest WAL that a follower has not yet replayed \
                 (or made durable, if it has no store); 0 when it has all.",
                &["follower", "to"],
            )?,
            follower_connected: gauges(
                "walferry_follower_connected",
                "1 while a follower that this node knows is connected, else 0.",
                &["follower"],
            )?,
            sent_bytes: counters(
                "walferry_sent_bytes_total",
                "WAL sent to a follower, compressed.",
                &["follower"],
            )?,
            errors: counters(
                "walferry_errors_total",
                "Failures of a stage, by kind of trouble.",
                &["stage", "kind"],
            )?,
            restart_points: counter(
                "walferry_restart_points_total",
                "Restart points of the store that were completed.",
            )?,
            removed_segments: counter(
                "walferry_removed_segments_total",
                "Segments that retention has removed from the archive.",
            )?,
            reconnects: counter("walferry_reconnects_total", "Connections to a peer begun.")?,
            registry,
            scraped: Mutex::default(),
        })
    }

    /// An `fdatasync` took this long.
    pub(crate) fn observe_flush(&self, duration: Duration) {
        self.flush_seconds.observe(duration.as_secs_f64());
    }

    /// WAL went into the archive.
    pub(crate) fn count_archived(&self, wal_bytes: u64, file_bytes: u64) {
        self.wal_bytes.inc_by(wal_bytes);
        self.archive_bytes.inc_by(file_bytes);
    }

    /// Records were replayed.
    pub(crate) fn count_replayed(&self, records: u64) {
        self.replayed_records.inc_by(records);
    }

    /// Replayed pages were compared with the leader's images of them.
    pub(crate) fn count_verified(&self, images: u64) {
        self.verified_images.inc_by(images);
    }

    /// So many pages of TOAST relations had to wait for the row spool so far, or did not and should have.
    pub(crate) fn set_toast_pages(&self, held: u64, early: u64) {
        for (counter, count) in [(&self.held_toast_pages, held), (&self.early_toast_pages, early)] {
            counter.inc_by(count.saturating_sub(counter.get()));
        }
    }

    /// A connection to a peer was begun.
    pub(crate) fn count_reconnect(&self) {
        self.reconnects.inc();
    }

    /// The archive's files take this much.
    pub(crate) fn set_archive(&self, bytes: u64) {
        self.archive_size.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// The file system of `disk` is of this size, and has so much free.
    pub(crate) fn set_disk(&self, disk: &str, size: u64, free: u64) {
        let set = |gauge: &IntGaugeVec, bytes| {
            gauge.with_label_values(&[disk]).set(i64::try_from(bytes).unwrap_or(i64::MAX));
        };
        set(&self.disk_size, size);
        set(&self.disk_free, free);
    }

    /// So much is to stay free beside the archive.
    pub(crate) fn set_min_free(&self, bytes: u64) {
        self.min_free.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// The store has a newer restart point.
    pub(crate) fn count_restart_point(&self) {
        self.restart_points.inc();
    }

    /// Retention removed segments.
    pub(crate) fn count_removed(&self, segments: u64) {
        self.removed_segments.inc_by(segments);
    }

    /// The text that Prometheus scrapes. There may be more than one of it, or somebody beside it.
    pub(crate) fn render(&self, node: &Node) -> Result<String, prometheus::Error> {
        let _alone = self.scraped.lock().unwrap_or_else(PoisonError::into_inner);
        self.collect(node)
    }

    /// The same, for one at a time: followers and states are forgotten and told again, and counters
    /// brought up to what was counted elsewhere.
    fn collect(&self, node: &Node) -> Result<String, prometheus::Error> {
        let gauge = |lsn: walfmt::Lsn| i64::try_from(lsn.0).unwrap_or(i64::MAX);
        for position in Position::ALL {
            let lsn = node.positions.get(position);
            if lsn.is_valid() {
                self.positions.with_label_values(&[position.name()]).set(gauge(lsn));
            }
        }
        self.render_followers(node);
        for ((stage, kind), count) in node.stages.failures() {
            let errors = self.errors.with_label_values(&[stage, kind]);
            errors.inc_by(count.saturating_sub(errors.get()));
        }
        if let Some(lag) = node.lag() {
            let bytes = i64::try_from(lag.bytes).unwrap_or(i64::MAX);
            self.lag_bytes.with_label_values(&[lag.to.name()]).set(bytes);
            if let Some(seconds) = lag.seconds {
                self.lag_seconds.with_label_values(&[lag.to.name()]).set(seconds);
            }
        }
        self.stage_states.reset();
        for (stage, report) in node.stages.all() {
            // A counter that is first seen at 1 has not increased: each is there from the start.
            for kind in Kind::ALL {
                let _ = self.errors.with_label_values(&[stage, kind.label()]);
            }
            self.stage_states.with_label_values(&[stage, report.state.label()]).set(1);
        }
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// What is known of the followers; those that were forgotten leave nothing behind.
    fn render_followers(&self, node: &Node) {
        let gauge = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        self.follower_positions.reset();
        self.follower_lag_bytes.reset();
        self.follower_lag_seconds.reset();
        self.follower_connected.reset();
        let (now, end) = (Instant::now(), node.positions.get(send::readable(node)));
        for (name, mut follower) in node.positions.followers() {
            for (position, lsn) in [
                ("shipped", follower.shipped),
                ("received", follower.received),
                ("durable", follower.durable),
                ("replayed", follower.replayed),
            ] {
                if lsn.is_valid() {
                    self.follower_positions.with_label_values(&[&name, position]).set(gauge(lsn.0));
                }
            }
            if let Some(lag) = follower.lag(now, end) {
                let labels = &[&name, lag.to.name()];
                self.follower_lag_bytes.with_label_values(labels).set(gauge(lag.bytes));
                self.follower_lag_seconds.with_label_values(labels).set(lag.seconds);
            }
            let connected = i64::from(follower.connections > 0);
            self.follower_connected.with_label_values(&[&name]).set(connected);
            let sent = self.sent_bytes.with_label_values(&[&name]);
            sent.inc_by(follower.sent_bytes.saturating_sub(sent.get()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::thread;

    use walfmt::Lsn;

    use super::*;
    use crate::config::Config;
    use crate::stage::State;
    use crate::trouble::Trouble;

    const SCRAPERS: u64 = 4;
    const SCRAPES: u64 = 200;

    fn node() -> Node {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("walferry.toml");
        let text = "[node]\nname = \"n\"\n[source]\ndata_directory = \"/nowhere\"\n\
                    [archive]\ndirectory = \"/nowhere-either\"\n";
        fs::write(&file, text).expect("written");
        let node = Node::new(Config::read(&file).expect("a configuration")).expect("a node");
        node.positions.with_follower("f", |f| f.acknowledge(Lsn(1), Lsn(1), Lsn(1)));
        node
    }

    /// Scrapes by several at once, while something fails now and then; gives what was wrong.
    fn scrape(by: fn(&Metrics, &Node) -> Result<String, prometheus::Error>) -> Option<String> {
        let node = node();
        let errors = "walferry_errors_total{kind=\"io\",stage=\"tail\"}";
        let connected = "walferry_follower_connected{follower=\"f\"} 0";
        let one = || {
            (0..SCRAPES).find_map(|_| {
                node.stages.fail("tail", State::Retrying, &Trouble::io("a test", "it fails"));
                let text = by(&node.metrics, &node).expect("encoded");
                let is_told = text.lines().any(|line| line == connected);
                (!is_told).then(|| format!("a follower is missing: {text}"))
            })
        };
        let wrong = thread::scope(|scope| {
            let scrapers: Vec<_> = (0..SCRAPERS).map(|_| scope.spawn(one)).collect();
            scrapers.into_iter().find_map(|scraper| scraper.join().expect("no panic"))
        });
        wrong.or_else(|| {
            let text = by(&node.metrics, &node).expect("encoded");
            let expected = format!("{errors} {}", SCRAPERS * SCRAPES);
            let is_right = text.lines().any(|line| line == expected);
            (!is_right).then(|| format!("not {expected}: {text}"))
        })
    }

    #[test]
    fn who_scrapes_beside_others_sees_all_and_counts_nothing_twice() {
        assert_eq!(scrape(Metrics::render), None);
        // The control.
        let begun = Instant::now();
        let wrong = std::iter::from_fn(|| Some(scrape(Metrics::collect))).find_map(|wrong| {
            (wrong.is_some() || begun.elapsed() > Duration::from_secs(60)).then_some(wrong)
        });
        assert!(wrong.flatten().is_some(), "one at a time is not needed");
    }
}

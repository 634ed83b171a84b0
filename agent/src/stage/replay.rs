//! Replay: the archive's records into the page store.
//!
//! Reads what is durable in this node's archive, never more: the store must not get ahead of the
//! WAL that made it. Stops for good at a record that cannot be replayed; the archive goes on.

mod ahead;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use walferry_archive::ArchiveReader;
use walferry_store::{Store, StoreConfig};
use walfmt::{Lsn, RecordStream, SegmentSize, Step, StreamStart, Version};

use crate::control::Promotion;
use crate::identity::Identity;
use crate::node::Node;
use crate::positions::Position;
use crate::stage::decode::Beginning;
use crate::stage::heart::Heart;
use crate::stage::replay::ahead::ReadAhead;
use crate::stage::{State, decode, receive};
use crate::trouble::{Kind, Trouble};

pub(crate) const STAGE: &str = "replay";
/// How often positions are told on while there is work.
const REPORT_INTERVAL: Duration = Duration::from_millis(20);
/// After how many records the time is looked at.
const REPORT_RECORDS: u64 = 512;
const IDLE_WAIT: Duration = Duration::from_millis(200);
const RETRY_PAUSE: Duration = Duration::from_secs(1);
const SPOOL_WAIT: Duration = Duration::from_millis(5);

type PromotionAnswer = oneshot::Sender<Result<Promotion, Trouble>>;

/// What others may ask of replay.
#[derive(Default)]
pub(crate) struct Commands(Mutex<Asked>);

#[derive(Default)]
enum Asked {
    #[default]
    Nothing,
    Promotion(PromotionAnswer),
    /// The store was handed over.
    Promoted(Promotion),
    /// Replay has ended, for this reason.
    Ended(Trouble),
}

impl Commands {
    /// Replays what is durable here, and hands the store over. Receiving must have ended, and
    /// promotions take turns: one that is asked for later takes the place of an earlier one.
    pub(crate) async fn promote(&self, node: &Node) -> Result<Promotion, Trouble> {
        let promotion = {
            let mut asked = self.lock();
            match &*asked {
                // Whoever asks again may start the server, if the first one could not.
                Asked::Promoted(promotion) => return Ok(promotion.clone()),
                Asked::Ended(trouble) => return Err(trouble.clone()),
                Asked::Promotion(_) | Asked::Nothing => {}
            }
            let (answer, promotion) = oneshot::channel();
            *asked = Asked::Promotion(answer);
            promotion
        };
        node.positions.wake();
        promotion.await.unwrap_or_else(|_| Err(Trouble::new(Kind::Io, "replay has ended")))
    }

    fn promotion_asked(&self) -> bool {
        matches!(*self.lock(), Asked::Promotion(_))
    }

    /// Answers whoever asked for a promotion, if anybody did. That nobody listens any more changes
    /// nothing.
    fn answer(&self, result: Result<Promotion, Trouble>) {
        let mut asked = self.lock();
        let next = match &result {
            Ok(promotion) => Asked::Promoted(promotion.clone()),
            Err(_) => Asked::Nothing,
        };
        if matches!(*asked, Asked::Promotion(_))
            && let Asked::Promotion(answer) = std::mem::replace(&mut *asked, next)
        {
            let _ = answer.send(result);
        }
    }

    /// Nothing more can be asked.
    fn end(&self, trouble: Trouble) {
        self.answer(Err(trouble.clone()));
        let mut asked = self.lock();
        if !matches!(*asked, Asked::Promoted(_)) {
            *asked = Asked::Ended(trouble);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Asked> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Replays until the node stops, the store is promoted, or a record cannot be replayed.
pub(crate) fn run(node: &Arc<Node>) {
    // The store's threads work for replay, and one of them syncs.
    let heart = node.hearts.start(STAGE, &[STAGE, "store-"]);
    if let Some(capture) = &node.capture {
        let node = Arc::downgrade(node);
        capture.rows.set_waker(move || {
            if let Some(node) = node.upgrade() {
                node.positions.wake();
            }
        });
    }
    let end = loop {
        heart.beat();
        let trouble = match replay(node, &heart) {
            Ok(Ended::Stopping) => break Trouble::new(Kind::Refused, "the agent is stopping"),
            Ok(Ended::Promoted) => {
                break Trouble::new(Kind::Refused, "the store was handed to a server already");
            }
            Err(trouble) => trouble,
        };
        if trouble.kind() != Kind::Io {
            node.stages.fail(STAGE, State::Stopped, &trouble);
            let words = format_args!("replay has stopped before the end of the WAL: {trouble}");
            break Trouble::new(Kind::Refused, words)
                .with_hint("the archive has all WAL: restore from it with PostgreSQL");
        }
        node.stages.fail(STAGE, State::Retrying, &trouble);
        node.replay.answer(Err(trouble));
        node.sleep(RETRY_PAUSE);
    };
    node.replay.end(end);
    if let Some(capture) = &node.capture {
        capture.end();
    }
}

enum Ended {
    Stopping,
    Promoted,
}

fn replay(node: &Node, heart: &Heart) -> Result<Ended, Trouble> {
    let config = node.config.store()?;
    node.stages.set(STAGE, State::Starting, "");
    let mut store = Store::open(&StoreConfig {
        data_directory: config.data_directory.clone(),
        workers: config.workers,
        cache_bytes: config.cache_bytes,
        restart_point_interval: config.restart_point_interval,
        verify_images: config.verify_images,
        rows: node.capture.as_ref().map(|capture| Arc::clone(&capture.rows)),
    })?;
    let Some(mut reading) = Reading::start(node, heart, store.replay_from())? else {
        store.close()?;
        return Ok(Ended::Stopping);
    };
    store.set_side_work(reading.ahead.side_work());
    report(node, &store); // where it begins, before anything else is known
    node.stages.set(STAGE, State::Streaming, "");
    // After an unclean stop, pages may be as of any position up to the archive's end.
    let mut bounded = false;
    let mut capturing = Capturing::prepare(node, &mut store)?;
    let mut catching_up = Some(CatchingUp::begin(store.applied()));
    while !node.stopping() {
        heart.beat();
        store.serve_rows()?;
        if let Some(capturing) = &mut capturing {
            capturing.spool_has_begun(node, &mut store)?;
        }
        let bound = node.positions.get(Position::Durable);
        if reading.replay_available(node, heart, &mut store, bound, &mut capturing)? {
            if let Some(catching_up) = &mut catching_up {
                catching_up.observe(store.applied());
            }
            continue;
        }
        store.hand_over()?;
        store.wait_applied()?;
        report(node, &store);
        if let Some(caught_up) = catching_up.take() {
            caught_up.tell(store.applied());
        }
        if !bounded {
            store.set_consistent_after(store.applied())?;
            bounded = true;
        }
        if let Some(capturing) = &mut capturing {
            capturing.begin(node, &mut store)?;
        }
        // A promotion comes at the end of what is durable, when nothing more can come.
        let settled = node.receiving_quiet() && bound == node.positions.get(Position::Durable);
        if settled && node.replay.promotion_asked() {
            match promote(node, &mut store) {
                Ok(promotion) => {
                    node.stages.set(STAGE, State::Promoted, "the store belongs to a server now");
                    node.replay.answer(Ok(promotion));
                    return Ok(Ended::Promoted);
                }
                // Refused, the store is as it was.
                Err(trouble) if trouble.kind() == Kind::Refused => {
                    node.replay.answer(Err(trouble));
                }
                Err(trouble) => return Err(trouble),
            }
        }
        node.positions.wait_beyond(Position::Durable, bound, IDLE_WAIT);
    }
    while let Some(capturing) = &mut capturing
        && !capturing.spool_has_begun(node, &mut store)?
    {
        heart.beat();
        store.serve_rows()?;
        thread::sleep(SPOOL_WAIT);
    }
    store.close()?;
    Ok(Ended::Stopping)
}

fn promote(node: &Node, store: &mut Store) -> Result<Promotion, Trouble> {
    let state = store.finish_for_promotion()?;
    report(node, store);
    Ok(Promotion {
        replayed: state.applied.to_string(),
        redo: state.redo.to_string(),
        reread_bytes: state.applied.bytes_since(state.redo),
        timeline: state.timeline.0,
    })
}

fn report(node: &Node, store: &Store) {
    node.metrics.count_verified(store.take_images_verified());
    if let Some(decode::Capture { rows, .. }) = &node.capture {
        node.metrics.set_toast_pages(rows.pages_held(), rows.pages_written_early());
    }
    node.positions.advance(Position::Replayed, store.applied());
    let restart = store.restart_redo();
    let before = node.positions.get(Position::RestartPoint);
    if before.is_valid() && restart > before {
        node.metrics.count_restart_point();
    }
    node.positions.advance(Position::RestartPoint, restart);
}

/// Rows for the spool: what replay has to do so that they can be decoded.
struct Capturing {
    /// The spool must begin anew, with the catalogs, as soon as the store is consistent.
    needs_catalogs: bool,
    /// The store has yet to keep that pages wait for the spool, when that has begun: until then it has an
    /// end which it must not go on from.
    is_pending: bool,
    made: decode::Watch,
}

impl Capturing {
    /// Waits until the spool is open; nothing if there is none, or it has failed.
    fn prepare(node: &Node, store: &mut Store) -> Result<Option<Self>, Trouble> {
        let Some(capture) = &node.capture else { return Ok(None) };
        let beginning = capture.beginning(node, store.replay_from(), store.toast_was_held());
        // Nothing is held for rows that are not kept. Who stops replays nothing more.
        if beginning.map_or(!node.stopping(), |beginning| beginning != Beginning::GoesOn) {
            store.hold_toast(false)?;
        }
        let made = decode::Watch::of(capture.databases_made());
        Ok(beginning.map(|beginning| Self {
            needs_catalogs: beginning != Beginning::GoesOn,
            is_pending: beginning == Beginning::AnewWithoutValues,
            made,
        }))
    }

    /// Has the store keep that pages wait for the spool once that has begun anew; `false` if it is yet to.
    fn spool_has_begun(&mut self, node: &Node, store: &mut Store) -> Result<bool, Trouble> {
        if self.is_pending && !self.needs_catalogs {
            let has_begun = node.capture.as_ref().and_then(decode::Capture::has_begun);
            if has_begun == Some(true) {
                store.hold_toast(true)?;
            }
            self.is_pending = has_begun == Some(false);
            return Ok(!self.is_pending);
        }
        Ok(true)
    }

    /// All that is durable is applied: if rows are still to be captured, they are from here on.
    fn begin(&mut self, node: &Node, store: &mut Store) -> Result<(), Trouble> {
        if let Some(capture) = &node.capture
            && self.needs_catalogs
            && store.is_consistent()
        {
            let at = store.applied();
            let catalogs = decode::load_all(store, at)?;
            let identity = node.identity().ok_or_else(|| Trouble::misuse("no identity"))?;
            // Should the spool not come to begin, it does not reach to where replay begins then.
            if !self.is_pending {
                store.hold_toast(true)?;
            }
            capture.begin(at, catalogs, identity)?;
            self.needs_catalogs = false;
        }
        Ok(())
    }
}

/// The way from the restart point to the archive's end, for the log: how far, how long, and for how
/// long at most nothing was applied.
struct CatchingUp {
    from: Lsn,
    begun: Instant,
    applied: Lsn,
    applied_at: Instant,
    longest_pause: Duration,
}

impl CatchingUp {
    fn begin(from: Lsn) -> Self {
        let begun = Instant::now();
        Self { from, begun, applied: from, applied_at: begun, longest_pause: Duration::ZERO }
    }

    fn observe(&mut self, applied: Lsn) {
        let now = Instant::now();
        self.longest_pause = self.longest_pause.max(now - self.applied_at);
        if applied > self.applied {
            (self.applied, self.applied_at) = (applied, now);
        }
    }

    fn tell(mut self, to: Lsn) {
        self.observe(to);
        let (seconds, bytes) = (self.begun.elapsed().as_secs_f64(), to.bytes_since(self.from));
        let pause = self.longest_pause.as_secs_f64();
        tracing::info!(
            from = %self.from, %to, bytes, seconds, longest_pause = pause,
            "replay has caught up with the archive"
        );
    }
}

/// Where replay is in the archive.
struct Reading {
    ahead: ReadAhead,
    stream: RecordStream,
    segment_size: SegmentSize,
    version: &'static Version,
    begin: Lsn,
    /// When positions were last told.
    reported: Instant,
}

impl Reading {
    /// Finds the WAL that replay begins with; nothing if the node stops first.
    fn start(node: &Node, heart: &Heart, begin: Lsn) -> Result<Option<Self>, Trouble> {
        // The archive's writer recovers its last file before anyone reads it.
        while !node.positions.get(Position::Durable).is_valid() {
            heart.beat();
            if node.stopping() {
                return Ok(None);
            }
            // `receive` says why it could not be opened.
            if !node.stages.is_starting(receive::STAGE) {
                node.stages.set(STAGE, State::Waiting, "for this node's archive");
            }
            node.positions.wait_beyond(Position::Durable, Lsn::INVALID, IDLE_WAIT);
        }
        let (Some(archive), Some(identity)) = (node.archive(), node.identity()) else {
            return Err(Trouble::misuse("the archive's cluster is not known"));
        };
        let durable = node.positions.get(Position::Durable);
        if durable < begin {
            return Err(Trouble::new(
                Kind::NotThere,
                format_args!("the archive ends at {durable}, the store needs WAL from {begin} on"),
            )
            .with_hint("the archive is not this store's, or was cut: bootstrap again"));
        }
        let Identity { timeline, segment_size: size, system_identifier, .. } = identity;
        let start = size.start_of(size.segment_of(begin));
        let reader = ArchiveReader::open(archive, timeline, start)?.for_records();
        let mut stream = RecordStream::new(StreamStart {
            lsn: start,
            segment_size: size,
            system_identifier: Some(system_identifier),
        });
        // What is durable here was checked when it came: whatever does not check out is corrupt, and
        // what is left behind a segment switch is not looked at.
        stream.set_known_end(Lsn(u64::MAX));
        let reported = Instant::now();
        let ahead = ReadAhead::new(reader);
        let version = identity.version;
        Ok(Some(Self { ahead, stream, segment_size: size, version, begin, reported }))
    }

    /// Replays the next chunk; false if there is none yet.
    fn replay_available(
        &mut self,
        node: &Node,
        heart: &Heart,
        store: &mut Store,
        bound: Lsn,
        capturing: &mut Option<Capturing>,
    ) -> Result<bool, Trouble> {
        let Some(wal) = self.ahead.next(bound, || store.help())? else { return Ok(false) };
        let used = self.stream.push_buffer(wal);
        self.ahead.give_back(used);
        let mut records = 0;
        loop {
            match self.stream.poll() {
                Step::Record(ref record) if record.start < self.begin => {}
                // By reference: a copy would wait for what was just written in parts.
                Step::Record(ref record) => {
                    if let Err(error) = store.replay(record) {
                        report(node, store);
                        return Err(error.into());
                    }
                    if let (Some(capturing), Some(capture)) = (&mut *capturing, &node.capture) {
                        capturing.made.observe(record, self.version, store, &capture.rows)?;
                    }
                    records += 1;
                    if records % REPORT_RECORDS == 0 && self.reported.elapsed() >= REPORT_INTERVAL {
                        heart.beat();
                        report(node, store);
                        self.reported = Instant::now();
                    }
                }
                Step::NeedMore => match self.stream.leave_out_fill(bound) {
                    Some(start) => self.ahead.skip_to(self.segment_size.segment_of(start)),
                    None => break,
                },
                Step::Stop(stop) => {
                    report(node, store);
                    return Err(Trouble::new(Kind::Corrupt, format_args!("archive: {stop}"))
                        .with_hint(
                            "the archive's file is damaged: get the segment back from the \
                                    leader's archive, or bootstrap again",
                        ));
                }
            }
        }
        node.metrics.count_replayed(records);
        Ok(true)
    }
}

//! Replay: the archive's records into the page store.
//!
//! Reads what is durable in this node's archive, never more: the store must not get ahead of the
//! WAL that made it. Stops for good at a record that cannot be replayed; the archive goes on.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use walferry_archive::ArchiveReader;
use walferry_store::{Store, StoreConfig};
use walfmt::{Lsn, RecordStream, Step, StreamStart};

use crate::control::Promotion;
use crate::node::{Identity, Node};
use crate::positions::Position;
use crate::stage::State;
use crate::trouble::{Kind, Trouble};

const STAGE: &str = "replay";
/// How often positions are told on while there is work.
const REPORT_RECORDS: u64 = 4096;
const IDLE_WAIT: Duration = Duration::from_millis(200);
const RETRY_PAUSE: Duration = Duration::from_secs(1);

type PromotionAnswer = oneshot::Sender<Result<Promotion, Trouble>>;

/// What others may ask of replay.
#[derive(Default)]
pub(crate) struct Commands {
    promote: Mutex<Option<PromotionAnswer>>,
}

impl Commands {
    /// Replays what is durable here, and hands the store over. Receiving must have ended.
    pub(crate) async fn promote(&self, node: &Node) -> Result<Promotion, Trouble> {
        let (answer, promotion) = oneshot::channel();
        *self.promote.lock().unwrap_or_else(PoisonError::into_inner) = Some(answer);
        node.positions.wake();
        promotion.await.map_err(|_| {
            Trouble::new(Kind::Refused, "replay is not running").with_hint("walferry status")
        })?
    }

    fn promotion_asked(&self) -> bool {
        self.promote.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    fn take_promotion(&self) -> Option<PromotionAnswer> {
        self.promote.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Replays until the node stops, the store is promoted, or a record cannot be replayed.
pub(crate) fn run(node: &Arc<Node>) {
    while !node.stopping() {
        let trouble = match replay(node) {
            Ok(()) => return,
            Err(trouble) => trouble,
        };
        let may_pass = trouble.kind() == Kind::Io;
        let state = if may_pass { State::Retrying } else { State::Stopped };
        node.stages.fail(STAGE, state, &trouble);
        if let Some(answer) = node.replay.take_promotion() {
            let _ = answer.send(Err(trouble));
        }
        if !may_pass {
            return;
        }
        node.sleep(RETRY_PAUSE);
    }
}

fn replay(node: &Node) -> Result<(), Trouble> {
    let config = node.config.store()?;
    node.stages.set(STAGE, State::Starting, "");
    let mut store = Store::open(&StoreConfig {
        data_directory: config.data_directory.clone(),
        workers: config.workers,
        cache_bytes: config.cache_bytes,
        restart_point_interval: config.restart_point_interval,
    })?;
    let Some(mut reading) = Reading::start(node, store.replay_from())? else {
        return Ok(store.close()?);
    };
    node.stages.set(STAGE, State::Streaming, "");
    // After an unclean stop, pages may be as of any position up to the archive's end.
    let mut bounded = false;
    while !node.stopping() {
        let bound = node.positions.get(Position::Durable);
        let replayed = reading.replay_available(node, &mut store, bound)?;
        if replayed {
            continue;
        }
        store.hand_over()?;
        store.wait_applied()?;
        report(node, &store);
        if !bounded {
            store.set_consistent_after(store.applied())?;
            bounded = true;
        }
        // What is asked for is done at the end of what is durable, and nothing more comes.
        if node.replay.promotion_asked() && node.receiving_ended() {
            if node.positions.get(Position::Received) > node.positions.get(Position::Durable) {
                node.positions.wait_beyond(Position::Durable, bound, IDLE_WAIT);
                continue;
            }
            return promote(node, store);
        }
        node.positions.wait_beyond(Position::Durable, bound, IDLE_WAIT);
    }
    store.close()?;
    Ok(())
}

fn promote(node: &Node, mut store: Store) -> Result<(), Trouble> {
    let state = store.finish_for_promotion()?;
    let promotion = Promotion {
        replayed: state.applied.to_string(),
        redo: state.redo.to_string(),
        reread_bytes: state.applied.bytes_since(state.redo),
        timeline: store.identity().timeline.0,
    };
    node.stages.set(STAGE, State::Promoted, "the store belongs to a server now");
    if let Some(answer) = node.replay.take_promotion() {
        // The store is handed over even if whoever asked is gone: a second promotion is refused,
        // and the verb's words say how to start the server.
        let _ = answer.send(Ok(promotion));
    }
    Ok(())
}

fn report(node: &Node, store: &Store) {
    node.positions.advance(Position::Replayed, store.applied());
}

/// Where replay is in the archive.
struct Reading {
    reader: ArchiveReader,
    stream: RecordStream,
    begin: Lsn,
}

impl Reading {
    /// Finds the WAL that replay begins with; nothing if the node stops first.
    fn start(node: &Node, begin: Lsn) -> Result<Option<Self>, Trouble> {
        // The archive's writer recovers its last file before anyone reads it.
        while !node.positions.get(Position::Durable).is_valid() {
            if node.stopping() {
                return Ok(None);
            }
            node.positions.wait_beyond(Position::Durable, Lsn::INVALID, IDLE_WAIT);
        }
        let (Some(archive), Some(identity)) = (node.archive(), node.identity()) else {
            return Err(Trouble::misuse("the archive's cluster is not known"));
        };
        let Identity { timeline, segment_size: size, system_identifier, .. } = identity;
        let start = size.start_of(size.segment_of(begin));
        let reader = ArchiveReader::open(archive, timeline, start)?;
        let stream = RecordStream::new(StreamStart {
            lsn: start,
            segment_size: size,
            system_identifier: Some(system_identifier),
        });
        Ok(Some(Self { reader, stream, begin }))
    }

    /// Replays the next chunk; false if there is none yet.
    fn replay_available(
        &mut self,
        node: &Node,
        store: &mut Store,
        bound: Lsn,
    ) -> Result<bool, Trouble> {
        let Some(chunk) = self.reader.next(bound)? else { return Ok(false) };
        self.stream.push(chunk.wal);
        self.stream.set_known_end(bound);
        let mut records = 0;
        loop {
            match self.stream.poll() {
                Step::Record(record) if record.start < self.begin => {}
                Step::Record(record) => {
                    if let Err(error) = store.replay(&record) {
                        report(node, store);
                        return Err(error.into());
                    }
                    records += 1;
                    if records % REPORT_RECORDS == 0 {
                        report(node, store);
                    }
                }
                Step::NeedMore => break,
                Step::Stop(stop) => {
                    return Err(Trouble::new(Kind::Corrupt, format_args!("archive: {stop}"))
                        .with_hint(
                            "the archive's file is damaged: get the segment back from the \
                                    leader's archive, or bootstrap again",
                        ));
                }
            }
        }
        report(node, store);
        node.metrics.count_replayed(records);
        Ok(true)
    }
}

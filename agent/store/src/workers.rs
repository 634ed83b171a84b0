//! The worker threads as a group: handing over, waiting, stopping.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use walfmt::Lsn;
use walfmt_physical::RedoContext;

use crate::batch::{Batch, Task};
use crate::cache::PageCache;
use crate::files::Files;
use crate::layout::Layout;
use crate::relations::Names;
use crate::shared::Shared;
use crate::verify::BrokenRule;
use crate::worker::{Doomed, Message, Worker, WorkerParts};

pub(crate) struct Workers {
    senders: Vec<Sender<Message>>,
    threads: Vec<JoinHandle<()>>,
    returns: Receiver<Vec<Task>>,
    /// Batches handed over whose task lists have not come back.
    outstanding: usize,
}

/// What all workers are started with.
pub(crate) struct WorkersConfig<'a> {
    pub(crate) count: usize,
    pub(crate) cache_pages: usize,
    pub(crate) checksums: bool,
    pub(crate) layout: &'a Layout,
    pub(crate) names: Names,
    pub(crate) shared: &'a Arc<Shared>,
    pub(crate) context: RedoContext,
    pub(crate) verify_images: bool,
    pub(crate) broken_rule: Option<BrokenRule>,
}

/// A worker thread ended before it was told to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ThreadGone;

impl Workers {
    pub(crate) fn start(config: &WorkersConfig<'_>) -> io::Result<Self> {
        let (senders, inboxes): (Vec<_>, Vec<_>) =
            (0..config.count).map(|_| unbounded::<Message>()).unzip();
        let (returns_sender, returns) = unbounded();
        let mut workers =
            Self { senders: senders.clone(), threads: Vec::new(), returns, outstanding: 0 };
        for (number, inbox) in inboxes.into_iter().enumerate() {
            let worker = Worker::new(WorkerParts {
                number,
                shared: Arc::clone(config.shared),
                files: Files::new(config.layout.clone(), Arc::clone(&config.names)),
                cache: PageCache::new(config.cache_pages / config.count),
                checksums: config.checksums,
                context: config.context,
                verify_images: config.verify_images,
                broken_rule: config.broken_rule,
                inbox,
                peers: senders.clone(),
                returns: returns_sender.clone(),
            });
            let thread = std::thread::Builder::new()
                .name(format!("store-worker-{number}"))
                .spawn(move || worker.run())?;
            workers.threads.push(thread);
        }
        Ok(workers)
    }

    pub(crate) const fn count(&self) -> usize {
        self.senders.len()
    }

    pub(crate) fn hand_over(&mut self, worker: usize, batch: Batch) -> Result<(), ThreadGone> {
        self.send(worker, Message::Batch(batch))?;
        self.outstanding += 1;
        Ok(())
    }

    /// Takes back an emptied task list, if one has come.
    pub(crate) fn take_back(&mut self) -> Option<Vec<Task>> {
        let tasks = self.returns.try_recv().ok()?;
        self.outstanding -= 1;
        Some(tasks)
    }

    /// Waits until at most `limit` batches are under way; gives the task lists that came back.
    pub(crate) fn wait_for_room(&mut self, limit: usize) -> Result<Vec<Vec<Task>>, ThreadGone> {
        let mut lists = Vec::new();
        while self.outstanding > limit {
            match self.returns.recv_timeout(Duration::from_secs(1)) {
                Ok(tasks) => {
                    self.outstanding -= 1;
                    lists.push(tasks);
                }
                Err(RecvTimeoutError::Timeout)
                    if !self.threads.iter().any(JoinHandle::is_finished) => {}
                Err(_) => return Err(ThreadGone),
            }
        }
        Ok(lists)
    }

    /// Waits until all workers have done all they were told. Gives the end of the last record that
    /// any of them has applied something of.
    pub(crate) fn pass(&self) -> Result<Lsn, ThreadGone> {
        let (answer, answers) = unbounded();
        for worker in 0..self.count() {
            self.send(worker, Message::Pass(answer.clone()))?;
        }
        drop(answer);
        self.latest(&answers)
    }

    /// Like [`pass`](Self::pass), and what the workers told each other is done too.
    pub(crate) fn settle(&self) -> Result<Lsn, ThreadGone> {
        // All notes were sent before their senders passed; so they lie before a second marker.
        self.pass()?;
        self.pass()
    }

    /// Waits until all workers have done all they were told and have forgotten these pages.
    pub(crate) fn forget(&self, doomed: Doomed) -> Result<(), ThreadGone> {
        self.pass()?;
        let doomed = Arc::new(doomed);
        let (answer, answers) = unbounded();
        for worker in 0..self.count() {
            self.send(worker, Message::Forget(Arc::clone(&doomed), answer.clone()))?;
        }
        drop(answer);
        self.latest(&answers).map(drop)
    }

    /// Has all workers write what is changed by now. Each answers once.
    pub(crate) fn write_back(&self) -> Result<Receiver<bool>, ThreadGone> {
        let (answer, answers) = unbounded();
        for worker in 0..self.count() {
            self.send(worker, Message::WriteBack(answer.clone()))?;
        }
        Ok(answers)
    }

    fn send(&self, worker: usize, message: Message) -> Result<(), ThreadGone> {
        self.senders[worker].send(message).map_err(|_| ThreadGone)
    }

    fn latest(&self, answers: &Receiver<Lsn>) -> Result<Lsn, ThreadGone> {
        let mut latest = Lsn::INVALID;
        for _ in 0..self.count() {
            latest = latest.max(answers.recv().map_err(|_| ThreadGone)?);
        }
        Ok(latest)
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        for sender in &self.senders {
            let _ = sender.send(Message::Stop);
        }
        for thread in self.threads.drain(..) {
            // A panic was reported as a missing thread already.
            drop(thread.join());
        }
    }
}

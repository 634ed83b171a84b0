//! The workers as a group: handing over, waiting, stopping.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, TryRecvError, unbounded};
use walfmt::Lsn;
use walfmt_physical::RedoContext;

use crate::batch::{Batch, Task};
use crate::cache::{PageCache, PageKey};
use crate::crew::{Crew, SideWork, WorkerGone};
use crate::files::{Files, owner_of};
use crate::gate::Written;
use crate::layout::Layout;
use crate::relations::Names;
use crate::rows::Rows;
use crate::shared::Shared;
use crate::verify::BrokenRule;
use crate::worker::{Doomed, Message, PageCopy, Worker, WorkerParts};

pub(crate) struct Workers {
    crew: Arc<Crew>,
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
    pub(crate) rows: Option<&'a Arc<Rows>>,
}

/// A worker, or a thread of the store, ended before it was told to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ThreadGone;

impl From<WorkerGone> for ThreadGone {
    fn from(WorkerGone: WorkerGone) -> Self {
        Self
    }
}

impl Workers {
    pub(crate) fn start(config: &WorkersConfig<'_>) -> io::Result<Self> {
        let (senders, inboxes): (Vec<_>, Vec<_>) =
            (0..config.count).map(|_| unbounded::<Message>()).unzip();
        let (returns_sender, returns) = unbounded();
        let crew = Arc::new(Crew::new(senders));
        for (number, inbox) in inboxes.into_iter().enumerate() {
            let worker = Worker::new(WorkerParts {
                number,
                shared: Arc::clone(config.shared),
                files: Files::new(config.layout.clone(), Arc::clone(&config.names)),
                cache: PageCache::new(
                    config.cache_pages / config.count,
                    config.rows.map_or(0, |rows| rows.gate.growth_max()),
                ),
                checksums: config.checksums,
                context: config.context,
                verify_images: config.verify_images,
                broken_rule: config.broken_rule,
                rows: config.rows.cloned(),
                inbox,
                crew: Arc::clone(&crew),
                returns: returns_sender.clone(),
            });
            crew.seat(number, worker);
        }
        let mut workers = Self { crew, threads: Vec::new(), returns, outstanding: 0 };
        // One thread fewer than workers, since the dispatcher's helps; but what is to be written
        // in the background must not wait for its help.
        for number in 0..(config.count - 1).max(1) {
            let crew = Arc::clone(&workers.crew);
            let thread = std::thread::Builder::new()
                .name(format!("store-{number}"))
                .spawn(move || crew.serve())?;
            workers.threads.push(thread);
        }
        Ok(workers)
    }

    /// Only the first call counts.
    pub(crate) fn set_side_work(&self, work: Arc<dyn SideWork>) {
        self.crew.set_side_work(work);
    }

    /// Does a piece of the workers' work, or of the side work; `false` if there is nothing.
    pub(crate) fn help(&self) -> bool {
        self.crew.help()
    }

    /// The next message, which comes when some work is done: helps with that meanwhile.
    pub(crate) fn wait<T>(&self, messages: &Receiver<T>) -> Result<T, ThreadGone> {
        loop {
            if let Some(message) = self.wait_at_most(messages, Duration::from_secs(1))? {
                return Ok(message);
            }
        }
    }

    /// The same for who has something else to look at now and then: nothing if none has come for
    /// `patience`, or there was something to help with.
    pub(crate) fn wait_at_most<T>(
        &self,
        messages: &Receiver<T>,
        patience: Duration,
    ) -> Result<Option<T>, ThreadGone> {
        match messages.try_recv() {
            Ok(message) => return Ok(Some(message)),
            Err(TryRecvError::Disconnected) => return Err(ThreadGone),
            Err(TryRecvError::Empty) if self.help() => return Ok(None),
            Err(TryRecvError::Empty) => {}
        }
        match messages.recv_timeout(patience) {
            Ok(message) => Ok(Some(message)),
            Err(RecvTimeoutError::Timeout) if !self.crew.has_panicked() => Ok(None),
            Err(_) => Err(ThreadGone),
        }
    }

    /// Whether a worker will never do what it was told.
    pub(crate) fn has_panicked(&self) -> bool {
        self.crew.has_panicked()
    }

    pub(crate) fn count(&self) -> usize {
        self.crew.len()
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
            lists.push(self.wait(&self.returns)?);
            self.outstanding -= 1;
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

    /// Has all workers write what is changed by now.
    pub(crate) fn write_back(&self) -> Result<WritingBack, ThreadGone> {
        let (answer, answers) = unbounded();
        for worker in 0..self.count() {
            self.send(worker, Message::WriteBack(answer.clone()))?;
        }
        Ok(WritingBack { crew: Arc::clone(&self.crew), answers, left: self.count() })
    }

    /// Has the pages' owners copy them, as they are when all they were told is done. Each answers once,
    /// with nothing for a page that is not there or cannot be read.
    pub(crate) fn read(&self, keys: &[PageKey]) -> Result<Receiver<PageCopy>, ThreadGone> {
        let (answer, answers) = unbounded();
        for key in keys {
            let owner = owner_of(key.fork, key.block, self.count());
            self.send(owner, Message::Read(*key, answer.clone()))?;
        }
        Ok(answers)
    }

    fn send(&self, worker: usize, message: Message) -> Result<(), ThreadGone> {
        Ok(self.crew.tell(worker, message)?)
    }

    fn latest(&self, answers: &Receiver<Lsn>) -> Result<Lsn, ThreadGone> {
        let mut latest = Lsn::INVALID;
        for _ in 0..self.count() {
            latest = latest.max(self.wait(answers)?);
        }
        Ok(latest)
    }
}

/// Workers that write what was changed when they were told.
pub(crate) struct WritingBack {
    crew: Arc<Crew>,
    pub(crate) answers: Receiver<Written>,
    left: usize,
}

impl WritingBack {
    /// Whether all have written.
    pub(crate) const fn is_done(&self) -> bool {
        self.left == 0
    }

    /// Takes an answer. Gives the worker who waits, and until where rows must be durable for him.
    ///
    /// # Errors
    /// The worker could not write; why, it has said.
    pub(crate) fn take(&mut self, written: Written) -> Result<Option<(usize, Lsn)>, NotWritten> {
        match written {
            Written::All => self.left -= 1,
            Written::Failed => return Err(NotWritten),
            Written::Held { worker, until } => return Ok(Some((worker, until))),
        }
        Ok(None)
    }

    /// What the worker waits for has come.
    pub(crate) fn go_on(&self, worker: usize) -> Result<(), ThreadGone> {
        Ok(self.crew.tell(worker, Message::WriteHeld)?)
    }
}

/// A worker could not write its pages, or must not after a failure.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NotWritten;

impl Drop for Workers {
    fn drop(&mut self) {
        self.crew.end();
        for thread in self.threads.drain(..) {
            drop(thread.join()); // it catches panics
        }
        self.crew.dismiss();
    }
}

//! The crew: the threads that run the workers.
//!
//! A worker is not a thread. It has pages and an inbox, and is run by one thread at a time, whichever
//! is free: a thread of the crew, or the dispatcher's, when it would have to wait otherwise. So as
//! many threads as there are cores are enough to keep them busy, and a core does not sleep because
//! the scheduler has two of them wait for another one.
//!
//! ```text
//!  tell(1, message) ─► inbox of worker 1           ready: 1, 0
//!                                                     │
//!  a thread   takes worker 1 from its seat ◄──────────┘
//!             lets it work, puts it back               nothing ready? side work. None? sleep.
//! ```
//!
//! A worker's number is in `ready` at most once, and not while it is being run: whoever tells it
//! something meanwhile leaves it to that thread to look again. First come, first served: workers
//! that fall behind each other would have the last one work alone at the end.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

use crossbeam_channel::Sender;

use crate::worker::{Message, Worker};

/// Work of others that a store's threads do beside their own, a piece at a time. After a panic it is
/// not asked for any more; that is for its owner to notice.
pub trait SideWork: Send + Sync {
    /// Does a piece that somebody is about to wait for; `false` if there is none. Asked before each
    /// piece of the store's own work.
    fn urgent(&self) -> bool;

    /// Does a piece that will be of use; `false` if there is none. Asked when the store's threads
    /// have nothing to do, and not again before they have had something.
    fn idle(&self) -> bool;
}

/// Who is run by a thread of the crew: one at a time, whichever is free.
pub(crate) trait Member: Send {
    /// Does some of what it was told, if there is anything.
    fn work(&mut self);

    /// Whether it has more to do than what is in its inbox.
    fn has_more(&self) -> bool;

    /// Gets some memory that it may need; `false` if it has enough.
    fn prepare(&mut self) -> bool;
}

pub(crate) struct Crew<M = Worker> {
    seats: Vec<Seat<M>>,
    state: Mutex<State>,
    /// There is something in `ready`, or the end has come.
    changed: Condvar,
    side_work: OnceLock<Arc<dyn SideWork>>,
    has_panicked: AtomicBool,
    side_work_has_panicked: AtomicBool,
}

/// A worker's place while nobody runs it.
struct Seat<M> {
    inbox: Sender<Message>,
    /// Whether its number is in `ready`, or it is being run.
    is_due: AtomicBool,
    /// Nothing while it is being run, and after a panic.
    worker: Mutex<Option<Box<M>>>,
}

#[derive(Default)]
struct State {
    ready: VecDeque<usize>,
    sleeping: usize,
    is_over: bool,
}

/// Nobody runs the worker any more: it has panicked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WorkerGone;

impl<M: Member> Crew<M> {
    /// A crew for workers with these inboxes, who [take their seats](Self::seat) later.
    pub(crate) fn new(inboxes: Vec<Sender<Message>>) -> Self {
        let seat = |inbox| Seat { inbox, is_due: AtomicBool::new(false), worker: Mutex::new(None) };
        Self {
            seats: inboxes.into_iter().map(seat).collect(),
            state: Mutex::default(),
            changed: Condvar::new(),
            side_work: OnceLock::new(),
            has_panicked: AtomicBool::new(false),
            side_work_has_panicked: AtomicBool::new(false),
        }
    }

    /// How many workers there are.
    pub(crate) const fn len(&self) -> usize {
        self.seats.len()
    }

    pub(crate) fn seat(&self, number: usize, worker: M) {
        *lock(&self.seats[number].worker) = Some(Box::new(worker));
    }

    /// Only the first call counts.
    pub(crate) fn set_side_work(&self, work: Arc<dyn SideWork>) {
        let _ = self.side_work.set(work);
    }

    /// Whether a worker has panicked: what it was told will never be done.
    pub(crate) fn has_panicked(&self) -> bool {
        self.has_panicked.load(Ordering::SeqCst)
    }

    /// Puts a message into a worker's inbox and sees to it that somebody runs it.
    pub(crate) fn tell(&self, number: usize, message: Message) -> Result<(), WorkerGone> {
        let seat = &self.seats[number];
        seat.inbox.send(message).map_err(|_| WorkerGone)?;
        self.make_ready(number);
        Ok(())
    }

    fn make_ready(&self, number: usize) {
        if self.seats[number].is_due.swap(true, Ordering::SeqCst) {
            return;
        }
        let is_somebody_asleep = {
            let mut state = lock(&self.state);
            state.ready.push_back(number);
            state.sleeping > 0
        };
        if is_somebody_asleep {
            self.changed.notify_one();
        }
    }

    /// Does a piece of what there is to do; `false` if there is nothing. Panics end here.
    pub(crate) fn help(&self) -> bool {
        self.do_side_work(|work| work.urgent())
            || ends_well(|| self.run_one(), &self.has_panicked)
            || self.do_side_work(|work| work.idle())
            || ends_well(|| self.prepare_one(), &self.has_panicked)
    }

    fn do_side_work(&self, piece: fn(&dyn SideWork) -> bool) -> bool {
        match self.side_work.get() {
            Some(work) if !self.side_work_has_panicked.load(Ordering::Relaxed) => {
                ends_well(|| piece(&**work), &self.side_work_has_panicked)
            }
            _ => false,
        }
    }

    fn run_one(&self) -> bool {
        let number = lock(&self.state).ready.pop_front();
        let Some(number) = number else { return false };
        self.run(number, |member| {
            member.work();
            true
        });
        true
    }

    /// Lets a worker that is not due get memory for pages that may come; `false` if all have enough.
    fn prepare_one(&self) -> bool {
        (0..self.seats.len()).any(|number| {
            !self.seats[number].is_due.swap(true, Ordering::SeqCst)
                && self.run(number, M::prepare) == Some(true)
        })
    }

    /// Lets a worker do a piece; nothing if it has panicked before. The caller has seen to it that
    /// nobody else runs it.
    fn run(&self, number: usize, piece: fn(&mut M) -> bool) -> Option<bool> {
        let seat = &self.seats[number];
        // Taken out, so that it is gone, with its inbox, should it panic.
        let mut worker = lock(&seat.worker).take()?;
        let outcome = piece(&mut worker);
        // Asked here, whatever the piece was: whoever else would make it ready saw that it was due.
        let has_more = worker.has_more();
        *lock(&seat.worker) = Some(worker);
        seat.is_due.store(false, Ordering::SeqCst);
        if has_more || !seat.inbox.is_empty() {
            self.make_ready(number);
        }
        Some(outcome)
    }

    /// What a thread of the crew does until the end.
    pub(crate) fn serve(&self) {
        loop {
            while self.help() && !lock(&self.state).is_over {}
            let mut state = lock(&self.state);
            while state.ready.is_empty() && !state.is_over {
                state.sleeping += 1;
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.sleeping -= 1;
            }
            if state.is_over {
                return;
            }
        }
    }

    /// Lets the crew's threads end, whatever is left to do.
    pub(crate) fn end(&self) {
        lock(&self.state).is_over = true;
        self.changed.notify_all();
    }

    /// Lets the workers go. They know the crew, so it would keep itself alive.
    pub(crate) fn dismiss(&self) {
        for seat in &self.seats {
            drop(lock(&seat.worker).take());
        }
    }
}

/// Gives what `work` gives, or false and raises the flag if it panics. What was in use then is gone
/// with its worker, or knows of panics itself.
fn ends_well(work: impl FnOnce() -> bool, has_panicked: &AtomicBool) -> bool {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_reported| {
        has_panicked.store(true, Ordering::SeqCst);
        false
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Duration;

    use crossbeam_channel::{Receiver, unbounded};

    use super::*;

    const STEPS: u32 = 200_000;

    /// Told once, it has a lot to do, a step at a time.
    struct Counting {
        inbox: Receiver<Message>,
        left: u32,
        answer: Option<Sender<walfmt::Lsn>>,
    }

    impl Member for Counting {
        fn work(&mut self) {
            if let Ok(Message::Pass(answer)) = self.inbox.try_recv() {
                (self.left, self.answer) = (STEPS, Some(answer));
            }
            self.left = self.left.saturating_sub(1);
            if self.left == 0
                && let Some(answer) = self.answer.take()
            {
                answer.send(walfmt::Lsn(1)).expect("somebody waits");
            }
        }

        fn has_more(&self) -> bool {
            self.left > 0
        }

        /// Always: so that two threads are after each worker.
        fn prepare(&mut self) -> bool {
            true
        }
    }

    #[test]
    fn what_is_left_to_do_is_not_forgotten_while_memory_is_prepared() {
        let (senders, inboxes): (Vec<_>, Vec<_>) = (0..2).map(|_| unbounded()).unzip();
        let crew = Arc::new(Crew::new(senders));
        for (number, inbox) in inboxes.into_iter().enumerate() {
            crew.seat(number, Counting { inbox, left: 0, answer: None });
        }
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| crew.serve());
            }
            for _ in 0..5 {
                let (answer, answers) = unbounded();
                for number in 0..2 {
                    assert!(crew.tell(number, Message::Pass(answer.clone())).is_ok());
                }
                let both = (0..2).all(|_| answers.recv_timeout(Duration::from_secs(60)).is_ok());
                if !both {
                    crew.end();
                }
                assert!(both, "a worker was forgotten");
            }
            crew.end();
        });
    }
}

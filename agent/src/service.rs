//! The conversation with systemd: `Type=notify` and its watchdog. Without `NOTIFY_SOCKET` nothing is
//! said.
//!
//! **READY** once all doors are open and no stage is getting ready any more. A stage that waits or
//! tries again has said so, and the agent serves what it has: a follower whose leader is down is
//! ready. Until then systemd is asked for more time, for as long as the stages show signs of life:
//! there is no limit for how long the recovery of an archive or a store may take.
//!
//! **The watchdog** is there for what no stage can report: a hang of ours. Two threads that wait for
//! each other, a wakeup that got lost, a loop that never ends. A new process mends those, since all
//! that matters is on disk. So it is fed only while the runtime turns, which it shows by running this
//! task, and while every loop with a [`Heart`](crate::stage::heart::Heart) has shown a sign of life
//! within half of the watchdog's time.
//!
//! It is not there for what is slow, or broken, outside:
//!
//! - *A disk that is slow or dies.* A restart point may have to write gigabytes that the kernel has
//!   gathered, and a sync on a dying disk may hang for minutes. A new process would wait for the same
//!   disk, and begin the same work from its start. Nor could the old one be killed: a thread that
//!   waits for the disk takes no signal. So it is a sign of life, too, if the kernel says that one of a
//!   silent stage's *own* threads waits for the disk (state `D`). Only its own: a replay that hangs is
//!   not excused by a tail that syncs all day.
//! - *A peer or a server that is silent.* The protocol has its own limits for that, and `horizon`,
//!   which waits for the server's answers, has no heart: it is a metric, and the server may be stopped.
//! - *Nothing to do.* A loop that waits for work in a queue rests.
//!
//! What is left is work on the processor alone. The longest pieces between two beats are a megabyte
//! of WAL, and reading the archive's last segment at start: seconds, on a machine that is busy with
//! something else. The unit gives the watchdog two minutes, so a stage may be silent for one, and a
//! hang is over after three at most.
//!
//! **A stop** takes as long as there are such signs, too, and systemd is asked for more time: see
//! [`stop`](crate::stop).

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sd_notify::NotifyState;

use crate::node::{Lag, Node};
use crate::stage::heart::Silence;
use crate::stage::{Report, State};

/// How often the stages are looked at before they are ready, and afterwards.
const STARTING_PAUSE: Duration = Duration::from_millis(50);
const READY_PAUSE: Duration = Duration::from_secs(1);
/// While starting and stopping, systemd is asked this often for this much more time.
pub(crate) const EXTEND_EVERY: Duration = Duration::from_secs(5);
const EXTENSION: Duration = Duration::from_secs(30);
/// The lag in the status line is this old at most. systemd tells it on to all who watch the unit.
const STATUS_EVERY: Duration = Duration::from_secs(2);
/// How long a stage may be silent if systemd does not watch: it is only logged.
const SILENCE_LIMIT: Duration = Duration::from_secs(60);
/// So many times within its time the watchdog is fed.
const FEEDS: u32 = 8;

/// Talks to systemd until the node stops.
pub(crate) async fn run(node: Arc<Node>) {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    let mut conversation = Conversation::new(sd_notify::watchdog_enabled());
    while !node.stopping() {
        let silent = silent_stages(&node, conversation.silence_limit()).await;
        let messages =
            conversation.round(Instant::now(), &node.stages.all(), node.lag().as_ref(), &silent);
        tell(messages).await;
        node.pause(conversation.pause()).await;
    }
}

/// Says that the node stops.
pub(crate) async fn stopping() {
    tell(vec![Message::Stopping]).await;
}

/// Says that the stop takes longer, and why that is no hang. systemd waits for [`EXTENSION`] from now on.
pub(crate) async fn still_stopping(stages: Vec<&'static str>) {
    let words = format!("stopping: {}", stages.join(", "));
    tell(vec![Message::MoreTime(EXTENSION), Message::Alive, Message::Status(words)]).await;
}

/// Sends messages in one datagram. That systemd does not listen changes nothing here.
async fn tell(messages: Vec<Message>) {
    if messages.is_empty() || std::env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    // In a thread that may wait: the socket's queue can be full.
    let told = tokio::task::spawn_blocking(move || {
        let states: Vec<NotifyState<'_>> = messages.iter().map(Message::as_state).collect();
        sd_notify::notify(&states)
    });
    if let Ok(Err(error)) = told.await {
        tracing::warn!("telling systemd: {error}");
    }
}

/// The stages that hang: silent for too long, and not because of the disk. They are looked at from
/// half of the limit on, since work on a disk is not all waiting for it.
async fn silent_stages(node: &Arc<Node>, limit: Duration) -> Vec<Silence> {
    let suspects = node.hearts.silent(limit / 2);
    if !suspects.is_empty() {
        let node = Arc::clone(node);
        // Reading /proc takes no disk, but these are files all the same.
        let looked = tokio::task::spawn_blocking(move || {
            for suspect in suspects.iter().filter(|suspect| waits_for_disk(suspect.threads)) {
                node.hearts.excuse(suspect.name);
            }
        });
        let _ = looked.await;
    }
    node.hearts.silent(limit)
}

/// Whether the kernel says that a thread of this process with such a name waits for the disk.
pub(crate) fn waits_for_disk(names: &[&str]) -> bool {
    let Ok(threads) = fs::read_dir("/proc/self/task") else { return false };
    threads.flatten().any(|thread| {
        let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        name_and_state(&stat).is_some_and(|(name, state)| {
            state == "D" && names.iter().any(|begin| name.starts_with(begin))
        })
    })
}

/// The second and third field of a `stat` in `/proc`: the name is in brackets, and may hold blanks
/// and brackets itself.
fn name_and_state(stat: &str) -> Option<(&str, &str)> {
    let (before, after) = stat.rsplit_once(')')?;
    Some((before.split_once('(')?.1, after.split_whitespace().next()?))
}

#[derive(Debug, PartialEq, Eq)]
enum Message {
    Ready,
    /// More time to start, or to stop.
    MoreTime(Duration),
    /// To feed the watchdog.
    Alive,
    Status(String),
    Stopping,
}

impl Message {
    fn as_state(&self) -> NotifyState<'_> {
        match self {
            Self::Ready => NotifyState::Ready,
            Self::MoreTime(more) => {
                NotifyState::ExtendTimeoutUsec(more.as_micros().try_into().unwrap_or(u32::MAX))
            }
            Self::Alive => NotifyState::Watchdog,
            Self::Status(words) => NotifyState::Status(words),
            Self::Stopping => NotifyState::Stopping,
        }
    }
}

/// What has been said, and so what is to be said next. No clock and no socket.
struct Conversation {
    /// How long the watchdog waits; nothing if there is none.
    watchdog: Option<Duration>,
    is_ready: bool,
    /// Whether the watchdog starves, and the log says why.
    is_starved: bool,
    fed: Option<Instant>,
    extended: Option<Instant>,
    /// The last status line, how much of it was the stages' states, and when it was said.
    status: Option<(String, usize, Instant)>,
}

impl Conversation {
    const fn new(watchdog: Option<Duration>) -> Self {
        Self {
            watchdog,
            is_ready: false,
            is_starved: false,
            fed: None,
            extended: None,
            status: None,
        }
    }

    /// How long a stage may be silent.
    fn silence_limit(&self) -> Duration {
        self.watchdog.map_or(SILENCE_LIMIT, |watchdog| watchdog / 2)
    }

    /// Until the next round.
    fn pause(&self) -> Duration {
        let pause = if self.is_ready { READY_PAUSE } else { STARTING_PAUSE };
        self.watchdog.map_or(pause, |watchdog| pause.min(watchdog / FEEDS))
    }

    fn round(
        &mut self,
        now: Instant,
        stages: &BTreeMap<&'static str, Report>,
        lag: Option<&Lag>,
        silent: &[Silence],
    ) -> Vec<Message> {
        let mut messages = Vec::new();
        self.log_silence(silent);
        let is_due = |last: Option<Instant>, pause| last.is_none_or(|last| now >= last + pause);
        if !self.is_ready {
            let is_starting = |report: &Report| report.state == State::Starting;
            if !stages.is_empty() && !stages.values().any(is_starting) {
                self.is_ready = true;
                messages.push(Message::Ready);
            } else if silent.is_empty() && is_due(self.extended, EXTEND_EVERY) {
                self.extended = Some(now);
                messages.push(Message::MoreTime(EXTENSION));
            }
        }
        if let Some(watchdog) = self.watchdog
            && silent.is_empty()
            && is_due(self.fed, watchdog / FEEDS)
        {
            self.fed = Some(now);
            messages.push(Message::Alive);
        }
        let states = states_of(stages);
        let words = format!("{states}{}", lag_words(lag));
        let is_known = self.status.as_ref().is_some_and(|(known, length, at)| {
            *known == words || (known[..*length] == states && now < *at + STATUS_EVERY)
        });
        if !is_known {
            self.status = Some((words.clone(), states.len(), now));
            messages.push(Message::Status(words));
        }
        messages
    }

    /// Says once that the watchdog starves, and why: the process may not live to say more.
    fn log_silence(&mut self, silent: &[Silence]) {
        if self.is_starved == silent.is_empty() {
            self.is_starved = !silent.is_empty();
            for Silence { name, lasts, .. } in silent {
                let seconds = lasts.as_secs();
                tracing::error!(
                    stage = name,
                    seconds,
                    "no sign of life, and it does not wait for the disk: the watchdog is not fed"
                );
            }
            if silent.is_empty() {
                tracing::info!("all stages show signs of life again");
            }
        }
    }
}

/// `receive streaming, replay stopped (what it says)`
fn states_of(stages: &BTreeMap<&'static str, Report>) -> String {
    let state_of = |(stage, report): (&&str, &Report)| {
        let label = report.state.label();
        // What is as it should be needs no words.
        if report.detail.is_empty() || report.state == State::Streaming {
            return format!("{stage} {label}");
        }
        // One line: systemd reads to its end.
        format!("{stage} {label} ({})", report.detail.replace(['\n', '\r'], " "))
    };
    stages.iter().map(state_of).collect::<Vec<_>>().join(", ")
}

fn lag_words(lag: Option<&Lag>) -> String {
    match lag {
        Some(Lag { bytes, seconds: Some(seconds), .. }) => {
            format!("; {bytes} bytes, {seconds:.1} s behind")
        }
        Some(Lag { bytes, seconds: None, .. }) => format!("; {bytes} bytes behind"),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::positions::Position;

    const WATCHDOG: Duration = Duration::from_secs(120);
    const REPLAY_HANGS: Silence = Silence { name: "replay", threads: &["replay"], lasts: WATCHDOG };

    fn stages(states: &[(&'static str, State)]) -> BTreeMap<&'static str, Report> {
        let report = |state| Report { state, detail: String::new(), hint: None, kind: None };
        states.iter().map(|(stage, state)| (*stage, report(*state))).collect()
    }

    #[test]
    fn ready_when_no_stage_is_starting_and_only_once() {
        let mut conversation = Conversation::new(None);
        let mut is_ready = |states: &[(&'static str, State)]| {
            let now = Instant::now();
            conversation.round(now, &stages(states), None, &[]).contains(&Message::Ready)
        };
        assert!(!is_ready(&[]));
        assert!(!is_ready(&[("tail", State::Starting), ("send", State::Streaming)]));
        assert!(is_ready(&[("tail", State::Streaming), ("send", State::Streaming)]));
        assert!(!is_ready(&[("tail", State::Streaming), ("send", State::Streaming)]));
    }

    #[test]
    fn a_follower_whose_leader_is_down_is_ready() {
        let down = [("receive", State::Retrying), ("replay", State::Streaming)];
        let stopped = [("receive", State::Waiting), ("replay", State::Stopped)];
        for states in [down, stopped] {
            let mut conversation = Conversation::new(None);
            let messages = conversation.round(Instant::now(), &stages(&states), None, &[]);
            assert!(messages.contains(&Message::Ready), "{messages:?}");
        }
    }

    #[test]
    fn more_time_is_asked_for_while_starting_unless_it_hangs() {
        let begun = Instant::now();
        let starting = stages(&[("replay", State::Starting)]);
        let mut conversation = Conversation::new(None);
        let mut asks = |after: Duration, silent: &[Silence]| {
            let messages = conversation.round(begun + after, &starting, None, silent);
            messages.contains(&Message::MoreTime(EXTENSION))
        };
        assert!(asks(Duration::ZERO, &[]));
        assert!(!asks(EXTEND_EVERY / 2, &[]));
        assert!(asks(EXTEND_EVERY, &[]));
        assert!(!asks(EXTEND_EVERY * 2, &[REPLAY_HANGS]));
        assert!(asks(EXTEND_EVERY * 2, &[]), "it goes on");
    }

    #[test]
    fn a_stage_that_hangs_starves_the_watchdog() {
        let begun = Instant::now();
        let running = stages(&[("replay", State::Streaming)]);
        let mut conversation = Conversation::new(Some(WATCHDOG));
        assert_eq!(conversation.silence_limit(), WATCHDOG / 2);
        assert!(conversation.pause() <= WATCHDOG / FEEDS);
        let mut fed = |seconds, silent: &[Silence]| {
            let now = begun + Duration::from_secs(seconds);
            conversation.round(now, &running, None, silent).contains(&Message::Alive)
        };
        let feeds = (0..120).filter(|second| fed(*second, &[])).count();
        assert_eq!(feeds, FEEDS as usize);
        assert!(!(120..360).any(|second| fed(second, &[REPLAY_HANGS])));
        assert!(fed(360, &[]), "it lives again");
    }

    #[test]
    fn without_a_watchdog_none_is_fed() {
        let mut conversation = Conversation::new(None);
        let running = stages(&[("tail", State::Streaming)]);
        assert!(!conversation.round(Instant::now(), &running, None, &[]).contains(&Message::Alive));
    }

    #[test]
    fn the_status_is_one_line_and_not_said_twice() {
        let begun = Instant::now();
        let mut reports = stages(&[("receive", State::Retrying), ("replay", State::Streaming)]);
        reports.get_mut("receive").expect("it is there").detail = "two\nlines".to_owned();
        let mut conversation = Conversation::new(None);
        let mut status = |after: Duration, reports: &BTreeMap<_, _>, bytes| {
            let lag = Lag { to: Position::Replayed, bytes, seconds: Some(0.25) };
            let messages = conversation.round(begun + after, reports, Some(&lag), &[]);
            messages.into_iter().find_map(|message| match message {
                Message::Status(words) => Some(words),
                _ => None,
            })
        };
        let words = "receive retrying (two lines), replay streaming; 7 bytes, 0.2 s behind";
        assert_eq!(status(Duration::ZERO, &reports, 7).as_deref(), Some(words));
        assert_eq!(status(STATUS_EVERY * 2, &reports, 7), None, "nothing new");
        assert!(status(STATUS_EVERY * 3, &reports, 8).is_some());
        assert_eq!(status(STATUS_EVERY * 3 + STATUS_EVERY / 2, &reports, 9), None, "too soon");
        assert!(status(STATUS_EVERY * 4, &reports, 9).is_some());
        // A state is always told.
        reports.get_mut("receive").expect("it is there").state = State::Streaming;
        let words = "receive streaming, replay streaming; 9 bytes, 0.2 s behind";
        assert_eq!(status(STATUS_EVERY * 4, &reports, 9).as_deref(), Some(words));
    }

    /// Of a thread of this process, by its name.
    fn state_of(wanted: &str) -> Option<String> {
        let threads = fs::read_dir("/proc/self/task").expect("the threads").flatten();
        let stats = threads.map(|thread| fs::read_to_string(thread.path().join("stat")));
        stats.flatten().find_map(|stat| {
            let (name, state) = name_and_state(&stat)?;
            (name == wanted).then(|| state.to_owned())
        })
    }

    #[test]
    fn who_waits_for_the_disk_is_read_from_the_kernel() {
        assert_eq!(name_and_state("12 (store-0) D 1 12 12"), Some(("store-0", "D")));
        assert_eq!(name_and_state("12 (a) b (c) S 1"), Some(("a) b (c", "S")));
        assert_eq!(name_and_state(""), None);
        // A thread that waits for another does not wait for the disk. Looked at when it waits: before
        // that it has no name yet, and may wait for a page of the program.
        let (wake, sleep) = std::sync::mpsc::channel::<()>();
        let sleeper = std::thread::Builder::new().name("sleeper".to_owned());
        let sleeper = sleeper.spawn(move || sleep.recv()).expect("a thread");
        while state_of("sleeper").as_deref() != Some("S") {
            std::thread::yield_now();
        }
        assert!(!waits_for_disk(&["sleeper"]));
        drop(wake);
        assert!(sleeper.join().is_ok());
    }
}

//! The end of a node: how long its stages are waited for.
//!
//! A stage that stops writes what it has gathered, and the last restart point syncs whole file systems:
//! with what everybody else has written there. That takes as long as the disk takes. To go before that is
//! to stop uncleanly, and saves nothing: see [`service`](crate::service) for why. So the stages are waited
//! for as long as one of those that are left shows signs of life: its heart beats, or the kernel says that
//! one of its threads waits for the disk. They wait for each other, so one that lives is enough.
//!
//! Without such a sign for [`SILENCE_LIMIT`] the process goes without them, and says so: they hang.

use std::thread;
use std::time::{Duration, Instant};

use crate::service;
use crate::stage::heart::Hearts;
use crate::trouble::{Kind, Trouble};

/// How long none of the stages that are left may show a sign of life before the process does without
/// them. systemd waits longer, see TimeoutStopSec= in the unit.
const SILENCE_LIMIT: Duration = Duration::from_secs(20);
/// How often it is looked whether a stage has ended, and whether those that are left show signs of life.
const LOOK_PAUSE: Duration = Duration::from_millis(5);
const SIGN_PAUSE: Duration = Duration::from_millis(50);

/// A stage, by the name of its thread.
pub(crate) type StageThread = (&'static str, thread::JoinHandle<()>);

/// Waits until all stages have ended; an error if some are left behind. Tells systemd that it takes longer.
pub(crate) fn wait(
    threads: Vec<StageThread>,
    hearts: &Hearts,
    runtime: &tokio::runtime::Runtime,
) -> Result<(), Trouble> {
    let mut told = Instant::now();
    let mut tell = |names: &[&'static str]| {
        if told.elapsed() >= service::EXTEND_EVERY {
            told = Instant::now();
            tracing::info!(stages = names.join(", "), "still stopping");
            // No stop waits for systemd.
            runtime.spawn(service::still_stopping(names.to_vec()));
        }
    };
    let lives = |name, since| {
        hearts.has_beaten(name, since) || service::waits_for_disk(&hearts.threads_with(name))
    };
    judge(&wait_while_alive(threads, SILENCE_LIMIT, lives, &mut tell))
}

/// What it means that these are left behind.
fn judge(left: &[&'static str]) -> Result<(), Trouble> {
    if left.is_empty() {
        return Ok(());
    }
    for stage in left {
        tracing::error!(stage, "no sign of life, and it does not wait for the disk: left behind");
    }
    let words = format_args!("did not stop: {}", left.join(", "));
    Err(Trouble::new(Kind::Io, words)
        .with_hint("what they have left undone is mended at the next start"))
}

/// Waits for threads as long as one of them `lives`, which is asked with how long ago it was asked
/// before, and for `limit` without a sign of that. Gives those that are left. `tell` is called at each
/// sign, with those that are waited for.
fn wait_while_alive(
    mut threads: Vec<StageThread>,
    limit: Duration,
    lives: impl Fn(&'static str, Duration) -> bool,
    tell: &mut impl FnMut(&[&'static str]),
) -> Vec<&'static str> {
    let begun = Instant::now();
    let (mut alive, mut looked) = (begun, begun);
    loop {
        // One time for all of a round: that this process was not let run is no silence.
        let now = Instant::now();
        let before = threads.len();
        threads.retain(|(_, thread)| !thread.is_finished());
        let names: Vec<&'static str> = threads.iter().map(|(name, _)| *name).collect();
        // That one has ended is a sign, too: others may have waited for it.
        let mut has_sign = threads.len() < before;
        if now >= looked + SIGN_PAUSE || now >= alive + limit {
            has_sign |= names.iter().any(|name| lives(name, now - looked + SIGN_PAUSE));
            looked = now;
        }
        if names.is_empty() {
            return names;
        }
        if has_sign {
            alive = now;
            tell(&names);
        }
        if now >= alive + limit {
            return names;
        }
        thread::sleep(LOOK_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const LIMIT: Duration = Duration::from_millis(300);
    /// So many looks last longer than the limit.
    const SIGNS: u32 = 12;

    /// A stage that ends when the sender is gone.
    fn stage(name: &'static str) -> (StageThread, mpsc::Sender<()>) {
        let (end, ended) = mpsc::channel();
        ((name, thread::spawn(move || while ended.recv().is_ok() {})), end)
    }

    #[test]
    fn a_stage_is_waited_for_as_long_as_it_lives_and_no_longer() {
        for is_alive in [true, false] {
            let ((tail, end_tail), (replay, end_replay)) = (stage("tail"), stage("replay"));
            drop(end_tail);
            while !tail.1.is_finished() {
                thread::yield_now();
            }
            let mut end_replay = Some(end_replay);
            let mut signs = 0;
            let lives = |name, _| is_alive && name == "replay";
            let mut tell = |names: &[&'static str]| {
                assert!(names.contains(&"replay"));
                signs += 1;
                if signs == SIGNS {
                    end_replay.take();
                }
            };
            let begun = Instant::now();
            let left = wait_while_alive(vec![tail, replay], LIMIT, lives, &mut tell);
            assert!(begun.elapsed() >= LIMIT);
            if is_alive {
                assert_eq!(left, [""; 0]);
                assert!(signs >= SIGNS);
            } else {
                // The control: it hangs, and systemd is not asked for more time but when the other one ends.
                assert_eq!(left, ["replay"]);
                assert_eq!(signs, 1);
            }
            println!("alive: {is_alive}; {signs} signs in {:?}, left {left:?}", begun.elapsed());
        }
    }

    #[test]
    fn a_heart_that_beats_is_a_sign_of_life_and_one_that_rests_is_none() {
        let (hearts, long) = (Hearts::default(), Duration::from_secs(3600));
        let heart = hearts.start("replay", &["replay", "store-"]);
        assert!(hearts.has_beaten("replay", long));
        assert!(!hearts.has_beaten("tail", long));
        assert_eq!(hearts.threads_with("replay"), ["replay", "store-"]);
        assert_eq!(hearts.threads_with("decode"), ["decode"]);
        // The beat is older by and by.
        while hearts.has_beaten("replay", Duration::from_millis(10)) {
            thread::sleep(LOOK_PAUSE);
        }
        heart.rest();
        assert!(!hearts.has_beaten("replay", long));
    }

    #[test]
    fn who_leaves_a_stage_behind_has_failed() {
        assert!(judge(&[]).is_ok());
        let trouble = judge(&["replay"]).expect_err("it is left behind");
        assert_eq!(trouble.exit_status(), 1);
        assert!(trouble.to_string().contains("replay"), "{trouble}");
    }
}

//! A consumer of `walferry decode --follow` that is killed again and again, and goes on behind the last
//! whole line it has.

use std::collections::BTreeSet;
use std::io::Read;
use std::process::{ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rand::RngExt;
use rand::rngs::StdRng;
use walfmt::Lsn;

/// Where a line stands: where its transaction's commit begins, and its number there.
pub type LinePosition = (Lsn, u64);

/// What the consumer has, and what happened to it.
#[derive(Debug, Default)]
pub struct Consumed {
    /// Whole lines, in the order they came.
    pub lines: Vec<String>,
    /// How often it was killed.
    pub kills: u32,
    /// When a transaction was told in part.
    pub kills_within: u32,
    /// When the last line that came was not whole.
    pub torn_lines: u32,
    /// When it had nothing to do.
    pub idle_kills: u32,
    /// Rows of tables whose shape was not told since the last start, in words.
    pub untold_shapes: Vec<String>,
}

/// Consumes until a line has come that `is_last`. `command` gives `walferry decode --follow`.
///
/// # Errors
/// It ends by itself, or the last line has not come when `gives_up` says that it will not.
pub fn consume(
    command: impl Fn() -> Command,
    is_last: &str,
    mut generator: StdRng,
    gives_up: impl Fn() -> bool,
) -> Result<Consumed> {
    let mut consumed = Consumed::default();
    // On a slow machine it takes more than a moment until the first line can come.
    let mut slowness = 1;
    loop {
        let mut command = command();
        if let Some((commit, ordinal)) = consumed.last_position()? {
            command.arg("--after").arg(format!("{commit}/{ordinal}"));
        }
        // From some kB to many MB, each power of two as likely as another; and not for long if there is
        // nothing to read.
        let bytes = 1_usize << generator.random_range(15..27);
        let bytes = generator.random_range(bytes / 2..bytes);
        let patience = Duration::from_millis(generator.random_range(100..1500)) * slowness;
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let output = child.stdout.take().context("piped")?;
        let (sender, blocks) = sync_channel(0);
        let reader = std::thread::spawn(move || pass_on(output, &sender));
        let mut text = Vec::new();
        let reason = read_blocks(&blocks, bytes, patience, is_last, &mut text);
        if reason != Reason::Ended {
            child.kill()?;
        }
        let status = child.wait()?;
        drop(blocks);
        reader.join().expect("no panic");
        let before = consumed.lines.len();
        consumed.take(text)?;
        slowness = if consumed.lines.len() > before { 1 } else { (slowness * 2).min(64) };
        if reason == Reason::Last {
            return Ok(consumed);
        }
        ensure!(reason != Reason::Ended, "walferry decode --follow has ended: {status}");
        consumed.kills += 1;
        consumed.idle_kills += u32::from(reason == Reason::Idle);
        consumed.kills_within += u32::from(consumed.is_within_transaction());
        ensure!(!gives_up(), "the last line did not come");
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    Last,
    Enough,
    Idle,
    Ended,
}

/// One block after the other, each when the one before was taken: so the other end has to wait.
fn pass_on(mut output: ChildStdout, sender: &SyncSender<Vec<u8>>) {
    let mut buffer = vec![0; 16 << 10];
    while let Ok(length @ 1..) = output.read(&mut buffer) {
        if sender.send(buffer[..length].to_vec()).is_err() {
            return;
        }
    }
}

fn read_blocks(
    blocks: &Receiver<Vec<u8>>,
    bytes: usize,
    patience: Duration,
    is_last: &str,
    text: &mut Vec<u8>,
) -> Reason {
    let deadline = Instant::now() + patience;
    let mut looked = 0;
    while text.len() < bytes {
        let left = deadline.saturating_duration_since(Instant::now());
        match blocks.recv_timeout(left) {
            Ok(block) => text.extend(block),
            Err(RecvTimeoutError::Timeout) => return Reason::Idle,
            Err(RecvTimeoutError::Disconnected) => return Reason::Ended,
        }
        while let Some(length) = text[looked..].iter().position(|byte| *byte == b'\n') {
            let line = String::from_utf8_lossy(&text[looked..looked + length]);
            looked += length + 1;
            if line.contains(is_last) {
                text.truncate(looked);
                return Reason::Last;
            }
        }
    }
    Reason::Enough
}

impl Consumed {
    /// Takes what one run has printed, but for half a line at the end.
    fn take(&mut self, mut text: Vec<u8>) -> Result<()> {
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        self.torn_lines += u32::from(text.len() > whole);
        text.truncate(whole);
        let text = String::from_utf8(text).context("lines in UTF-8")?;
        let mut told = BTreeSet::new();
        for line in text.lines() {
            match kind_of(line) {
                "schema" => drop(told.insert(table_of(line))),
                "insert" | "update" | "delete" if !told.contains(&table_of(line)) => {
                    self.untold_shapes.push(line.chars().take(200).collect());
                }
                _ => {}
            }
            self.lines.push(line.to_owned());
        }
        Ok(())
    }

    fn last_position(&self) -> Result<Option<LinePosition>> {
        self.lines.last().map(|line| position_of(line)).transpose()
    }

    fn is_within_transaction(&self) -> bool {
        self.lines.last().is_some_and(|line| match kind_of(line) {
            "commit" => false,
            "message" | "sequence" => position_of(line).is_ok_and(|(_, ordinal)| ordinal > 0),
            _ => true,
        })
    }
}

/// Lines but for those of kind `schema`, which a consumer gets again when it goes on.
pub fn without_shapes<'a>(
    lines: impl IntoIterator<Item = &'a str>,
) -> impl Iterator<Item = &'a str> {
    lines.into_iter().filter(|line| kind_of(line) != "schema")
}

/// Holds that the lines are the same ones, that each stands behind the one before it, and so none
/// comes twice. Gives how many there are.
///
/// # Errors
/// The first line that is not so.
pub fn ensure_same<'a>(
    expected: impl IntoIterator<Item = &'a str>,
    found: impl IntoIterator<Item = &'a str>,
) -> Result<usize> {
    let mut expected = without_shapes(expected);
    let mut last = None;
    let mut count = 0;
    for line in without_shapes(found) {
        let position = position_of(line)?;
        ensure!(last < Some(position), "line {count} comes after {last:?}: {line}");
        let wanted = expected.next();
        ensure!(wanted == Some(line), "line {count} is {line}, not {wanted:?}");
        last = Some(position);
        count += 1;
    }
    let wanted = expected.next();
    ensure!(wanted.is_none(), "line {count} is missing: {wanted:?}");
    Ok(count)
}

/// Where a line stands.
///
/// # Errors
/// It does not say.
pub fn position_of(line: &str) -> Result<LinePosition> {
    let commit = part(line, "\"commit_lsn\":\"", "\"");
    let ordinal = part(line, "\"ordinal\":", ",");
    let position = commit.zip(ordinal).with_context(|| format!("no position: {line}"))?;
    Ok((position.0.parse()?, position.1.parse()?))
}

/// What kind of line.
#[must_use]
pub fn kind_of(line: &str) -> &str {
    part(line, "{\"kind\":\"", "\"").unwrap_or_default()
}

/// Schema and name, as they stand in the line.
fn table_of(line: &str) -> Option<(&str, &str)> {
    Some((part(line, ",\"schema\":\"", "\"")?, part(line, ",\"table\":\"", "\"")?))
}

fn part<'a>(line: &'a str, before: &str, behind: &str) -> Option<&'a str> {
    let (_, rest) = line.split_once(before)?;
    rest.split_once(behind).map(|(part, _)| part)
}

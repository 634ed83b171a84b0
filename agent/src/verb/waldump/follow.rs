//! Goes on with WAL that is being written: by a server into a preallocated segment, or into a file that
//! grows.

use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use walfmt::wal_page::page_start;
use walfmt::{Lsn, Stop, StopKind};

use super::printer::Printer;
use super::reader::{Context, Part, Reader, Unit, Why};
use crate::trouble::Trouble;

/// How often it is looked for more.
const INTERVAL: Duration = Duration::from_millis(50);
/// How often it is looked whether a history file leads away from the timeline.
const WAY_INTERVAL: Duration = Duration::from_secs(1);
/// How much is read at a time.
const READ_BYTES: usize = 64 << 10;

/// Whether more may come where reading ended.
pub(super) fn waits_for_more(why: &Why) -> bool {
    match why {
        Why::Stop(Stop { kind, .. }) => matches!(kind, StopKind::End | StopKind::Torn),
        Why::NoSegment { .. } | Why::FileEnds { .. } => true,
        Why::Asked | Why::Limit | Why::Interrupted | Why::Unread | Why::Trouble(_) => false,
    }
}

/// Reads on behind what was printed, as it comes, until there is a reason to end. It is one that
/// [`waits_for_more`] if the timeline was left, as it may be if `may_leave`: then begin anew; or if WAL goes
/// on behind what cannot be read, on the same timeline: then that is the end.
pub(super) fn follow(
    context: &Context,
    printer: &mut Printer<'_>,
    may_leave: bool,
    interrupted: &AtomicBool,
) -> Why {
    // Records that were printed already are read again, as far as they are on the same page.
    let position = printer.last.map_or(context.start, |(_, end)| end);
    let origin = page_start(position);
    let unit = Unit { from: position, to: Lsn(u64::MAX) };
    let mut reader = Reader::new(context);
    let mut stream = context.stream(origin);
    let mut seen = Part::default();
    let mut looked = Instant::now();
    let mut checked = Instant::now();
    // Where WAL could not be read though it went on behind, when that was looked at last.
    let mut hidden_at = None;
    context.is_over.store(false, Ordering::Relaxed);
    loop {
        let at = stream.pushed_end();
        let mut bytes = Vec::with_capacity(READ_BYTES);
        let read = reader
            .read_bytes(at, READ_BYTES, &mut bytes)
            .and_then(|()| reader.look_at_page(at == origin, &bytes, at, &mut seen));
        let mut part = Part { version: seen.version, output: context.output(), ..Part::default() };
        let why = match read {
            Ok(()) => {
                stream.push(&bytes);
                reader.take(unit, printer.limit, &mut stream, &mut part).err()
            }
            Err(why) => Some(why),
        };
        part.first_timeline = stream.timeline();
        part.last_timeline = stream.timeline();
        if let Some(why) = printer.take(unit, part) {
            return why;
        }
        if interrupted.load(Ordering::Relaxed) {
            return Why::Interrupted;
        }
        let Some(why) = why else { continue };
        if !waits_for_more(&why) {
            return why;
        }
        if matches!(why, Why::Stop(_)) {
            // What was read may be written over.
            stream.rewind();
        }
        reader.forget();
        thread::sleep(INTERVAL);
        if checked.elapsed() >= WAY_INTERVAL {
            checked = Instant::now();
            let place = stream.record_end();
            match super::goes_on_behind(context, &why) {
                // Between two looks it was read again several times.
                Ok(true) if hidden_at == Some(place) => return why,
                Ok(goes_on) => hidden_at = goes_on.then_some(place),
                Err(trouble) => return Why::Trouble(trouble),
            }
        }
        if may_leave && looked.elapsed() >= WAY_INTERVAL {
            looked = Instant::now();
            match leave_timeline(context, stream.record_end()) {
                Ok(true) => return why,
                Ok(false) => {}
                Err(trouble) => return Why::Trouble(trouble),
            }
        }
    }
}

/// Takes another way, if there is one that shares what was read.
fn leave_timeline(context: &Context, position: Lsn) -> Result<bool, Trouble> {
    let way = context.way();
    // One that is being written may not be readable yet.
    let (newer, _) = context.place.newest_way(way.target)?;
    let left = newer.history.ancestors.iter().find(|ancestor| ancestor.timeline == way.target);
    let Some(left) = left else { return Ok(false) };
    if left.end < position {
        return Ok(false);
    }
    *context.way.write().unwrap_or_else(PoisonError::into_inner) = newer;
    Ok(true)
}

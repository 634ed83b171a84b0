//! `walferry waldump`: WAL as text, as `pg_waldump` of the major that wrote it prints it.
//!
//! ```text
//!            ┌► reader ─┐
//! units ─────┤          ├───► parts, in order ──► printer ──► standard output
//!            └► reader ─┘
//! ```
//!
//! WAL is cut into units at pages, which readers on all cores take one after the other; the printer puts
//! together what they give. At most [`UNITS_AHEAD`] units for each reader are under way, which bounds
//! memory. With `--follow`, and where records are counted to a limit, one reader does it alone.
//!
//! Rules: `src/bin/pg_waldump/pg_waldump.c`.

mod arguments;
mod file;
mod filter;
mod follow;
mod json;
mod place;
mod printer;
mod reader;
mod stats;
mod zone;

use std::collections::VecDeque;
use std::env;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Mutex, PoisonError, RwLock};
use std::thread;

use walfmt::rmgr::RmgrId;
use walfmt::wal_page::page_start;
use walfmt::{Lsn, SegmentName, StopKind, Timeline};

pub(crate) use self::arguments::Arguments;
use self::arguments::RmgrArgument;
use self::filter::Filter;
use self::place::{Place, Way, segment_of_file};
use self::printer::Printer;
use self::reader::{Context, Part, Reader, Show, Unit, Why};
use self::zone::LocalZone;
use crate::config::Config;
use crate::trouble::{Kind, Trouble};

/// How much WAL a reader takes at once. Its text is some times as long.
const UNIT_BYTES: u64 = 1 << 20;
/// The same where only counts come of it.
const COUNTED_UNIT_BYTES: u64 = 4 << 20;
/// How many units are under way for each reader: one that it reads, and others that wait to be read or
/// written.
const UNITS_AHEAD: usize = 3;

/// `config` is the file that was named on the command line, if one was.
pub(crate) fn run(config: Option<&Path>, arguments: &Arguments) -> Result<(), Trouble> {
    if arguments.rmgr.contains(&RmgrArgument::List) {
        let built_in = (0..=u8::MAX).map(RmgrId).filter(|rmgr| rmgr.name().is_some());
        let names: String = built_in.map(|rmgr| format!("{rmgr}\n")).collect();
        return match printer::write_out(names.as_bytes()) {
            Err(Why::Trouble(trouble)) => Err(trouble),
            _ => Ok(()),
        };
    }
    let context = context(config, arguments)?;
    let mut printer = Printer::new(
        &context,
        arguments.stats.filter(|_| context.show == Show::Stats),
        arguments.limit.filter(|&limit| limit > 0).unwrap_or(u64::MAX),
    );
    let interrupted = AtomicBool::new(false);
    let interrupted: &'static AtomicBool = Box::leak(Box::new(interrupted));
    if arguments.follow || context.show == Show::Stats {
        watch_for_interrupt(interrupted)?;
    }
    let mut why = read(&context, &mut printer, interrupted);
    if arguments.follow {
        let may_leave = arguments.timeline.is_none() && arguments.start_segment.is_none();
        while follow::waits_for_more(&why) {
            let way = context.way();
            why = follow::follow(&context, &mut printer, may_leave, interrupted);
            // On the same way there will be no more.
            if context.way() == way {
                break;
            }
        }
    }
    let why = printer.finish().unwrap_or(why);
    let ended = tell_end(&context, &printer, why, arguments);
    match (ended, printer.undescribed()) {
        (Ok(()), Some(undescribed)) => Err(undescribed),
        (ended, _) => ended,
    }
}

/// Where to read, and what.
fn context(config: Option<&Path>, arguments: &Arguments) -> Result<Context, Trouble> {
    let named = [&arguments.start_segment, &arguments.end_segment];
    let named: Vec<(SegmentName, String)> =
        named.into_iter().flatten().map(|path| segment_named(path)).collect::<Result<_, _>>()?;
    let place = Place::find(&directories(config, arguments)?, &named)?;
    let size = place.segment_size;

    let number = |name: SegmentName| {
        name.number(size).ok_or_else(|| {
            let words = format_args!(
                "there is no segment {name} where segments are {} bytes",
                size.bytes()
            );
            Trouble::misuse(words)
        })
    };
    let (mut start, mut end) = (arguments.start, arguments.end);
    if let Some((first, _)) = named.first() {
        let last = named.last().map_or(*first, |(last, _)| *last);
        let (from, to) = (number(*first)?, number(last)?);
        if to < from {
            return Err(Trouble::misuse(format_args!("{last} comes before {first}")));
        }
        if start.is_some_and(|start| size.segment_of(start) != from) {
            return Err(Trouble::misuse(format_args!("--start is not in {first}")));
        }
        if end.is_some_and(|end| size.segment_of(end) != to && end != size.end_of(to)) {
            return Err(Trouble::misuse(format_args!("--end is not in {last}")));
        }
        start = start.or(Some(size.start_of(from)));
        end = end.or(Some(size.end_of(to)));
    }
    let start = start.ok_or_else(|| {
        Trouble::misuse("it is not said where to begin").with_hint("give a segment, or --start")
    })?;
    let end = end.unwrap_or(Lsn(!7));
    if end < start {
        return Err(Trouble::misuse("the end comes before the start"));
    }

    let way = match (arguments.timeline, &named[..]) {
        (Some(timeline), _) => Way::stay(timeline),
        (None, [(first, _)]) => Way::stay(first.timeline),
        (None, [(first, _), (last, _), ..]) if first.timeline == last.timeline => {
            Way::stay(first.timeline)
        }
        (None, [_, (last, _), ..]) => place.way_to(last.timeline)?,
        (None, []) => {
            let (way, unreadable) = place.newest_way(Timeline(1))?;
            unreadable.iter().for_each(|trouble| say(&format!("not followed: {trouble}")));
            way
        }
    };
    let show = if arguments.quiet {
        Show::Nothing
    } else if arguments.stats.is_some() {
        Show::Stats
    } else if arguments.json {
        Show::Json
    } else {
        Show::Text { details: arguments.bkp_details }
    };
    Ok(Context {
        place,
        way: RwLock::new(way),
        start,
        end,
        filter: Filter::new(arguments),
        show,
        zone: LocalZone::of_machine(),
        is_over: AtomicBool::new(false),
        used: Mutex::default(),
    })
}

fn segment_named(path: &Path) -> Result<(SegmentName, String), Trouble> {
    let file = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let segment = segment_of_file(file).ok_or_else(|| {
        let words = format_args!("{} is not the name of a WAL segment", path.display());
        Trouble::misuse(words)
    })?;
    Ok((segment, file.to_owned()))
}

/// Where to look for WAL, in this order.
fn directories(config: Option<&Path>, arguments: &Arguments) -> Result<Vec<PathBuf>, Trouble> {
    let named = arguments.start_segment.as_deref().and_then(Path::parent);
    let named = named.filter(|parent| !parent.as_os_str().is_empty());
    if let Some(path) = arguments.path.as_deref().or(named) {
        if !path.is_dir() {
            return Err(Trouble::misuse(format_args!("{} is not a directory", path.display())));
        }
        return Ok(vec![path.to_owned()]);
    }
    if let Some(config) = config {
        return Ok(vec![Config::load(config)?.archive.directory]);
    }
    let data_directory = env::var_os("PGDATA").map(PathBuf::from);
    Ok([PathBuf::from(".")].into_iter().chain(data_directory).collect())
}

/// Reads to the end: of what was asked for, or of the WAL.
fn read(context: &Context, printer: &mut Printer<'_>, interrupted: &AtomicBool) -> Why {
    let bytes = match context.show {
        Show::Stats | Show::Nothing => COUNTED_UNIT_BYTES,
        Show::Text { .. } | Show::Json => UNIT_BYTES,
    };
    // So that a segment switch fills whole units.
    let bytes = bytes.min(context.place.segment_size.bytes());
    let mut next = page_start(context.start);
    let mut units = std::iter::from_fn(|| {
        let from = next;
        next = Lsn((from.0 / bytes).saturating_add(1).saturating_mul(bytes));
        (from < context.end && from < next).then_some(Unit { from, to: next })
    });
    let readers = thread::available_parallelism().map_or(1, usize::from);
    if printer.limit < u64::MAX || readers == 1 {
        let mut reader = Reader::new(context);
        for unit in units {
            let part = reader.read(unit, printer.limit);
            if let Some(why) = printer.take(unit, part) {
                return why;
            }
            if interrupted.load(Ordering::Relaxed) {
                return Why::Interrupted;
            }
        }
        return Why::Asked;
    }

    let (jobs, todo) = mpsc::sync_channel(readers * UNITS_AHEAD);
    let todo = Mutex::new(todo);
    thread::scope(|scope| {
        for _ in 0..readers {
            scope.spawn(|| work(context, &todo));
        }
        let mut under_way = VecDeque::new();
        let why = loop {
            while under_way.len() < readers * UNITS_AHEAD
                && let Some(unit) = units.next()
            {
                let (done, part) = mpsc::sync_channel(1);
                // There is room for as many as are under way.
                if jobs.send((unit, done)).is_ok() {
                    under_way.push_back((unit, part));
                }
            }
            let Some((unit, part)) = under_way.pop_front() else { break Why::Asked };
            let Ok(part) = part.recv() else {
                break Why::Trouble(Trouble::new(
                    Kind::Corrupt,
                    "a reader is gone: please report this",
                ));
            };
            if let Some(why) = printer.take(unit, part) {
                break why;
            }
            if interrupted.load(Ordering::Relaxed) {
                break Why::Interrupted;
            }
        };
        context.is_over.store(true, Ordering::Relaxed);
        drop(jobs);
        why
    })
}

type Job = (Unit, SyncSender<Part>);

fn work(context: &Context, todo: &Mutex<Receiver<Job>>) {
    let mut reader = Reader::new(context);
    loop {
        let job = todo.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((unit, done)) = job else { return };
        // Nobody takes it when it is over.
        let _ = done.send(reader.read(unit, u64::MAX));
    }
}

/// From now on SIGINT does not end the process, but is noted.
fn watch_for_interrupt(interrupted: &'static AtomicBool) -> Result<(), Trouble> {
    let failed = |error| Trouble::io("waiting for signals", error);
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(failed)?;
    let watch = move || {
        if runtime.block_on(tokio::signal::ctrl_c()).is_ok() {
            interrupted.store(true, Ordering::Relaxed);
        }
    };
    thread::Builder::new().name("signals".to_owned()).spawn(watch).map(drop).map_err(failed)
}

/// Says why there is no more, and whether that is what was asked for.
fn tell_end(
    context: &Context,
    printer: &Printer<'_>,
    why: Why,
    arguments: &Arguments,
) -> Result<(), Trouble> {
    let (at, words) = match why {
        Why::Asked if printer.first.is_none() => {
            let words = format_args!(
                "no record begins and ends between {} and {}",
                context.start, context.end
            );
            return Err(Trouble::new(Kind::NotThere, words));
        }
        Why::Asked | Why::Limit | Why::Interrupted | Why::Unread => return Ok(()),
        Why::Trouble(trouble) => return Err(trouble),
        Why::Stop(stop) => {
            let goes_on = goes_on_behind(context, &Why::Stop(stop.clone()))?;
            match stop.kind {
                StopKind::End if goes_on && printer.last.is_none() => {
                    let words = format_args!(
                        "no record from {} on in its segment: nothing was written there ({}), as behind a \
                         switch to the next one",
                        context.start, stop.fault
                    );
                    return Err(Trouble::new(Kind::NotThere, words)
                        .with_hint("begin with the next segment"));
                }
                StopKind::End if !goes_on => (
                    stop.at,
                    format!(
                        "the WAL ends at {}: nothing was written there ({})",
                        stop.at, stop.fault
                    ),
                ),
                StopKind::Torn if !goes_on => (
                    stop.at,
                    format!(
                        "the WAL ends at {}: the record that begins there is not whole ({})",
                        stop.at, stop.fault
                    ),
                ),
                _ => {
                    let words = format_args!("the WAL is damaged at {}: {}", stop.at, stop.fault);
                    return Err(Trouble::new(Kind::Corrupt, words).with_hint(
                        "get the segment from another copy; records behind the damage can be read \
                         with --start",
                    ));
                }
            }
        }
        Why::NoSegment { name, at } => {
            let end = printer.last.map_or(at, |(_, end)| end);
            if let Some(later) = later_segment(context, name)? {
                let words =
                    format_args!("segment {name} is missing behind {end}, though {later} is there");
                return Err(Trouble::new(Kind::NotThere, words));
            }
            (at, format!("the WAL ends at {end}: the next segment, {name}, is not there"))
        }
        Why::FileEnds { path, at } => {
            if goes_on_behind(context, &Why::FileEnds { path: path.clone(), at })? {
                let words =
                    format_args!("{path} ends at {at}, though the segment after it is there");
                return Err(Trouble::new(Kind::Corrupt, words)
                    .with_hint("get the segment from another copy"));
            }
            (at, format!("the WAL ends at {at}: so does {path}"))
        }
    };
    if printer.first.is_none() {
        let words = format_args!("no record at or after {}: {words}", context.start);
        return Err(Trouble::new(Kind::NotThere, words));
    }
    if arguments.end.is_some_and(|end| at < end) {
        return Err(Trouble::new(Kind::NotThere, words));
    }
    if !arguments.quiet {
        say(&words);
    }
    Ok(())
}

/// Whether WAL goes on behind the place where it cannot be read: then that is damage, or a gap, and no end.
///
/// A server writes page after page. What may lie behind the end is the rest of the one record that was being
/// written.
fn goes_on_behind(context: &Context, why: &Why) -> Result<bool, Trouble> {
    let (place, way) = (&context.place, context.way());
    let next = |at| place.segment_size.segment_of(at).next();
    match why {
        Why::Stop(stop) => Ok(place.has_begun(&way, next(stop.at))?
            || place.goes_on_within(&way, stop.at, stop.kind == StopKind::Torn)?),
        Why::FileEnds { at, .. } => place.has_begun(&way, next(*at)),
        Why::NoSegment { name, .. } => Ok(later_segment(context, *name)?.is_some()),
        _ => Ok(false),
    }
}

/// The first segment on the way that is there, of those behind this one.
fn later_segment(context: &Context, name: SegmentName) -> Result<Option<SegmentName>, Trouble> {
    let (size, way) = (context.place.segment_size, context.way());
    let segments = context.place.segments()?.into_iter();
    let is_later = |other: &SegmentName| other.number(size) > name.number(size);
    Ok(segments.filter(|other| is_later(other) && way.has(other.timeline)).min())
}

/// Tells whoever looks; nobody has to.
fn say(words: &str) {
    let _ = writeln!(io::stderr(), "walferry: {words}");
}

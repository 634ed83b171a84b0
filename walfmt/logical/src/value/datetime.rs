//! Dates, times and intervals.
//!
//! ```text
//! date          i32 days since 2000-01-01          lowest -infinity, highest infinity
//! time          i64 microseconds since midnight    up to and with 24:00:00
//! timetz        time, i32 seconds *west* of Greenwich
//! timestamp[tz] i64 microseconds since 2000-01-01  lowest -infinity, highest infinity
//! interval      i64 microseconds, i32 days, i32 months
//! ```
//!
//! Dates are those of the Gregorian calendar at all times; there is no year 0. In UTC a
//! `timestamptz` differs from a `timestamp` only by its `+00`.
//!
//! Rules: `src/backend/utils/adt/datetime.c` (`EncodeDateOnly`, `EncodeTimeOnly`,
//! `EncodeDateTime`, `EncodeInterval`), limits in `src/include/datatype/timestamp.h`. What is
//! printed is what 15 and 16 print: since 17 the highest and lowest intervals are infinite.

use walfmt::bytes::{i32_at, i64_at};

use super::ValueError;
use super::simple::decimal;

type Result = std::result::Result<(), ValueError>;

pub(super) fn date(datum: &[u8], out: &mut Vec<u8>) -> Result {
    match i32_at(datum, 0) {
        i32::MIN => out.extend_from_slice(b"-infinity"),
        i32::MAX => out.extend_from_slice(b"infinity"),
        days @ DATE_MIN..DATE_END => {
            let before_christ = append_date(i64::from(days), out);
            append_era(before_christ, out);
        }
        days => return Err(ValueError::Field { field: "date", found: i64::from(days) }),
    }
    Ok(())
}

pub(super) fn time(datum: &[u8], out: &mut Vec<u8>) -> Result {
    append_checked_time(i64_at(datum, 0), out)
}

pub(super) fn timetz(datum: &[u8], out: &mut Vec<u8>) -> Result {
    append_checked_time(i64_at(datum, 0), out)?;
    let zone = i32_at(datum, 8);
    if zone.unsigned_abs() >= ZONE_SECONDS_END {
        return Err(ValueError::Field { field: "zone", found: i64::from(zone) });
    }
    let seconds = zone.unsigned_abs();
    out.push(if zone <= 0 { b'+' } else { b'-' });
    append_two(seconds / 3600, out);
    if !seconds.is_multiple_of(3600) {
        out.push(b':');
        append_two(seconds / 60 % 60, out);
    }
    if !seconds.is_multiple_of(60) {
        out.push(b':');
        append_two(seconds % 60, out);
    }
    Ok(())
}

pub(super) fn timestamp(datum: &[u8], out: &mut Vec<u8>) -> Result {
    append_timestamp(i64_at(datum, 0), b"", out)
}

pub(super) fn timestamptz(datum: &[u8], out: &mut Vec<u8>) -> Result {
    append_timestamp(i64_at(datum, 0), b"+00", out)
}

/// Each part but the time only if it is not zero; after a negative part the next one shows its
/// sign even if it is positive.
pub(super) fn interval(datum: &[u8], out: &mut Vec<u8>) -> Result {
    let (time, days, months) = (i64_at(datum, 0), i32_at(datum, 8), i32_at(datum, 12));
    let (mut is_first, mut after_negative) = (true, false);
    for (value, unit) in [(months / 12, "year"), (months % 12, "mon"), (days, "day")] {
        if value == 0 {
            continue;
        }
        if !is_first {
            out.push(b' ');
        }
        if after_negative && value > 0 {
            out.push(b'+');
        }
        decimal(value, out);
        out.push(b' ');
        out.extend_from_slice(unit.as_bytes());
        if value != 1 {
            out.push(b's');
        }
        (is_first, after_negative) = (false, value < 0);
    }
    if is_first || time != 0 {
        if !is_first {
            out.push(b' ');
        }
        if time < 0 {
            out.push(b'-');
        } else if after_negative {
            out.push(b'+');
        }
        append_time(time.unsigned_abs(), out);
    }
    Ok(())
}

fn append_timestamp(microseconds: i64, zone: &[u8], out: &mut Vec<u8>) -> Result {
    match microseconds {
        i64::MIN => out.extend_from_slice(b"-infinity"),
        i64::MAX => out.extend_from_slice(b"infinity"),
        TIMESTAMP_MIN..TIMESTAMP_END => {
            let before_christ = append_date(microseconds.div_euclid(DAY), out);
            out.push(b' ');
            append_time(microseconds.rem_euclid(DAY).unsigned_abs(), out);
            out.extend_from_slice(zone);
            append_era(before_christ, out);
        }
        _ => return Err(ValueError::Field { field: "timestamp", found: microseconds }),
    }
    Ok(())
}

/// Appends the day `days` after 2000-01-01 without its era; gives whether that is before Christ.
///
/// Days are counted from 1 March of a year that begins a cycle of 400 years, so that a leap day
/// is the last of its year, and the months before it follow one pattern of five: 153 days.
fn append_date(days: i64, out: &mut Vec<u8>) -> bool {
    let days = days + DAYS_TO_2000_FROM_MARCH_0;
    let cycle = days.div_euclid(DAYS_IN_400_YEARS);
    let day = days.rem_euclid(DAYS_IN_400_YEARS);
    let year_of_cycle = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year_of_cycle + year_of_cycle / 4 - year_of_cycle / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = cycle * 400 + year_of_cycle + i64::from(month <= 2);

    let shown = if year > 0 { year } else { 1 - year };
    let ([m, o], [d, a]) = (two(month as u32), two(day_of_month as u32));
    if shown < 10_000 {
        let ([c, e], [y, r]) = (two((shown / 100) as u32), two((shown % 100) as u32));
        out.extend_from_slice(&[c, e, y, r, b'-', m, o, b'-', d, a]);
    } else {
        decimal(shown, out);
        out.extend_from_slice(&[b'-', m, o, b'-', d, a]);
    }
    year <= 0
}

fn append_era(before_christ: bool, out: &mut Vec<u8>) {
    if before_christ {
        out.extend_from_slice(b" BC");
    }
}

fn append_checked_time(microseconds: i64, out: &mut Vec<u8>) -> Result {
    if !(0..=DAY).contains(&microseconds) {
        return Err(ValueError::Field { field: "time", found: microseconds });
    }
    append_time(microseconds.unsigned_abs(), out);
    Ok(())
}

/// Appends hours, minutes, seconds, and their fraction without trailing zeros.
fn append_time(microseconds: u64, out: &mut Vec<u8>) {
    let seconds = microseconds / 1_000_000;
    let hours = seconds / 3600;
    let ([m, i], [s, e]) = (two((seconds / 60 % 60) as u32), two((seconds % 60) as u32));
    if hours < 100 {
        let [h, o] = two(hours as u32);
        out.extend_from_slice(&[h, o, b':', m, i, b':', s, e]);
    } else {
        decimal(hours, out);
        out.extend_from_slice(&[b':', m, i, b':', s, e]);
    }
    let fraction = (microseconds % 1_000_000) as u32;
    if fraction != 0 {
        let [a, b] = two(fraction / 10_000);
        let ([c, d], [e, f]) = (two(fraction / 100 % 100), two(fraction % 100));
        let text = [b'.', a, b, c, d, e, f];
        let zeros = text.iter().rev().take_while(|&&digit| digit == b'0').count();
        out.extend_from_slice(&text[..text.len() - zeros]);
    }
}

/// Appends a number below 100 with two digits.
#[inline]
fn append_two(value: u32, out: &mut Vec<u8>) {
    out.extend_from_slice(&two(value));
}

/// The two digits of a number below 100.
#[inline]
const fn two(value: u32) -> [u8; 2] {
    [b'0' + (value / 10 % 10) as u8, b'0' + (value % 10) as u8]
}

/// A day in microseconds.
const DAY: i64 = 86_400_000_000;
const DAYS_IN_400_YEARS: i64 = 146_097;
/// From 1 March of the year 0 (1 BC) to 2000-01-01.
const DAYS_TO_2000_FROM_MARCH_0: i64 = 730_425;
/// 4714-11-24 BC, the first Julian day, in days since 2000-01-01.
const DATE_MIN: i32 = -2_451_545;
/// 5874898-01-01, the first day that is none.
const DATE_END: i32 = 2_147_483_494 + DATE_MIN;
/// 4714-11-24 00:00:00 BC.
const TIMESTAMP_MIN: i64 = DATE_MIN as i64 * DAY;
/// 294277-01-01 00:00:00, the first time that is none.
const TIMESTAMP_END: i64 = (109_203_528 + DATE_MIN as i64) * DAY;
/// A zone is less than 16 hours from Greenwich.
const ZONE_SECONDS_END: u32 = 16 * 3600;

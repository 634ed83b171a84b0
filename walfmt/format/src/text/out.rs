//! Where text goes.

use std::io::Write;

use crate::lsn::{Lsn, Timeline, TransactionId};
use crate::relation::{DEFAULT_TABLESPACE, GLOBAL_TABLESPACE, RelFileLocator, RelFork};
use crate::version::Version;

/// A moment in some zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalTime {
    /// Seconds to add to UTC.
    pub offset: i32,
    /// The zone's abbreviation then (`%Z`).
    pub abbreviation: String,
}

/// The time zone that times are printed in: `pg_waldump` takes the machine's.
pub trait Zone {
    /// What the zone says at a moment, in seconds since 1970-01-01 UTC.
    fn at(&self, seconds: i64) -> LocalTime;
}

/// UTC.
#[derive(Clone, Copy, Debug, Default)]
pub struct Utc;

impl Zone for Utc {
    fn at(&self, _: i64) -> LocalTime {
        LocalTime { offset: 0, abbreviation: "UTC".to_owned() }
    }
}

/// Takes text. Its parts are those of C's `printf` that resource managers use, without `printf`'s price.
pub struct Out<'a> {
    bytes: &'a mut Vec<u8>,
    zone: &'a dyn Zone,
}

impl<'a> Out<'a> {
    /// Appends to `bytes`; times are in `zone`.
    #[must_use]
    pub fn new(bytes: &'a mut Vec<u8>, zone: &'a dyn Zone) -> Self {
        Self { bytes, zone }
    }

    /// What was written so far, and before.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.bytes
    }

    /// `%s`
    #[inline]
    pub fn text(&mut self, text: &str) -> &mut Self {
        self.raw(text.as_bytes())
    }

    /// `%s` of bytes as they are: names in the server's encoding.
    #[inline]
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// `%u`
    #[inline]
    pub fn uint(&mut self, number: impl Into<u64>) -> &mut Self {
        self.raw(itoa::Buffer::new().format(number.into()).as_bytes())
    }

    /// `%d`
    #[inline]
    pub fn int(&mut self, number: impl Into<i64>) -> &mut Self {
        self.raw(itoa::Buffer::new().format(number.into()).as_bytes())
    }

    /// `%x`
    pub fn hex(&mut self, number: impl Into<u64>) -> &mut Self {
        self.hexadecimal(number.into(), 1, b"0123456789abcdef")
    }

    /// `%02x`, with as many digits at least.
    pub fn hex_padded(&mut self, number: impl Into<u64>, digits: usize) -> &mut Self {
        self.hexadecimal(number.into(), digits, b"0123456789abcdef")
    }

    /// `%X`
    pub fn hex_upper(&mut self, number: impl Into<u64>) -> &mut Self {
        self.hexadecimal(number.into(), 1, b"0123456789ABCDEF")
    }

    /// `%02X`, with as many digits at least.
    pub fn hex_upper_padded(&mut self, number: impl Into<u64>, digits: usize) -> &mut Self {
        self.hexadecimal(number.into(), digits, b"0123456789ABCDEF")
    }

    fn hexadecimal(&mut self, number: u64, least: usize, digits: &[u8; 16]) -> &mut Self {
        let needed = (u64::BITS - (number | 1).leading_zeros()).div_ceil(4) as usize;
        let mut text = [b'0'; 16];
        let mut rest = number;
        for place in text.iter_mut().rev().take(needed) {
            *place = digits[(rest & 0xF) as usize];
            rest >>= 4;
        }
        self.raw(&text[16 - needed.max(least).min(16)..])
    }

    /// `%-11s`, with this width.
    pub fn left(&mut self, text: &str, width: usize) -> &mut Self {
        self.text(text).spaces(width.saturating_sub(text.len()))
    }

    /// `%6u`, with this width.
    pub fn right(&mut self, number: impl Into<u64>, width: usize) -> &mut Self {
        let mut buffer = itoa::Buffer::new();
        let digits = buffer.format(number.into());
        self.spaces(width.saturating_sub(digits.len())).text(digits)
    }

    fn spaces(&mut self, count: usize) -> &mut Self {
        self.bytes.resize(self.bytes.len() + count, b' ');
        self
    }

    /// `%X/%X` of both halves.
    pub fn lsn(&mut self, lsn: Lsn) -> &mut Self {
        self.hex_upper(lsn.0 >> 32).text("/").hex_upper(lsn.0 & 0xFFFF_FFFF)
    }

    /// `%X/%08X` of both halves.
    pub fn lsn_padded(&mut self, lsn: Lsn) -> &mut Self {
        self.hex_upper(lsn.0 >> 32).text("/").hex_upper_padded(lsn.0 & 0xFFFF_FFFF, 8)
    }

    /// `%g`, and what PostgreSQL's own `printf` makes of numbers that are none (`fmtfloat` in
    /// `src/port/snprintf.c`).
    pub fn general(&mut self, number: f64) -> &mut Self {
        if number.is_nan() {
            return self.text("NaN");
        }
        if number.is_sign_negative() {
            self.text("-");
        }
        if number.is_infinite() {
            return self.text("Infinity");
        }
        // Six digits, d.ddddde-nnn: at most 12 bytes.
        let mut scientific = [0; 12];
        let mut rest = &mut scientific[..];
        write!(rest, "{:.5e}", number.abs()).expect("it fits");
        let left = rest.len();
        let scientific = str::from_utf8(&scientific[..12 - left]).expect("ASCII");
        let (mantissa, exponent) = scientific.split_once('e').expect("an exponent");
        let exponent: i32 = exponent.parse().expect("a number");
        let mut digits = [0; 6];
        for (digit, &byte) in
            digits.iter_mut().zip(mantissa.as_bytes().iter().filter(|&&b| b != b'.'))
        {
            *digit = byte;
        }
        let significant = 6 - digits.iter().rev().take_while(|&&digit| digit == b'0').count();
        let digits = &digits[..significant.max(1)];
        match exponent {
            0..6 => {
                let whole = exponent as usize + 1;
                self.raw(&digits[..whole.min(digits.len())]);
                for _ in digits.len()..whole {
                    self.text("0");
                }
                if let Some(fraction @ [_, ..]) = digits.get(whole..) {
                    self.text(".").raw(fraction);
                }
            }
            -4..0 => {
                self.text("0.");
                for _ in exponent..-1 {
                    self.text("0");
                }
                self.raw(digits);
            }
            _ => {
                self.raw(&digits[..1]);
                if let fraction @ [_, ..] = &digits[1..] {
                    self.text(".").raw(fraction);
                }
                self.text(if exponent < 0 { "e-" } else { "e+" });
                self.two(exponent.abs().into());
            }
        }
        self
    }

    /// `%u`
    pub fn xid(&mut self, xid: TransactionId) -> &mut Self {
        self.uint(xid.0)
    }

    /// `%u:%u` of a 64-bit transaction id: its epoch and what is in tuples of it.
    pub fn full_xid(&mut self, xid: u64) -> &mut Self {
        self.uint(xid >> 32).text(":").uint(xid & 0xFFFF_FFFF)
    }

    /// `%u`
    pub fn timeline(&mut self, timeline: Timeline) -> &mut Self {
        self.uint(timeline.0)
    }

    /// `%u/%u/%u`
    pub fn locator(&mut self, locator: RelFileLocator) -> &mut Self {
        self.uint(locator.tablespace).text("/").uint(locator.database);
        self.text("/").uint(locator.relation)
    }

    /// The path of a relation's fork from the data directory (`relpathperm`, `src/common/relpath.c`).
    pub fn path(&mut self, relation: RelFork, version: &Version) -> &mut Self {
        let RelFileLocator { tablespace, database, relation: number } = relation.locator;
        match tablespace {
            // Of a shared relation, which is in no database.
            GLOBAL_TABLESPACE => self.text("global"),
            DEFAULT_TABLESPACE => self.text("base/").uint(database),
            _ => {
                self.text("pg_tblspc/").uint(tablespace).text("/PG_").uint(version.major);
                self.text("_").uint(version.catalog_version).text("/").uint(database)
            }
        };
        self.text("/").uint(number).text(relation.fork.file_suffix())
    }

    /// `true` or `false`.
    pub fn boolean(&mut self, value: bool) -> &mut Self {
        self.text(if value { "true" } else { "false" })
    }

    /// `T` or `F`.
    pub fn letter(&mut self, value: bool) -> &mut Self {
        self.text(if value { "T" } else { "F" })
    }

    /// An array as `array_desc` of `src/backend/access/rmgrdesc/rmgrdesc_utils.c` prints it (16 and later).
    pub fn array<T>(
        &mut self,
        items: impl IntoIterator<Item = T>,
        mut item: impl FnMut(&mut Self, T),
    ) -> &mut Self {
        self.text(" [");
        for (at, each) in items.into_iter().enumerate() {
            if at > 0 {
                self.text(", ");
            }
            item(self, each);
        }
        self.text("]")
    }

    /// A `TimestampTz`, microseconds since 2000-01-01 UTC, as `timestamptz_to_str` of
    /// `src/bin/pg_waldump/compat.c` prints it. Rounds as C does: a time before 2000 has a minus sign in
    /// its fraction.
    pub fn time(&mut self, microseconds: i64) -> &mut Self {
        const EPOCH: i64 = 946_684_800;
        let (seconds, fraction) = (microseconds / 1_000_000 + EPOCH, microseconds % 1_000_000);
        let LocalTime { offset, abbreviation } = self.zone.at(seconds);
        let local = seconds.saturating_add(offset.into());
        let (days, second) = (local.div_euclid(86_400), local.rem_euclid(86_400));
        let (year, month, day) = date(days);
        // strftime's %Y pads nothing.
        self.int(year).text("-").two(month).text("-").two(day).text(" ");
        self.two(second / 3600)
            .text(":")
            .two(second / 60 % 60)
            .text(":")
            .two(second % 60)
            .text(".");
        let digits = fraction.unsigned_abs();
        let width = if fraction < 0 {
            self.text("-");
            5
        } else {
            6
        };
        let mut buffer = itoa::Buffer::new();
        let text = buffer.format(digits);
        for _ in text.len()..width {
            self.text("0");
        }
        self.text(text).text(" ").text(&abbreviation)
    }

    fn two(&mut self, number: i64) -> &mut Self {
        if number < 10 {
            self.text("0");
        }
        self.int(number)
    }
}

/// Year, month and day of a day counted from 1970-01-01, in the Gregorian calendar.
fn date(days: i64) -> (i64, i64, i64) {
    // Years that begin in March: a leap day is their last. 146097 days are 400 years.
    let shifted = days + 719_468;
    let (era, day) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(write: impl FnOnce(&mut Out<'_>)) -> String {
        let mut bytes = Vec::new();
        write(&mut Out::new(&mut bytes, &Utc));
        String::from_utf8(bytes).expect("text")
    }

    #[test]
    fn numbers_are_as_printf_prints_them() {
        let written = text(|out| {
            out.hex(0_u8).text(" ").hex(0xAB0_u32).text(" ").hex_padded(7_u8, 2);
            out.text(" ").hex_upper(u64::MAX);
            out.text(" ").lsn_padded(Lsn(0x1_0000_00A0)).text(" ").lsn(Lsn(0x1_0000_00A0));
            out.right(42_u8, 6).left("Heap", 6).int(-5);
            out.array([1_u8, 2], |out, n| {
                out.uint(n);
            });
        });
        assert_eq!(written, "0 ab0 07 FFFFFFFFFFFFFFFF 1/000000A0 1/A0    42Heap  -5 [1, 2]");
    }

    #[test]
    fn general_numbers_have_six_digits_at_most() {
        let cases = [
            (0.0, "0"),
            (-0.0, "-0"),
            (7.0, "7"),
            (100_000.0, "100000"),
            (123_456.0, "123456"),
            (999_999.4, "999999"),
            (999_999.5, "1e+06"),
            (1_000_005.0, "1e+06"),
            (1_000_015.0, "1.00002e+06"),
            (1_234_567.5, "1.23457e+06"),
            (-2.5, "-2.5"),
            (0.1, "0.1"),
            (0.000_123_456_7, "0.000123457"),
            (0.000_012_3, "1.23e-05"),
            (1e100, "1e+100"),
            (5e-324, "4.94066e-324"),
            (f64::MAX, "1.79769e+308"),
            (f64::NAN, "NaN"),
            (f64::NEG_INFINITY, "-Infinity"),
        ];
        for (number, expected) in cases {
            let written = text(|out| {
                out.general(number);
            });
            assert_eq!(written, expected);
        }
    }

    #[test]
    fn times_are_as_localtime_says() {
        let time = |microseconds| {
            text(|out| {
                out.time(microseconds);
            })
        };
        assert_eq!(time(0), "2000-01-01 00:00:00.000000 UTC");
        assert_eq!(time(-1), "2000-01-01 00:00:00.-00001 UTC");
        assert_eq!(time(762_048_000_123_456), "2024-02-24 00:00:00.123456 UTC");
        assert_eq!(time(5_011_200_000_000), "2000-02-28 00:00:00.000000 UTC");
        assert_eq!(time(5_097_600_000_000), "2000-02-29 00:00:00.000000 UTC");
        assert_eq!(time(5_184_000_000_000), "2000-03-01 00:00:00.000000 UTC");
    }
}

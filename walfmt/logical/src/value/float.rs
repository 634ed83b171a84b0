//! `float4` and `float8`: the shortest decimal that reads back as the same number.
//!
//! Of the decimals between the two points halfway to the neighbours PostgreSQL takes the shortest,
//! and of those the nearest. It never takes a point halfway itself, although reading that would
//! round to the number if its mantissa is even (`STRICTLY_SHORTEST` in `src/common/ryu_common.h`);
//! `ryu` does, so what it gives is checked for that: 1e23 is halfway between two numbers, and the
//! one that reading it gives is printed as 9.999999999999999e+22.
//!
//! Rules: `src/common/{d2s,f2s}.c`; how the digits are set out is `to_chars` there.

use std::io::Write;

use walfmt::bytes::{u32_at, u64_at};

use super::ValueError;
use super::simple::decimal;

pub(super) fn float4(datum: &[u8], out: &mut Vec<u8>) -> Result<(), ValueError> {
    let number = f32::from_bits(u32_at(datum, 0));
    append(number, Binary::of_float4(number), 6, out);
    Ok(())
}

pub(super) fn float8(datum: &[u8], out: &mut Vec<u8>) -> Result<(), ValueError> {
    let number = f64::from_bits(u64_at(datum, 0));
    append(number, Binary::of_float8(number), 15, out);
    Ok(())
}

/// A finite number's absolute value: `mantissa * 2^exponent`.
struct Binary {
    mantissa: u64,
    exponent: i32,
    /// It is a power of two, so that the next number below is only half as far as the one above.
    narrow_below: bool,
}

/// `digits * 10^exponent`.
#[derive(Clone, Copy)]
struct Decimal {
    digits: u64,
    exponent: i32,
}

/// Appends a number. From 10^`scientific` on, and below 10^-4, it has an exponent.
fn append<F>(number: F, binary: Binary, scientific: i32, out: &mut Vec<u8>)
where
    F: ryu::Float + Into<f64> + std::fmt::LowerExp + std::str::FromStr + PartialEq,
{
    let wide: f64 = number.into();
    if wide.is_nan() {
        out.extend_from_slice(b"NaN");
        return;
    }
    if wide.is_sign_negative() {
        out.push(b'-');
    }
    if wide.is_infinite() {
        out.extend_from_slice(b"Infinity");
        return;
    }
    if wide == 0.0 {
        out.push(b'0');
        return;
    }
    let mut shortest = Decimal::parse(ryu::Buffer::new().format_finite(number).as_bytes());
    if binary.is_halfway(shortest) {
        shortest = strictly_between(number, &binary, shortest).unwrap_or(shortest);
    }
    shortest.append(scientific, out);
}

impl Binary {
    fn of_float4(number: f32) -> Self {
        let bits = number.to_bits();
        Self::new(u64::from(bits & 0x007F_FFFF), 23, (bits >> 23 & 0xFF).cast_signed(), 127)
    }

    fn of_float8(number: f64) -> Self {
        let bits = number.to_bits();
        let exponent = (bits >> 52 & 0x7FF) as i32;
        Self::new(bits & 0x000F_FFFF_FFFF_FFFF, 52, exponent, 1023)
    }

    const fn new(fraction: u64, fraction_bits: i32, biased: i32, bias: i32) -> Self {
        let (mantissa, exponent) = match biased {
            0 => (fraction, 1),
            _ => (fraction | 1 << fraction_bits, biased),
        };
        Self {
            mantissa,
            exponent: exponent - bias - fraction_bits,
            narrow_below: fraction == 0 && biased > 1,
        }
    }

    /// Whether a decimal is exactly one of the two points halfway to the neighbours.
    ///
    /// Those are an odd number times a power of two, so both sides are compared without their
    /// twos: `odd * 2^s = digits * 10^e` asks for `odd * 5^-e = digits / 2^t` and `s = t + e`.
    fn is_halfway(&self, decimal: Decimal) -> bool {
        let below = match self.narrow_below {
            true => (self.mantissa * 4 - 1, self.exponent - 2),
            false => (self.mantissa * 2 - 1, self.exponent - 1),
        };
        let above = (self.mantissa * 2 + 1, self.exponent - 1);
        let twos = decimal.digits.trailing_zeros();
        let digits = u128::from(decimal.digits >> twos);
        // No side has more than 57 bits, so a higher power of five cannot be in it.
        let Some(power) = 5u128.checked_pow(decimal.exponent.unsigned_abs()) else {
            return false;
        };
        [below, above].into_iter().any(|(odd, exponent)| {
            let odd = u128::from(odd);
            let equal = match decimal.exponent < 0 {
                true => odd.checked_mul(power) == Some(digits),
                false => digits.checked_mul(power) == Some(odd),
            };
            equal && exponent == twos.cast_signed() + decimal.exponent
        })
    }
}

impl Decimal {
    /// Reads `123`, `12.3`, `1.23e-4`, with or without sign; the last digit is then not 0.
    fn parse(text: &[u8]) -> Self {
        let (mut digits, mut exponent, mut after_point) = (0u64, 0, false);
        let mut rest = text.iter();
        for &byte in rest.by_ref() {
            match byte {
                b'0'..=b'9' => {
                    digits = digits * 10 + u64::from(byte - b'0');
                    exponent -= i32::from(after_point);
                }
                b'.' => after_point = true,
                b'e' => break,
                _ => {}
            }
        }
        let (mut written, mut negative) = (0, false);
        for &byte in rest {
            match byte {
                b'0'..=b'9' => written = written * 10 + i32::from(byte - b'0'),
                b'-' => negative = true,
                _ => {}
            }
        }
        exponent += if negative { -written } else { written };
        while digits != 0 && digits % 10 == 0 {
            digits /= 10;
            exponent += 1;
        }
        Self { digits, exponent }
    }

    /// Sets out the digits as PostgreSQL does.
    fn append(self, scientific: i32, out: &mut Vec<u8>) {
        let mut buffer = itoa::Buffer::new();
        let digits = buffer.format(self.digits).as_bytes();
        let length = digits.len() as i32;
        let leading_exponent = self.exponent + length - 1;
        if !(-4..scientific).contains(&leading_exponent) {
            out.push(digits[0]);
            if length > 1 {
                out.push(b'.');
                out.extend_from_slice(&digits[1..]);
            }
            out.extend_from_slice(if leading_exponent < 0 { b"e-" } else { b"e+" });
            if leading_exponent.abs() < 10 {
                out.push(b'0');
            }
            decimal(leading_exponent.abs(), out);
        } else if leading_exponent < 0 {
            out.extend_from_slice(&b"0.000"[..(1 - leading_exponent) as usize]);
            out.extend_from_slice(digits);
        } else if self.exponent >= 0 {
            out.extend_from_slice(digits);
            out.extend((0..self.exponent).map(|_| b'0'));
        } else {
            let (before, after) = digits.split_at((leading_exponent + 1) as usize);
            out.extend_from_slice(before);
            out.push(b'.');
            out.extend_from_slice(after);
        }
    }
}

/// The shortest decimal that reads back as `number` and is not halfway to a neighbour, as
/// `halfway` is, which none with fewer digits does.
#[cold]
fn strictly_between<F>(number: F, binary: &Binary, halfway: Decimal) -> Option<Decimal>
where
    F: std::fmt::LowerExp + std::str::FromStr + Into<f64> + Copy,
{
    let magnitude = number.into().abs();
    let mut buffer = [0; 48];
    let mut reads_back = |decimal: &Decimal| {
        let text = in_buffer(&mut buffer, format_args!("{}e{}", decimal.digits, decimal.exponent));
        text.parse::<F>().is_ok_and(|read| read.into() == magnitude)
    };
    let mut buffer = [0; 48];
    let fewest = halfway.digits.checked_ilog10()? as usize;
    (fewest..17).find_map(|after_point| {
        let text = in_buffer(&mut buffer, format_args!("{number:.after_point$e}"));
        let nearest = Decimal::parse(text.as_bytes());
        // Below a power of two there is less room than above: the nearest may be outside, and its
        // neighbour above inside. Neighbours are told apart at the full number of digits.
        let digits = nearest.digits.checked_ilog10()? + 1;
        let missing = (after_point as u32 + 1).saturating_sub(digits);
        let next = Decimal {
            digits: nearest.digits * 10u64.pow(missing) + 1,
            exponent: nearest.exponent - missing.cast_signed(),
        };
        [nearest, next]
            .into_iter()
            .find(|decimal| !binary.is_halfway(*decimal) && reads_back(decimal))
    })
}

/// Formats without taking memory; what does not fit is left out, and that is never the case here.
fn in_buffer<'a>(buffer: &'a mut [u8; 48], text: std::fmt::Arguments<'_>) -> &'a str {
    let mut rest = buffer.as_mut_slice();
    let fits = rest.write_fmt(text).is_ok();
    let left = rest.len();
    let written = buffer.len() - left;
    debug_assert!(fits, "a number has fewer than 48 letters");
    std::str::from_utf8(&buffer[..written]).unwrap_or_default()
}

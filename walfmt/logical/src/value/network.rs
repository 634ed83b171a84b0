//! Network addresses.
//!
//! ```text
//! inet, cidr: u8 family (2 IPv4, 3 IPv6), u8 bits of the netmask, then 4 or 16 bytes
//! macaddr, macaddr8: 6 or 8 bytes
//! ```
//!
//! Rules: `src/backend/utils/adt/{network,mac,mac8}.c`, `src/port/inet_net_ntop.c`.

use walfmt::cursor::Cursor;

use super::ValueError;
use super::simple::{HEX_LOWER, decimal, hex};

/// `inet`: the netmask is left out if it is the whole address.
pub(super) fn inet(datum: &[u8], out: &mut Vec<u8>) -> Result<(), ValueError> {
    network(datum, false, out)
}

/// `cidr`: always with its netmask.
pub(super) fn cidr(datum: &[u8], out: &mut Vec<u8>) -> Result<(), ValueError> {
    network(datum, true, out)
}

/// `macaddr` and `macaddr8`.
pub(super) fn macaddr(datum: &[u8], out: &mut Vec<u8>) -> Result<(), ValueError> {
    for (index, byte) in datum.chunks(1).enumerate() {
        if index > 0 {
            out.push(b':');
        }
        hex(byte, out);
    }
    Ok(())
}

fn network(datum: &[u8], always_bits: bool, out: &mut Vec<u8>) -> Result<(), ValueError> {
    let mut cursor = Cursor::new(datum);
    let family = cursor.u8("family")?;
    let bits = cursor.u8("bits")?;
    let bits_max = match family {
        PGSQL_AF_INET => {
            ipv4(cursor.array("ipaddr")?, out);
            32
        }
        PGSQL_AF_INET6 => {
            ipv6(cursor.array("ipaddr")?, out);
            128
        }
        _ => return Err(ValueError::Field { field: "family", found: i64::from(family) }),
    };
    cursor.finish("ipaddr")?;
    if bits > bits_max {
        return Err(ValueError::Field { field: "bits", found: i64::from(bits) });
    }
    if always_bits || bits != bits_max {
        out.push(b'/');
        decimal(bits, out);
    }
    Ok(())
}

fn ipv4(address: &[u8; 4], out: &mut Vec<u8>) {
    for (index, &byte) in address.iter().enumerate() {
        if index > 0 {
            out.push(b'.');
        }
        decimal(byte, out);
    }
}

/// The longest run of at least two zero groups becomes `::`, of equal ones the first. Behind 96
/// zero bits, or 80 and `ffff`, stands an IPv4 address, and it is printed as one.
fn ipv6(address: &[u8; 16], out: &mut Vec<u8>) {
    let group =
        |index: usize| u16::from(address[2 * index]) << 8 | u16::from(address[2 * index + 1]);
    let (mut gap_start, mut gap_length, mut run) = (8, 1, 0);
    for index in 0..8 {
        run = if group(index) == 0 { run + 1 } else { 0 };
        if run > gap_length {
            (gap_start, gap_length) = (index + 1 - run, run);
        }
    }
    if gap_start == 8 {
        gap_length = 0;
    }
    let embedded = gap_start == 0 && (gap_length == 6 || gap_length == 5 && group(5) == 0xFFFF);

    let mut index = 0;
    while index < 8 {
        if index == gap_start {
            // The colon after the gap is the next group's own.
            out.push(b':');
            index += gap_length;
            if index == 8 {
                out.push(b':');
            }
            continue;
        }
        if index > 0 {
            out.push(b':');
        }
        if index == 6 && embedded {
            ipv4(&[address[12], address[13], address[14], address[15]], out);
            return;
        }
        let value = group(index);
        let digits = (16 - (value | 1).leading_zeros()).div_ceil(4);
        for digit in (0..digits).rev() {
            out.push(HEX_LOWER[usize::from(value >> (digit * 4) & 0x0F)]);
        }
        index += 1;
    }
}

const PGSQL_AF_INET: u8 = 2;
const PGSQL_AF_INET6: u8 = 3;

//! Whatever the bytes are: no panic, no loop, text that is UTF-8, and after an error nothing.

use std::sync::Arc;

use proptest::prelude::*;
use walfmt_logical::value::varlena::{self, ToastPointer};
use walfmt_logical::value::{Align, Builtin, Kind, Type, ValueError, Varlena, print};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn every_type_takes_any_bytes(datum in proptest::collection::vec(any::<u8>(), 0..120)) {
        for ty in types() {
            check(&ty, &datum)?;
        }
    }

    // Numbers of any size never get past a length; these do.
    #[test]
    fn every_type_takes_words(
        words in proptest::collection::vec(prop_oneof![0u32..4, 0u32..40, any::<u32>()], 0..24),
        cut in 0usize..4,
    ) {
        let datum: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let datum = &datum[..datum.len().saturating_sub(cut)];
        for ty in types() {
            check(&ty, datum)?;
            check(&ty, &datum[..datum.len().min(usize::try_from(ty.length).unwrap_or(usize::MAX))])?;
        }
    }

    // An array whose header is right, of every element type.
    #[test]
    fn elements_may_be_any_bytes(
        dims in proptest::collection::vec(0u32..4, 1..=6),
        bitmap in any::<Option<[u8; 8]>>(),
        data in proptest::collection::vec(prop_oneof![0u8..40, any::<u8>()], 0..100),
    ) {
        for element in types() {
            let mut datum = Vec::new();
            let count: u32 = dims.iter().product();
            let header = 16 + 8 * dims.len();
            let nulls = (count as usize).div_ceil(8);
            let begin = (header + if bitmap.is_some() { nulls } else { 0 }).next_multiple_of(8);
            let dataoffset = if bitmap.is_some() { begin } else { 0 };
            let words = [dims.len() as u32, dataoffset as u32, element.oid];
            let ones = dims.iter().map(|_| 1);
            for word in words.into_iter().chain(dims.iter().copied()).chain(ones) {
                datum.extend(word.to_le_bytes());
            }
            if let Some(bitmap) = &bitmap {
                datum.extend(bitmap.iter().cycle().take(nulls));
            }
            datum.resize(begin - 4, 0);
            datum.extend(&data);
            let oid = 1;
            check(&of(oid, -1, Kind::Array(Arc::new(element))), &datum)?;
        }
    }

    // A jsonb whose containers are right, but not what they contain.
    #[test]
    fn jsonb_nodes_may_be_any_bytes(
        entries in proptest::collection::vec((0u32..8, 0u32..2, 0u32..24), 0..12),
        flags in prop_oneof![Just(0x2000_0000u32), Just(0x4000_0000)],
        data in proptest::collection::vec(prop_oneof![0u8..64, any::<u8>()], 0..160),
    ) {
        let count = if flags == 0x2000_0000 { entries.len() / 2 } else { entries.len() };
        let mut datum = (flags | count as u32).to_le_bytes().to_vec();
        for (kind, has_offset, length) in entries {
            datum.extend((kind << 28 | has_offset << 31 | length).to_le_bytes());
        }
        datum.extend(data);
        check(&builtin(3802), &datum)?;
    }

    #[test]
    fn a_varlena_may_be_any_bytes(
        first in prop_oneof![Just(1u8), (0u8..32).prop_map(|n| n << 2 | 2), any::<u8>()],
        rest in proptest::collection::vec(any::<u8>(), 0..80),
        fill in any::<bool>(),
    ) {
        let mut bytes = vec![first];
        bytes.extend(rest);
        if fill && bytes.len() > 8 {
            // A length that is there, and a raw size that may be.
            bytes[1..4].fill(0);
            bytes[5..7].fill(0);
            bytes[7] &= 0x40;
        }
        if let Ok((varlena, length)) = Varlena::read(&bytes) {
            prop_assert!(0 < length && length <= bytes.len());
            if let Varlena::Compressed(compressed) = varlena
                && let Ok(payload) = compressed.decompress(5000)
            {
                prop_assert!(payload.len() == compressed.raw_size && payload.len() <= 5000);
            }
        }
        for offset in 0..bytes.len() + 2 {
            let position = varlena::position(&bytes, offset, Align::Int);
            prop_assert!((offset..offset + 4).contains(&position));
        }
    }

    #[test]
    fn chunks_may_be_any_bytes(
        chunks in proptest::collection::vec(any::<u8>(), 0..60),
        raw_size in 0u32..9000,
        method_bits in 0u8..4,
        agree in any::<bool>(),
    ) {
        let mut chunks = chunks;
        if agree && chunks.len() >= 4 {
            let info = raw_size | u32::from(method_bits) << 30;
            chunks[..4].copy_from_slice(&info.to_le_bytes());
        }
        let external_size = chunks.len() as u32;
        let pointer =
            ToastPointer { raw_size, external_size, method_bits, value_id: 1, toast_relation: 2 };
        if let Ok(payload) = pointer.payload(&chunks, 8000) {
            prop_assert!(payload.len() <= 8000);
            prop_assert!(payload.len() == raw_size as usize || !pointer.is_compressed());
        }
    }
}

#[test]
fn jsonb_may_be_deep_but_not_bottomless() {
    // [[[..]]]: each level is a header and one entry.
    let nested = |levels: usize| {
        let mut datum = Vec::new();
        for level in (0..levels).rev() {
            let count = u32::from(level > 0);
            datum.extend((0x4000_0000 | count).to_le_bytes());
            if level > 0 {
                let length = level * 8 - 4;
                datum.extend((0x5000_0000 | length as u32).to_le_bytes());
            }
        }
        datum
    };
    let mut text = b"before".to_vec();
    print(&builtin(3802), &nested(60_000), &mut text).expect("it is a document");
    assert_eq!(text.len(), 6 + 2 * 60_000);
    text.truncate(6);
    let error = print(&builtin(3802), &nested(70_000), &mut text).expect_err("too deep");
    assert!(matches!(error, ValueError::Depth { .. }), "{error}");
    assert_eq!(text, b"before");
}

#[test]
fn what_has_no_rule_says_so() {
    let raw = of(790, 8, Kind::of_builtin(790));
    assert!(!raw.is_printable());
    let mut text = Vec::new();
    assert_eq!(print(&raw, &[0; 8], &mut text), Err(ValueError::Unsupported { oid: 790 }));
    let array = of(791, -1, Kind::Array(Arc::new(raw)));
    let empty = [0, 0, 0, 0, 0, 0, 0, 0, 0x16, 3, 0, 0];
    assert_eq!(print(&array, &empty, &mut text), Err(ValueError::Unsupported { oid: 790 }));
}

#[test]
fn the_table_is_sorted_and_complete() {
    let rows = Builtin::all();
    assert!(rows.windows(2).all(|pair| pair[0].oid < pair[1].oid));
    assert!(
        rows.iter()
            .all(|row| Builtin::from_oid(row.oid).is_some_and(|found| found.name == row.name))
    );
}

/// Prints, and holds the result against what [`print`] promises.
fn check(ty: &Type, datum: &[u8]) -> Result<(), TestCaseError> {
    let mut text = b"before ".to_vec();
    match print(ty, datum, &mut text) {
        Ok(()) => {
            prop_assert!(text.starts_with(b"before "));
            prop_assert!(std::str::from_utf8(&text).is_ok(), "{}: {text:?}", ty.name);
        }
        Err(error) => {
            prop_assert_eq!(&text, b"before ");
            prop_assert!(!error.to_string().is_empty());
        }
    }
    Ok(())
}

/// Every built-in type, an enum, a domain.
fn types() -> Vec<Type> {
    let mut types: Vec<Type> = Builtin::all().iter().map(|row| builtin(row.oid)).collect();
    let labels = (0..40).map(|label| (label, format!("label {label}").into())).collect();
    types.push(of(100_000, 4, Kind::Enum(Arc::new(labels))));
    types.push(of(100_001, -1, Kind::Domain(Arc::new(builtin(1700)))));
    types
}

fn builtin(oid: u32) -> Type {
    let length = Builtin::from_oid(oid).expect("it has a row").length;
    of(oid, length, Kind::of_builtin(oid))
}

fn of(oid: u32, length: i16, kind: Kind) -> Type {
    let name = format!("type {oid}").into();
    Type { oid, schema: "made".into(), name, length, align: Align::Int, delimiter: b',', kind }
}

//! Varlenas byte by byte: what each header says, and what is refused.

use walfmt_logical::value::varlena::{Compressed, Method, PAYLOAD_BYTES_MAX, position};
use walfmt_logical::value::{Align, ToastPointer, Varlena, VarlenaError};

#[test]
fn headers_say_how_long_they_and_the_payload_are() {
    // Behind each varlena stand bytes that are not its own.
    let cases: [(&[u8], &[u8], usize); 4] = [
        (&[3, 9, 9], b"", 1),
        (&[4 << 1 | 1, b'a', b'b', b'c', 9], b"abc", 4),
        (&[4 << 2, 0, 0, 0, 9], b"", 4),
        (&[6 << 2, 0, 0, 0, b'a', b'b', 9], b"ab", 6),
    ];
    for (bytes, payload, length) in cases {
        assert_eq!(Varlena::read(bytes), Ok((Varlena::Plain(payload), length)), "{bytes:?}");
    }
}

#[test]
fn a_short_header_needs_no_padding() {
    // int2, then a varlena with a short header; int2, then one with a long header, at 4.
    assert_eq!(position(&[1, 0, 5, b'a'], 2, Align::Int), 2);
    assert_eq!(position(&[1, 0, 0, 0, 5 << 2, 0, 0, 0, b'a'], 2, Align::Int), 4);
    assert_eq!(position(&[1, 0, 0, 0, 0, 0, 0, 0, 5 << 2], 2, Align::Double), 8);
    // The end of a tuple.
    assert_eq!(position(&[1, 0], 2, Align::Int), 4);
}

#[test]
fn what_is_cut_off_or_never_on_disk_is_refused() {
    let refused: [&[u8]; 9] = [
        &[],
        &[5 << 1 | 1, 1, 2, 3],    // four bytes promised, three there
        &[6 << 2, 0, 0, 0, 1],     // two promised, one there
        &[3 << 2, 0, 0, 0],        // no room for the header
        &[0, 0, 0],                // no room for the length
        &[5 << 2 | 2, 0, 0, 0, 1], // no room for va_tcinfo
        &[8 << 2 | 2, 0, 0, 0, 0, 0, 0, 0x80], // method 2
        &[1, 18, 0, 0, 0],         // half a pointer
        &[1, 1, 0, 0, 0, 0, 0, 0, 0, 0], // an indirect pointer
    ];
    for bytes in refused {
        assert!(Varlena::read(bytes).is_err(), "{bytes:?}");
    }
    assert_eq!(Varlena::read(&[1, 3]), Err(VarlenaError::Tag { tag: 3 }));
}

#[test]
fn pglz_and_lz4_give_exactly_the_raw_size() {
    // A literal, then a match of 18 + 2 bytes that reaches back 1.
    let pglz = [0b10, b'x', 0x0F, 1, 2];
    let compressed = |raw_size| Compressed { raw_size, method: Method::Pglz, bytes: &pglz };
    assert_eq!(compressed(21).decompress(100), Ok(vec![b'x'; 21]));
    // As the server does: a match that reaches beyond the end is cut off.
    assert_eq!(compressed(9).decompress(100), Ok(vec![b'x'; 9]));
    assert!(matches!(compressed(22).decompress(100), Err(VarlenaError::Pglz(_))));
    assert!(matches!(compressed(1).decompress(100), Err(VarlenaError::Pglz(_))));
    assert!(matches!(compressed(21).decompress(20), Err(VarlenaError::TooLong { .. })));

    let text = b"write ahead ".repeat(50);
    let lz4 = lz4_flex::block::compress(&text);
    let compressed = |raw_size| Compressed { raw_size, method: Method::Lz4, bytes: &lz4 };
    assert_eq!(compressed(600).decompress(600), Ok(text));
    assert!(matches!(compressed(601).decompress(700), Err(VarlenaError::Lz4(_))));
    assert!(matches!(compressed(599).decompress(700), Err(VarlenaError::Lz4(_))));
}

#[test]
fn memory_is_not_taken_for_a_claim() {
    // Five bytes that say they are a gigabyte.
    for method in [Method::Pglz, Method::Lz4] {
        let compressed = Compressed { raw_size: PAYLOAD_BYTES_MAX, method, bytes: &[0; 5] };
        let error = compressed.decompress(usize::MAX).expect_err("it cannot be");
        assert!(
            matches!(error, VarlenaError::TooLong { limit, .. } if limit <= 5 * 255),
            "{error}"
        );
    }
}

#[test]
fn chunks_must_be_what_the_pointer_says() {
    let pointer = |raw_size: i32, info: u32| {
        let mut bytes = vec![1, 18];
        for word in [raw_size.cast_unsigned(), info, 77, 88] {
            bytes.extend(word.to_le_bytes());
        }
        match Varlena::read(&bytes) {
            Ok((Varlena::External(pointer), 18)) => Ok(pointer),
            Ok(other) => panic!("{other:?} is no pointer"),
            Err(error) => Err(error),
        }
    };
    let plain = pointer(4 + 3, 3).expect("it is one");
    assert_eq!(
        plain,
        ToastPointer {
            raw_size: 3,
            external_size: 3,
            method_bits: 0,
            value_id: 77,
            toast_relation: 88
        }
    );
    assert!(!plain.is_compressed());
    assert_eq!(plain.payload(b"abc", 3).as_deref(), Ok(b"abc".as_slice()));
    assert_eq!(plain.payload(b"ab", 3), Err(VarlenaError::Chunks { expected: 3, found: 2 }));
    assert!(matches!(plain.payload(b"abc", 2), Err(VarlenaError::TooLong { .. })));
    // A plain value cannot be longer outside than it is, and no size is negative.
    assert!(pointer(4 + 3, 4).is_err());
    assert!(pointer(3, 0).is_err());
    assert!(pointer(-1, 0).is_err());

    let stream = [0b10, b'x', 0x0F, 1, 2];
    let chunks = |info: u32| [&info.to_le_bytes(), stream.as_slice()].concat();
    let compressed = pointer(4 + 21, 9).expect("it is one");
    assert_eq!(compressed.payload(&chunks(21), 21).as_deref(), Ok([b'x'; 21].as_slice()));
    assert_eq!(
        compressed.payload(&chunks(20), 21),
        Err(VarlenaError::RawSize { expected: 21, found: 20 })
    );
    // The pointer says pglz.
    assert_eq!(
        compressed.payload(&chunks(21 | 1 << 30), 21),
        Err(VarlenaError::Method { bits: 1 })
    );
}

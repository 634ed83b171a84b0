//! Page images unpack to the page they were made of.

use proptest::prelude::*;
use walfmt::BLOCK_SIZE;
use walfmt::image::{BlockImage, Compression};

type Page = [u8; BLOCK_SIZE];

const COMPRESSIONS: [Compression; 4] =
    [Compression::None, Compression::Pglz, Compression::Lz4, Compression::Zstd];

/// A page with some structure to it, and zeros in its hole.
fn page(hole_offset: usize, hole_length: usize) -> Page {
    let mut page = [0; BLOCK_SIZE];
    for (at, byte) in page.iter_mut().enumerate() {
        *byte = if at % 97 < 60 { (at % 97) as u8 } else { (at / 13) as u8 | 1 };
    }
    page[hole_offset..hole_offset + hole_length].fill(0);
    page
}

fn pack(page: &Page, hole_offset: usize, hole_length: usize, compression: Compression) -> Vec<u8> {
    let plain = [&page[..hole_offset], &page[hole_offset + hole_length..]].concat();
    match compression {
        Compression::None => plain,
        Compression::Pglz => pglz_compress(&plain),
        Compression::Lz4 => lz4_flex::block::compress(&plain),
        Compression::Zstd => zstd::bulk::compress(&plain, 3).expect("compresses"),
    }
}

fn image(
    bytes: &[u8],
    hole_offset: usize,
    hole_length: usize,
    compression: Compression,
) -> BlockImage<'_> {
    BlockImage {
        bytes,
        hole_offset: hole_offset as u16,
        hole_length: hole_length as u16,
        compression,
        apply: true,
    }
}

/// A pglz stream that unpacks to `plain`: the longest match, searched for plainly.
fn pglz_compress(plain: &[u8]) -> Vec<u8> {
    let mut items: Vec<(bool, Vec<u8>)> = Vec::new();
    let mut at = 0;
    while at < plain.len() {
        let longest = (1..=at.min(4095))
            .step_by(if at > 300 { 7 } else { 1 })
            .map(|distance| {
                let run = plain[at..].iter().zip(&plain[at - distance..]);
                (run.take(273).take_while(|(a, b)| a == b).count(), distance)
            })
            .max();
        match longest {
            Some((length, distance)) if length >= 3 => {
                let high = (distance >> 8 << 4) as u8;
                let mut item = vec![high | (length - 3).min(15) as u8, distance as u8];
                if length >= 18 {
                    item.push((length - 18) as u8);
                }
                items.push((true, item));
                at += length;
            }
            _ => {
                items.push((false, vec![plain[at]]));
                at += 1;
            }
        }
    }
    let mut stream = Vec::new();
    for group in items.chunks(8) {
        let bits = group.iter().enumerate().map(|(bit, (matches, _))| u8::from(*matches) << bit);
        stream.push(bits.sum());
        group.iter().for_each(|(_, item)| stream.extend(item));
    }
    stream
}

#[test]
fn an_image_unpacks_to_its_page_with_and_without_hole() {
    for compression in COMPRESSIONS {
        for (hole_offset, hole_length) in [(0, 0), (24, 8000), (100, 1), (4000, 4192), (1, 8191)] {
            let page = page(hole_offset, hole_length);
            let bytes = pack(&page, hole_offset, hole_length, compression);
            let mut restored = [0xEE; BLOCK_SIZE];
            image(&bytes, hole_offset, hole_length, compression)
                .restore(&mut restored)
                .unwrap_or_else(|error| panic!("{hole_offset}+{hole_length}: {error}"));
            assert!(restored == page, "{compression:?} {hole_offset}+{hole_length}");
        }
    }
}

#[test]
fn an_image_of_another_length_is_refused() {
    let (hole_offset, hole_length) = (120, 3000);
    let page = page(hole_offset, hole_length);
    for compression in COMPRESSIONS {
        let bytes = pack(&page, hole_offset, hole_length, compression);
        let longer = [&bytes[..], &[0]].concat();
        let mut restored = [0; BLOCK_SIZE];
        for spoiled in [&bytes[..bytes.len() - 1], &[], &longer] {
            let spoiled = image(spoiled, hole_offset, hole_length, compression);
            spoiled.restore(&mut restored).expect_err("cut or longer");
        }
        // The bytes are right, but of a page with another hole. (The server, too, cuts a pglz
        // match that reaches past the end.)
        let others = match compression {
            Compression::Pglz => vec![hole_length - 1, hole_length + 1000],
            _ => vec![hole_length - 1, hole_length + 1],
        };
        for other in others {
            let spoiled = image(&bytes, hole_offset, other, compression);
            let error = spoiled.restore(&mut restored).expect_err("another hole");
            assert!(error.to_string().contains(&format!("{}", BLOCK_SIZE - other)), "{error}");
        }
        // Negative control.
        image(&bytes, hole_offset, hole_length, compression).restore(&mut restored).expect("sound");
    }
}

#[test]
fn a_pglz_stream_written_by_hand() {
    // One literal, seven matches of 273 bytes that overlap themselves, three groups of eight more,
    // and one byte to go: 1 + 30 * 273 + 1 = 8192.
    let mut stream = vec![0b1111_1110, b'w'];
    let long_match = [0x0F, 1, 255];
    stream.extend(long_match.repeat(7));
    for _ in 0..2 {
        stream.push(0xFF);
        stream.extend(long_match.repeat(8));
    }
    stream.push(0b0111_1111);
    stream.extend(long_match.repeat(7));
    stream.push(b'!');
    let mut restored = [0; BLOCK_SIZE];
    let image = image(&stream, 0, 0, Compression::Pglz);
    image.restore(&mut restored).expect("sound");
    assert!(restored[..8191].iter().all(|&byte| byte == b'w'));
    assert_eq!(restored[8191], b'!');
}

#[test]
fn a_pglz_match_must_lie_in_what_was_unpacked() {
    // "abcd", then three bytes from `distance` back; then literals up to the page's end.
    for (distance, sound) in [(0_u8, false), (1, true), (4, true), (5, false), (255, false)] {
        let mut stream =
            vec![0b0001_0000, b'a', b'b', b'c', b'd', 0x00, distance, b'x', b'x', b'x'];
        for literals in vec![b'y'; BLOCK_SIZE - 10].chunks(8) {
            stream.push(0);
            stream.extend(literals);
        }
        let mut restored = [0; BLOCK_SIZE];
        let result = image(&stream, 0, 0, Compression::Pglz).restore(&mut restored);
        assert_eq!(result.is_ok(), sound, "distance {distance}: {result:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn any_page_comes_back(
        seed in prop::collection::vec(any::<u8>(), 1..2_000),
        hole_offset in 1_usize..4_000,
        hole_length in 1_usize..4_000,
        compression in prop::sample::select(COMPRESSIONS.to_vec()),
    ) {
        let mut page: Page = [0; BLOCK_SIZE];
        page.iter_mut().zip(seed.iter().cycle()).for_each(|(to, from)| *to = *from);
        page[hole_offset..hole_offset + hole_length].fill(0);
        let bytes = pack(&page, hole_offset, hole_length, compression);
        let mut restored = [0xEE; BLOCK_SIZE];
        image(&bytes, hole_offset, hole_length, compression).restore(&mut restored).expect("sound");
        prop_assert!(restored == page);
    }
}

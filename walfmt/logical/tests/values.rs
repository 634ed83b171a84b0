//! Each text is the one that a real server prints for the same bytes.
//!
//! `values.tsv` is written by `integration/values.sh`, which says what its lines are.

use std::collections::BTreeMap;
use std::sync::Arc;

use walfmt_logical::value::varlena::{Method, Varlena};
use walfmt_logical::value::{Align, Builtin, Kind, Type, ValueError, print};

const VALUES: &str = include_str!("values.tsv");

/// A line `value`: what is on disk, and what the server prints.
struct Golden {
    ty: Arc<Type>,
    attribute: Vec<u8>,
    text: Vec<u8>,
}

/// All of `values.tsv`.
struct File {
    goldens: Vec<Golden>,
    toast: BTreeMap<u32, Vec<u8>>,
}

/// How a type fared.
#[derive(Default)]
struct Tally {
    values: usize,
    differing: usize,
    compressed: usize,
    external: usize,
    spoiled: usize,
    noticed: usize,
}

#[test]
fn texts_are_those_of_the_server() {
    let file = File::read();
    let mut tallies = BTreeMap::<String, Tally>::new();
    let (mut pglz, mut lz4) = (0, 0);
    for (index, golden) in file.goldens.iter().enumerate() {
        let tally = tallies.entry(format!("{}.{}", golden.ty.schema, golden.ty.name)).or_default();
        tally.values += 1;
        if golden.ty.length == -1 {
            match Varlena::read(&golden.attribute).expect("the server wrote it").0 {
                Varlena::Plain(_) => {}
                Varlena::Compressed(compressed) => {
                    tally.compressed += 1;
                    *if compressed.method == Method::Pglz { &mut pglz } else { &mut lz4 } += 1;
                }
                Varlena::External(_) => tally.external += 1,
            }
        }
        if let Kind::Builtin(builtin) = &golden.ty.kind {
            let is_special = |byte: &u8| *byte < 0x20 || matches!(byte, b'"' | b'\\');
            let is_special = golden.text.iter().any(is_special);
            assert!(!(builtin.is_plain && is_special), "{} is not plain", builtin.name);
        }
        let payload = file.payload(golden);
        let text = text_of(&golden.ty, &payload);
        if text.as_ref() != Ok(&golden.text) {
            tally.differing += 1;
            println!(
                "{}: {payload:02x?}\n  server {:?}\n  here   {:?}",
                golden.ty.name,
                String::from_utf8_lossy(&golden.text),
                text.map(|text| String::from_utf8_lossy(&text).into_owned()),
            );
        }

        // The negative control: one bit is wrong. It may be in padding, of which a name has most
        // and a number none.
        let mut spoiled = payload.clone();
        let reach = spoiled.len().min(golden.text.len());
        if reach > 0 {
            spoiled[index * 31 % reach] ^= 1;
            tally.spoiled += 1;
            tally.noticed +=
                usize::from(text_of(&golden.ty, &spoiled).as_ref() != Ok(&golden.text));
        }
    }

    println!("{:<28} values differing compressed external  spoiled noticed", "type");
    let mut total = Tally::default();
    for (name, tally) in &tallies {
        println!(
            "{name:<28} {:>6} {:>9} {:>10} {:>8}  {:>7} {:>7}",
            tally.values,
            tally.differing,
            tally.compressed,
            tally.external,
            tally.spoiled,
            tally.noticed
        );
        total.values += tally.values;
        total.differing += tally.differing;
        total.spoiled += tally.spoiled;
        total.noticed += tally.noticed;
    }
    println!(
        "{} types, {} values, {} differing; {pglz} compressed with pglz, {lz4} with LZ4; {} spoiled, {} noticed",
        tallies.len(),
        total.values,
        total.differing,
        total.spoiled,
        total.noticed
    );
    assert_eq!(total.differing, 0);
    assert!(total.values >= 2000 && pglz >= 5 && lz4 >= 5, "the file is not what it was");
    assert!(total.noticed * 100 >= total.spoiled * 97);
    for (name, tally) in &tallies {
        assert!(tally.values >= 30, "{name} has only {} values", tally.values);
        assert!(
            tally.noticed * 3 >= tally.spoiled * 2,
            "{name}: of {} spoiled values only {} were noticed",
            tally.spoiled,
            tally.noticed
        );
    }
}

#[test]
fn spoiled_values_do_no_harm() {
    let file = File::read();
    let mut state = 15u64;
    let mut random = |below: usize| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let (mut printed, mut refused) = (0, 0);
    let mut text = Vec::new();
    for golden in &file.goldens {
        let payload = file.payload(golden);
        for _ in 0..20 {
            let mut spoiled = payload.clone();
            for _ in 0..random(4) {
                if !spoiled.is_empty() {
                    let at = random(spoiled.len());
                    spoiled[at] = [0, 1, 0x7F, 0x80, 0xFF, random(256) as u8][random(6)];
                }
            }
            if random(4) == 0 {
                spoiled.truncate(random(spoiled.len() + 1));
            }
            text.clear();
            match print(&golden.ty, &spoiled, &mut text) {
                Ok(()) => {
                    assert!(std::str::from_utf8(&text).is_ok());
                    printed += 1;
                }
                Err(_) => {
                    assert!(text.is_empty());
                    refused += 1;
                }
            }
        }
    }
    println!("{printed} spoiled values printed, {refused} refused");
    assert!(printed > 1000 && refused > 1000);
}

fn text_of(ty: &Type, payload: &[u8]) -> Result<Vec<u8>, ValueError> {
    let mut text = Vec::new();
    print(ty, payload, &mut text).map(|()| text)
}

impl File {
    fn read() -> Self {
        let mut types = BTreeMap::<u32, Arc<Type>>::new();
        let mut labels = BTreeMap::<u32, BTreeMap<u32, Box<str>>>::new();
        let mut toast = BTreeMap::new();
        let mut goldens = Vec::new();
        let lines: Vec<Vec<Vec<u8>>> = VALUES.lines().map(fields).collect();
        let fields_of =
            |line: &'static str| lines.iter().filter(move |fields| fields[0] == line.as_bytes());
        for fields in fields_of("label") {
            let label = utf8(&fields[3]).into();
            labels.entry(number(&fields[1])).or_default().insert(number(&fields[2]), label);
        }
        // A type refers to another: each round knows more of them.
        while types.len() < fields_of("type").count() {
            let known = types.len();
            for fields in fields_of("type") {
                let (oid, inner) = (number(&fields[1]), types.get(&number(&fields[3])).cloned());
                let kind = match (fields[2].as_slice(), number(&fields[3]), inner) {
                    (b"e", ..) => Kind::Enum(Arc::new(labels[&oid].clone())),
                    (b"d", _, Some(base)) => Kind::Domain(base),
                    (b"b", ..) if Builtin::from_oid(oid).is_some() => Kind::of_builtin(oid),
                    (_, _, Some(element)) => Kind::Array(element),
                    _ => continue,
                };
                types.entry(oid).or_insert(Arc::new(Type {
                    oid,
                    schema: utf8(&fields[7]).into(),
                    name: utf8(&fields[8]).into(),
                    length: utf8(&fields[4]).parse().expect("typlen"),
                    align: Align::from_catalog(fields[5][0]).expect("typalign"),
                    delimiter: fields[6][0],
                    kind,
                }));
            }
            assert!(types.len() > known, "some type is not defined");
        }
        for fields in fields_of("toast") {
            toast.insert(number(&fields[1]), hex(&fields[2]));
        }
        for fields in fields_of("value") {
            goldens.push(Golden {
                ty: types[&number(&fields[1])].clone(),
                attribute: hex(&fields[2]),
                text: fields[3].clone(),
            });
        }
        Self { goldens, toast }
    }

    fn payload(&self, golden: &Golden) -> Vec<u8> {
        if golden.ty.length != -1 {
            return golden.attribute.clone();
        }
        let (varlena, length) = Varlena::read(&golden.attribute).expect("the server wrote it");
        assert_eq!(length, golden.attribute.len());
        match varlena {
            Varlena::Plain(payload) => payload.to_vec(),
            Varlena::Compressed(compressed) => {
                compressed.decompress(1 << 20).expect("the server compressed it")
            }
            Varlena::External(pointer) => {
                let chunks = &self.toast[&pointer.value_id];
                pointer.payload(chunks, 1 << 20).expect("the server put it there").into_owned()
            }
        }
    }
}

/// The fields of a line, without the escapes of COPY.
fn fields(line: &str) -> Vec<Vec<u8>> {
    let unescape = |field: &str| {
        let mut bytes = field.bytes();
        let mut plain = Vec::new();
        while let Some(byte) = bytes.next() {
            plain.push(match byte {
                b'\\' => match bytes.next().expect("an escape has a letter") {
                    b'b' => 0x08,
                    b'f' => 0x0C,
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'v' => 0x0B,
                    letter => letter,
                },
                _ => byte,
            });
        }
        plain
    };
    line.split('\t').map(unescape).collect()
}

fn utf8(field: &[u8]) -> &str {
    std::str::from_utf8(field).expect("the file is UTF-8")
}

fn number(field: &[u8]) -> u32 {
    utf8(field).parse().expect("a number")
}

fn hex(field: &[u8]) -> Vec<u8> {
    let digit = |byte: u8| (byte as char).to_digit(16).expect("hexadecimal") as u8;
    field.chunks_exact(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
}

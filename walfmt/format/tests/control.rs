//! The control file reads as written, writes back as read, and refuses what it must.

use walfmt::control::{CONTROL_FILE_SIZE, ClusterState, ControlError, ControlFile};
use walfmt::{Lsn, SegmentSize, Timeline};

/// A control file of a 15 server; each byte that means nothing here is 0xA5, to be kept.
fn control_file() -> Vec<u8> {
    let mut file = vec![0; CONTROL_FILE_SIZE];
    file[..288].fill(0xA5);
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &0x0123_4567_89AB_CDEF_u64.to_le_bytes());
    put(8, &1300_u32.to_le_bytes());
    put(12, &202_209_061_u32.to_le_bytes());
    put(16, &6_i32.to_le_bytes());
    put(24, &1_700_000_000_i64.to_le_bytes());
    put(32, &0x1_0000_0028_u64.to_le_bytes());
    put(40, &[0; 88]);
    put(40, &0x1_0000_0000_u64.to_le_bytes());
    put(48, &3_u32.to_le_bytes());
    put(136, &0x1_0000_1000_u64.to_le_bytes());
    put(144, &3_u32.to_le_bytes());
    put(152, &0_u64.to_le_bytes());
    put(160, &0_u64.to_le_bytes());
    put(168, &[1]);
    put(172, &1_i32.to_le_bytes());
    put(176, &[1]);
    for (at, setting) in [(180, 100_i32), (184, 8), (188, 10), (192, 2), (196, 64)] {
        put(at, &setting.to_le_bytes());
    }
    put(200, &[0]);
    for (at, size) in [(204, 8_u32), (216, 8192), (220, 131_072), (224, 8192), (228, 16 << 20)] {
        put(at, &size.to_le_bytes());
    }
    put(252, &1_u32.to_le_bytes());
    seal(&mut file);
    file
}

fn seal(file: &mut [u8]) {
    let crc = crc32c::crc32c(&file[..288]);
    file[288..292].copy_from_slice(&crc.to_le_bytes());
}

#[test]
fn reads_what_a_server_wrote() {
    let control = ControlFile::from_bytes(&control_file()).expect("sound");
    assert_eq!(control.version.major, 15);
    assert_eq!(control.system_identifier, 0x0123_4567_89AB_CDEF);
    assert_eq!(control.state, ClusterState::IN_PRODUCTION);
    assert_eq!(control.time, 1_700_000_000);
    assert_eq!(control.check_point, Lsn(0x1_0000_0028));
    assert_eq!(control.check_point_copy.redo, Lsn(0x1_0000_0000));
    assert_eq!(control.check_point_copy.this_timeline, Timeline(3));
    assert_eq!(control.min_recovery_point, Lsn(0x1_0000_1000));
    assert_eq!(control.min_recovery_point_timeline, Timeline(3));
    assert!(control.backup_end_required && control.wal_log_hints);
    assert!(control.hint_bits_are_logged() && !control.track_commit_timestamp);
    assert_eq!(control.max_connections, 100);
    assert_eq!(control.max_locks_per_transaction, 64);
    assert_eq!(control.segment_size, SegmentSize::DEFAULT);
    assert_eq!(control.data_checksum_version, 1);
}

#[test]
fn writes_back_every_byte_it_read() {
    let file = control_file();
    let control = ControlFile::from_bytes(&file).expect("sound");
    assert_eq!(control.to_bytes()[..], file);
}

#[test]
fn writes_what_was_changed_and_nothing_else() {
    let before = control_file();
    let mut control = ControlFile::from_bytes(&before).expect("sound");
    control.state = ClusterState::IN_ARCHIVE_RECOVERY;
    control.check_point_copy.next_oid = 0x0101_0101;
    control.backup_start_point = Lsn(0x0101_0101_0101_0101);
    let after = control.to_bytes();
    let changed: Vec<_> = (0..288).filter(|&at| before[at] != after[at]).collect();
    let expected: Vec<_> = [16].into_iter().chain(72..76).chain(152..160).collect();
    assert_eq!(changed, expected);
    assert_eq!(ControlFile::from_bytes(&after), Ok(control));
}

#[test]
fn every_flipped_bit_before_the_crc_is_noticed() {
    let mut file = control_file();
    let mut flips = 0;
    for bit in 0..292 * 8 {
        file[bit / 8] ^= 1 << (bit % 8);
        ControlFile::from_bytes(&file).expect_err("a flipped bit");
        file[bit / 8] ^= 1 << (bit % 8);
        flips += 1;
    }
    println!("{flips} flipped bits, all noticed");
    ControlFile::from_bytes(&file).expect("sound again");
}

#[test]
fn refuses_what_is_cut_or_not_supported() {
    let file = control_file();
    assert_eq!(ControlFile::from_bytes(&file[..8191]), Err(ControlError::Length { found: 8191 }));
    let with = |at: usize, value: u32| {
        let mut file = file.clone();
        file[at..at + 4].copy_from_slice(&value.to_le_bytes());
        seal(&mut file);
        ControlFile::from_bytes(&file).expect_err("not supported")
    };
    let catalog_version = 202_209_061;
    assert_eq!(with(8, 1201), ControlError::Version { control_version: 1201, catalog_version });
    assert_eq!(
        with(12, 201_909_212),
        ControlError::Version { control_version: 1300, catalog_version: 201_909_212 }
    );
    for (at, field, expected) in [
        (204, "maxAlign", 8),
        (216, "blcksz", 8192),
        (220, "relseg_size", 131_072),
        (224, "xlog_blcksz", 8192),
    ] {
        assert_eq!(with(at, 4096), ControlError::Build { field, expected, found: 4096 });
    }
    assert_eq!(with(228, 3 << 20), ControlError::SegmentSize { found: 3 << 20 });
}

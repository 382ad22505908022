//! Regions as front-ends may describe them, and what translates through tables of them.

use std::os::fd::AsFd;

use crate::memory::cursor::Unmapped;
use crate::memory::iotlb::{IovaRange, Translation};
use crate::model::{GuestMemory, FRONTEND_OFFSET};

use super::*;

fn desc(guest: u64, size: u64, mmap_offset: u64) -> RegionDesc {
    RegionDesc {
        guest: GuestAddr(guest),
        size,
        frontend: FrontendAddr(guest + 0x7000_0000),
        mmap_offset,
    }
}

fn map(memory: &GuestMemory, desc: RegionDesc) -> Arc<Region> {
    Arc::new(Region::map(desc, memory.file().as_fd()).unwrap())
}

#[test]
fn a_region_needs_a_file_that_holds_it() {
    let memory = GuestMemory::new(0x2000);
    let file = memory.file();
    for fits in [
        desc(0, 0x2000, 0),
        desc(0, 1, 0x1fff),
        desc(0x1234, 0x1000, 0x777),
    ] {
        assert!(Region::map(fits, file.as_fd()).is_ok(), "{fits}");
    }
    for (short, need) in [
        (desc(0, 0x2001, 0), 0x2001),
        (desc(0, 1, 0x2000), 0x2001),
        (desc(0, 0x1000, 0x1001), 0x2001),
    ] {
        match Region::map(short, file.as_fd()) {
            Err(MemError::FileTooShort {
                need: said,
                have: 0x2000,
                ..
            }) => assert_eq!(said, need),
            other => panic!("{short}: {other:?}"),
        }
    }
}

#[test]
fn sums_that_wrap_are_refused() {
    let memory = GuestMemory::new(0x2000);
    let wrapping = [
        (desc(u64::MAX - 0x8000_0000, 0x8000_0002, 0), "guest address"),
        (
            RegionDesc {
                frontend: FrontendAddr(u64::MAX),
                ..desc(0, 2, 0)
            },
            "front-end address",
        ),
        (desc(0, 0x1000, u64::MAX - 0xfff), "file"),
        (desc(0, 0x2000, !0xfff), "file"),
    ];
    for (desc, space) in wrapping {
        match Region::map(desc, memory.file()) {
            Err(MemError::Wraps { space: said, .. }) => assert_eq!(said, space),
            other => panic!("{desc}: {other:?}"),
        }
    }
    assert!(matches!(
        Region::map(desc(0, 0, 0), memory.file()),
        Err(MemError::Empty(_))
    ));
}

#[test]
fn what_is_no_memory_is_refused() {
    let (socket, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
    assert!(matches!(
        Region::map(desc(0, 0x1000, 0), socket),
        Err(MemError::FileTooShort { .. })
    ));
}

#[test]
fn a_region_shows_its_part_of_the_file_from_any_offset() {
    let memory = GuestMemory::new(0x4000);
    for offset in [0, 1, 0x1000, 0x1ffd] {
        let at = GuestAddr(0x1000 + offset + 5);
        memory.write(at, &offset.to_le_bytes());
        let table = MemTable::new(vec![map(&memory, desc(0x9000, 0x100, offset))]).unwrap();
        let mut bytes = [0; 8];
        table
            .cursor(0)
            .unwrap()
            .read(GuestAddr(0x9005), &mut bytes)
            .unwrap();
        assert_eq!(u64::from_le_bytes(bytes), offset);
    }
}

#[test]
fn overlapping_guest_addresses_are_refused_in_any_order() {
    let memory = GuestMemory::new(0x4000);
    let (one, two) = (
        map(&memory, desc(0x1000, 0x2000, 0)),
        map(&memory, desc(0x2fff, 0x1000, 0)),
    );
    assert!(matches!(
        MemTable::new(vec![one.clone(), two.clone()]),
        Err(MemError::Overlap(..))
    ));
    assert!(matches!(
        MemTable::new(vec![two, one.clone()]),
        Err(MemError::Overlap(..))
    ));
    assert!(matches!(
        MemTable::new(vec![one.clone(), one]),
        Err(MemError::Overlap(..))
    ));
}

#[test]
fn as_many_regions_as_the_largest_front_ends_have_and_no_more() {
    let memory = GuestMemory::new(0x1000);
    let region = |index: u64| map(&memory, desc(index * 0x1000, 0x1000, 0));
    let table = MemTable::new((0..509).rev().map(region).collect()).unwrap();
    let mut cursor = table.cursor(0).unwrap();
    for index in [508, 0, 254, 508, 1] {
        assert_eq!(
            cursor
                .prefix(GuestAddr(index * 0x1000 + 1), 0x1000)
                .map(|slice| slice.len()),
            Some(0xfff)
        );
        assert_eq!(u64::from(cursor.hint()), index);
    }
    assert!(matches!(
        table.with_region(region(509)),
        Err(MemError::TooMany(510))
    ));
}

#[test]
fn regions_come_and_go_and_tables_stay_as_they_were() {
    let memory = GuestMemory::new(0x4000);
    let one = MemTable::new(vec![map(&memory, desc(0x1000, 0x1000, 0))]).unwrap();
    let two = one
        .with_region(map(&memory, desc(0x8000, 0x1000, 0x1000)))
        .unwrap();
    // REM_MEM_REG does not say the right offset.
    let three = two.without_region(&desc(0x1000, 0x1000, 0x3000)).unwrap();
    let mapped = |table: &MemTable, addr| table.cursor(7).unwrap().prefix(GuestAddr(addr), 1).is_some();
    assert_eq!(
        [&one, &two, &three].map(|table| mapped(table, 0x1fff)),
        [true, true, false]
    );
    assert_eq!(
        [&one, &two, &three].map(|table| mapped(table, 0x8000)),
        [false, true, true]
    );
    assert!(matches!(
        three.without_region(&desc(0x1000, 0x1000, 0)),
        Err(MemError::NoSuchRegion(_))
    ));
    assert!(matches!(
        three.without_region(&desc(0x8000, 0xfff, 0)),
        Err(MemError::NoSuchRegion(_))
    ));
    let none = three.without_region(&desc(0x8000, 0x1000, 0)).unwrap();
    assert!(none.cursor(0).is_none());
}

#[test]
fn only_addresses_inside_a_region_translate() {
    let memory = GuestMemory::new(0x2000);
    let table = MemTable::new(vec![map(&memory, desc(0x1000, 0x2000, 0))]).unwrap();
    let len = |addr, len| {
        table
            .cursor(0)
            .unwrap()
            .prefix(GuestAddr(addr), len)
            .map(|slice| slice.len())
    };
    let rows = [
        (0x0fff, 1, None),
        (0x1000, 1, Some(1)),
        (0x1000, 0, Some(0)),
        (0x2fff, 1, Some(1)),
        (0x2fff, 2, Some(1)),
        (0x2ff0, u32::MAX, Some(16)),
        (0x3000, 0, None),
        (u64::MAX, 1, None),
    ];
    for (addr, asked, got) in rows {
        assert_eq!(len(addr, asked), got, "{asked} bytes at {addr:#x}");
    }
    let frontend = |addr, len| table.frontend(FrontendAddr(addr), len).is_some();
    assert!(frontend(0x7000_1000, 0x2000) && !frontend(0x7000_1000, 0x2001) && !frontend(0x1000, 1));
    assert!(!frontend(0x7000_2fff, 2) && !frontend(0x7000_0fff, 2) && !frontend(u64::MAX, u32::MAX));
}

#[test]
fn reading_crosses_into_a_neighbour_and_stops_at_a_gap() {
    let memory = GuestMemory::with_regions(&[(GuestAddr(0x1000), 0x1000), (GuestAddr(0x2000), 0x1000)]);
    memory.write(GuestAddr(0x1ffe), &[1, 2, 3, 4]);
    let mut bytes = [0; 4];
    memory.read(GuestAddr(0x1ffe), &mut bytes);
    assert_eq!(bytes, [1, 2, 3, 4]);
    let table = memory.table();
    assert_eq!(
        table.cursor(0).unwrap().read(GuestAddr(0x2ffe), &mut bytes),
        Err(Unmapped)
    );
    assert_eq!(
        table.cursor(0).unwrap().write(GuestAddr(u64::MAX), &bytes),
        Err(Unmapped)
    );
}

/// Memory of two regions, the second of which the front-end has right behind the first.
fn behind(translations: &[(u64, u64, u64, Access)]) -> (GuestMemory, MemTable) {
    let memory = GuestMemory::with_regions(&[(GuestAddr(0x1000), 0x2000), (GuestAddr(0x3000), 0x1000)]);
    let mut iotlb = Iotlb::default();
    for (iova, size, target, access) in translations {
        let translation = Translation {
            iova: IovaRange::new(GuestAddr(*iova), *size).unwrap(),
            target: FrontendAddr(FRONTEND_OFFSET + target),
            access: *access,
        };
        iotlb.update(translation, &[]);
    }
    let table = memory.table().behind(&iotlb);
    (memory, table)
}

#[test]
fn behind_an_iommu_only_what_was_translated_is_there_and_only_as_allowed() {
    let (memory, table) = behind(&[
        (0x10_0000, 0x1000, 0x2000, Access::Read),
        (0x20_0000, 0x1000, 0x1000, Access::Write),
    ]);
    memory.write(GuestAddr(0x2010), b"read");
    let mut bytes = [0; 4];
    let mut reader = table.cursor(0).unwrap();
    assert_eq!(reader.read(GuestAddr(0x10_0010), &mut bytes), Ok(()));
    assert_eq!(&bytes, b"read");
    // A guest-physical address means nothing here, and what may only be written cannot be read.
    assert_eq!(reader.read(GuestAddr(0x2010), &mut bytes), Err(Unmapped));
    assert_eq!(reader.read(GuestAddr(0x20_0000), &mut bytes), Err(Unmapped));
    let mut writer = table.cursor_to_write(0).unwrap();
    assert_eq!(writer.write(GuestAddr(0x20_0020), b"wrote"), Ok(()));
    assert_eq!(writer.write(GuestAddr(0x10_0020), b"wrote"), Err(Unmapped));
    // But an indirect table is read whatever its buffers are for.
    assert_eq!(
        writer
            .readable_prefix(GuestAddr(0x10_0ff8), 16)
            .map(|slice| slice.len()),
        Some(8)
    );
    let mut bytes = [0; 5];
    memory.read(GuestAddr(0x1020), &mut bytes);
    assert_eq!(&bytes, b"wrote");
}

#[test]
fn a_translation_goes_on_from_region_to_region_and_ends_where_none_is() {
    let (memory, table) = behind(&[(0x10_0000, 0x9000, 0x2000, Access::ReadWrite)]);
    memory.write(GuestAddr(0x2ffe), &[1, 2, 3, 4]);
    let mut bytes = [0; 4];
    table
        .cursor(0)
        .unwrap()
        .read(GuestAddr(0x10_0ffe), &mut bytes)
        .unwrap();
    assert_eq!(bytes, [1, 2, 3, 4]);
    let miss = |at, len| table.first_miss(GuestAddr(at), len, Access::ReadWrite);
    assert_eq!(miss(0x10_0ff0, 0x1010), None);
    assert_eq!(miss(0x10_0ff0, 0x1011), Some(GuestAddr(0x10_2000)));
    assert_eq!(miss(0xf_ffff, 1), Some(GuestAddr(0xf_ffff)));
    assert!(memory
        .table()
        .holds(FrontendAddr(FRONTEND_OFFSET + 0x1000), 0x3000));
    assert!(!memory
        .table()
        .holds(FrontendAddr(FRONTEND_OFFSET + 0x1000), 0x3001));
    assert!(!memory.table().holds(FrontendAddr(u64::MAX), 2));
}

#[test]
fn a_ring_behind_an_iommu_lies_where_its_addresses_lead_together_and_with_access() {
    let (memory, table) = behind(&[
        (0x10_0000, 0x1000, 0x2000, Access::ReadWrite),
        (0x10_1000, 0x1000, 0x1000, Access::ReadWrite),
        (0x20_0000, 0x1000, 0x1000, Access::Read),
    ]);
    let area = |at, len, access| {
        let slice = table.ring_area(FrontendAddr(at), len, access)?;
        Some(slice.as_ptr().addr())
    };
    let physical = |at| {
        memory
            .table()
            .frontend(FrontendAddr(FRONTEND_OFFSET + at), 1)
            .map(|s| s.as_ptr().addr())
    };
    assert_eq!(area(0x10_0010, 0xff0, Access::ReadWrite), physical(0x2010));
    assert_eq!(area(0x20_0000, 0x1000, Access::Read), physical(0x1000));
    // Two pages that are neighbours here and not in memory; no leave to write; the front-end's own address.
    assert_eq!(area(0x10_0010, 0xff1, Access::ReadWrite), None);
    assert_eq!(area(0x20_0000, 16, Access::ReadWrite), None);
    assert_eq!(area(FRONTEND_OFFSET + 0x1000, 16, Access::Read), None);
}

#[test]
#[cfg_attr(miri, ignore = "no kernel to map a page a second time")]
fn pages_of_a_ring_that_lie_apart_are_put_together_and_stay_where_they_are() {
    let scattered = [
        (0x10_0000, 0x1000, 0x2000, Access::ReadWrite),
        (0x10_1000, 0x1000, 0x1000, Access::ReadWrite),
        (0x10_2000, 0x1000, 0x3000, Access::Read),
    ];
    let (memory, table) = behind(&scattered);
    let ring = FrontendAddr(0x10_0800);
    let areas = [
        (GuestAddr(ring.0), 0x1000, Access::ReadWrite),
        // Not all told; not all to be written.
        (GuestAddr(0x10_2800), 0x1000, Access::Read),
        (GuestAddr(0x10_1800), 0x1000, Access::ReadWrite),
    ];
    let none = MemTable::default();
    let table = table.stitched(&areas, &none);
    let slice = table.ring_area(ring, 0x1000, Access::ReadWrite).unwrap();
    assert!(slice.write_all(&[0x11; 0x1000]));
    memory.write(GuestAddr(0x17ff), &[0x22]);
    let mut bytes = [0; 2];
    memory.read(GuestAddr(0x2fff), &mut bytes[..1]);
    memory.read(GuestAddr(0x1000), &mut bytes[1..]);
    assert_eq!(bytes, [0x11, 0x11]);
    let mut seen = vec![0; 0x1000];
    assert_eq!(slice.read(&mut seen), 0x1000);
    assert_eq!(seen[0xffe..], [0x11, 0x22]);
    assert!(table
        .ring_area(FrontendAddr(0x10_2800), 0x1000, Access::Read)
        .is_none());
    assert!(table
        .ring_area(FrontendAddr(0x10_1800), 0x1000, Access::ReadWrite)
        .is_none());
    assert!(table
        .ring_area(FrontendAddr(0x10_0fff), 0x1002, Access::ReadWrite)
        .is_none());

    // The same again is the same memory; with a page elsewhere, or one page less, it is not.
    let where_is = |table: &MemTable| {
        let slice = table.ring_area(ring, 0x1000, Access::ReadWrite)?;
        Some(slice.as_ptr().addr())
    };
    let seen_by = |translations: &[(u64, u64, u64, Access)]| {
        let mut iotlb = Iotlb::default();
        for (iova, size, target, access) in translations {
            let iova = IovaRange::new(GuestAddr(*iova), *size).unwrap();
            let (target, access) = (FrontendAddr(FRONTEND_OFFSET + target), *access);
            iotlb.update(Translation { iova, target, access }, &[]);
        }
        memory.table().behind(&iotlb).stitched(&areas, &table)
    };
    assert_eq!(where_is(&seen_by(&scattered)), where_is(&table));
    let moved = [scattered[0], (0x10_1000, 0x1000, 0x3000, Access::ReadWrite)];
    let moved = where_is(&seen_by(&moved));
    assert!(moved.is_none() || moved != where_is(&table));
    assert_eq!(where_is(&seen_by(&scattered[..1])), None);
}

#[test]
fn every_small_range_near_regions_and_the_end_of_the_space_is_read_if_each_byte_is_in_one() {
    let memory = GuestMemory::new(0x1000);
    // Neighbours, one by itself, and the last addresses there are.
    let regions = [(3, 4), (7, 2), (12, 1), (u64::MAX - 2, 3)];
    let mapped = |at: u64| {
        regions
            .iter()
            .any(|(guest, size)| at.wrapping_sub(*guest) < *size)
    };
    let region = |(guest, size)| {
        let frontend = FrontendAddr(0);
        map(
            &memory,
            RegionDesc {
                guest: GuestAddr(guest),
                frontend,
                ..desc(0, size, 0)
            },
        )
    };
    let table = MemTable::new(regions.map(region).into()).unwrap();
    for first in (0..16).chain(u64::MAX - 5..=u64::MAX) {
        for len in 0..16_usize {
            let all = (0..len as u64).all(|more| first.checked_add(more).is_some_and(mapped));
            for hint in 0..4 {
                let mut cursor = table.cursor(hint).unwrap();
                let read = cursor.read(GuestAddr(first), &mut vec![0; len]);
                assert_eq!(read.is_ok(), all, "{len} at {first:#x}, from region {hint}");
            }
        }
    }
}

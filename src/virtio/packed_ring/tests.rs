//! Positions, flags and words of a packed ring, against models of them.

use super::*;
use crate::effort;
use crate::memory::GuestAddr;
use crate::model::{Buffer, GuestMemory, PackedDesc, PackedDriver, Virtqueue};
use crate::virtio::features::{VIRTIO_F_RING_PACKED, VIRTIO_F_VERSION_1};

#[test]
fn a_position_flips_its_counter_at_the_end_of_any_ring() {
    let at = |index, wrap| Position { index, wrap };
    // (size, from, descriptors, to)
    let rows = [
        (1, at(0, true), 1, at(0, false)),
        (5, at(0, true), 4, at(4, true)),
        (5, at(4, true), 1, at(0, false)),
        (5, at(3, false), 4, at(2, true)),
        (5, at(3, false), 5, at(3, true)),
        (MAX_SIZE, at(32767, true), 32768, at(32767, false)),
    ];
    for (size, from, descs, to) in rows {
        assert_eq!(from.advance(descs, size), to, "{from:?} + {descs} of {size}");
        assert_eq!(Position::from_bits(to.bits(), size), Some(to));
    }
    assert_eq!(Position::START.bits(), 0x8000);
    assert_eq!(Position::from_bits(0x8005, 5), None);
}

/// The position that a side reaches after so many descriptors: the model that positions must agree with.
fn after(descs: u32, size: u16) -> Position {
    let (lap, index) = (descs / u32::from(size), descs % u32::from(size));
    Position {
        index: u16::try_from(index).unwrap(),
        wrap: lap % 2 == 0,
    }
}

#[test]
fn every_step_from_every_position_of_every_small_ring_is_that_of_a_counter() {
    for size in 1..=effort::of(96_u16, 7) {
        for from in 0..2 * u32::from(size) {
            for step in 0..=size {
                let there = after(from, size).advance(step, size);
                assert_eq!(
                    there,
                    after(from + u32::from(step), size),
                    "{from} + {step} of {size}"
                );
            }
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "thousands of steps that are all the same")]
fn every_position_of_every_ring_survives_the_wire_and_nothing_else_does() {
    for size in (1..=300).chain([4096, 32767, 32768]) {
        let good = |bits| Position::from_bits(bits, size);
        let positions = (0..=u16::MAX).filter_map(|bits| good(bits).map(|at| (bits, at)));
        let mut count = 0;
        for (bits, at) in positions {
            assert_eq!((at.bits(), at.index), (bits, bits & 0x7fff));
            count += 1;
        }
        assert_eq!(count, 2 * u32::from(size));
    }
}

#[test]
fn a_descriptor_is_available_in_one_lap_used_in_one_and_neither_in_the_others() {
    // Through four laps: what the driver writes in one lap is seen as available in that lap alone, and what the device
    // writes as used never is.
    for wrote in [true, false] {
        let driver = if wrote {
            VIRTQ_DESC_F_AVAIL
        } else {
            VIRTQ_DESC_F_USED
        };
        for reads in [true, false] {
            let [wrote, reads] = [wrote, reads].map(|wrap| Position { index: 0, wrap });
            assert_eq!(reads.is_available(driver), wrote == reads);
            assert!(!reads.is_available(wrote.used()));
        }
    }
}

#[test]
fn availability_is_one_of_four_flag_pairs_and_depends_on_the_counter() {
    for (flags, first_lap, second_lap) in [
        (0, false, false),
        (VIRTQ_DESC_F_AVAIL, true, false),
        (VIRTQ_DESC_F_USED, false, true),
        (TURN, false, false),
    ] {
        let at = |wrap| Position { index: 0, wrap };
        assert_eq!(at(true).is_available(flags | 7), first_lap, "{flags:#x}");
        assert_eq!(at(false).is_available(flags | 7), second_lap, "{flags:#x}");
    }
}

#[test]
fn fields_are_where_the_specification_has_them() {
    let desc = packed(0x1122_3344_5566_7788, 0x8083_0102_0304_0506);
    assert_eq!(
        (desc.addr, desc.len, desc.next),
        (0x1122_3344_5566_7788, 0x0304_0506, 0x0102)
    );
    assert_eq!(desc.flags, 0x8083);
    let used = Used {
        id: 0x0102,
        descs: 1,
        len: 0x0304_0506,
    };
    assert_eq!(used_word(Position::START, used), 0x8082_0102_0304_0506);
    assert_eq!(
        used_word(
            Position {
                index: 0,
                wrap: false
            },
            Used { len: 0, ..used }
        ),
        0x0102 << 32
    );
    assert_eq!(
        Event::from_word(0x0002_8001),
        Event {
            desc: 0x8001,
            flags: 2
        }
    );
}

#[test]
fn entries_of_an_indirect_table_follow_each_other_whatever_they_say() {
    let mut bytes = [0; 16];
    // Id and flags: neither NEXT nor the turn bits mean anything here.
    bytes[12..].copy_from_slice(&[7, 0, 0x82, 0x80]);
    let desc = PackedMem::entry(bytes, 1, 3);
    assert_eq!(
        (desc.flags, desc.next),
        (VIRTQ_DESC_F_NEXT | VIRTQ_DESC_F_WRITE, 2)
    );
    bytes[14] = 1;
    assert_eq!(PackedMem::entry(bytes, 2, 3).flags, 0);
}

#[test]
fn a_mark_leaves_alone_what_its_driver_wrote_since_it_was_seen() {
    let memory = Arc::new(GuestMemory::new(0x1000));
    let features = VIRTIO_F_RING_PACKED | VIRTIO_F_VERSION_1;
    let mut driver = PackedDriver::new(memory.clone(), GuestAddr(0x1000), 4, features);
    let config = driver.config(0);
    let addrs = RingAddrs {
        desc: config.desc,
        driver: config.driver,
        device: config.device,
    };
    let mem = PackedMem::new(memory.table(), 4, addrs).unwrap();
    let buffer = Buffer {
        addr: GuestAddr(0x1800),
        len: 60,
        write: false,
    };
    let id = driver.add(&[buffer]).unwrap();
    driver.publish();
    let seen = mem.desc(0).unwrap();
    let written = PackedDesc {
        len: 61,
        ..driver.desc(0)
    };
    driver.set_desc(0, written);
    mem.mark_unless_changed(Position::START, &seen);
    assert_eq!(driver.desc(0), written);

    mem.mark_unless_changed(Position::START, &mem.desc(0).unwrap());
    assert_eq!(driver.reap().map(|used| used.id), Some(id.into()));
}

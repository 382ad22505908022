//! Bad chains for a packed ring (VIRTIO 1.2, 2.8.5 to 2.8.7).

use super::{crime, end, Crime};
use crate::memory::GuestAddr;
use crate::model::{Net, PackedDesc, PackedDriver, Virtqueue};
use crate::virtio::chain::ChainError;
use crate::virtio::desc::{VIRTQ_DESC_F_INDIRECT, VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE};
use crate::virtio::packed_ring::VIRTQ_DESC_F_AVAIL;

const SIZE: u16 = 61;
const NEXT: u16 = VIRTQ_DESC_F_NEXT;

/// For a ring of 61 with its memory from 0x1000 on.
pub const PACKED: &[Crime<PackedDriver>] = &[
    endless(
        "a chain without end and without bytes",
        |net, flags| {
            for index in 1..=SIZE {
                set(net, index % SIZE, 0x1000, 0, flags | NEXT);
            }
        },
        |_| ChainError::TooLong(SIZE),
    ),
    crime(
        "the other direction",
        |net, flags| set(net, 1, 0x1000, 100, flags ^ VIRTQ_DESC_F_WRITE),
        |_| ChainError::Direction {
            addr: 0x1000,
            len: 100,
        },
    ),
    crime(
        "the other direction, second",
        |net, flags| {
            set(net, 2, 0x2000, 100, flags ^ VIRTQ_DESC_F_WRITE);
            set(net, 1, 0x1000, 3, flags | NEXT);
        },
        |_| ChainError::Direction {
            addr: 0x2000,
            len: 100,
        },
    ),
    crime(
        "address 0",
        |net, flags| set(net, 1, 0, 100, flags),
        |_| ChainError::Unmapped {
            addr: GuestAddr(0),
            len: 100,
        },
    ),
    crime(
        "the last address there is",
        |net, flags| set(net, 1, u64::MAX, u32::MAX, flags),
        |_| ChainError::Unmapped {
            addr: GuestAddr(u64::MAX),
            len: u32::MAX,
        },
    ),
    crime(
        "an indirect table of no entries",
        |net, flags| table(net, flags, net.buffer(5), 0),
        |_| ChainError::IndirectLength(0),
    ),
    crime(
        "an indirect table of half an entry too much",
        |net, flags| table(net, flags, net.buffer(5), 24),
        |_| ChainError::IndirectLength(24),
    ),
    crime(
        "an indirect table of more entries than the ring",
        |net, flags| table(net, flags, net.buffer(5), 16 * 62),
        |_| ChainError::IndirectLength(16 * 62),
    ),
    crime(
        "an indirect table with NEXT",
        |net, flags| table(net, flags | NEXT, net.buffer(5), 16),
        |_| ChainError::IndirectWithNext,
    ),
    crime(
        "an unmapped indirect table",
        |net, flags| table(net, flags, GuestAddr(0), 16),
        |_| ChainError::TableUnmapped(GuestAddr(0)),
    ),
    crime(
        "an indirect table at the end of the address space",
        |net, flags| table(net, flags, GuestAddr(u64::MAX - 7), 32),
        |_| ChainError::TableUnmapped(GuestAddr(u64::MAX - 7)),
    ),
    crime(
        "an indirect descriptor inside an indirect table",
        |net, flags| {
            let at = net.buffer(5);
            table(net, flags, at, 16);
            let nested = PackedDesc {
                addr: at.0,
                len: 16,
                id: 0,
                flags: flags | VIRTQ_DESC_F_INDIRECT,
            };
            net.driver.memory().write(at, &nested.to_bytes());
        },
        |_| ChainError::IndirectNested,
    ),
    crime(
        "a buffer of which the last byte is beyond its region",
        |net, flags| set(net, 1, end(net) - 40, 41, flags),
        |net| ChainError::Unmapped {
            addr: GuestAddr(end(net)),
            len: 1,
        },
    ),
    crime(
        "a buffer that starts 16 bytes before the end of its region",
        |net, flags| set(net, 1, end(net) - 16, 4096, flags),
        |net| ChainError::Unmapped {
            addr: GuestAddr(end(net)),
            len: 4080,
        },
    ),
    crime(
        "a buffer right behind its region",
        |net, flags| set(net, 1, end(net), 1, flags),
        |net| ChainError::Unmapped {
            addr: GuestAddr(end(net)),
            len: 1,
        },
    ),
    crime(
        "an indirect table of which the second entry is beyond its region",
        |net, flags| {
            let at = GuestAddr(end(net) - 16);
            table(net, flags, at, 32);
            let first = PackedDesc {
                addr: net.buffer(1).0,
                len: 1,
                id: 0,
                flags,
            };
            net.driver.memory().write(at, &first.to_bytes());
        },
        |net| ChainError::TableUnmapped(GuestAddr(end(net))),
    ),
];

/// A crime that takes the place of the first chain, too.
const fn endless(
    name: &'static str,
    write: fn(&Net<PackedDriver>, u16),
    error: fn(&Net<PackedDriver>) -> ChainError,
) -> Crime<PackedDriver> {
    Crime {
        good: 0,
        ..crime(name, write, error)
    }
}

/// Writes a descriptor and makes it available: behind a first one that is not yet.
fn set(net: &Net<PackedDriver>, index: u16, addr: u64, len: u32, flags: u16) {
    let desc = PackedDesc {
        addr,
        len,
        id: index,
        flags: flags | VIRTQ_DESC_F_AVAIL,
    };
    net.driver.set_desc(index, desc);
}

fn table(net: &Net<PackedDriver>, flags: u16, addr: GuestAddr, len: u32) {
    set(net, 1, addr.0, len, flags | VIRTQ_DESC_F_INDIRECT);
}

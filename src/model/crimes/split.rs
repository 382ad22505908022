//! Bad chains for a split ring (VIRTIO 1.2, 2.7.5).

use super::{crime, end, Crime};
use crate::memory::GuestAddr;
use crate::model::{Driver, Net, Virtqueue};
use crate::virtio::chain::ChainError;
use crate::virtio::desc::{Desc, VIRTQ_DESC_F_INDIRECT, VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE};

/// For a ring of 64 with its memory from 0x1000 on.
pub const SPLIT: &[Crime<Driver>] = &[
    crime(
        "next beyond the ring",
        |net, flags| {
            let addr = net.buffer(1).0;
            net.driver.set_desc(1, desc(addr, 1, flags | 1, 65535));
        },
        |_| ChainError::OutOfTable {
            index: 65535,
            entries: 64,
        },
    ),
    crime(
        "next is the ring's size",
        |net, flags| {
            let addr = net.buffer(1).0;
            net.driver.set_desc(1, desc(addr, 1, flags | 1, 64));
        },
        |_| ChainError::OutOfTable {
            index: 64,
            entries: 64,
        },
    ),
    crime(
        "a loop of two, without bytes",
        |net, flags| {
            let addr = net.buffer(1).0;
            net.driver.set_desc(1, desc(addr, 0, flags | 1, 2));
            net.driver.set_desc(2, desc(addr, 0, flags | 1, 1));
        },
        |_| ChainError::TooLong(64),
    ),
    crime(
        "a descriptor that is its own next, without bytes",
        |net, flags| {
            net.driver.set_desc(1, desc(0, 0, flags | 1, 1));
        },
        |_| ChainError::TooLong(64),
    ),
    crime(
        "the other direction",
        |net, flags| {
            let addr = 0x1000;
            let flags = flags ^ VIRTQ_DESC_F_WRITE;
            net.driver.set_desc(1, desc(addr, 100, flags, 0));
        },
        |_| ChainError::Direction {
            addr: 0x1000,
            len: 100,
        },
    ),
    crime(
        "the other direction, second",
        |net, flags| {
            net.driver.set_desc(1, desc(0x1000, 3, flags | 1, 2));
            let flags = flags ^ VIRTQ_DESC_F_WRITE;
            net.driver.set_desc(2, desc(0x2000, 100, flags, 0));
        },
        |_| ChainError::Direction {
            addr: 0x2000,
            len: 100,
        },
    ),
    crime(
        "address 0",
        |net, flags| net.driver.set_desc(1, desc(0, 100, flags, 0)),
        |_| ChainError::Unmapped {
            addr: GuestAddr(0),
            len: 100,
        },
    ),
    crime(
        "the last address there is",
        |net, flags| net.driver.set_desc(1, desc(u64::MAX, u32::MAX, flags, 0)),
        |_| ChainError::Unmapped {
            addr: GuestAddr(u64::MAX),
            len: u32::MAX,
        },
    ),
    crime(
        "an indirect table of no entries",
        |net, flags| indirect(net, flags, net.buffer(5), 0),
        |_| ChainError::IndirectLength(0),
    ),
    crime(
        "an indirect table of half an entry too much",
        |net, flags| indirect(net, flags, net.buffer(5), 24),
        |_| ChainError::IndirectLength(24),
    ),
    crime(
        "an indirect table of 4096 entries",
        |net, flags| indirect(net, flags, net.buffer(5), 65536),
        |_| ChainError::IndirectLength(65536),
    ),
    crime(
        "an indirect table of 65537 entries, which is 1 in 16 bits",
        |net, flags| indirect(net, flags, net.buffer(5), 16 * 65537),
        |_| ChainError::IndirectLength(16 * 65537),
    ),
    crime(
        "an indirect table with NEXT",
        |net, flags| indirect(net, flags | VIRTQ_DESC_F_NEXT, net.buffer(5), 16),
        |_| ChainError::IndirectWithNext,
    ),
    crime(
        "an unmapped indirect table",
        |net, flags| indirect(net, flags, GuestAddr(0), 16),
        |_| ChainError::TableUnmapped(GuestAddr(0)),
    ),
    crime(
        "an indirect table at the end of the address space",
        |net, flags| indirect(net, flags, GuestAddr(u64::MAX - 7), 32),
        |_| ChainError::TableUnmapped(GuestAddr(u64::MAX - 7)),
    ),
    crime(
        "an indirect descriptor inside an indirect table",
        |net, flags| {
            let table = net.buffer(5);
            indirect(net, flags, table, 16);
            entry(net, table, desc(table.0, 16, flags | VIRTQ_DESC_F_INDIRECT, 0));
        },
        |_| ChainError::IndirectNested,
    ),
    crime(
        "an indirect descriptor as second of an indirect table",
        |net, flags| {
            let table = net.buffer(5);
            indirect(net, flags, table, 32);
            entry(net, table, desc(table.0, 1, flags | 1, 1));
            let nested = desc(table.0, 16, flags | VIRTQ_DESC_F_INDIRECT, 0);
            entry(net, GuestAddr(table.0 + 16), nested);
        },
        |_| ChainError::IndirectNested,
    ),
    crime(
        "next beyond the indirect table",
        |net, flags| {
            let table = net.buffer(5);
            indirect(net, flags, table, 16);
            entry(net, table, desc(table.0, 1, flags | 1, 1));
        },
        |_| ChainError::OutOfTable { index: 1, entries: 1 },
    ),
    crime(
        "a loop in an indirect table",
        |net, flags| {
            let table = net.buffer(5);
            indirect(net, flags, table, 16);
            entry(net, table, desc(table.0, 0, flags | 1, 0));
        },
        |_| ChainError::TooLong(64),
    ),
    crime(
        "a buffer of which the last byte is beyond its region",
        |net, flags| net.driver.set_desc(1, desc(end(net) - 40, 41, flags, 0)),
        |net| ChainError::Unmapped {
            addr: GuestAddr(end(net)),
            len: 1,
        },
    ),
    crime(
        "a buffer that starts 16 bytes before the end of its region",
        |net, flags| net.driver.set_desc(1, desc(end(net) - 16, 4096, flags, 0)),
        |net| ChainError::Unmapped {
            addr: GuestAddr(end(net)),
            len: 4080,
        },
    ),
    crime(
        "a buffer right behind its region",
        |net, flags| net.driver.set_desc(1, desc(end(net), 1, flags, 0)),
        |net| ChainError::Unmapped {
            addr: GuestAddr(end(net)),
            len: 1,
        },
    ),
    crime(
        "an indirect table of which the second entry is beyond its region",
        |net, flags| {
            let table = GuestAddr(end(net) - 16);
            indirect(net, flags, table, 32);
            entry(net, table, desc(net.buffer(1).0, 1, flags | 1, 1));
        },
        |net| ChainError::TableUnmapped(GuestAddr(end(net))),
    ),
];

fn desc(addr: u64, len: u32, flags: u16, next: u16) -> Desc {
    Desc {
        addr,
        len,
        flags,
        next,
    }
}

fn indirect(net: &Net<Driver>, flags: u16, table: GuestAddr, len: u32) {
    let flags = flags | VIRTQ_DESC_F_INDIRECT;
    net.driver.set_desc(1, desc(table.0, len, flags, 0));
}

fn entry(net: &Net<Driver>, addr: GuestAddr, desc: Desc) {
    net.driver.memory().write(addr, &desc.to_bytes());
}

//! What a front-end can make the process allocate, at the very most: each excess that the protocol allows, with every byte of the
//! heap counted. Alone in its program, whose allocator it is.

#[expect(dead_code, reason = "what it costs is asked of the heap, not of the port")]
#[path = "common/client.rs"]
mod client;
#[expect(dead_code, reason = "nobody gets as far as to packets here")]
mod common;
#[path = "memory_bound/front_end.rs"]
mod front_end;
#[path = "memory_bound/heap.rs"]
mod heap;

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use ovs_vhost::memory::{GuestAddr, InflightLayout};
use ovs_vhost::model::{GuestMemory, FRONTEND_OFFSET};
use ovs_vhost::port::Switches;
use ovs_vhost::vhost_user::samples::{iotlb, numbers, state};
use ovs_vhost::virtio::features::{Features, VIRTIO_F_ACCESS_PLATFORM, VIRTIO_F_RING_PACKED};

use rustix::event::{eventfd, EventfdFlags};
use rustix::fs::{memfd_create, MemfdFlags};

use client::Client;
use front_end::FrontEnd;

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
/// What docs/security.md says of one front-end, whatever it does but for packed rings; of each of these; of a single allocation.
const BOUND: usize = 8 * MIB;
const PER_PACKED_RING: usize = 328 * KIB;
const AT_ONCE: usize = 2 * MIB;
/// Of one that has gone: what its port keeps to tell of it, and what the process keeps for the next.
const KEPT: usize = 128 * KIB;

const PAIRS: u32 = 128;
const LARGEST: u16 = 32768;
const REGIONS: u64 = 509;
const TRANSLATIONS: u64 = 8192;
const PAGE: u64 = 4096;
/// Where the largest ring lies, of either layout: descriptors, used, avail.
const RING: [u64; 3] = [0x10_0000, 0x30_0000, 0x20_0000];

/// An excess, on a connection on which nothing has been said yet; and how many packed rings are in it.
type Row = (&'static str, u32, fn(&mut FrontEnd));

const ROWS: &[Row] = &[
    (
        "as many regions as there are slots, as often as may be",
        0,
        |it| {
            it.negotiate(Features::NONE);
            let memory = GuestMemory::new(PAGE);
            let mut add = |slot: u64| {
                let region = numbers(&[0, slot << 32, PAGE, slot << 32, 0]);
                it.ask("ADD_MEM_REG", &region, &[memory.file().as_fd()])
            };
            for _ in 0..=PAIRS {
                assert!((1..=REGIONS).all(|slot| add(slot) == 0));
            }
            assert_ne!(add(1), 0, "once more");
        },
    ),
    (
        "more translations than are kept, no two of them neighbours",
        0,
        |it| {
            it.negotiate(VIRTIO_F_ACCESS_PLATFORM);
            let memory = GuestMemory::new(64 * PAGE);
            it.lend(&memory);
            for page in 0..=TRANSLATIONS {
                let to = FRONTEND_OFFSET + (page % 32 + 1) * PAGE;
                let translation = iotlb(2 * PAGE * page, PAGE, to, 3, 2);
                assert_eq!(it.ask("IOTLB_MSG", &translation, &[]), 0, "page {page}");
            }
        },
    ),
    ("as many of the largest rings as there may be, split", 0, |it| {
        largest_rings(it, InflightLayout::Split, 2 * PAIRS);
    }),
    ("the same, packed", 2 * PAIRS, |it| {
        largest_rings(it, InflightLayout::Packed, 2 * PAIRS);
    }),
    ("the largest ring, split, with nothing given back yet", 0, |it| {
        all_in_flight(it, InflightLayout::Split);
    }),
    ("the same, packed", 1, |it| {
        all_in_flight(it, InflightLayout::Packed)
    }),
    ("ten thousand requests that are refused", 0, |it| {
        it.negotiate(Features::NONE);
        let (short, buffer) = (in_flight(1), file(1));
        assert!((0..10_000).all(|_| it.ask("SET_INFLIGHT_FD", &short, &[buffer.as_fd()]) != 0));
    }),
    ("questions by one who never reads the answers", 0, |it| {
        it.negotiate(Features::NONE);
        it.never_read("GET_FEATURES");
    }),
];

#[test]
fn what_a_front_end_makes_us_allocate_has_a_bound() {
    let switches = Switches {
        iommu: true,
        ..Switches::default()
    };
    let client = Client::new("bound", switches);
    // What is made once has been made after this.
    FrontEnd::new(client.accept()).negotiate(Features::NONE);
    let mut next = FrontEnd::new(client.accept());
    for (name, packed, excess) in ROWS {
        let before = heap::mark();
        excess(&mut next);
        drop(next);
        // The port is done with the last one before it dials the next.
        next = FrontEnd::new(client.accept());
        let (most, largest) = (heap::most() - before, heap::largest());
        let kept = heap::now().saturating_sub(before);
        println!("{name}: {most} bytes, {largest} at once, {kept} kept");
        let bound = BOUND + PER_PACKED_RING * usize::try_from(*packed).expect("few");
        assert!(most < bound, "{name}: {most} bytes");
        assert!(largest <= AT_ONCE, "{name}: {largest} bytes at once");
        assert!(kept < KEPT, "{name}: {kept} bytes are left");
    }
}

/// Memory of this many bytes, none of them there yet.
fn file(size: u64) -> File {
    let file = File::from(memfd_create("lent", MemfdFlags::CLOEXEC).expect("a memfd"));
    file.set_len(size).expect("a sparse file");
    file
}

/// Starts so many vrings, all on the same largest ring.
fn largest_rings(it: &mut FrontEnd, layout: InflightLayout, vrings: u32) {
    let (features, base) = match layout {
        InflightLayout::Split => (Features::NONE, 0),
        InflightLayout::Packed => (VIRTIO_F_RING_PACKED, 0x8000),
    };
    it.negotiate(features);
    let memory = GuestMemory::new(16 << 20);
    it.lend(&memory);
    // The driver has made all of a split ring available.
    memory.store(GuestAddr(RING[2] + 2), LARGEST);
    start_rings(it, base, vrings);
}

fn start_rings(it: &mut FrontEnd, base: u32, vrings: u32) {
    let kick = eventfd(0, EventfdFlags::NONBLOCK).expect("an eventfd");
    let at = RING.map(|at| at + FRONTEND_OFFSET);
    for vring in 0..vrings {
        let number = numbers(&[vring.into()]);
        let address = [state(vring, 0), numbers(&at), numbers(&[0])].concat();
        for (request, payload, fds) in [
            ("SET_VRING_NUM", state(vring, LARGEST.into()), &[][..]),
            ("SET_VRING_BASE", state(vring, base), &[]),
            ("SET_VRING_ADDR", address, &[]),
            ("SET_VRING_KICK", number, &[kick.as_fd()]),
            ("SET_VRING_ENABLE", state(vring, 1), &[]),
        ] {
            assert_eq!(it.ask(request, &payload, fds), 0, "{request} of {vring}");
        }
    }
}

/// One of the largest rings, which a back-end left with every descriptor in its hands.
fn all_in_flight(it: &mut FrontEnd, layout: InflightLayout) {
    let (part, size) = (part_of_in_flight(layout), layout.stride(LARGEST));
    let buffer = file(size);
    buffer.write_all_at(&part, 0).expect("room");
    largest_rings(it, layout, 0);
    let desc = in_flight(size);
    assert_eq!(it.ask("SET_INFLIGHT_FD", &desc, &[buffer.as_fd()]), 0);
    start_rings(it, 0, 1);
    // It was given back, or there was no excess.
    let mut state = [1];
    buffer
        .read_exact_at(&mut state, layout.header())
        .expect("a state");
    assert_eq!(state, [0], "{layout:?}");
}

/// What is said of an in-flight buffer of this many bytes for one of the largest rings.
fn in_flight(size: u64) -> Vec<u8> {
    let counts = [1, LARGEST, 0, 0].map(u16::to_ne_bytes).concat();
    [numbers(&[size, 0]), counts].concat()
}

/// Words of an in-flight buffer that say of each descriptor that it is being used, the last since longest.
fn part_of_in_flight(layout: InflightLayout) -> Vec<u8> {
    let mut part = vec![0; usize::try_from(layout.stride(LARGEST)).expect("small")];
    let mut put = |at: u64, words: &[u16]| {
        let at = usize::try_from(at).expect("small");
        for (place, word) in part[at..].chunks_exact_mut(2).zip(words) {
            place.copy_from_slice(&word.to_ne_bytes());
        }
    };
    // The version, how many there are; and of a packed ring that none is free.
    match layout {
        InflightLayout::Split => put(8, &[1, LARGEST]),
        InflightLayout::Packed => put(8, &[1, LARGEST, LARGEST, LARGEST]),
    }
    for index in 0..LARGEST {
        let at = layout.header() + layout.entry() * u64::from(index);
        let counter = LARGEST - index;
        match layout {
            InflightLayout::Split => put(at, &[1, 0, 0, 0, counter]),
            InflightLayout::Packed => put(at, &[1, 0, index, 1, counter, 0, 0, 0, index]),
        }
    }
    part
}

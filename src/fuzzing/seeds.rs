//! Where fuzzers begin: sessions in the order in which QEMU and DPDK's virtio-user hold them, drivers that keep the rules,
//! frames with headers as they should be. What they found from there is in the corpus beside these.

use std::fs;

use super::corpus::folder;
use super::device::PROTOCOL;
use super::guest::{REGIONS, START};
use super::messages::EVENTFDS;
use super::run;
use crate::model::FRONTEND_OFFSET;

const VERSION: u32 = 1;
const NEED_REPLY: u32 = 9;

/// Every seed: target, name, bytes.
fn seeds() -> Vec<(&'static str, String, Vec<u8>)> {
    let mut seeds = vec![
        ("messages", "qemu".to_owned(), qemu()),
        ("messages", "virtio-user".to_owned(), virtio_user()),
    ];
    for layout in ["split_ring", "packed_ring"] {
        for (name, features) in [("plain", 1), ("rich", 0x0f), ("in-order", 0x13), ("all", 0xff)] {
            seeds.push((layout, format!("sends-{name}"), driver(features, 0b0110)));
            seeds.push((layout, format!("receives-{name}"), driver(features, 0b0111)));
        }
        seeds.push((layout, "lies".to_owned(), liar()));
    }
    for (name, packed, features) in [
        ("split", 0, 0x43),
        ("packed", 1, 0x43),
        ("logged", 0, 0x6f),
        ("iommu", 0, 0x53),
    ] {
        seeds.push(("device", name.to_owned(), device(packed, features)));
    }
    for (name, kind, word) in HEADERS {
        seeds.push(("net_hdr", (*name).to_owned(), header(*kind, *word)));
    }
    for (name, text) in OPTIONS {
        seeds.push(("options", (*name).to_owned(), text.to_vec()));
    }
    seeds
}

// ---- sessions ----

/// A record: one request, with descriptors of a kind.
fn request(id: u32, flags: u32, payload: &[u8], fds: u8) -> Vec<u8> {
    let size = u32::try_from(payload.len()).expect("short");
    let message = [&words(&[id, flags, size]), payload].concat();
    let len = u16::try_from(message.len()).expect("short").to_le_bytes();
    [&[fds], &len[..], &message].concat()
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn numbers(numbers: &[u64]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_ne_bytes()).collect()
}

fn address(vring: u32) -> Vec<u8> {
    let at = START + FRONTEND_OFFSET + 0x2000 * u64::from(vring);
    [words(&[vring, 0]), numbers(&[at, at + 0x800, at + 0x400, 0])].concat()
}

/// QEMU 7.2: what it says when its character device opens, when the driver starts, and when it stops.
fn qemu() -> Vec<u8> {
    let ask = |id| request(id, VERSION, &[], 0);
    let mut all = vec![
        ask(1),
        ask(15),
        request(16, VERSION, &numbers(&[PROTOCOL.0]), 0),
        ask(17),
        ask(36),
        ask(3),
        ask(1),
    ];
    for vring in 0..2 {
        all.push(request(13, VERSION, &numbers(&[vring]), EVENTFDS | 1));
        all.push(request(14, VERSION, &numbers(&[vring]), EVENTFDS | 1));
    }
    all.push(request(20, NEED_REPLY, &numbers(&[1500]), 0));
    all.extend((0..2).map(|vring| request(18, VERSION, &words(&[vring, 1]), 0)));
    all.push(request(2, VERSION, &numbers(&[0x1_7000_8000]), 0));
    all.push(ask(40));
    all.push(request(39, VERSION, &numbers(&[0xb]), 0));
    for desc in REGIONS {
        let region = [0, desc.guest.0, desc.size, desc.frontend.0, desc.mmap_offset];
        all.push(request(37, NEED_REPLY, &numbers(&region), 1));
    }
    for vring in 0..2 {
        all.push(request(8, VERSION, &words(&[vring, 16]), 0));
        all.push(request(10, VERSION, &words(&[vring, 0]), 0));
        all.push(request(9, VERSION, &address(vring), 0));
        all.push(request(12, VERSION, &numbers(&[vring.into()]), EVENTFDS | 1));
    }
    all.push(request(39, VERSION, &numbers(&[0xf]), 0));
    all.push(ask(40));
    all.extend((0..2).map(|vring| request(18, VERSION, &words(&[vring, 0]), 0)));
    all.extend((0..2).map(|vring| request(11, VERSION, &words(&[vring, 0]), 0)));
    all.concat()
}

/// DPDK's virtio-user: memory in one table, rings that are enabled last.
fn virtio_user() -> Vec<u8> {
    let ask = |id| request(id, VERSION, &[], 0);
    let table: Vec<u64> = REGIONS
        .iter()
        .flat_map(|desc| [desc.guest.0, desc.size, desc.frontend.0, desc.mmap_offset])
        .collect();
    let mut all = vec![
        ask(3),
        ask(1),
        ask(15),
        request(16, VERSION, &numbers(&[PROTOCOL.0]), 0),
        request(39, NEED_REPLY, &numbers(&[3]), 0),
    ];
    all.extend((0..2).map(|vring| request(13, VERSION, &numbers(&[vring]), EVENTFDS | 1)));
    all.push(request(2, NEED_REPLY, &numbers(&[0x5_4000_8000]), 0));
    all.push(request(
        5,
        NEED_REPLY,
        &[words(&[3, 0]), numbers(&table)].concat(),
        3,
    ));
    for vring in 0..2 {
        all.push(request(8, VERSION, &words(&[vring, 16]), 0));
        all.push(request(10, VERSION, &words(&[vring, 0x8000_8000]), 0));
        all.push(request(9, VERSION, &address(vring), 0));
        all.push(request(12, VERSION, &numbers(&[vring.into()]), EVENTFDS | 1));
    }
    all.extend((0..2).map(|vring| request(18, VERSION, &words(&[vring, 1]), 0)));
    all.push(request(39, NEED_REPLY, &numbers(&[0xf]), 0));
    all.concat()
}

// ---- rings ----

/// A driver that keeps the rules: chains of all shapes, bursts, stops and starts.
fn driver(features: u8, how: u8) -> Vec<u8> {
    let mut input = vec![5, features, how];
    for round in 0..6 {
        for chain in 0..4 {
            // In line or indirect, of one to four pieces with short lengths.
            input.extend(
                [0, chain % 2, chain, 90, 40 + round, 200, 7, 9]
                    .iter()
                    .take(4 + usize::from(chain)),
            );
        }
        // Publish, burst, reap.
        input.extend([2, 3, 8, 100, 1, 4]);
        match round {
            1 => input.extend([9]),
            2 => input.extend([10, 1]),
            3 => input.extend([11, 0, 1, 1]),
            4 => input.extend([2, 8, 4]),
            _ => {}
        }
    }
    input
}

/// One that breaks some, also between two reads.
fn liar() -> Vec<u8> {
    let mut input = vec![4, 0x0f, 0b1110];
    input.extend([0, 0, 1, 90, 90, 2]);
    input.extend([
        7, 1, 3, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 2, 0, 8, 1, 1, 1, 1, 1, 1, 1, 1, 8, 0,
    ]);
    input.extend([5, 0, 0, 0, 1, 0, 64, 1, 0, 1, 5, 3, 4, 3, 8, 0]);
    input
}

// ---- devices ----

/// A start of two queue pairs, frames out and in, and the requests that a migration brings.
fn device(packed: u8, features: u8) -> Vec<u8> {
    let mut input = vec![packed, 0, features];
    // Behind an IOMMU: the translations of the rings, and of the buffers.
    input.extend([8, 22, 3, 0, 0, 0, 8, 22, 2, 0, 0, 0, 0, 0, 0]);
    for vring in [0x10, 0x00] {
        input.extend([vring | 1, 0, 1, 100, 60, vring | 2, vring | 3, 4, 50, 0]);
    }
    // Log, its descriptor, an in-flight buffer asked for and taken, a ring stopped.
    input.extend([8, 6, 0, 8, 7, 7, 8, 31, 2, 16, 8, 32, 0x18, 11, 8, 43]);
    input
}

// ---- headers, options ----

/// Kind of the frame (see `offload`), and the header before it.
const HEADERS: &[(&str, u8, [u8; 10])] = &[
    ("tcp4-checksum", 0b0001, [1, 0, 0, 0, 0, 0, 34, 0, 16, 0]),
    ("tcp4-segments", 0b0001, [1, 1, 54, 0, 200, 0, 34, 0, 16, 0]),
    ("tcp6-segments", 0b0011, [1, 4, 74, 0, 200, 0, 54, 0, 16, 0]),
    ("udp4-checksum", 0b0101, [1, 0, 0, 0, 0, 0, 34, 0, 6, 0]),
    ("udp6-tagged", 0b1111, [1, 0, 0, 0, 0, 0, 58, 0, 6, 0]),
    ("plain", 0b10_0000, [0; 10]),
];

fn header(kind: u8, word: [u8; 10]) -> Vec<u8> {
    // Split, out of a guest and into one that takes nothing; 1000 bytes of payload.
    [&[0][..], &word, &[0x0f, 0, kind, 0xe8, 3, 0]].concat()
}

const OPTIONS: &[(&str, &[u8])] = &[
    ("good", b"\x01\x00\x0232\x01\x06/tmp/s"),
    ("bad", b"\x01\x00\x0233\x01\x00"),
    ("directory", b"\x00\x02\x05/../x"),
];

#[test]
fn the_seeds_are_in_the_corpus_and_are_survived() {
    for (target, name, bytes) in seeds() {
        let file = folder(target).join(&name);
        let there = fs::read(file).unwrap_or_default();
        assert!(there == bytes, "{target}/{name}: write it anew");
        run(target, &bytes);
    }
}

#[test]
#[ignore = "writes into fuzz/corpus"]
fn write_the_seeds() {
    for (target, name, bytes) in seeds() {
        fs::write(folder(target).join(name), bytes).expect("a file");
    }
}

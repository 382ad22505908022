//! Headers that no good driver writes, and words that no good host gives.

use super::*;

both_layouts! {
    headers_that_ask_for_the_impossible_cost_their_frame;
    any_header_before_any_frame_leaves_nothing_unproven;
    words_that_make_no_sense_are_refused;
    any_word_with_any_frame_gives_a_good_driver_nothing_it_did_not_negotiate;
    a_driver_that_makes_work_by_tiny_segments_is_refused;
}

fn headers_that_ask_for_the_impossible_cost_their_frame<D: Virtqueue>(layout: Features) {
    let packet = Packet {
        payload: 1000,
        ..Packet::TCP4
    };
    let v6 = Packet { v6: true, ..packet };
    let udp = Packet {
        protocol: naive::UDP,
        ..packet
    };
    let good = packet.segments(100);
    let tso4 = LEAVES.without(VIRTIO_NET_F_HOST_TSO6);
    let rows = [
        (
            "a checksum behind the end",
            packet,
            LEAVES,
            Offload {
                csum_start: 1052,
                ..packet.checksum()
            },
        ),
        (
            "a field behind the end",
            packet,
            LEAVES,
            Offload {
                csum_offset: 2000,
                ..packet.checksum()
            },
        ),
        (
            "the largest numbers",
            packet,
            LEAVES,
            Offload {
                csum_start: 0xffff,
                csum_offset: 0xffff,
                ..good
            },
        ),
        (
            "segments without a checksum",
            packet,
            LEAVES,
            Offload { flags: 0, ..good },
        ),
        (
            "segments of no size",
            packet,
            LEAVES,
            Offload { gso_size: 0, ..good },
        ),
        (
            "an unknown kind of segments",
            packet,
            LEAVES,
            Offload { gso_type: 7, ..good },
        ),
        (
            "datagrams to be cut",
            udp,
            LEAVES,
            Offload {
                gso_type: 3,
                ..udp.segments(100)
            },
        ),
        ("datagrams as segments", udp, LEAVES, udp.segments(100)),
        (
            "ECN that was not negotiated",
            packet,
            LEAVES,
            Offload {
                gso_type: GSO_TCPV4 | GSO_ECN,
                ..good
            },
        ),
        (
            "nothing but ECN",
            packet,
            LEAVES | VIRTIO_NET_F_HOST_ECN,
            Offload {
                gso_type: GSO_ECN,
                ..good
            },
        ),
        ("segments that were not negotiated", v6, tso4, v6.segments(100)),
        (
            "segments of the other IP",
            packet,
            LEAVES,
            Offload {
                gso_type: GSO_TCPV6,
                ..good
            },
        ),
        (
            "segments of something inside",
            packet,
            LEAVES,
            Offload {
                csum_start: 60,
                ..good
            },
        ),
        (
            "another field than TCP's",
            packet,
            LEAVES,
            Offload {
                csum_offset: 6,
                ..good
            },
        ),
    ];
    for (what, packet, features, word) in rows {
        let mut rig = Rig::<D>::with_offloads(Direction::Dequeue, SIZE, 2048, layout | features);
        rig.net.send_with(word, &packet.partial(&mut Random(1)));
        rig.net.send(&frame(60, 1));
        rig.net.driver.publish();
        assert_eq!(rig.dequeue(), [frame(60, 1)], "{what}");
        let stats = rig.stats();
        assert_eq!((stats.invalid, stats.good_packets), (1, 1), "{what}");
        assert_eq!(rig.queue.fault(), None, "{what}");
        assert_eq!(std::iter::from_fn(|| rig.net.driver.reap()).count(), 2);
    }
}

/// A frame of a packet with some bytes changed and cut short.
fn mangled(random: &mut Random) -> (Packet, Vec<u8>) {
    let packet = Packet {
        tags: random.below(4),
        ..Packet::random(random)
    };
    let mut bytes = packet.partial(random);
    for _ in 0..random.below(4) {
        let at = random.below(bytes.len().min(90));
        bytes[at] = random.next().to_le_bytes()[0];
    }
    if random.chance(4) {
        bytes.truncate(1 + random.below(bytes.len()));
    }
    (packet, bytes)
}

/// A word for the packet with some bytes changed.
fn mangled_word(packet: &Packet, random: &mut Random) -> Offload {
    let size = u16::try_from(random.below(700)).unwrap();
    let mut bytes = [packet.checksum(), packet.segments(size)][random.below(2)].encode();
    for _ in 0..random.below(3) {
        bytes[random.below(10)] = random.next().to_le_bytes()[0];
    }
    Offload::decode(bytes)
}

/// What the host may rely on.
fn assert_proven(word: Offload, frame: &[u8]) {
    if word == Offload::NONE {
        return;
    }
    let l3 = if frame[12..14] == [0x81, 0] || frame[12..14] == [0x88, 0xa8] {
        18
    } else {
        14
    };
    let (start, offset) = (usize::from(word.csum_start), usize::from(word.csum_offset));
    let version = frame[l3] >> 4;
    assert_eq!(word.flags, NEEDS_CSUM);
    assert!(start >= l3 + if version == 4 { 20 } else { 40 });
    assert!(offset == 16 || offset == 6);
    assert!(start + offset + 2 <= frame.len());
    match word.gso_type {
        GSO_NONE => assert_eq!((word.hdr_len, word.gso_size), (0, 0)),
        GSO_TCPV4 => assert_eq!((version, offset), (4, 16)),
        GSO_TCPV6 => assert_eq!((version, offset), (6, 16)),
        other => panic!("gso_type {other}"),
    }
    if word.is_gso() {
        assert!(word.gso_size > 0);
        assert!(usize::from(word.hdr_len) >= start + 20);
        assert!(usize::from(word.hdr_len) < frame.len());
    }
}

fn any_header_before_any_frame_leaves_nothing_unproven<D: Virtqueue>(layout: Features) {
    let mut rig = Rig::<D>::with_offloads(Direction::Dequeue, SIZE, 2048, layout | LEAVES);
    let mut random = Random(99);
    let mut left = 0_u64;
    for _ in 0..effort::of(5000, 40) {
        let (packet, bytes) = mangled(&mut random);
        rig.net.send_with(mangled_word(&packet, &mut random), &bytes);
        rig.net.driver.publish();
        let mut slots = rig.pool.slots();
        let count = rig.queue.dequeue(&mut slots);
        for slot in &slots[..count] {
            assert_eq!(slot.frame().len(), bytes.len());
            assert_proven(slot.offload(), slot.frame());
            left += u64::from(!slot.offload().is_none());
        }
        rig.net.driver.reap();
    }
    assert_eq!(rig.queue.fault(), None);
    let (stats, few) = (rig.stats(), effort::of(300, 1));
    assert!(left > few && stats.invalid > few, "{left} words, {stats:?}");
}

fn words_that_make_no_sense_are_refused<D: Virtqueue>(layout: Features) {
    let packet = Packet {
        payload: 3000,
        ..Packet::TCP4
    };
    let good = packet.segments(1000);
    let rows = [
        Offload {
            csum_start: 0xffff,
            csum_offset: 0xffff,
            ..packet.checksum()
        },
        Offload {
            csum_start: 3050,
            ..packet.checksum()
        },
        Offload { flags: 0, ..good },
        Offload { gso_size: 0, ..good },
        Offload {
            gso_type: GSO_TCPV6,
            ..good
        },
        Offload { gso_type: 3, ..good },
        Offload {
            csum_offset: 6,
            ..good
        },
        Offload {
            csum_start: 35,
            ..good
        },
    ];
    let bytes = packet.partial(&mut Random(2));
    for features in [layout, layout | TAKES] {
        for word in rows {
            let mut rig = Rig::<D>::with_offloads(Direction::Enqueue, SIZE, 4096, features);
            rig.net.supply(4);
            rig.net.driver.publish();
            let plain = frame(60, 1);
            let slots = [TxSlot::with_offload(&bytes, word), TxSlot::new(&plain)];
            let sent = rig.queue.enqueue(&slots, 8);
            assert_eq!((sent.packets, sent.invalid), (1, 1), "{word:?}");
            assert_eq!(rig.received(), [plain], "{word:?}");
            assert_eq!(rig.stats().invalid, 1);
        }
    }
}

fn any_word_with_any_frame_gives_a_good_driver_nothing_it_did_not_negotiate<D: Virtqueue>(layout: Features) {
    let mut random = Random(77);
    let bits = [
        VIRTIO_NET_F_GUEST_CSUM,
        VIRTIO_NET_F_GUEST_TSO4,
        VIRTIO_NET_F_GUEST_TSO6,
        VIRTIO_NET_F_GUEST_ECN,
        VIRTIO_NET_F_MRG_RXBUF,
    ];
    for choice in (0..32_usize).step_by(effort::of(1, 11)) {
        let chosen = (0..5).filter(|bit| choice >> bit & 1 == 1);
        let features = chosen.fold(layout, |all, bit| all | bits[bit]);
        let mut rig = Rig::<D>::with_offloads(Direction::Enqueue, effort::of(256, 16), 2048, features);
        for _ in 0..effort::of(100, 2) {
            rig.net.supply(256);
            rig.net.driver.publish();
            let (packet, bytes) = mangled(&mut random);
            let word = mangled_word(&packet, &mut random);
            rig.queue.enqueue(&[TxSlot::with_offload(&bytes, word)], 0);
            while let Some((word, _)) = rig.net.receive_with() {
                let needs = match word.gso_type & !GSO_ECN {
                    GSO_NONE => Features::NONE,
                    GSO_TCPV4 => VIRTIO_NET_F_GUEST_TSO4,
                    GSO_TCPV6 => VIRTIO_NET_F_GUEST_TSO6,
                    other => panic!("gso_type {other}"),
                };
                let flags = [
                    (word.flags, VIRTIO_NET_F_GUEST_CSUM),
                    (word.gso_type & GSO_ECN, VIRTIO_NET_F_GUEST_ECN),
                ];
                let needs = flags
                    .iter()
                    .filter(|(flag, _)| *flag != 0)
                    .fold(needs, |all, (_, bit)| all | *bit);
                assert!(features.contains(needs), "{word:?} to {features}");
            }
        }
        assert_eq!(rig.queue.fault(), None);
    }
}

fn a_driver_that_makes_work_by_tiny_segments_is_refused<D: Virtqueue>(layout: Features) {
    const ENTRIES: u16 = effort::of(2048, 128);
    let packet = Packet {
        payload: 1290,
        ..Packet::TCP4
    };
    let bytes = packet.partial(&mut Random(3));
    let mut rig = Rig::<D>::with_offloads(Direction::Enqueue, ENTRIES, 2048, layout);
    rig.net.supply(usize::from(ENTRIES));
    rig.net.driver.publish();
    for (size, taken) in [(1, 0), (10, 0), (11, 1)] {
        let slot = TxSlot::with_offload(&bytes, packet.segments(size));
        assert_eq!(rig.queue.enqueue(&[slot], 8).packets, taken, "segments of {size}");
    }
    assert_eq!((rig.stats().invalid, rig.stats().good_packets), (2, 118));
}

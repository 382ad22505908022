//! From the host to a driver.

use super::*;

both_layouts! {
    drivers_that_take_all_get_words_as_they_are;
    drivers_that_take_nothing_get_frames_as_on_the_wire;
    drivers_that_take_checksums_only_get_segments;
    sctp_checksums_are_made;
    segments_with_ecn_are_cut_for_drivers_without;
    a_frame_that_is_cut_goes_in_whole_or_not_at_all;
    large_frames_are_spread_over_merged_buffers;
    frames_behind_a_cut_one_that_does_not_fit_arrive;
}

const MRG: Features = VIRTIO_NET_F_MRG_RXBUF;

fn rig<D: Virtqueue>(size: u16, room: u32, features: Features) -> Rig<D> {
    let mut rig = Rig::<D>::with_offloads(Direction::Enqueue, size, room, features);
    rig.net.supply(usize::from(size));
    rig.net.driver.publish();
    rig
}

fn received<D: Virtqueue>(rig: &mut Rig<D>) -> Vec<(Offload, Vec<u8>)> {
    let got = std::iter::from_fn(|| rig.net.receive_with()).collect();
    rig.net.supply(usize::MAX);
    rig.net.driver.publish();
    got
}

/// A random burst of frames with words, each with what it was made from.
fn burst(random: &mut Random) -> Vec<(Packet, Offload, Vec<u8>)> {
    (0..random.below(effort::of(BURST, 6)))
        .map(|_| {
            let packet = Packet {
                payload: random.below(4000),
                ..Packet::random(random)
            };
            let word = match random.below(3) {
                0 => Offload::NONE,
                1 if packet.protocol == naive::TCP && packet.payload > 0 => {
                    packet.segments(u16::try_from(500 + random.below(1000)).unwrap())
                }
                _ => packet.checksum(),
            };
            let bytes = match word {
                Offload::NONE => packet.whole(random),
                _ => packet.partial(random),
            };
            (packet, word, bytes)
        })
        .collect()
}

fn slots(burst: &[(Packet, Offload, Vec<u8>)]) -> Vec<TxSlot<'_>> {
    burst
        .iter()
        .map(|(_, word, bytes)| TxSlot::with_offload(bytes, *word))
        .collect()
}

/// Pushes random bursts through rings with these features and compares with what `expected` makes of each frame.
fn random_bursts<D: Virtqueue>(
    features: Features,
    expected: impl Fn(&Packet, Offload, &[u8]) -> Vec<(Offload, Vec<u8>)>,
) {
    let rings = [(MRG, 256), (MRG, 2048), (Features::NONE, 9000)];
    for (merge, room) in rings.into_iter().skip(effort::of(0, 2)) {
        let mut rig = rig::<D>(effort::of(512, 64), room, features | merge);
        let mut random = Random(u64::from(room));
        let (mut packets, mut bytes) = (0, 0);
        for _ in 0..effort::of(20, 2) {
            let burst = burst(&mut random);
            let sent = rig.queue.enqueue(&slots(&burst), 8);
            assert_eq!((sent.packets, sent.invalid), (burst.len(), 0));
            let expected: Vec<_> = burst
                .iter()
                .flat_map(|(packet, word, frame)| expected(packet, *word, frame))
                .collect();
            let got = received(&mut rig);
            assert_eq!(got.len(), expected.len());
            for (got, expected) in got.iter().zip(&expected) {
                assert_eq!(got, expected);
                bytes += expected.1.len() as u64;
                packets += 1;
            }
        }
        let stats = rig.stats();
        assert_eq!((stats.good_packets, stats.good_bytes), (packets, bytes));
        assert_eq!(stats.size_bins.iter().sum::<u64>(), packets);
    }
}

fn drivers_that_take_all_get_words_as_they_are<D: Virtqueue>(layout: Features) {
    random_bursts::<D>(layout | TAKES, |packet, word, frame| {
        let mut word = word;
        if word.is_gso() && packet.payload <= usize::from(word.gso_size) {
            word = packet.checksum();
        }
        if word.is_gso() && packet.tcp_flags & 0x80 != 0 {
            word.gso_type |= GSO_ECN;
        }
        vec![(word, frame.to_vec())]
    });
}

/// The frame with everything computed: in segments, if it is to be cut.
fn on_the_wire(packet: &Packet, word: Offload, frame: &[u8]) -> Vec<(Offload, Vec<u8>)> {
    if word.is_gso() {
        let segments = naive::segments(frame, packet, usize::from(word.gso_size));
        return segments.into_iter().map(|bytes| (Offload::NONE, bytes)).collect();
    }
    let mut whole = frame.to_vec();
    if word.flags == NEEDS_CSUM {
        naive::complete(&mut whole, packet);
    }
    vec![(Offload::NONE, whole)]
}

fn drivers_that_take_nothing_get_frames_as_on_the_wire<D: Virtqueue>(layout: Features) {
    // A driver that takes segments without checksums takes neither.
    for features in [layout, layout | VIRTIO_NET_F_GUEST_TSO4 | VIRTIO_NET_F_GUEST_TSO6] {
        random_bursts::<D>(features, |packet, word, frame| {
            // One segment is the frame itself: nothing but its checksum is missing.
            let one = word.is_gso() && packet.payload <= usize::from(word.gso_size);
            let word = if one { packet.checksum() } else { word };
            on_the_wire(packet, word, frame)
        });
    }
}

fn drivers_that_take_checksums_only_get_segments<D: Virtqueue>(layout: Features) {
    random_bursts::<D>(layout | VIRTIO_NET_F_GUEST_CSUM, |packet, word, frame| {
        match word.is_gso() && packet.payload > usize::from(word.gso_size) {
            true => on_the_wire(packet, word, frame),
            false if word.is_none() => vec![(word, frame.to_vec())],
            false => vec![(packet.checksum(), frame.to_vec())],
        }
    });
}

fn sctp_checksums_are_made<D: Virtqueue>(layout: Features) {
    let mut rig = rig::<D>(SIZE, 2048, layout | TAKES);
    let packet = Packet {
        protocol: naive::SCTP,
        ..Packet::TCP4
    };
    let bytes = packet.partial(&mut Random(3));
    let mut padded = bytes.clone();
    padded.extend([0; 5]);
    let slot = TxSlot::with_offload(&padded, packet.checksum());
    assert_eq!(rig.queue.enqueue(&[slot], 0).packets, 1);
    let field = packet.l4() + 8..packet.l4() + 12;
    let mut whole = bytes;
    whole[field.clone()].fill(0);
    let crc = naive::crc32c(&whole[packet.l4()..]);
    whole[field].copy_from_slice(&crc.to_le_bytes());
    whole.extend([0; 5]);
    assert_eq!(received(&mut rig), [(Offload::NONE, whole)]);
}

fn segments_with_ecn_are_cut_for_drivers_without<D: Virtqueue>(layout: Features) {
    let packet = Packet {
        tcp_flags: 0x98,
        payload: 1000,
        ..Packet::TCP4
    };
    let (bytes, word) = (packet.partial(&mut Random(4)), packet.segments(600));
    let mut rig = rig::<D>(SIZE, 2048, layout | TAKES.without(VIRTIO_NET_F_GUEST_ECN));
    rig.queue.enqueue(&[TxSlot::with_offload(&bytes, word)], 0);
    assert_eq!(received(&mut rig), on_the_wire(&packet, word, &bytes));
}

fn a_frame_that_is_cut_goes_in_whole_or_not_at_all<D: Virtqueue>(layout: Features) {
    let mut random = Random(5);
    let packet = Packet {
        payload: 4000,
        ..Packet::TCP4
    };
    let (bytes, word) = (packet.partial(&mut random), packet.segments(1000));
    let plain = Packet::TCP4.whole(&mut random);
    let mut rig = Rig::<D>::with_offloads(Direction::Enqueue, SIZE, 2048, layout);
    rig.net.supply(4);
    rig.net.driver.publish();
    let slots = [TxSlot::new(&plain), TxSlot::with_offload(&bytes, word)];
    assert_eq!(rig.queue.enqueue(&slots, 8).packets, 1);
    assert_eq!(received(&mut rig), [(Offload::NONE, plain.clone())]);
    assert_eq!(rig.queue.enqueue(&slots[1..], 8).packets, 1);
    assert_eq!(received(&mut rig), on_the_wire(&packet, word, &bytes));
    assert_eq!(rig.stats().good_packets, 5);
}

fn large_frames_are_spread_over_merged_buffers<D: Virtqueue>(layout: Features) {
    let packet = Packet {
        payload: effort::of(64_000, 6_000),
        ..Packet::TCP4
    };
    let (bytes, word) = (packet.partial(&mut Random(6)), packet.segments(1448));
    for room in [1500, 4096] {
        let mut rig = rig::<D>(256, room, layout | MRG | TAKES);
        let slots = [TxSlot::with_offload(&bytes, word); 5];
        assert_eq!(rig.queue.enqueue(&slots, 0).packets, 5);
        assert_eq!(received(&mut rig), vec![(word, bytes.clone()); 5]);
    }
}

/// The second segment does not fit the buffer it would get, so the chain of the first is free again.
fn frames_behind_a_cut_one_that_does_not_fit_arrive<D: Virtqueue>(layout: Features) {
    let mut random = Random(12);
    let packet = Packet {
        payload: 2000,
        ..Packet::TCP4
    };
    let (bytes, word) = (packet.partial(&mut random), packet.segments(1000));
    let plain = Packet::TCP4.whole(&mut random);
    let mut rig = Rig::<D>::with_offloads(Direction::Enqueue, SIZE, 2048, layout);
    for room in [2048, 500, 2048, 2048] {
        let addr = rig.net.buffer(rig.net.driver.next_id().unwrap());
        rig.net.driver.add(&[write(addr, room)]).unwrap();
    }
    rig.net.driver.publish();
    let slots = [
        TxSlot::with_offload(&bytes, word),
        TxSlot::new(&plain),
        TxSlot::new(&plain),
    ];
    assert_eq!(rig.queue.enqueue(&slots, 0).packets, 2);
    assert_eq!(received(&mut rig), vec![(Offload::NONE, plain.clone()); 2]);
    assert_eq!((rig.stats().oversize, rig.stats().good_packets), (1, 2));
}

//! From a driver to the host.

use super::*;
use crate::model::Pool;

both_layouts! {
    words_come_out_as_they_went_in;
    headers_may_be_split_anywhere;
    without_words_headers_are_not_read;
    headers_of_drivers_that_negotiated_nothing_say_nothing;
    checksums_that_the_host_has_no_word_for_are_made;
    sctp_checksums_are_made;
    a_segment_that_is_the_only_one_is_no_segment;
    frames_larger_than_a_slot_get_a_larger_one;
    a_frame_for_which_there_is_no_memory_waits;
    frames_too_large_for_any_slot_are_dropped;
    a_burst_leaves_large_frames_to_the_next;
    a_burst_leaves_long_chains_to_the_next;
}

fn rig<D: Virtqueue>(features: Features) -> Rig<D> {
    Rig::with_offloads(Direction::Dequeue, SIZE, 2048, features)
}

/// What came out of one burst: words and frames.
fn dequeue<D: Virtqueue>(rig: &mut Rig<D>) -> Vec<(Offload, Vec<u8>)> {
    let mut slots = rig.pool.slots();
    let count = rig.queue.dequeue(&mut slots);
    let taken = slots[..count].iter();
    taken
        .map(|slot| (slot.offload(), slot.frame().to_vec()))
        .collect()
}

fn words_come_out_as_they_went_in<D: Virtqueue>(layout: Features) {
    let mut rig = rig::<D>(layout | LEAVES);
    let mut random = Random(7);
    for _ in 0..effort::of(1000, 20) {
        let packet = Packet::random(&mut random);
        let bytes = packet.partial(&mut random);
        let word = match random.below(3) {
            0 => Offload::NONE,
            1 => packet.checksum(),
            _ if packet.protocol == naive::TCP && packet.payload > 40 => packet.segments(40),
            _ => packet.checksum(),
        };
        // What nobody may rely on may be wrong.
        let said = Offload {
            hdr_len: word.hdr_len ^ 0x55,
            ..word
        };
        assert!(rig.net.send_with(said, &bytes));
        rig.net.driver.publish();
        assert_eq!(dequeue(&mut rig), [(word, bytes)], "{packet:?}");
        rig.net.driver.reap();
    }
}

fn headers_may_be_split_anywhere<D: Virtqueue>(layout: Features) {
    let mut rig = rig::<D>(layout | LEAVES);
    let mut random = Random(8);
    let packet = Packet {
        payload: 1000,
        ..Packet::TCP4
    };
    let (bytes, word) = (packet.partial(&mut random), packet.segments(500));
    let header = rig.net.header();
    let all = header + u32::try_from(bytes.len()).unwrap();
    for first in (1..14).step_by(effort::of(1, 4)) {
        for second in (1..14).step_by(effort::of(1, 4)) {
            let addr = rig.net.buffer(rig.net.driver.next_id().unwrap());
            rig.net.driver.memory().write(addr, &word.encode());
            rig.net.driver.memory().write(at(addr, u64::from(header)), &bytes);
            let cuts = [0, first, first + second, all];
            let chain: Vec<_> = cuts
                .windows(2)
                .map(|ends| read(at(addr, u64::from(ends[0])), ends[1] - ends[0]))
                .collect();
            rig.net.driver.add(&chain).unwrap();
            rig.net.driver.publish();
            assert_eq!(
                dequeue(&mut rig),
                [(word, bytes.clone())],
                "cut at {first} and {second}"
            );
            rig.net.driver.reap();
        }
    }
}

fn without_words_headers_are_not_read<D: Virtqueue>(layout: Features) {
    let mut rig = Rig::<D>::new(Direction::Dequeue, SIZE, layout | LEAVES);
    let nonsense = Offload::decode([0xff; 10]);
    rig.net.send_with(nonsense, &frame(60, 1));
    rig.net.driver.publish();
    assert_eq!(dequeue(&mut rig), [(Offload::NONE, frame(60, 1))]);
}

fn headers_of_drivers_that_negotiated_nothing_say_nothing<D: Virtqueue>(layout: Features) {
    let mut rig = rig::<D>(layout);
    let nonsense = Offload::decode([0xff; 10]);
    rig.net.send_with(nonsense, &frame(60, 1));
    rig.net.driver.publish();
    assert_eq!(dequeue(&mut rig), [(Offload::NONE, frame(60, 1))]);
}

/// Another protocol, another field, more tags than Open vSwitch looks behind, a checksum further inside.
fn checksums_that_the_host_has_no_word_for_are_made<D: Virtqueue>(layout: Features) {
    let mut rig = rig::<D>(layout | LEAVES);
    let mut random = Random(9);
    let rows = [
        (
            Packet {
                protocol: 50,
                ..Packet::TCP4
            },
            0,
        ),
        (
            Packet {
                tags: 2,
                ..Packet::TCP4
            },
            0,
        ),
        (Packet::TCP4, 20),
    ];
    for (packet, deeper) in rows {
        let bytes = packet.partial(&mut random);
        let mut word = packet.checksum();
        word.csum_start += deeper;
        let start = usize::from(word.csum_start);
        let at = start + usize::from(word.csum_offset);
        rig.net.send_with(word, &bytes);
        rig.net.driver.publish();
        let [(left, made)] = dequeue(&mut rig).try_into().unwrap();
        assert_eq!(left, Offload::NONE);
        assert_eq!((&made[..at], &made[at + 2..]), (&bytes[..at], &bytes[at + 2..]));
        // The field held a part of the sum: with it taken out and the checksum put in, all adds up.
        let mut whole = bytes[start..].to_vec();
        whole.extend(if whole.len() % 2 == 1 { vec![0] } else { vec![] });
        whole.extend(&made[at..at + 2]);
        let sum: u64 = whole
            .chunks(2)
            .map(|pair| u64::from(u16::from_be_bytes([pair[0], pair[1]])))
            .sum();
        assert_eq!(sum % 0xffff, 0, "{packet:?}");
        rig.net.driver.reap();
    }
}

fn sctp_checksums_are_made<D: Virtqueue>(layout: Features) {
    let mut rig = rig::<D>(layout | LEAVES);
    let packet = Packet {
        protocol: naive::SCTP,
        ..Packet::TCP4
    };
    let mut bytes = packet.partial(&mut Random(10));
    rig.net.send_with(packet.checksum(), &bytes);
    rig.net.driver.publish();
    let field = packet.l4() + 8..packet.l4() + 12;
    bytes[field.clone()].fill(0);
    let crc = naive::crc32c(&bytes[packet.l4()..]);
    bytes[field].copy_from_slice(&crc.to_le_bytes());
    assert_eq!(dequeue(&mut rig), [(Offload::NONE, bytes)]);
}

fn a_segment_that_is_the_only_one_is_no_segment<D: Virtqueue>(layout: Features) {
    let mut rig = rig::<D>(layout | LEAVES);
    let packet = Packet::TCP4;
    let bytes = packet.partial(&mut Random(11));
    for (size, left) in [(99, packet.segments(99)), (100, packet.checksum())] {
        rig.net.send_with(packet.segments(size), &bytes);
        rig.net.driver.publish();
        assert_eq!(dequeue(&mut rig), [(left, bytes.clone())]);
        rig.net.driver.reap();
    }
}

/// Makes a frame available in so many pieces, and does not publish it.
fn add<D: Virtqueue>(rig: &mut Rig<D>, frame: &[u8], pieces: u32) {
    let addr = rig.net.buffer(rig.net.driver.next_id().unwrap());
    let header = rig.net.header();
    rig.net.driver.memory().write(at(addr, u64::from(header)), frame);
    let len = header + u32::try_from(frame.len()).unwrap();
    let step = len.div_ceil(pieces);
    let chain: Vec<_> = (0..len)
        .step_by(step as usize)
        .map(|from| read(at(addr, u64::from(from)), step.min(len - from)))
        .collect();
    rig.net.driver.add(&chain).unwrap();
}

/// A ring with one large frame between small ones, in one piece or in many.
fn with_large_frame<D: Virtqueue>(layout: Features, pieces: u32) -> (Rig<D>, Vec<Vec<u8>>) {
    let mut rig = Rig::<D>::with_offloads(Direction::Dequeue, SIZE, 70_000, layout | LEAVES);
    let frames = [
        frame(60, 1),
        frame(60_000, 2),
        frame(1500, 3),
        frame(2049, 4),
        frame(70, 5),
    ];
    for frame in &frames {
        add(&mut rig, frame, pieces);
    }
    rig.net.driver.publish();
    (rig, frames.into())
}

fn frames_larger_than_a_slot_get_a_larger_one<D: Virtqueue>(layout: Features) {
    for pieces in [1, 3, 9] {
        let (mut rig, sent) = with_large_frame::<D>(layout, pieces);
        let mut large: Vec<Vec<u8>> = Vec::new();
        let mut rooms = [vec![0; 60_000], vec![0; 2049]];
        let mut free = rooms.iter_mut();
        let mut slots = rig.pool.slots();
        let count = rig.queue.dequeue_growing(&mut slots, |slot, len| {
            assert!(len > slot.room());
            large.push(vec![0; len as usize]);
            *slot = RxSlot::new(free.next().unwrap());
            true
        });
        let got: Vec<_> = slots[..count].iter().map(|slot| slot.frame().to_vec()).collect();
        assert_eq!(got, sent, "{pieces} pieces");
        assert_eq!(large.iter().map(Vec::len).collect::<Vec<_>>(), [60_000, 2049]);
        assert_eq!(rig.stats().good_packets, 5);
        assert_eq!(std::iter::from_fn(|| rig.net.driver.reap()).count(), 5);
    }
}

fn a_frame_for_which_there_is_no_memory_waits<D: Virtqueue>(layout: Features) {
    let (mut rig, sent) = with_large_frame::<D>(layout, 2);
    assert_eq!(rig.dequeue(), sent[..1]);
    assert_eq!(rig.dequeue(), [[0_u8; 0]; 0]);
    let mut room = vec![0; 60_000];
    let mut rooms = [room.as_mut_slice()].into_iter();
    let mut slots = rig.pool.slots();
    let count = rig
        .queue
        .dequeue_growing(&mut slots, |slot, _| match rooms.next() {
            Some(room) => {
                *slot = RxSlot::new(room);
                true
            }
            None => false,
        });
    let got: Vec<_> = slots[..count].iter().map(|slot| slot.frame().to_vec()).collect();
    assert_eq!(got, sent[1..3]);
    assert_eq!(rig.stats().oversize, 0);
}

fn frames_too_large_for_any_slot_are_dropped<D: Virtqueue>(layout: Features) {
    let mut rig = Rig::<D>::with_offloads(Direction::Dequeue, SIZE, 70_000, layout | LEAVES);
    rig.net.send(&frame(MAX_FRAME as usize + 1, 1));
    rig.net.send(&frame(60, 2));
    rig.net.driver.publish();
    assert_eq!(rig.dequeue(), [frame(60, 2)]);
    assert_eq!(rig.stats().oversize, 1);
}

fn a_burst_leaves_large_frames_to_the_next<D: Virtqueue>(layout: Features) {
    let mut rig = Rig::<D>::with_offloads(Direction::Dequeue, SIZE, 70_000, layout | LEAVES);
    (0..5).for_each(|seed| add(&mut rig, &frame(60_000, seed), 4));
    rig.net.driver.publish();
    let mut rooms = vec![vec![0; 60_000]; 5];
    let mut free = rooms.iter_mut();
    let mut bursts = [3, 2].iter().map(|frames| {
        let mut slots = rig.pool.slots();
        let count = rig.queue.dequeue_growing(&mut slots, |slot, _| {
            *slot = RxSlot::new(free.next().unwrap());
            true
        });
        (count, *frames)
    });
    assert!(bursts.all(|(count, frames)| count == frames), "of 128 KiB");
    assert_eq!(free.count(), 0, "no slot was made larger in vain");
}

fn a_burst_leaves_long_chains_to_the_next<D: Virtqueue>(layout: Features) {
    let mut rig = Rig::<D>::with_room(Direction::Dequeue, SIZE, 9100, layout | V1);
    rig.pool = Pool::new(64, 9000);
    (0..20).for_each(|seed| add(&mut rig, &frame(9000, seed), 3));
    rig.net.driver.publish();
    let bursts = [rig.dequeue(), rig.dequeue()];
    let sent: Vec<_> = (0..20).map(|seed| frame(9000, seed)).collect();
    assert_eq!(bursts.concat(), sent);
    assert_eq!(bursts.map(|burst| burst.len()), [15, 5], "of 128 KiB");
}

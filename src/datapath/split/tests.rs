//! What a queue with a split ring does for good drivers, and to bad ones.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::Arc;

use crate::datapath::{
    Direction, FaultReason, Queue, QueueStats, RingConfig, RingError, RingFault, RxSlot, Sent, TxSlot, BURST,
};
use crate::memory::GuestAddr;
use crate::model::{Buffer, Driver, GuestMemory, Net, Pool};
use crate::virtio::chain::ChainError;
use crate::virtio::desc::{Desc, VIRTQ_DESC_F_INDIRECT, VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE};
use crate::virtio::features::*;
use crate::virtio::ring::LayoutError;

const V1: Features = VIRTIO_F_VERSION_1;
const MERGE: Features = V1.with(VIRTIO_NET_F_MRG_RXBUF);
const INDIRECT: Features = V1.with(VIRTIO_RING_F_INDIRECT_DESC);
const SIZE: u16 = 64;

/// A queue on a model's ring, with a slot pool for what comes out.
struct Bench {
    queue: Queue,
    net: Net,
    pool: Pool,
    wakes: Arc<AtomicU32>,
}

impl Bench {
    fn new(direction: Direction, size: u16, features: Features) -> Self {
        Self::with_room(direction, size, 2048, features)
    }

    fn with_room(direction: Direction, size: u16, room: u32, features: Features) -> Self {
        let net = Net::new(size, room, features);
        let wakes = Arc::new(AtomicU32::new(0));
        let waker = wakes.clone();
        let queue = Queue::new(
            direction,
            Arc::new(move || {
                waker.fetch_add(1, Ordering::Relaxed);
            }),
        );
        queue.set_enabled(true);
        queue.start(net.driver.config(7)).unwrap();
        Self {
            queue,
            net,
            pool: Pool::new(64, 2048),
            wakes,
        }
    }

    fn tx(features: Features) -> Self {
        Self::new(Direction::Dequeue, SIZE, features)
    }

    fn rx(features: Features) -> Self {
        Self::new(Direction::Enqueue, SIZE, features)
    }

    /// One burst out of the guest.
    fn dequeue(&mut self) -> Vec<Vec<u8>> {
        let mut slots = self.pool.slots();
        let count = self.queue.dequeue(&mut slots);
        slots[..count].iter().map(|slot| slot.frame().to_vec()).collect()
    }

    fn enqueue(&self, frames: &[Vec<u8>]) -> Sent {
        let slots: Vec<_> = frames.iter().map(|frame| TxSlot::new(frame)).collect();
        self.queue.enqueue(&slots, 0)
    }

    fn received(&mut self) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| self.net.receive()).collect()
    }

    fn stats(&self) -> QueueStats {
        self.queue.counters().read()
    }

    /// Moves what it can in the queue's direction.
    fn burst(&mut self) -> usize {
        self.dequeue().len() + self.enqueue(&[frame(60, 0)]).packets
    }

    fn chain_error(&self) -> Option<ChainError> {
        match self.queue.fault() {
            Some(RingFault {
                vring: 7,
                reason: FaultReason::Chain { error, .. },
            }) => Some(error),
            _ => None,
        }
    }
}

fn frame(len: usize, seed: u8) -> Vec<u8> {
    (0..len)
        .map(|at| u8::try_from(at % 251).unwrap().wrapping_add(seed) & !1)
        .collect()
}

fn read(addr: GuestAddr, len: u32) -> Buffer {
    Buffer {
        addr,
        len,
        write: false,
    }
}

fn write(addr: GuestAddr, len: u32) -> Buffer {
    Buffer {
        addr,
        len,
        write: true,
    }
}

fn at(addr: GuestAddr, offset: u64) -> GuestAddr {
    GuestAddr(addr.0 + offset)
}

// ---- what good drivers get ----

#[test]
fn frames_of_every_length_come_out_as_they_went_in() {
    for features in [Features::NONE, V1, MERGE, INDIRECT, V1 | VIRTIO_RING_F_EVENT_IDX] {
        let mut bench = Bench::tx(features);
        for len in 1..1600 {
            let sent = frame(len, 3);
            assert!(bench.net.send(&sent));
            bench.net.driver.publish();
            assert_eq!(bench.dequeue(), [sent], "{len} bytes");
            assert_eq!(bench.net.driver.reap().map(|used| used.len), Some(0));
        }
        assert_eq!(bench.stats().good_packets, 1599);
        assert_eq!(bench.stats().good_bytes, (1..1600).sum::<u64>());
    }
}

#[test]
fn frames_of_every_length_go_in_as_they_were() {
    for features in [
        Features::NONE,
        V1,
        MERGE,
        INDIRECT,
        MERGE | VIRTIO_RING_F_EVENT_IDX,
    ] {
        let mut bench = Bench::rx(features);
        for len in 1..1600 {
            bench.net.supply(1);
            bench.net.driver.publish();
            let sent = vec![frame(len, 5)];
            assert_eq!(bench.enqueue(&sent).packets, 1);
            assert_eq!(bench.received(), sent, "{len} bytes");
        }
        assert_eq!(bench.stats().good_bytes, (1..1600).sum::<u64>());
    }
}

#[test]
fn a_full_ring_comes_out_in_order_in_bursts() {
    let mut bench = Bench::tx(V1);
    // Twice around, and across the end of the ring.
    let mut next = 0_u8;
    for round in 0..6 {
        let sent: Vec<_> = (0..47).map(|seed| frame(64, seed + round)).collect();
        sent.iter().for_each(|frame| assert!(bench.net.send(frame)));
        bench.net.driver.publish();
        let mut received = bench.dequeue();
        assert_eq!(received.len(), BURST);
        received.extend(bench.dequeue());
        assert_eq!(received, sent);
        while bench.net.driver.reap().is_some() {
            next = next.wrapping_add(1);
        }
    }
    assert_eq!(u64::from(next) + 256, 6 * 47);
}

#[test]
fn a_burst_fills_no_more_slots_than_it_is_given() {
    let mut bench = Bench::tx(V1);
    (0..10).for_each(|seed| assert!(bench.net.send(&frame(60, seed))));
    bench.net.driver.publish();
    let mut slots = bench.pool.slots();
    assert_eq!(bench.queue.dequeue(&mut slots[..4]), 4);
    assert_eq!(bench.queue.backlog(), 6);
    assert_eq!(bench.queue.dequeue(&mut []), 0);
    assert_eq!(bench.queue.dequeue(&mut slots), 6);
    assert_eq!(bench.queue.backlog(), 0);
}

#[test]
fn a_ring_of_one_entry_works_both_ways() {
    let mut tx = Bench::new(Direction::Dequeue, 1, V1);
    let mut rx = Bench::new(Direction::Enqueue, 1, MERGE);
    for seed in 0..5 {
        let sent = vec![frame(100, seed)];
        assert!(tx.net.send(&sent[0]));
        tx.net.driver.publish();
        assert_eq!(tx.dequeue(), sent);
        tx.net.driver.reap().unwrap();
        rx.net.supply(1);
        rx.net.driver.publish();
        assert_eq!(rx.enqueue(&sent).packets, 1);
        assert_eq!(rx.received(), sent);
    }
}

#[test]
fn the_largest_ring_works_at_its_last_descriptor() {
    let mut bench = Bench::with_room(Direction::Dequeue, 32768, 128, V1);
    while bench.net.send(&[0; 60]) {}
    bench.net.driver.publish();
    let mut moved = 0;
    while let count @ 1.. = bench.dequeue().len() {
        moved += count;
    }
    assert_eq!(moved, 32768);
    assert_eq!(bench.queue.stop(), Some(32768));
}

#[test]
fn header_and_frame_may_be_cut_anywhere() {
    let sent = frame(150, 9);
    for features in [V1, Features::NONE] {
        for indirect in [false, true] {
            let mut bench = Bench::tx(features | VIRTIO_RING_F_INDIRECT_DESC);
            let header = bench.net.header();
            let (data, table) = (bench.net.buffer(0), bench.net.buffer(1));
            // The whole lies at `data`; descriptors of these lengths cut it up, empty ones among them.
            for cuts in [
                &[1, 1, 1, 20][..],
                &[header][..],
                &[5, 0, 0, 30],
                &[header + 1, 60],
                &[header - 1, 1],
                &[0],
            ] {
                bench.net.driver.memory().write(at(data, header.into()), &sent);
                let whole = header + 150;
                let mut buffers = Vec::new();
                let mut offset = 0;
                for len in cuts {
                    buffers.push(read(at(data, offset), *len));
                    offset += u64::from(*len);
                }
                buffers.push(read(at(data, offset), whole - u32::try_from(offset).unwrap()));
                match indirect {
                    true => bench.net.driver.add_indirect(table, &buffers),
                    false => bench.net.driver.add(&buffers),
                };
                bench.net.driver.publish();
                assert_eq!(bench.dequeue(), std::slice::from_ref(&sent), "{cuts:?}");
                bench.net.driver.reap().unwrap();
            }
        }
    }
}

#[test]
fn a_received_frame_may_be_scattered_anywhere() {
    let sent = vec![frame(150, 9)];
    for features in [MERGE, V1, Features::NONE] {
        for indirect in [false, true] {
            let mut bench = Bench::rx(features | VIRTIO_RING_F_INDIRECT_DESC);
            let (data, table) = (bench.net.buffer(0), bench.net.buffer(1));
            for cuts in [
                &[1, 1, 1, 20][..],
                &[12][..],
                &[5, 0, 0, 30],
                &[11, 1, 60],
                &[10, 1, 1, 1],
                &[],
            ] {
                let mut buffers = Vec::new();
                let mut offset = 0;
                for len in cuts {
                    buffers.push(write(at(data, offset), *len));
                    offset += u64::from(*len);
                }
                buffers.push(write(at(data, offset), 1000));
                match indirect {
                    true => bench.net.driver.add_indirect(table, &buffers),
                    false => bench.net.driver.add(&buffers),
                };
                bench.net.driver.publish();
                assert_eq!(bench.enqueue(&sent).packets, 1);
                // Head 0 is the first descriptor, whose buffer begins the whole.
                assert_eq!(bench.received(), sent, "{cuts:?}");
            }
        }
    }
}

#[test]
fn direct_descriptors_may_precede_an_indirect_one() {
    let mut bench = Bench::tx(INDIRECT);
    let (data, table) = (bench.net.buffer(0), bench.net.buffer(9));
    let sent = frame(100, 1);
    bench.net.driver.memory().write(at(data, 12), &sent);
    bench
        .net
        .driver
        .add_indirect(table, &[read(at(data, 20), 50), read(at(data, 70), 42)]);
    let indirect = Desc {
        addr: table.0,
        len: 32,
        flags: VIRTQ_DESC_F_INDIRECT | VIRTQ_DESC_F_WRITE,
        next: 0,
    };
    // The WRITE flag of the referring descriptor means nothing.
    bench.net.driver.set_desc(5, indirect);
    bench.net.driver.set_desc(
        0,
        Desc {
            addr: data.0,
            len: 20,
            flags: VIRTQ_DESC_F_NEXT,
            next: 5,
        },
    );
    bench.net.driver.publish();
    assert_eq!(bench.dequeue(), [sent]);
}

#[test]
fn a_chain_as_long_as_the_ring_is_legal_and_one_longer_is_not() {
    for direct in [true, false] {
        for longer in [0, 1] {
            let mut bench = Bench::new(Direction::Dequeue, 8, INDIRECT);
            let (data, table) = (bench.net.buffer(0), bench.net.buffer(1));
            let buffers: Vec<_> = (0..8 + longer).map(|_| read(data, 20)).collect();
            match direct {
                true => {
                    bench.net.driver.add(&buffers[..8]).unwrap();
                    if longer > 0 {
                        // The last goes on where the chain began: a loop.
                        bench.net.driver.set_desc(
                            7,
                            Desc {
                                addr: data.0,
                                len: 20,
                                flags: 1,
                                next: 0,
                            },
                        );
                    }
                }
                false => {
                    bench.net.driver.add_indirect(table, &buffers).unwrap();
                }
            }
            bench.net.driver.publish();
            let moved = bench.dequeue().len();
            match (longer, direct) {
                (0, _) => assert_eq!((moved, bench.queue.fault()), (1, None)),
                (_, true) => assert_eq!(bench.chain_error(), Some(ChainError::TooLong(8))),
                (_, false) => assert_eq!(bench.chain_error(), Some(ChainError::IndirectLength(144))),
            }
        }
    }
}

/// Three regions, the first two neighbours for the guest, mapped apart; a ring in the first.
fn neighbours(direction: Direction, features: Features) -> (Queue, Driver) {
    let (low, high, far) = (GuestAddr(0x10_0000), GuestAddr(0x10_4000), GuestAddr(0x20_0000));
    let regions = [(low, 0x4000), (far, 0x4000), (high, 0x4000)];
    let memory = Arc::new(GuestMemory::with_regions(&regions));
    let driver = Driver::new(memory, low, 16, features);
    let queue = Queue::new(direction, Arc::new(|| {}));
    queue.set_enabled(true);
    queue.start(driver.config(7)).unwrap();
    (queue, driver)
}

#[test]
fn a_buffer_across_neighbouring_regions_is_legal_and_split() {
    let sent = frame(1500, 4);
    for offset in [1, 11, 12, 13, 700, 1511] {
        let data = GuestAddr(0x10_4000 - offset);
        let (queue, mut driver) = neighbours(Direction::Dequeue, V1);
        driver.memory().write(at(data, 12), &sent);
        driver.add(&[read(data, 1512)]);
        driver.publish();
        let mut pool = Pool::new(1, 2048);
        let mut slots = pool.slots();
        assert_eq!(queue.dequeue(&mut slots), 1);
        assert_eq!(slots[0].frame(), sent);

        let (queue, mut driver) = neighbours(Direction::Enqueue, V1);
        driver.add(&[write(data, 1600)]);
        driver.publish();
        assert_eq!(queue.enqueue(&[TxSlot::new(&sent)], 0).packets, 1);
        let mut received = vec![0; 1500];
        driver.memory().read(at(data, 12), &mut received);
        assert_eq!(received, sent);
        assert_eq!(driver.reap().map(|used| used.len), Some(1512));
    }
}

#[test]
fn an_indirect_table_across_neighbouring_regions_is_legal() {
    for offset in [16, 8, 24, 1] {
        let (queue, mut driver) = neighbours(Direction::Dequeue, INDIRECT);
        let data = GuestAddr(0x20_0000);
        let sent = frame(88, 4);
        driver.memory().write(at(data, 12), &sent);
        driver.add_indirect(
            GuestAddr(0x10_4000 - offset),
            &[read(data, 50), read(at(data, 50), 50)],
        );
        driver.publish();
        let mut pool = Pool::new(1, 2048);
        let mut slots = pool.slots();
        assert_eq!(queue.dequeue(&mut slots), 1, "{:?}", queue.fault());
        assert_eq!(slots[0].frame(), sent);
    }
}

// ---- mergeable buffers ----

#[test]
fn a_frame_is_merged_over_as_many_buffers_as_it_needs() {
    let mut bench = Bench::with_room(Direction::Enqueue, SIZE, 256, MERGE);
    bench.net.supply(64);
    bench.net.driver.publish();
    let sent: Vec<_> = [60, 244, 245, 1500, 9000, 1]
        .into_iter()
        .map(|len| frame(len, u8::try_from(len % 7).unwrap()))
        .collect();
    assert_eq!(bench.enqueue(&sent).packets, 6);
    assert_eq!(bench.received(), sent);
    assert_eq!(bench.stats().size_bins, [2, 0, 0, 2, 0, 0, 1, 1]);
    assert_eq!(bench.net.driver.used_idx(), 1 + 1 + 2 + 6 + 36 + 1);
}

#[test]
fn a_frame_that_lacks_buffers_leaves_the_ring_as_it_was() {
    let mut bench = Bench::with_room(Direction::Enqueue, SIZE, 256, MERGE);
    bench.net.supply(4);
    bench.net.driver.publish();
    let sent: Vec<_> = [100, 1000, 100].into_iter().map(|len| frame(len, 1)).collect();
    assert_eq!(bench.enqueue(&sent).packets, 1);
    assert_eq!(bench.net.driver.used_idx(), 1);
    assert_eq!(bench.received(), sent[..1]);
    bench.net.supply(3);
    bench.net.driver.publish();
    assert_eq!(bench.enqueue(&sent[1..]).packets, 2);
    assert_eq!(bench.received(), sent[1..]);
    assert_eq!(bench.queue.fault(), None);
}

#[test]
fn the_bytes_of_num_buffers_may_lie_apart() {
    let mut bench = Bench::rx(MERGE);
    let (one, two) = (bench.net.buffer(40), bench.net.buffer(50));
    bench
        .net
        .driver
        .add(&[write(one, 11), write(at(one, 100), 1), write(at(one, 11), 5)])
        .unwrap();
    bench.net.driver.add(&[write(two, 500)]).unwrap();
    bench.net.driver.publish();
    assert_eq!(bench.enqueue(&[frame(100, 0)]).packets, 1);
    let (mut low, mut high) = ([0], [9]);
    bench.net.driver.memory().read(at(one, 10), &mut low);
    bench.net.driver.memory().read(at(one, 100), &mut high);
    assert_eq!((low, high), ([2], [0]));
    let used = [bench.net.driver.reap(), bench.net.driver.reap()].map(|used| used.unwrap().len);
    assert_eq!(used, [17, 95]);
}

#[test]
fn a_frame_too_large_for_an_unmergeable_buffer_is_dropped_alone() {
    let mut bench = Bench::with_room(Direction::Enqueue, SIZE, 256, V1);
    bench.net.supply(4);
    bench.net.driver.publish();
    let sent: Vec<_> = [100, 300, 200].into_iter().map(|len| frame(len, 1)).collect();
    assert_eq!(bench.enqueue(&sent).packets, 2);
    assert_eq!(bench.stats().oversize, 1);
    assert_eq!(bench.net.driver.used_idx(), 2);
    assert_eq!(bench.received(), [sent[0].clone(), sent[2].clone()]);
}

#[test]
fn enqueue_takes_any_number_of_frames_and_publishes_once_per_group() {
    let mut bench = Bench::new(Direction::Enqueue, 256, MERGE);
    bench.net.supply(256);
    bench.net.driver.publish();
    let sent: Vec<_> = (0..100).map(|seed| frame(64, seed)).collect();
    assert_eq!(bench.enqueue(&sent).packets, 100);
    assert_eq!(bench.received(), sent);
    let more: Vec<_> = (0..200).map(|seed| frame(64, seed)).collect();
    assert_eq!(bench.enqueue(&more).packets, 156);
    assert_eq!(bench.received(), more[..156]);
}

#[test]
fn retries_follow_progress_only() {
    let bench = Bench::rx(MERGE);
    let frames = [frame(60, 0), frame(60, 1)];
    let slots = frames.each_ref().map(|frame| TxSlot::new(frame));
    assert_eq!(bench.queue.enqueue(&slots, 8), Sent::default());
    let mut bench = bench;
    bench.net.supply(1);
    bench.net.driver.publish();
    // Some progress, one attempt more, which finds nothing.
    assert_eq!(
        bench.queue.enqueue(&slots, 8),
        Sent {
            packets: 1,
            retries: 1,
            contended: false
        }
    );
    bench.net.supply(1);
    bench.net.driver.publish();
    assert_eq!(
        bench.queue.enqueue(&slots, 0),
        Sent {
            packets: 1,
            retries: 0,
            contended: false
        }
    );
}

// ---- drops that break nothing ----

#[test]
fn runts_and_oversize_frames_are_given_back_and_counted_apart() {
    let mut bench = Bench::tx(V1);
    let data = bench.net.buffer(0);
    for buffers in [
        &[read(data, 12)][..],
        &[read(data, 5)],
        &[read(data, 0)],
        &[read(data, 6), read(data, 6)],
        &[read(data, 2048), read(data, 1000)],
        &[read(data, 2048), read(data, 13)],
    ] {
        bench.net.driver.add(buffers).unwrap();
    }
    let whole = read(data, 2060);
    bench.net.driver.add(&[whole]).unwrap();
    bench.net.send(&frame(60, 1));
    bench.net.driver.publish();
    let out = bench.dequeue();
    assert_eq!(out.len(), 2);
    assert_eq!((out[0].len(), &out[1]), (2048, &frame(60, 1)));
    assert_eq!(
        (
            bench.stats().runts,
            bench.stats().oversize,
            bench.stats().good_packets
        ),
        (4, 2, 2)
    );
    assert_eq!(bench.net.driver.used_idx(), 8);
    assert_eq!(bench.queue.fault(), None);
}

#[test]
fn very_long_chains_end_a_burst_early_but_lose_nothing() {
    let mut bench = Bench::with_room(Direction::Dequeue, 1024, 64, INDIRECT);
    let (data, table) = (bench.net.buffer(0), bench.net.buffer(100));
    let buffers: Vec<_> = (0..600).map(|_| read(data, 1)).collect();
    for _ in 0..4 {
        bench.net.driver.add_indirect(table, &buffers).unwrap();
    }
    bench.net.driver.publish();
    assert_eq!([0; 3].map(|_| bench.dequeue().len()), [2, 2, 0]);
}

// ---- notification ----

/// The config with a call descriptor, and the end of it that counts calls.
fn with_call(config: RingConfig) -> (RingConfig, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    (
        RingConfig {
            call: Some(Arc::new(OwnedFd::from(theirs))),
            ..config
        },
        ours,
    )
}

fn calls(stream: &mut UnixStream) -> usize {
    let mut bytes = [0; 1024];
    let read = stream.read(&mut bytes).unwrap_or(0);
    assert!(bytes[..read].chunks(8).all(|call| call == 1_u64.to_ne_bytes()));
    read / 8
}

#[test]
fn one_call_after_attach_then_one_per_burst_that_the_driver_wants() {
    let mut bench = Bench::tx(V1);
    let (config, mut call) = with_call(bench.net.driver.config(7));
    bench.queue.start(config).unwrap();
    assert_eq!(calls(&mut call), 1);
    assert_eq!(bench.dequeue().len(), 0);
    assert_eq!(calls(&mut call), 0);
    (0..10).for_each(|seed| assert!(bench.net.send(&frame(60, seed))));
    bench.net.driver.publish();
    assert_eq!(bench.dequeue().len(), 10);
    assert_eq!(calls(&mut call), 1);
    bench.net.driver.set_avail_flags(1);
    bench.net.send(&frame(60, 0));
    bench.net.driver.publish();
    assert_eq!(bench.dequeue().len(), 1);
    assert_eq!(calls(&mut call), 0);
    assert_eq!(bench.stats().guest_notifications, 2);
}

#[test]
fn used_event_decides_when_event_idx_is_negotiated() {
    let mut bench = Bench::tx(V1 | VIRTIO_RING_F_EVENT_IDX);
    let (config, mut call) = with_call(bench.net.driver.config(7));
    bench.queue.start(config).unwrap();
    assert_eq!(calls(&mut call), 1);
    bench.net.driver.set_avail_flags(1);
    for (event, wanted) in [(0, 1), (0, 0), (3, 0), (3, 1)] {
        bench.net.driver.set_used_event(event);
        bench.net.send(&frame(60, 0));
        bench.net.driver.publish();
        assert_eq!(bench.dequeue().len(), 1);
        assert_eq!(calls(&mut call), wanted, "event {event}");
    }
}

#[test]
fn drivers_are_told_not_to_kick() {
    let bench = Bench::tx(V1);
    assert_eq!(bench.net.driver.used_flags(), 1);
    let bench = Bench::tx(V1 | VIRTIO_RING_F_EVENT_IDX);
    assert_eq!(bench.net.driver.used_flags(), 0);
    assert_eq!(bench.net.driver.avail_event(), 0xffff);
}

#[test]
fn a_call_nobody_reads_stops_nothing() {
    let mut bench = Bench::tx(V1);
    let (ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    let config = RingConfig {
        call: Some(Arc::new(theirs.into())),
        ..bench.net.driver.config(7)
    };
    bench.queue.start(config).unwrap();
    for _ in 0..100_000 {
        bench.net.send(&frame(60, 0));
        bench.net.driver.publish();
        assert_eq!(bench.dequeue().len(), 1);
        bench.net.driver.reap().unwrap();
    }
    drop(ours);
}

// ---- starting, stopping ----

#[test]
fn a_restarted_ring_goes_on_where_it_stopped() {
    let mut bench = Bench::tx(V1);
    (0..10).for_each(|seed| assert!(bench.net.send(&frame(60, seed))));
    bench.net.driver.publish();
    let mut slots = bench.pool.slots();
    assert_eq!(bench.queue.dequeue(&mut slots[..3]), 3);
    assert_eq!(
        bench
            .queue
            .snapshot()
            .map(|status| (status.size, status.avail, status.used)),
        Some((64, 3, 3))
    );
    let base = bench.queue.stop();
    assert_eq!(base, Some(3));
    assert_eq!(
        (bench.queue.stop(), bench.queue.snapshot(), bench.dequeue().len()),
        (None, None, 0)
    );
    bench
        .queue
        .start(RingConfig {
            base: 3,
            ..bench.net.driver.config(7)
        })
        .unwrap();
    assert_eq!(bench.dequeue()[0], frame(60, 3));
    assert_eq!(bench.stats().good_packets, 10);
}

#[test]
fn after_a_crash_the_used_index_in_guest_memory_counts() {
    let mut bench = Bench::tx(V1);
    bench.queue.stop();
    bench.net.driver.set_used_idx(0xfffe);
    bench.net.send(&frame(60, 1));
    bench.net.driver.publish();
    bench
        .queue
        .start(RingConfig {
            base: 0,
            ..bench.net.driver.config(7)
        })
        .unwrap();
    assert_eq!(bench.dequeue(), [frame(60, 1)]);
    assert_eq!(bench.queue.stop(), Some(0xffff));
}

#[test]
fn a_disabled_queue_moves_nothing_and_loses_nothing() {
    for (direction, features) in [(Direction::Dequeue, V1), (Direction::Enqueue, MERGE)] {
        let mut bench = Bench::new(direction, SIZE, features);
        match direction {
            Direction::Dequeue => assert!(bench.net.send(&frame(60, 1))),
            Direction::Enqueue => assert_eq!(bench.net.supply(1), 1),
        }
        bench.net.driver.publish();
        bench.queue.set_enabled(false);
        assert_eq!((bench.burst(), bench.net.driver.used_idx()), (0, 0));
        bench.queue.set_enabled(true);
        assert_eq!((bench.burst(), bench.net.driver.used_idx()), (1, 1));
    }
}

#[test]
fn a_ring_that_cannot_start_leaves_the_old_one_running() {
    let mut bench = Bench::tx(V1);
    let good = bench.net.driver.config(7);
    bench.net.send(&frame(60, 1));
    bench.net.driver.publish();
    let layout = |error| Err(RingError::Layout { index: 7, error });
    let high = crate::memory::FrontendAddr(u64::MAX - 63);
    let odd = good.desc.checked_add(8).unwrap();
    let (desc_bytes, used_bytes) = (64 * 16, 64 * 8 + 6);
    let rows = [
        (
            RingConfig {
                size: 0,
                ..good.clone()
            },
            layout(LayoutError::Size(0)),
        ),
        (
            RingConfig {
                size: 63,
                ..good.clone()
            },
            layout(LayoutError::Size(63)),
        ),
        (
            RingConfig {
                size: 0xffff,
                ..good.clone()
            },
            layout(LayoutError::Size(0xffff)),
        ),
        (
            RingConfig {
                desc: high,
                ..good.clone()
            },
            layout(LayoutError::Unmapped {
                area: "descriptor table",
                addr: high,
                bytes: desc_bytes,
            }),
        ),
        (
            RingConfig {
                device: high,
                ..good.clone()
            },
            layout(LayoutError::Unmapped {
                area: "used ring",
                addr: high,
                bytes: used_bytes,
            }),
        ),
        (
            RingConfig {
                desc: odd,
                ..good.clone()
            },
            layout(LayoutError::Unaligned {
                area: "descriptor table",
                addr: odd,
                align: 16,
            }),
        ),
        (
            RingConfig {
                features: VIRTIO_F_RING_PACKED,
                ..good.clone()
            },
            Err(RingError::Packed { index: 7 }),
        ),
    ];
    for (config, expected) in rows {
        assert_eq!(bench.queue.start(config), expected);
    }
    assert_eq!(bench.dequeue(), [frame(60, 1)]);
}

#[test]
fn a_ring_area_that_ends_with_its_region_starts_and_one_byte_more_does_not() {
    let memory = Arc::new(GuestMemory::new(0x4000));
    let config = |used| {
        let driver = Driver::new(memory.clone(), GuestAddr(0x1000), 16, V1);
        RingConfig {
            device: crate::memory::FrontendAddr(used),
            ..driver.config(7)
        }
    };
    let queue = Queue::new(Direction::Dequeue, Arc::new(|| {}));
    let end = 0x1000 + 0x4000 + crate::model::FRONTEND_OFFSET;
    let fits = (end - (6 + 8 * 16)) & !3;
    assert_eq!(queue.start(config(fits)), Ok(()));
    assert!(queue.start(config(fits + 4)).is_err());
}

#[test]
fn an_announcement_comes_first_alone_and_once() {
    let mut bench = Bench::tx(V1);
    bench.net.send(&frame(60, 1));
    bench.net.driver.publish();
    bench.queue.request_rarp([2, 0, 0, 0, 0, 1]);
    let first = bench.dequeue();
    assert_eq!(
        (first.len(), first[0].len(), &first[0][6..12]),
        (1, 64, &[2, 0, 0, 0, 0, 1][..])
    );
    assert_eq!(bench.dequeue(), [frame(60, 1)]);
    assert_eq!(
        (bench.stats().good_packets, bench.stats().broadcast_packets),
        (2, 1)
    );
}

#[test]
fn a_queue_only_works_in_its_own_direction() {
    let mut bench = Bench::tx(MERGE);
    bench.net.supply(4);
    bench.net.driver.publish();
    assert_eq!(bench.enqueue(&[frame(60, 1)]), Sent::default());
    assert_eq!(bench.net.driver.used_idx(), 0);
}

// ---- what bad drivers get ----

#[test]
fn an_avail_index_beyond_the_ring_breaks_only_that_queue() {
    for jump in [65, 0x8000, 0xffff] {
        let (mut bad, mut good) = (Bench::tx(V1), Bench::tx(V1));
        bad.net.driver.set_avail_idx(jump);
        good.net.send(&frame(60, 1));
        good.net.driver.publish();
        assert_eq!(bad.dequeue().len(), 0);
        let reason = FaultReason::AvailJump {
            avail: jump,
            next: 0,
            size: 64,
        };
        assert_eq!(bad.queue.fault(), Some(RingFault { vring: 7, reason }));
        assert_eq!(bad.wakes.load(Ordering::Relaxed), 1);
        assert_eq!(good.dequeue().len(), 1);
        // Nothing moves until the next start, whatever the driver does, and nobody is woken again.
        bad.net.driver.set_avail_idx(1);
        assert_eq!(bad.dequeue().len(), 0);
        assert_eq!(bad.wakes.load(Ordering::Relaxed), 1);
        assert_eq!(bad.queue.stop(), Some(0));
        assert_eq!(bad.queue.fault(), Some(RingFault { vring: 7, reason }));
        bad.net.send(&frame(60, 1));
        bad.queue.start(bad.net.driver.config(7)).unwrap();
        assert_eq!((bad.queue.fault(), bad.dequeue().len()), (None, 1));
    }
}

#[test]
fn an_avail_index_beyond_the_ring_cannot_start() {
    let bench = Bench::tx(V1);
    bench.queue.stop();
    bench.net.driver.set_avail_idx(65);
    let error = RingError::AvailJump {
        index: 7,
        avail: 65,
        next: 0,
        size: 64,
    };
    assert_eq!(bench.queue.start(bench.net.driver.config(7)), Err(error));
}

/// A way to write a bad chain at head 1, and what it is found guilty of.
type Crime = (&'static str, fn(&Bench, flags: u16), ChainError);

/// `flags` is WRITE for a receiveq, else 0. The ring has 64 entries, indirect descriptors are negotiated.
const CRIMES: &[Crime] = &[
    (
        "next beyond the ring",
        |bench, flags| {
            let addr = bench.net.buffer(1).0;
            bench.net.driver.set_desc(
                1,
                Desc {
                    addr,
                    len: 1,
                    flags: flags | 1,
                    next: 65535,
                },
            );
        },
        ChainError::OutOfTable {
            index: 65535,
            entries: 64,
        },
    ),
    (
        "next is the ring's size",
        |bench, flags| {
            let addr = bench.net.buffer(1).0;
            bench.net.driver.set_desc(
                1,
                Desc {
                    addr,
                    len: 1,
                    flags: flags | 1,
                    next: 64,
                },
            );
        },
        ChainError::OutOfTable {
            index: 64,
            entries: 64,
        },
    ),
    (
        "a loop of two, without bytes",
        |bench, flags| {
            let addr = bench.net.buffer(1).0;
            bench.net.driver.set_desc(
                1,
                Desc {
                    addr,
                    len: 0,
                    flags: flags | 1,
                    next: 2,
                },
            );
            bench.net.driver.set_desc(
                2,
                Desc {
                    addr,
                    len: 0,
                    flags: flags | 1,
                    next: 1,
                },
            );
        },
        ChainError::TooLong(64),
    ),
    (
        "a descriptor that is its own next, without bytes",
        |bench, flags| {
            bench.net.driver.set_desc(
                1,
                Desc {
                    addr: 0,
                    len: 0,
                    flags: flags | 1,
                    next: 1,
                },
            );
        },
        ChainError::TooLong(64),
    ),
    (
        "the other direction",
        |bench, flags| {
            let addr = 0x1000;
            let flags = flags ^ VIRTQ_DESC_F_WRITE;
            bench.net.driver.set_desc(
                1,
                Desc {
                    addr,
                    len: 100,
                    flags,
                    next: 0,
                },
            );
        },
        ChainError::Direction {
            addr: 0x1000,
            len: 100,
        },
    ),
    (
        "the other direction, second",
        |bench, flags| {
            bench.net.driver.set_desc(
                1,
                Desc {
                    addr: 0x1000,
                    len: 3,
                    flags: flags | 1,
                    next: 2,
                },
            );
            let flags = flags ^ VIRTQ_DESC_F_WRITE;
            bench.net.driver.set_desc(
                2,
                Desc {
                    addr: 0x2000,
                    len: 100,
                    flags,
                    next: 0,
                },
            );
        },
        ChainError::Direction {
            addr: 0x2000,
            len: 100,
        },
    ),
    (
        "address 0",
        |bench, flags| {
            bench.net.driver.set_desc(
                1,
                Desc {
                    addr: 0,
                    len: 100,
                    flags,
                    next: 0,
                },
            )
        },
        ChainError::Unmapped {
            addr: GuestAddr(0),
            len: 100,
        },
    ),
    (
        "the last address there is",
        |bench, flags| {
            bench.net.driver.set_desc(
                1,
                Desc {
                    addr: u64::MAX,
                    len: u32::MAX,
                    flags,
                    next: 0,
                },
            )
        },
        ChainError::Unmapped {
            addr: GuestAddr(u64::MAX),
            len: u32::MAX,
        },
    ),
    (
        "an indirect table of no entries",
        |bench, flags| indirect(bench, flags, bench.net.buffer(5), 0),
        ChainError::IndirectLength(0),
    ),
    (
        "an indirect table of half an entry too much",
        |bench, flags| indirect(bench, flags, bench.net.buffer(5), 24),
        ChainError::IndirectLength(24),
    ),
    (
        "an indirect table of 4096 entries",
        |bench, flags| indirect(bench, flags, bench.net.buffer(5), 65536),
        ChainError::IndirectLength(65536),
    ),
    (
        "an indirect table of 65537 entries, which is 1 in 16 bits",
        |bench, flags| indirect(bench, flags, bench.net.buffer(5), 16 * 65537),
        ChainError::IndirectLength(16 * 65537),
    ),
    (
        "an indirect table with NEXT",
        |bench, flags| indirect(bench, flags | VIRTQ_DESC_F_NEXT, bench.net.buffer(5), 16),
        ChainError::IndirectWithNext,
    ),
    (
        "an unmapped indirect table",
        |bench, flags| indirect(bench, flags, GuestAddr(0), 16),
        ChainError::Unmapped {
            addr: GuestAddr(0),
            len: 16,
        },
    ),
    (
        "an indirect table at the end of the address space",
        |bench, flags| indirect(bench, flags, GuestAddr(u64::MAX - 7), 32),
        ChainError::Unmapped {
            addr: GuestAddr(u64::MAX - 7),
            len: 16,
        },
    ),
    (
        "an indirect descriptor inside an indirect table",
        |bench, flags| {
            let table = bench.net.buffer(5);
            indirect(bench, flags, table, 16);
            entry(
                bench,
                table,
                Desc {
                    addr: table.0,
                    len: 16,
                    flags: flags | VIRTQ_DESC_F_INDIRECT,
                    next: 0,
                },
            );
        },
        ChainError::IndirectNested,
    ),
    (
        "an indirect descriptor as second of an indirect table",
        |bench, flags| {
            let table = bench.net.buffer(5);
            indirect(bench, flags, table, 32);
            entry(
                bench,
                table,
                Desc {
                    addr: table.0,
                    len: 1,
                    flags: flags | 1,
                    next: 1,
                },
            );
            let nested = Desc {
                addr: table.0,
                len: 16,
                flags: flags | VIRTQ_DESC_F_INDIRECT,
                next: 0,
            };
            entry(bench, at(table, 16), nested);
        },
        ChainError::IndirectNested,
    ),
    (
        "next beyond the indirect table",
        |bench, flags| {
            let table = bench.net.buffer(5);
            indirect(bench, flags, table, 16);
            entry(
                bench,
                table,
                Desc {
                    addr: table.0,
                    len: 1,
                    flags: flags | 1,
                    next: 1,
                },
            );
        },
        ChainError::OutOfTable { index: 1, entries: 1 },
    ),
    (
        "a loop in an indirect table",
        |bench, flags| {
            let table = bench.net.buffer(5);
            indirect(bench, flags, table, 16);
            entry(
                bench,
                table,
                Desc {
                    addr: table.0,
                    len: 0,
                    flags: flags | 1,
                    next: 0,
                },
            );
        },
        ChainError::TooLong(64),
    ),
];

fn indirect(bench: &Bench, flags: u16, table: GuestAddr, len: u32) {
    let flags = flags | VIRTQ_DESC_F_INDIRECT;
    bench.net.driver.set_desc(
        1,
        Desc {
            addr: table.0,
            len,
            flags,
            next: 0,
        },
    );
}

fn entry(bench: &Bench, addr: GuestAddr, desc: Desc) {
    bench.net.driver.memory().write(addr, &desc.to_bytes());
}

#[test]
fn a_bad_chain_breaks_the_ring_after_the_good_ones_before_it() {
    for (name, commit, error) in CRIMES {
        for (direction, flags) in [(Direction::Dequeue, 0), (Direction::Enqueue, VIRTQ_DESC_F_WRITE)] {
            let mut bench = Bench::new(direction, SIZE, MERGE | INDIRECT);
            // Head 0 is in order, head 1 is not, and so is head 2, which comes too late.
            match direction {
                Direction::Dequeue => (0..3).for_each(|seed| assert!(bench.net.send(&frame(60, seed)))),
                Direction::Enqueue => assert_eq!(bench.net.supply(3), 3),
            }
            commit(&bench, flags);
            bench.net.driver.publish();
            let moved = match direction {
                Direction::Dequeue => bench.dequeue().len(),
                Direction::Enqueue => bench.enqueue(&[frame(60, 0), frame(60, 1), frame(60, 2)]).packets,
            };
            assert_eq!(bench.chain_error(), Some(*error), "{name}, {direction:?}");
            assert_eq!(
                (moved, bench.net.driver.used_idx()),
                (1, 1),
                "{name}, {direction:?}"
            );
            assert_eq!(bench.wakes.load(Ordering::Relaxed), 1, "{name}");
            assert_eq!((bench.burst(), bench.stats().good_packets), (0, 1), "{name}");
            let fault = bench.queue.fault().unwrap().to_string();
            assert!(
                fault.starts_with("vring 7: chain at head 1 (avail index 1): "),
                "{fault}"
            );
        }
    }
}

#[test]
fn a_head_beyond_the_ring_breaks_it() {
    for (direction, head) in [(Direction::Dequeue, 64), (Direction::Enqueue, 0xffff)] {
        let mut bench = Bench::new(direction, SIZE, MERGE);
        bench.net.driver.set_avail_entry(0, head);
        bench.net.driver.set_avail_idx(1);
        assert_eq!(bench.burst(), 0);
        assert_eq!(
            bench.chain_error(),
            Some(ChainError::OutOfTable {
                index: head,
                entries: 64
            })
        );
    }
}

#[test]
fn indirect_descriptors_must_be_negotiated() {
    for (direction, flags) in [(Direction::Dequeue, 0), (Direction::Enqueue, VIRTQ_DESC_F_WRITE)] {
        let mut bench = Bench::new(direction, SIZE, MERGE);
        let table = bench.net.buffer(5);
        indirect(&bench, flags, table, 16);
        bench.net.driver.set_avail_entry(0, 1);
        bench.net.driver.set_avail_idx(1);
        assert_eq!(bench.burst(), 0);
        assert_eq!(bench.chain_error(), Some(ChainError::IndirectNotNegotiated));
    }
}

#[test]
fn lengths_that_wrap_32_bits_break_the_ring() {
    // Memory of 4 GiB that nobody touches: a descriptor may be that long.
    let memory = Arc::new(GuestMemory::new(0x1_0000_2000));
    let mut driver = Driver::new(memory, GuestAddr(0x1000), 16, V1);
    let queue = Queue::new(Direction::Dequeue, Arc::new(|| {}));
    queue.set_enabled(true);
    queue.start(driver.config(7)).unwrap();
    let long = read(GuestAddr(0x2000), 0xffff_ff00);
    driver.add(&[long, read(GuestAddr(0x2000), 0x100)]).unwrap();
    driver.publish();
    let mut pool = Pool::new(1, 2048);
    assert_eq!(queue.dequeue(&mut pool.slots()), 0);
    let reason = FaultReason::Chain {
        avail: 0,
        head: 0,
        error: ChainError::TooManyBytes,
    };
    assert_eq!(queue.fault(), Some(RingFault { vring: 7, reason }));
}

#[test]
fn a_buffer_that_runs_out_of_its_region_breaks_the_ring() {
    for direction in [Direction::Dequeue, Direction::Enqueue] {
        let (queue, mut driver) = neighbours(direction, MERGE);
        // 16 bytes before the end of the second region, and no neighbour behind it.
        let addr = GuestAddr(0x10_8000 - 16);
        driver
            .add(&[Buffer {
                addr,
                len: 4096,
                write: direction == Direction::Enqueue,
            }])
            .unwrap();
        driver.publish();
        let mut pool = Pool::new(1, 2048);
        assert_eq!(queue.dequeue(&mut pool.slots()), 0);
        assert_eq!(queue.enqueue(&[TxSlot::new(&[0; 60])], 0).packets, 0);
        let error = ChainError::Unmapped {
            addr: GuestAddr(0x10_8000),
            len: 4080,
        };
        let reason = FaultReason::Chain {
            avail: 0,
            head: 0,
            error,
        };
        assert_eq!(queue.fault(), Some(RingFault { vring: 7, reason }));
    }
}

#[test]
fn descriptors_that_change_under_the_walk_harm_nobody() {
    let features = MERGE | INDIRECT;
    for direction in [Direction::Dequeue, Direction::Enqueue] {
        let bench = Bench::new(direction, SIZE, features);
        let (queue, driver) = (&bench.queue, &bench.net.driver);
        let buffer = bench.net.buffer(0).0;
        let config = driver.config(7);
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            // A driver that writes any value, good and bad, into everything, as fast as it can.
            scope.spawn(|| {
                let mut seed = 1_u64;
                while !stop.load(Ordering::Relaxed) {
                    seed = seed
                        .wrapping_mul(6364136223846793005)
                        .wrapping_add(1442695040888963407);
                    let [a, b, c, d, e, f, g, _] = (seed >> 3).to_le_bytes();
                    let addr = [buffer, buffer + 100, 0x1000, 0, u64::MAX][usize::from(a % 5)];
                    let len = [64, 1000, 16, 32, 0, u32::MAX][usize::from(b % 6)];
                    let flags = [0, 0, 1, 2, 2, 3, 4, 6][usize::from(c % 8)];
                    let next = [u16::from(d), u16::from(d % 64)][usize::from(e % 2)];
                    driver.set_desc(
                        u16::from(f % 4),
                        Desc {
                            addr,
                            len,
                            flags,
                            next,
                        },
                    );
                    entry_at(
                        driver,
                        buffer,
                        Desc {
                            addr,
                            len,
                            flags,
                            next,
                        },
                    );
                    driver.set_avail_entry(u16::from(g), u16::from(f % 8));
                    driver.set_avail_idx(driver.used_idx().wrapping_add(u16::from(g % 70)));
                }
            });
            let mut pool = Pool::new(BURST, 2048);
            let mut slots: Vec<RxSlot<'_>> = pool.slots();
            let frames = [[0xaa_u8; 1500]; 8];
            let tx = frames.each_ref().map(|frame| TxSlot::new(frame));
            let (mut moved, mut faults) = (0, 0);
            for _ in 0..30_000 {
                moved += queue.dequeue(&mut slots) + queue.enqueue(&tx, 2).packets;
                assert!(slots.iter().all(|slot| slot.len() <= 2048));
                if queue.fault().is_some() {
                    faults += 1;
                    // May be refused: the driver still writes.
                    let _ = queue.start(config.clone());
                }
            }
            stop.store(true, Ordering::Relaxed);
            assert_eq!(
                queue.counters().read().good_packets,
                u64::try_from(moved).unwrap()
            );
            assert!(faults > 0, "{moved} moved");
        });
    }
}

fn entry_at(driver: &Driver, addr: u64, desc: Desc) {
    driver.memory().write(GuestAddr(addr), &desc.to_bytes());
}

// ---- threads ----

#[test]
fn rings_are_swapped_under_a_burst_without_losing_a_frame() {
    let net = Net::new(256, 2048, V1);
    let (config, queue) = (
        net.driver.config(7),
        Queue::new(Direction::Dequeue, Arc::new(|| {})),
    );
    queue.set_enabled(true);
    queue.start(config.clone()).unwrap();
    let total = 50_000_u32;
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut net = net;
            let mut next = 0_u32;
            while next < total {
                if net.send(&next.to_le_bytes().repeat(16)) {
                    next += 1;
                    net.driver.publish();
                } else if net.driver.reap().is_none() {
                    std::thread::yield_now();
                }
            }
        });
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let base = queue.stop().unwrap();
                queue
                    .start(RingConfig {
                        base,
                        ..config.clone()
                    })
                    .unwrap();
                std::thread::yield_now();
            }
        });
        let mut pool = Pool::new(BURST, 2048);
        let mut slots = pool.slots();
        let mut expected = 0_u32;
        while expected < total {
            let count = queue.dequeue(&mut slots);
            for slot in &slots[..count] {
                assert_eq!(slot.frame(), expected.to_le_bytes().repeat(16));
                expected += 1;
            }
            if count == 0 {
                std::thread::yield_now();
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(
        (queue.fault(), queue.counters().read().good_packets),
        (None, total.into())
    );
}

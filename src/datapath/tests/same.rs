//! Any legal driver gets the same packets from a split ring and from a packed one, byte for byte.
//!
//! A script of dice plays a driver and a host on either layout: chains of any shape, published one by one or many at a time,
//! taken back soon or late, notifications wanted or not, frames of any size, bursts of any length. What each side
//! gets is written down, and the two records must be one.

use super::*;
use crate::datapath::{RxSlot, TxSlot};
use crate::model::Pool;
use crate::virtio::packed_ring::Event;

/// A buffer of a chain, and the table of an indirect one behind it.
const ROOM: u32 = 1800;
const TABLE: u64 = 1900;
const SIZE: u16 = 32;

/// What one side got, in order.
type Record = Vec<Vec<u8>>;

/// A driver that says when it wants calls, in the terms of its layout.
trait Suppress: Virtqueue {
    fn suppress(&mut self, dice: &mut Dice);
}

impl Suppress for Driver {
    fn suppress(&mut self, dice: &mut Dice) {
        self.set_avail_flags(u16::try_from(dice.roll(2)).unwrap());
        self.set_used_event(u16::try_from(dice.roll(1 << 16)).unwrap());
    }
}

impl Suppress for PackedDriver {
    fn suppress(&mut self, dice: &mut Dice) {
        let flags = u16::try_from(dice.roll(2) * 2).unwrap();
        let desc = u16::try_from(dice.roll(1 << 16)).unwrap();
        self.set_driver_event(Event { desc, flags });
    }
}

/// A frame that is like no other in the script.
fn random_frame(dice: &mut Dice, longest: usize) -> Vec<u8> {
    let len = match dice.roll(4) {
        0 => 14 + dice.roll(50),
        1 => longest - dice.roll(20),
        _ => 14 + dice.roll(longest - 14),
    };
    (0..len).map(|_| u8::try_from(dice.roll(256)).unwrap()).collect()
}

/// Cuts `len` bytes into one to four buffers, some of a byte.
fn random_pieces(dice: &mut Dice, data: GuestAddr, len: u32, write: bool) -> Vec<Buffer> {
    let mut buffers = Vec::new();
    let mut offset = 0;
    for left in (0..dice.roll(4)).rev() {
        let room = len - offset - u32::try_from(left).unwrap() - 1;
        if room == 0 {
            break;
        }
        let longest = if dice.roll(3) == 0 { 1 } else { room };
        let piece = 1 + u32::try_from(dice.roll(usize::try_from(longest).unwrap())).unwrap();
        buffers.push(Buffer {
            addr: at(data, offset.into()),
            len: piece,
            write,
        });
        offset += piece;
    }
    buffers.push(Buffer {
        addr: at(data, offset.into()),
        len: len - offset,
        write,
    });
    buffers
}

/// Adds a chain of `len` bytes, in any shape the features allow.
fn add<D: Suppress>(rig: &mut Rig<D>, dice: &mut Dice, len: u32, write: bool) -> bool {
    let Some(id) = rig.net.driver.next_id() else {
        return false;
    };
    let data = rig.net.buffer(id);
    let buffers = random_pieces(dice, data, len, write);
    let indirect = dice.roll(3) == 0;
    match indirect && rig.net.driver.features().contains(VIRTIO_RING_F_INDIRECT_DESC) {
        true => rig.net.driver.add_indirect(at(data, TABLE), &buffers).is_some(),
        false => rig.net.driver.add(&buffers).is_some(),
    }
}

fn out_of_the_guest<D: Suppress>(features: Features, seed: u64) -> Record {
    let mut rig = Rig::<D>::new(Direction::Dequeue, SIZE, features);
    let (mut dice, mut record) = (Dice(seed), Record::new());
    let header = u64::from(rig.net.header());
    let mut pool = Pool::new(64, 2048);
    for _ in 0..effort::of(120, 4) {
        for _ in 0..dice.roll(12) {
            let frame = random_frame(&mut dice, 1500);
            if let Some(id) = rig.net.driver.next_id() {
                let data = rig.net.buffer(id);
                rig.net.driver.memory().write(at(data, header), &frame);
            }
            let len = u32::try_from(frame.len()).unwrap() + rig.net.header();
            // A driver that has no room for a chain drops the frame; that is to be the same one, too.
            if !add(&mut rig, &mut dice, len, false) {
                record.push(b"no room".to_vec());
            }
            if dice.roll(3) == 0 {
                rig.net.driver.publish();
            }
        }
        rig.net.driver.suppress(&mut dice);
        rig.net.driver.publish();
        for _ in 0..dice.roll(3) {
            let mut slots: Vec<RxSlot<'_>> = pool.slots();
            let room = 1 + dice.roll(40);
            let count = rig.queue.dequeue(&mut slots[..room]);
            record.extend(slots[..count].iter().map(|slot| slot.frame().to_vec()));
        }
        for _ in 0..dice.roll(40) {
            rig.net.driver.reap();
        }
    }
    assert_eq!(rig.queue.fault(), None, "{features} {seed}");
    record
}

fn into_the_guest<D: Suppress>(features: Features, seed: u64) -> Record {
    let mut rig = Rig::<D>::new(Direction::Enqueue, SIZE, features);
    let (mut dice, mut record) = (Dice(seed), Record::new());
    for _ in 0..effort::of(120, 4) {
        for _ in 0..dice.roll(16) {
            let len = match dice.roll(3) {
                0 => ROOM,
                1 => 100 + u32::try_from(dice.roll(400)).unwrap(),
                _ => 13 + u32::try_from(dice.roll(100)).unwrap(),
            };
            if !add(&mut rig, &mut dice, len, true) {
                record.push(b"no room".to_vec());
            }
            if dice.roll(3) == 0 {
                rig.net.driver.publish();
            }
        }
        rig.net.driver.suppress(&mut dice);
        rig.net.driver.publish();
        let frames: Vec<_> = (0..dice.roll(40))
            .map(|_| random_frame(&mut dice, 3000))
            .collect();
        let slots: Vec<_> = frames.iter().map(|frame| TxSlot::new(frame)).collect();
        let retries = u32::try_from(dice.roll(3)).unwrap();
        let sent = rig.queue.enqueue(&slots, retries);
        record.push(sent.packets.to_le_bytes().to_vec());
        for _ in 0..dice.roll(20) {
            record.extend(rig.net.receive());
        }
    }
    record.extend(rig.received());
    assert_eq!(rig.queue.fault(), None, "{features} {seed}");
    record
}

/// Plays a script on both layouts with every set of features that a ring's code depends on.
fn same(scripts: u64, split: fn(Features, u64) -> Record, packed: fn(Features, u64) -> Record) {
    for extras in 0..8 {
        let features = [
            VIRTIO_NET_F_MRG_RXBUF,
            VIRTIO_RING_F_EVENT_IDX,
            VIRTIO_RING_F_INDIRECT_DESC,
        ]
        .iter()
        .enumerate()
        .filter(|(bit, _)| extras >> bit & 1 == 1)
        .fold(V1, |all, (_, feature)| all | *feature);
        for seed in 0..scripts {
            let (ours, theirs) = (
                split(features, seed),
                packed(features | VIRTIO_F_RING_PACKED, seed),
            );
            let enough = effort::of(100, 10);
            assert!(ours.len() > enough, "{features} {seed}: {} events", ours.len());
            let differs = ours.iter().zip(&theirs).position(|(ours, theirs)| ours != theirs);
            assert_eq!(differs, None, "{features} {seed}");
            assert_eq!(ours.len(), theirs.len(), "{features} {seed}");
        }
    }
}

#[test]
fn any_legal_driver_sends_the_same_packets_on_split_and_packed_rings() {
    same(3, out_of_the_guest::<Driver>, out_of_the_guest::<PackedDriver>);
}

#[test]
fn any_legal_driver_receives_the_same_packets_on_split_and_packed_rings() {
    same(3, into_the_guest::<Driver>, into_the_guest::<PackedDriver>);
}

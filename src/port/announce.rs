//! The announcement of a guest that came here, when its front-end does not ask for one (SEND_RARP).
//!
//! A guest that negotiated VIRTIO_NET_F_GUEST_ANNOUNCE announces itself, and its front-end leaves it to that: late if the
//! guest is busy, never if its driver does not. So a port announces a guest whose rings begin where others left off: one
//! reverse ARP request from its address, as SEND_RARP sends. Which address that is, the first frame that the guest sends
//! here tells; the frame itself tells it only to the bridges on its way. A port that has been serving the same guest
//! remembers it over stops and reconnects, and announces a guest that is silent, too: it is the same if its transmitq goes
//! on where this port left it. Any other guest must speak first, so that none is announced in another's place.

use crate::datapath::Queue;

use super::shared::Port;

/// The vring that guests are heard on first: their first transmitq.
const TRANSMITQ: u16 = 1;
/// Positions of a transmitq that nobody has served yet, split and packed.
const FRESH: [u16; 2] = [0, 0x8000];

/// A guest, as a port remembers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Guest {
    pub(super) mac: [u8; 6],
    /// Where its transmitq was left.
    pub(super) left: u16,
}

impl Port {
    /// A vring was stopped, at `base`.
    pub(super) fn remember_guest(&self, vring: u16, base: Option<u32>) {
        // In either layout the lower half is where to go on.
        let left = base.and_then(|base| u16::try_from(base & 0xffff).ok());
        if let (TRANSMITQ, Some(left)) = (vring, left) {
            let mac = self.queue(vring).guest();
            *self.guest.lock() = mac.map(|mac| Guest { mac, left });
        }
    }

    /// A vring that the front-end handed over anew was started.
    pub(super) fn meet_guest(&self, vring: u16) {
        let queue = self.queue(vring);
        if let (TRANSMITQ, Some(ring)) = (vring, queue.snapshot()) {
            greet(queue, *self.guest.lock(), ring.avail);
        }
    }
}

/// Announces the guest whose transmitq begins at `position`, or listens for who it is.
fn greet(queue: &Queue, known: Option<Guest>, position: u16) {
    let moved = !FRESH.contains(&position);
    match known {
        Some(guest) if moved && guest.left == position => queue.request_rarp(guest.mac),
        _ => queue.learn_guest(moved),
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::datapath::{Direction, RingConfig};
    use crate::model::{Driver, Net, Pool, Virtqueue};
    use crate::virtio::features::VIRTIO_F_VERSION_1;
    use std::sync::Arc;

    const MAC: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];

    /// A guest whose transmitq stands at `position`, met by a port that knows `known`.
    fn met(known: Option<Guest>, position: u16) -> (Queue, Net<Driver>) {
        let mut net: Net<Driver> = Net::new(64, 2048, VIRTIO_F_VERSION_1);
        net.driver.set_used_idx(position);
        let queue = Queue::new(Direction::Dequeue, Arc::new(|_| {}));
        queue.set_enabled(true);
        let config = RingConfig {
            base: u32::from(position),
            ..net.driver.config(1)
        };
        queue.start(config).unwrap();
        greet(&queue, known, position);
        (queue, net)
    }

    fn frame(source: [u8; 6]) -> Vec<u8> {
        [&[2; 6], &source[..], &[0; 60]].concat()
    }

    /// What comes out of the guest: each frame's type, RARP or another.
    fn heard(queue: &Queue) -> Vec<bool> {
        let mut pool = Pool::new(32, 2048);
        let mut slots = pool.slots();
        let count = queue.dequeue(&mut slots);
        let rarp = |frame: &[u8]| frame[6..14] == [&MAC[..], &[0x80, 0x35]].concat();
        slots[..count].iter().map(|slot| rarp(slot.frame())).collect()
    }

    fn send(net: &mut Net<Driver>, source: [u8; 6]) {
        assert!(net.send(&frame(source)));
        net.driver.publish();
    }

    #[test]
    fn a_guest_that_moved_here_is_announced_behind_its_first_frames() {
        let (queue, mut net) = met(None, 7);
        assert!(heard(&queue).is_empty(), "nobody knows it yet");
        send(&mut net, MAC);
        send(&mut net, MAC);
        assert_eq!(heard(&queue), [false, false]);
        assert_eq!(heard(&queue), [true]);
        send(&mut net, MAC);
        assert_eq!((heard(&queue), heard(&queue)), (vec![false], vec![]), "once");
        assert_eq!(queue.guest(), Some(MAC));
    }

    #[test]
    fn a_guest_that_goes_on_where_it_was_is_announced_though_it_is_silent() {
        let left = 7;
        let (queue, _net) = met(Some(Guest { mac: MAC, left }), left);
        assert_eq!((heard(&queue), heard(&queue)), (vec![true], vec![]));
        assert_eq!(queue.guest(), Some(MAC), "and is still known");
    }

    #[test]
    fn no_guest_is_announced_in_place_of_another() {
        let other = [2, 0, 0, 0, 0, 9];
        let (queue, mut net) = met(Some(Guest { mac: other, left: 9 }), 7);
        assert!(heard(&queue).is_empty());
        send(&mut net, MAC);
        assert_eq!((heard(&queue), heard(&queue)), (vec![false], vec![true]));
    }

    #[test]
    fn a_guest_that_begins_is_learnt_and_not_announced() {
        let (queue, mut net) = met(Some(Guest { mac: MAC, left: 0 }), 0);
        send(&mut net, MAC);
        assert_eq!((heard(&queue), heard(&queue)), (vec![false], vec![]));
        assert_eq!(queue.guest(), Some(MAC));
    }

    #[test]
    fn addresses_that_are_no_guests_are_not_learnt() {
        let (queue, mut net) = met(None, 7);
        for nobody in [[0; 6], [0xff; 6], [1, 0, 0, 0, 0, 1]] {
            send(&mut net, nobody);
            assert_eq!((heard(&queue), heard(&queue)), (vec![false], vec![]));
        }
        assert!(net.send(&[2; 8]), "too short to have one");
        net.driver.publish();
        let mut pool = Pool::new(32, 2048);
        assert_eq!(queue.dequeue(&mut pool.slots()), 1);
        assert_eq!(queue.guest(), None);
        send(&mut net, MAC);
        assert_eq!((heard(&queue), heard(&queue)), (vec![false], vec![true]));
    }

    #[test]
    fn what_the_front_end_asks_for_comes_once() {
        let (queue, mut net) = met(None, 7);
        queue.request_rarp(MAC);
        assert_eq!(heard(&queue), [true]);
        send(&mut net, MAC);
        assert_eq!((heard(&queue), heard(&queue)), (vec![false], vec![]));
    }
}

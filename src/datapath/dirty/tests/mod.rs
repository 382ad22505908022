//! The dirty log against the memory itself: guest memory before and after each burst, byte for byte. Every page that
//! changed has its bit, and every bit's page changed. What the device may write is prepared so that each of its writes
//! changes something: buffers hold odd bytes where frames are even, device areas what no device writes.
//!
//! `world`: the guest that this is seen on; `copied`: the same guest, copied under traffic.

mod copied;
mod world;

use std::sync::Arc;

use self::world::{DeviceArea, World, BUFFERS, STRIDE};
use crate::datapath::testing::*;
use crate::datapath::{Direction, TxSlot};
use crate::effort;
use crate::memory::GuestAddr;
use crate::model::{Driver, PackedDriver, Virtqueue};
use crate::virtio::features::*;

/// Every combination of what changes how guest memory is written.
fn combinations() -> impl Iterator<Item = (Direction, Features)> {
    let bits = [
        VIRTIO_NET_F_MRG_RXBUF,
        VIRTIO_RING_F_INDIRECT_DESC,
        VIRTIO_RING_F_EVENT_IDX,
        VIRTIO_F_IN_ORDER,
        VIRTIO_F_VERSION_1,
    ];
    (0..32).step_by(effort::of(1, 31)).flat_map(move |set| {
        let chosen = (0..).zip(bits).filter(|(at, _)| set >> at & 1 == 1);
        let features = chosen.fold(Features::NONE, |all, (_, bit)| all | bit);
        [Direction::Dequeue, Direction::Enqueue].map(|direction| (direction, features))
    })
}

fn whole_lives<D: DeviceArea>(layout: Features) {
    for (direction, features) in combinations() {
        let mut marked = 0;
        for seed in 1..effort::of(3, 2) {
            let mut world = World::<D>::new(direction, features | layout, seed);
            world.live(effort::of(30, 1));
            world.die();
            marked += world.marked;
        }
        assert!(
            marked >= effort::of(21, 0),
            "{direction:?} {features}: only {marked} pages"
        );
    }
}

#[test]
fn a_split_ring_logs_every_page_it_writes_and_no_other() {
    whole_lives::<Driver>(Features::NONE);
}

#[test]
fn a_packed_ring_logs_every_page_it_writes_and_no_other() {
    whole_lives::<PackedDriver>(VIRTIO_F_RING_PACKED);
}

#[test]
#[cfg_attr(miri, ignore = "no kernel to map a page a second time")]
fn a_split_ring_behind_an_iommu_logs_the_guests_own_addresses() {
    whole_lives::<Driver>(VIRTIO_F_ACCESS_PLATFORM);
}

#[test]
#[cfg_attr(miri, ignore = "no kernel to map a page a second time")]
fn a_packed_ring_behind_an_iommu_logs_the_guests_own_addresses() {
    whole_lives::<PackedDriver>(VIRTIO_F_ACCESS_PLATFORM | VIRTIO_F_RING_PACKED);
}

#[test]
fn the_front_end_is_told_of_new_pages_once_per_burst() {
    let mut world = World::<Driver>::new(Direction::Enqueue, V1, 1);
    let (mut ours, theirs) = socket_pair();
    world.log.notify = Some(Arc::new(theirs.into()));
    world.logging = true;
    world.queue.restart(world.config()).unwrap();
    for id in 0..8 {
        let addr = at(GuestAddr(BUFFERS), STRIDE * id);
        world.driver.add(&[write(addr, 1600)]).unwrap();
    }
    world.driver.publish();
    let sent = frame(1500, 2);
    let slots: Vec<_> = (0..4).map(|_| TxSlot::new(&sent)).collect();
    assert_eq!((world.queue.enqueue(&slots, 0).packets, calls(&mut ours)), (4, 1));
    assert_eq!((world.queue.enqueue(&slots, 0).packets, calls(&mut ours)), (4, 1));
    assert_eq!((world.queue.enqueue(&slots, 0).packets, calls(&mut ours)), (0, 0));
    // Pages that are marked already are no news.
    while world.driver.reap().is_some() {}
    let addr = GuestAddr(BUFFERS);
    world.driver.add(&[write(addr, 1600)]).unwrap();
    world.driver.publish();
    assert_eq!((world.queue.enqueue(&slots, 0).packets, calls(&mut ours)), (1, 0));
}

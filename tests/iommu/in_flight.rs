//! A ring that is taken over behind an IOMMU from a back-end that died while it gave buffers back.

use std::sync::Arc;

use ovs_vhost::memory::{GuestAddr, InflightDesc, InflightLayout, InflightMem};
use ovs_vhost::model::{Buffer, PackedDesc, PackedDriver, Virtqueue, FRONTEND_OFFSET};
use ovs_vhost::virtio::features::{Features, VIRTIO_F_RING_PACKED, VIRTIO_RING_F_INDIRECT_DESC};

use super::*;

const SET_INFLIGHT_FD: u32 = 32;
const INFLIGHT_SHMFD: u64 = 1 << 12;
const PACKED: Features = FEATURES
    .with(VIRTIO_F_RING_PACKED)
    .with(VIRTIO_RING_F_INDIRECT_DESC);
/// Where the driver has an indirect table. The device sees that under the same address.
const TABLE: u64 = BUFFERS + 20 * PAGE;

/// An in-flight buffer for the first two vrings.
fn in_flight() -> (InflightDesc, OwnedFd, Arc<InflightMem>) {
    let layout = InflightLayout::Packed;
    let (desc, file) = InflightMem::create(2, SIZE, layout).expect("a buffer");
    let mem = Arc::new(InflightMem::map(desc, layout, &file).expect("mapped"));
    (desc, file, mem)
}

#[test]
fn a_ring_waits_for_what_its_predecessor_was_giving_back_and_is_told_where_that_is() {
    let mut world = World::connect("in-flight");
    world.get(GET_FEATURES, &[]);
    let protocol = numbers(&[PROTOCOL | INFLIGHT_SHMFD]);
    world.send(SET_PROTOCOL_FEATURES, VERSION, &protocol, &[]);
    let theirs = world.kept.try_clone().expect("a copy");
    assert_eq!(world.ask_with(SET_BACKEND_REQ_FD, &[], theirs.as_raw_fd()), 0);
    assert_eq!(world.ask(SET_FEATURES, &numbers(&[PACKED.0])), 0);
    world.hand_over_memory();

    // Three chains of one burst. The last was given back, then the process died.
    let mut driver = PackedDriver::new(Arc::clone(&world.memory), GuestAddr(RINGS[0]), SIZE, PACKED);
    let room = |page: u64, len| Buffer {
        addr: GuestAddr(buffer(page)),
        len,
        write: true,
    };
    driver.add(&[room(0, 100)]).expect("room");
    driver
        .add_indirect(GuestAddr(TABLE), &[room(1, 200), room(2, 300)])
        .expect("room");
    driver.add(&[room(3, 400)]).expect("room");
    driver.publish();
    let last = driver.desc(2);
    driver.set_desc(
        2,
        PackedDesc {
            len: 40,
            flags: 0x8080,
            ..last
        },
    );
    let (desc, file, mem) = in_flight();
    let part = mem.queue(0, SIZE, InflightLayout::Packed).expect("a part");
    let first = driver.desc(0).id;
    part.store_u64(24, u64::from(first) | 1 << 16 | 100 << 32);
    // From 0 to 3, in the first lap.
    part.store_u64(16, 3 | 1 << 32 | 1 << 40);
    part.initialize();
    let payload = [
        numbers(&[desc.mmap_size, desc.mmap_offset]),
        [desc.num_queues, desc.queue_size].map(u16::to_ne_bytes).concat(),
    ];
    assert_eq!(
        world.ask_with(SET_INFLIGHT_FD, &payload.concat(), file.as_raw_fd()),
        0
    );

    world.start_ring(0, &driver.config(0));
    let asked = world.wait_questions();
    assert!(asked.iter().all(|q| q.iova == RINGS[0] + SHIFT), "{asked:?}");
    world.answer(&asked);
    let asked = world.wait_questions();
    let table = Question {
        iova: TABLE,
        perm: READ,
        kind: MISS,
        need_reply: true,
    };
    assert_eq!(asked, [table], "neither buffers nor anything else");
    assert_eq!(driver.reap().map(|used| used.id), None, "all or nothing");
    let target = TABLE + FRONTEND_OFFSET;
    let told = iotlb(TABLE, PAGE, target, BOTH, UPDATE);
    assert_eq!(world.ask(IOTLB_MSG, &told), 0);
    let used: Vec<u32> = std::iter::from_fn(|| driver.reap())
        .map(|used| used.len)
        .collect();
    assert_eq!(used, [100, 500, 40]);
}

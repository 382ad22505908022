//! A guest that is copied while traffic writes into it, as a migration does.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::world::{DeviceArea, World, BUFFERS, ENTRIES, LOG_BYTES, REGIONS, STRIDE};
use crate::datapath::dirty::RingLog;
use crate::datapath::testing::*;
use crate::datapath::{Direction, Queue, RingConfig, TxSlot};
use crate::memory::{GuestAddr, LOG_PAGE};
use crate::model::{Driver, GuestMemory, PackedDriver, Virtqueue};
use crate::virtio::features::*;

/// A guest as its front-end copies it: bits are taken out of the log a word at a time, then their pages are copied.
struct Destination<'w> {
    memory: &'w GuestMemory,
    bits: &'w GuestMemory,
    bytes: [Vec<u8>; 2],
}

impl<'w> Destination<'w> {
    /// All of it, after logging began.
    fn new(memory: &'w GuestMemory, bits: &'w GuestMemory) -> Self {
        let bytes = REGIONS.map(|(_, size)| vec![0; usize::try_from(size).unwrap()]);
        let mut destination = Self { memory, bits, bytes };
        for (guest, size) in REGIONS {
            (guest.0 / LOG_PAGE..(guest.0 + size) / LOG_PAGE).for_each(|page| destination.copy(page));
        }
        destination
    }

    /// Copies a page.
    fn copy(&mut self, page: u64) {
        for ((guest, _), bytes) in REGIONS.iter().zip(&mut self.bytes) {
            let Some(offset) = (page * LOG_PAGE).checked_sub(guest.0) else {
                continue;
            };
            let offset = usize::try_from(offset).unwrap();
            if let Some(bytes) = bytes.get_mut(offset..offset + 4096) {
                self.memory.read(GuestAddr(page * LOG_PAGE), bytes);
            }
        }
    }

    /// Copies the pages that were logged since the last time, and says how many.
    fn sync(&mut self) -> usize {
        let table = self.bits.table();
        let mut cursor = table.cursor(0).unwrap();
        let mut copied = 0;
        for word in 0..LOG_BYTES / 8 {
            let slice = cursor.prefix(GuestAddr(0x1000 + 8 * word), 8).unwrap();
            // SAFETY: eight bytes of a mapping that lives as long as `table`, aligned since it begins with a page.
            let bits = unsafe { AtomicU64::from_ptr(slice.as_ptr().cast()) };
            if bits.load(Ordering::Relaxed) == 0 {
                continue;
            }
            let taken = bits.swap(0, Ordering::SeqCst);
            for bit in (0..64).filter(|bit| taken >> bit & 1 == 1) {
                self.copy(64 * word + bit);
                copied += 1;
            }
        }
        copied
    }

    /// Whether `len` bytes at `addr` arrived.
    fn has(&self, addr: GuestAddr, len: u64) -> bool {
        let mut now = vec![0; usize::try_from(len).unwrap()];
        self.memory.read(addr, &mut now);
        let arrived = REGIONS.iter().zip(&self.bytes).find_map(|((guest, _), bytes)| {
            let offset = usize::try_from(addr.0.checked_sub(guest.0)?).ok()?;
            bytes.get(offset..offset + now.len())
        });
        arrived == Some(&now[..])
    }
}

/// Keeps a receive queue busy until told to stop: the driver and the poll thread in one.
fn traffic<D: Virtqueue>(driver: &mut D, queue: &Queue, stop: &AtomicBool) -> usize {
    let mut frames = 0;
    let mut seed = 0_u8;
    while !stop.load(Ordering::Relaxed) {
        while let Some(id) = driver.next_id() {
            let addr = at(GuestAddr(BUFFERS), STRIDE * u64::from(id));
            driver.add(&[write(addr, 1600)]).unwrap();
        }
        driver.publish();
        let burst: Vec<_> = (0..8)
            .map(|_| {
                seed = seed.wrapping_add(1);
                vec![seed; 1500]
            })
            .collect();
        let slots: Vec<_> = burst.iter().map(|frame| TxSlot::new(frame)).collect();
        frames += queue.enqueue(&slots, 0).packets;
        while driver.reap().is_some() {}
    }
    frames
}

/// Stops the traffic however a test ends.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn arrives_whole<D: DeviceArea + Send>(layout: Features) {
    let world = World::<D>::new(Direction::Enqueue, V1 | layout, 1);
    let (memory, bits, device) = (world.memory.clone(), &world.bits, world.device);
    let (queue, config, log, mut driver) = (&world.queue, &world.config, &world.log, world.driver);
    let switch = |log: Option<RingLog>| {
        queue
            .restart(RingConfig {
                log,
                ..config.clone()
            })
            .unwrap()
    };
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let poller = scope.spawn(|| traffic(&mut driver, queue, &stop));
        let stopper = Stop(&stop);
        for round in 0..40 {
            switch(Some(log.clone()));
            let mut destination = Destination::new(&memory, bits);
            let (mut copied, deadline) = (0, Instant::now() + Duration::from_secs(20));
            while copied < 500 {
                copied += destination.sync();
                assert!(Instant::now() < deadline, "only {copied} pages");
            }
            queue.set_enabled(false);
            destination.sync();
            assert!(
                destination.has(GuestAddr(BUFFERS), STRIDE * u64::from(ENTRIES)),
                "round {round}"
            );
            assert!(destination.has(device, D::bytes(ENTRIES)), "round {round}");
            switch(None);
            queue.set_enabled(true);
            std::thread::yield_now();
            assert_eq!(destination.sync(), 0, "logged while it was off");
        }
        drop(stopper);
        assert!(poller.join().unwrap() > 1000);
    });
}

#[test]
#[cfg_attr(miri, ignore = "a front-end that copies what we write, on purpose")]
fn a_guest_that_is_copied_under_traffic_arrives_whole() {
    arrives_whole::<Driver>(Features::NONE);
}

#[test]
#[cfg_attr(miri, ignore = "a front-end that copies what we write, on purpose")]
fn a_guest_with_packed_rings_that_is_copied_under_traffic_arrives_whole() {
    arrives_whole::<PackedDriver>(VIRTIO_F_RING_PACKED);
}

//! A network driver on one virtqueue: frames with their virtio header, one buffer per descriptor.

use std::sync::Arc;

use super::driver::Driver;
use super::memory::GuestMemory;
use super::virtqueue::{Buffer, Virtqueue};
use crate::memory::GuestAddr;
use crate::virtio::features::{Features, VIRTIO_NET_F_MRG_RXBUF};
use crate::virtio::net_hdr::{self, Offload};

/// A network driver's receiveq or transmitq, with a buffer for each descriptor.
#[derive(Debug)]
pub struct Net<D = Driver> {
    /// The ring below it.
    pub driver: D,
    buffers: GuestAddr,
    room: u32,
    stride: u64,
}

impl<D: Virtqueue> Net<D> {
    /// A ring of `size` entries in memory of its own, with buffers of `room` bytes, header included.
    pub fn new(size: u16, room: u32, features: Features) -> Self {
        let memory = Arc::new(GuestMemory::new(Self::space(size, room)));
        Self::within(memory, GuestAddr(0x1000), size, room, features)
    }

    /// The same at `ring`, which is aligned to a page, in memory that has [`space`](Self::space) there.
    pub fn within(
        memory: Arc<GuestMemory>,
        ring: GuestAddr,
        size: u16,
        room: u32,
        features: Features,
    ) -> Self {
        Self {
            driver: D::new(memory, ring, size, features),
            buffers: GuestAddr(ring.0 + D::ring_bytes(size).next_multiple_of(4096)),
            room,
            stride: stride(room),
        }
    }

    /// Bytes that a ring with its buffers takes: whole pages.
    pub fn space(size: u16, room: u32) -> u64 {
        D::ring_bytes(size).next_multiple_of(4096) + (stride(room) * u64::from(size)).next_multiple_of(4096)
    }

    /// Bytes of the header before each frame.
    pub fn header(&self) -> u32 {
        match net_hdr::is_long(self.driver.features()) {
            true => net_hdr::LONG,
            false => net_hdr::SHORT,
        }
    }

    /// Where the buffer of the chain `head` is.
    pub fn buffer(&self, head: u16) -> GuestAddr {
        GuestAddr(self.buffers.0 + self.stride * u64::from(head))
    }

    /// Transmits a frame, once published. Says whether there was a free descriptor, and a buffer large enough.
    pub fn send(&mut self, frame: &[u8]) -> bool {
        self.send_with(Offload::NONE, frame)
    }

    /// Transmits a frame to which something is left to be done.
    pub fn send_with(&mut self, offload: Offload, frame: &[u8]) -> bool {
        let len = u32::try_from(frame.len())
            .unwrap_or(u32::MAX)
            .saturating_add(self.header());
        let Some(head) = self.driver.next_id().filter(|_| len <= self.room) else {
            return false;
        };
        let addr = self.buffer(head);
        let mut header = [0; net_hdr::LONG as usize];
        header[..net_hdr::SHORT as usize].copy_from_slice(&offload.encode());
        self.driver
            .memory()
            .write(addr, &header[..self.header() as usize]);
        self.driver
            .memory()
            .write(GuestAddr(addr.0 + u64::from(self.header())), frame);
        self.driver
            .add(&[Buffer {
                addr,
                len,
                write: false,
            }])
            .is_some()
    }

    /// Makes up to `count` buffers available to receive into, once published; says how many.
    pub fn supply(&mut self, count: usize) -> usize {
        let mut supplied = 0;
        while supplied < count {
            let Some(head) = self.driver.next_id() else {
                break;
            };
            let buffer = Buffer {
                addr: self.buffer(head),
                len: self.room,
                write: true,
            };
            if self.driver.add(&[buffer]).is_none() {
                break;
            }
            supplied += 1;
        }
        supplied
    }

    /// Receives a frame, from as many buffers as its header says.
    ///
    /// # Panics
    ///
    /// If the device broke a rule: a buffer used too little, a header that is not plain, buffers missing.
    pub fn receive(&mut self) -> Option<Vec<u8>> {
        let (offload, frame) = self.receive_with()?;
        assert_eq!(offload, Offload::NONE);
        Some(frame)
    }

    /// Receives a frame to which something may be left to be done.
    ///
    /// # Panics
    ///
    /// If the device broke a rule: a buffer used too little, buffers missing.
    pub fn receive_with(&mut self) -> Option<(Offload, Vec<u8>)> {
        let first = self.take()?;
        let (header, frame) = first.split_at(self.header() as usize);
        let (offload, num_buffers) = header
            .split_first_chunk()
            .expect("a header is at least a short one");
        let count = num_buffers.try_into().map_or(1, u16::from_le_bytes);
        let merges = self.driver.features().contains(VIRTIO_NET_F_MRG_RXBUF);
        assert!(count == 1 || (merges && count > 1), "num_buffers {count}");
        let mut frame = frame.to_vec();
        for _ in 1..count {
            frame.extend(
                self.take()
                    .expect("buffers that belong together are published together"),
            );
        }
        Some((Offload::decode(*offload), frame))
    }

    /// The bytes that the device wrote into the next used buffer.
    fn take(&mut self) -> Option<Vec<u8>> {
        let used = self.driver.reap()?;
        assert!(used.len <= self.room, "used {} of {}", used.len, self.room);
        let mut bytes = vec![0; used.len as usize];
        let head = u16::try_from(used.id).expect("a head");
        self.driver.memory().read(self.buffer(head), &mut bytes);
        Some(bytes)
    }
}

/// Bytes from buffer to buffer: an odd number of cache lines, so that they do not fall into the same cache sets.
fn stride(room: u32) -> u64 {
    (u64::from(room).div_ceil(64) | 1) * 64
}

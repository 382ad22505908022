//! A split ring whose chains, and so its avail entries, stay as they are: only the indices move.

use anyhow::{ensure, Result};
use ovs_vhost::memory::GuestAddr;
use ovs_vhost::model::{Driver, Net, Virtqueue, FRONTEND_OFFSET};
use ovs_vhost::virtio::desc::{ENTRIES_OFFSET, IDX_OFFSET};
use ovs_vhost::virtio::net_hdr;

use super::frame::Frame;

/// Behind a long header's other fields: how many buffers a frame lies in.
const NUM_BUFFERS: u64 = net_hdr::SHORT as u64;

/// One direction of a queue pair.
pub struct Ring {
    net: Net<Driver>,
    size: u64,
    /// Where a frame's stamp is in its buffer, behind the header.
    stamp: u64,
    /// Buffers that a frame fills, as far as one is received.
    buffers: u64,
    avail_idx: GuestAddr,
    used_idx: GuestAddr,
    /// Chains made available beyond those that were there at first, and chains taken back.
    given: u64,
    taken: u64,
    /// Chains used, as was last seen.
    used: u64,
}

impl Ring {
    /// The ring of a driver that has made all its chains: frames like this in each, or buffers for them.
    pub(super) fn new(net: Net<Driver>, frame: &Frame) -> Ring {
        let config = net.driver.config(0);
        let idx = |area: u64| GuestAddr(area - FRONTEND_OFFSET + IDX_OFFSET as u64);
        Ring {
            size: config.size.into(),
            stamp: u64::from(net.header()) + frame.stamp,
            buffers: frame.buffers.into(),
            avail_idx: idx(config.driver.0),
            used_idx: idx(config.device.0),
            net,
            given: 0,
            taken: 0,
            used: 0,
        }
    }

    /// How many frames it has buffers for.
    pub fn holds(&self) -> u64 {
        self.size / self.buffers
    }

    /// Puts `stamp` into the next frame, to be sent with the others when they are published. Says whether there was one.
    pub fn send(&mut self, stamp: u64) -> bool {
        if self.given - self.used >= self.size && !self.look() {
            return false;
        }
        let place = self.place(self.given, self.stamp);
        self.net.driver.memory().write(place, &stamp.to_le_bytes());
        self.given += 1;
        true
    }

    /// Publishes what was sent.
    pub fn publish(&self) {
        self.net.driver.memory().store(self.avail_idx, low(self.given));
    }

    /// Takes the stamp out of the next frame received.
    ///
    /// # Errors
    ///
    /// If the device did not use the buffers in order, or of one frame not those it should have, which would make this
    /// driver's shortcuts wrong.
    pub fn receive(&mut self) -> Result<Option<u64>> {
        if self.taken == self.used && !self.look() {
            return Ok(None);
        }
        let (memory, at) = (self.net.driver.memory(), self.taken % self.size);
        let mut id = [0; 4];
        let entry = self.used_idx.0 - IDX_OFFSET as u64 + ENTRIES_OFFSET as u64 + 8 * at;
        memory.read(GuestAddr(entry), &mut id);
        ensure!(
            u64::from(u32::from_le_bytes(id)) == at,
            "buffers come back out of order"
        );
        if self.buffers > 1 {
            let buffers = u64::from(memory.load(self.place(self.taken, NUM_BUFFERS)));
            ensure!(
                buffers == self.buffers && self.used - self.taken >= buffers,
                "a frame came in {buffers} buffers, not in {}",
                self.buffers
            );
        }
        let mut stamp = [0; 8];
        memory.read(self.place(self.taken, self.stamp), &mut stamp);
        self.taken += self.buffers;
        Ok(Some(u64::from_le_bytes(stamp)))
    }

    /// Makes the buffers of the frames received available again.
    pub fn give_back(&self) {
        let available = self.taken + self.size;
        self.net.driver.memory().store(self.avail_idx, low(available));
    }

    /// Where a device that is new to it has to begin: behind what was given back last.
    pub(super) fn base(&self) -> u16 {
        self.net.driver.memory().load(self.used_idx)
    }

    /// Looks how many chains the device has used, and says whether there are more.
    fn look(&mut self) -> bool {
        let idx = self.net.driver.memory().load(self.used_idx);
        let more = idx.wrapping_sub(low(self.used));
        self.used += u64::from(more);
        more > 0
    }

    /// What is `offset` bytes into the buffer of the `count`th chain.
    fn place(&self, count: u64, offset: u64) -> GuestAddr {
        let head = low(count % self.size);
        GuestAddr(self.net.buffer(head).0 + offset)
    }

    /// All that the device writes when frames are received: the used index, and each buffer.
    pub(super) fn written(&self) -> impl Iterator<Item = GuestAddr> + '_ {
        let buffers = (0..self.size).map(|count| self.place(count, 0));
        buffers.chain([self.used_idx])
    }
}

/// An index as a ring has it.
fn low(count: u64) -> u16 {
    (count & 0xffff) as u16
}

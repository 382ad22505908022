//! What the two layouts of rings differ in for an attacker: the crimes, and how a driver scribbles over its descriptors.

use ovs_vhost::model::crimes::{Crime, PACKED as PACKED_CRIMES, SPLIT as SPLIT_CRIMES};
use ovs_vhost::model::{Driver, Net, PackedDesc, PackedDriver, Virtqueue};
use ovs_vhost::virtio::desc::{Desc, VIRTQ_DESC_F_WRITE};
use ovs_vhost::virtio::features::{Features, VIRTIO_F_RING_PACKED};
use ovs_vhost::virtio::packed_ring::{Event, VIRTQ_DESC_F_AVAIL, VIRTQ_DESC_F_USED};

use super::guest::{Guest, ROOM};

/// A layout.
pub struct Layout<D: Virtqueue + 'static> {
    pub name: &'static str,
    /// What is negotiated for it.
    pub feature: Features,
    /// Entries of the rings that its crimes are for.
    pub size: u16,
    pub crimes: &'static [Crime<D>],
    /// Writes a value that eight bytes without pattern choose, good or bad, somewhere into a ring.
    pub scribble: fn(&Net<D>, [u8; 8]),
    /// Makes every descriptor of a ring available once more, whatever has become of it.
    pub refill: fn(&Net<D>, write: bool, lap: u16),
}

pub const SPLIT: Layout<Driver> = Layout {
    name: "split",
    feature: Features::NONE,
    size: 64,
    crimes: SPLIT_CRIMES,
    scribble: |net, noise| {
        let (addr, len, flags) = lies(net, noise);
        let [_, _, _, d, e, f, g, _] = noise;
        let next = [u16::from(d), u16::from(d % 64)][usize::from(e % 2)];
        let desc = Desc {
            addr,
            len,
            flags,
            next,
        };
        net.driver.set_desc(u16::from(f % 4), desc);
        net.driver.memory().write(net.buffer(0), &desc.to_bytes());
        net.driver.set_avail_entry(u16::from(g), u16::from(f % 8));
        net.driver
            .set_avail_idx(net.driver.used_idx().wrapping_add(u16::from(g % 70)));
    },
    refill: |net, write, _| {
        let size = net.driver.size();
        for index in 0..size {
            let desc = Desc {
                addr: net.buffer(index).0,
                len: ROOM / 2,
                flags: if write { VIRTQ_DESC_F_WRITE } else { 0 },
                next: 0,
            };
            net.driver.set_desc(index, desc);
            net.driver.set_avail_entry(index, index);
        }
        net.driver.set_avail_idx(net.driver.used_idx().wrapping_add(size));
    },
};

pub const PACKED: Layout<PackedDriver> = Layout {
    name: "packed",
    feature: VIRTIO_F_RING_PACKED,
    size: 61,
    crimes: PACKED_CRIMES,
    scribble: |net, noise| {
        let (addr, len, flags) = lies(net, noise);
        let [a, _, _, d, e, f, g, _] = noise;
        let turn = [VIRTQ_DESC_F_AVAIL, VIRTQ_DESC_F_USED][usize::from(d % 2)];
        let desc = PackedDesc {
            addr,
            len,
            id: e.into(),
            flags: flags | turn,
        };
        net.driver.set_desc(u16::from(f % 61), desc);
        net.driver.memory().write(net.buffer(0), &desc.to_bytes());
        net.driver.set_driver_event(Event {
            desc: u16::from_le_bytes([a, g]),
            flags: g.into(),
        });
    },
    refill: |net, write, lap| {
        let turn = [VIRTQ_DESC_F_AVAIL, VIRTQ_DESC_F_USED][usize::from(lap % 2)];
        for index in 0..PACKED.size {
            let desc = PackedDesc {
                addr: net.buffer(index).0,
                len: ROOM / 2,
                id: index,
                flags: turn | if write { VIRTQ_DESC_F_WRITE } else { 0 },
            };
            net.driver.set_desc(index, desc);
        }
    },
};

/// An address, a length and flags of a descriptor, some good, most bad.
fn lies<D: Virtqueue>(net: &Net<D>, [a, b, c, ..]: [u8; 8]) -> (u64, u32, u16) {
    let buffer = net.buffer(0).0;
    let addr = [buffer, buffer + 100, 0x1000, 0, u64::MAX][usize::from(a % 5)];
    let len = [64, 1000, 16, 32, 0, u32::MAX][usize::from(b % 6)];
    let flags = [0, 0, 0, 1, 2, 2, 2, 3, 4, 6][usize::from(c % 10)];
    (addr, len, flags)
}

/// Bytes without pattern, the same on every run.
pub struct Noise(pub u64);

impl Noise {
    pub fn next(&mut self) -> [u8; 8] {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 3).to_le_bytes()
    }
}

impl<D: Virtqueue + 'static> Layout<D> {
    /// A guest's rings scribbled over, once each.
    pub fn scribble_over(&self, guest: &Guest<D>, noise: &mut Noise) {
        (self.scribble)(&guest.tx, noise.next());
        (self.scribble)(&guest.rx, noise.next());
    }

    /// All buffers of a guest made available, in either lap in turn.
    pub fn refill_all(&self, guest: &Guest<D>, lap: u16) {
        (self.refill)(&guest.tx, false, lap);
        (self.refill)(&guest.rx, true, lap);
    }
}

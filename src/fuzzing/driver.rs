//! The other side of a ring: a driver that keeps the rules and knows what must come of it, until it is told to lie.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::guest::{addr, len, tame, END};
use super::input::Input;
use crate::memory::GuestAddr;
use crate::model::{Buffer, Driver, GuestMemory, PackedDesc, PackedDriver, Virtqueue};
use crate::virtio::desc::{Desc, DESC_SIZE};
use crate::virtio::features::{Features, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_RING_F_INDIRECT_DESC};
use crate::virtio::net_hdr;
use crate::virtio::packed_ring::Event;

/// A model's driver that can also write nonsense into its ring.
pub(super) trait Liar: Virtqueue {
    /// Writes one thing into the ring that it should perhaps not.
    fn lie(&self, input: &mut Input<'_>);

    /// Says when it wants to be called.
    fn wish(&self, input: &mut Input<'_>);
}

impl Liar for Driver {
    fn lie(&self, input: &mut Input<'_>) {
        match input.u8() % 4 {
            0 | 1 => {
                let desc = Desc {
                    addr: addr(input).0,
                    len: len(input),
                    flags: input.u16(),
                    next: input.u8().into(),
                };
                self.set_desc(u16::from(input.u8()) % self.size(), desc);
            }
            2 => self.set_avail_entry(
                self.next_avail().wrapping_sub(input.u8().into()),
                input.u8().into(),
            ),
            _ => self.set_avail_idx(self.used_idx().wrapping_add(input.u8().into())),
        }
    }

    fn wish(&self, input: &mut Input<'_>) {
        self.set_avail_flags(input.u8().into());
        self.set_used_event(self.used_idx().wrapping_add(input.u8().into()));
    }
}

impl Liar for PackedDriver {
    fn lie(&self, input: &mut Input<'_>) {
        let size = self.config(0).size;
        let at = self.next_used().advance(u16::from(input.u8()) % size, size);
        let turn = Self::turn(at);
        match input.u8() % 3 {
            0 => self.set_flags(at.index, input.u16()),
            kind => {
                let desc = PackedDesc {
                    addr: addr(input).0,
                    len: len(input),
                    id: input.u8().into(),
                    flags: input.u8() as u16 & 7 | if kind == 1 { turn } else { 0 },
                };
                self.set_desc(at.index, desc);
            }
        }
    }

    fn wish(&self, input: &mut Input<'_>) {
        self.set_driver_event(Event {
            desc: input.u16(),
            flags: input.u8().into(),
        });
    }
}

/// A network driver of one ring.
pub(super) struct Player<D> {
    pub(super) ring: D,
    /// Whether it kept all rules so far.
    pub(super) honest: bool,
    /// Frames on their way, from the oldest on: out of the guest those that must come, into it those that may.
    pub(super) frames: VecDeque<Vec<u8>>,
    /// Its buffers that the device has, by id.
    chains: HashMap<u16, Vec<Buffer>>,
    /// Where memory was given to no buffer yet; starts anew when the device has none.
    free: u64,
    first_free: u64,
    writes: bool,
    seed: u8,
}

impl<D: Liar> Player<D> {
    /// A driver whose ring is at `at`; `writes` if the device writes its buffers.
    pub(super) fn new(
        memory: Arc<GuestMemory>,
        at: GuestAddr,
        size: u16,
        features: Features,
        writes: bool,
    ) -> Self {
        let free = at.0 + D::ring_bytes(size).next_multiple_of(64);
        Self {
            ring: D::new(memory, at, size, features),
            honest: true,
            frames: VecDeque::new(),
            chains: HashMap::new(),
            free,
            first_free: free,
            writes,
            seed: 0,
        }
    }

    /// Makes a chain available, as a driver should; out of the guest with a frame in it that must fit `room`, if any.
    pub(super) fn add(&mut self, input: &mut Input<'_>, room: usize) {
        let [indirect, long, ..] = input.flags::<8>();
        let indirect = indirect && self.ring.features().contains(VIRTIO_RING_F_INDIRECT_DESC);
        let pieces = 1 + usize::from(input.u8() % 5);
        let limit = u32::from(self.ring.config(0).size);
        let lens = (0..pieces).map(|_| match long {
            true => u32::from(input.u16() % 0x1400),
            false => u32::from(input.u8()),
        });
        let mut lens: Vec<u32> = lens.collect();
        if self.writes {
            // What is used with nothing in it cannot be told from what was given back.
            lens[0] = lens[0].max(1);
        }
        let table = self.free.next_multiple_of(16);
        let first = table + u64::from(DESC_SIZE) * pieces as u64;
        let end = first + lens.iter().map(|len| u64::from(*len)).sum::<u64>();
        if end > END || pieces as u64 > u64::from(limit) {
            return;
        }
        let mut at = first;
        let buffers: Vec<Buffer> = lens
            .into_iter()
            .map(|len| {
                let addr = GuestAddr(at);
                at += u64::from(len);
                let write = self.writes;
                Buffer { addr, len, write }
            })
            .collect();
        let id = match indirect {
            true => self.ring.add_indirect(GuestAddr(table), &buffers),
            false => self.ring.add(&buffers),
        };
        let Some(id) = id else { return };
        self.free = end;
        self.chains.insert(id, buffers);
        if !self.writes {
            self.fill(GuestAddr(first), end - first, room);
        }
    }

    /// Writes a frame behind a header that says nothing.
    fn fill(&mut self, at: GuestAddr, len: u64, room: usize) {
        let mut bytes = vec![0; usize::try_from(len).expect("small")];
        let header = self.header().min(bytes.len());
        let frame = &mut bytes[header..];
        pattern(frame, &mut self.seed);
        if (1..=room).contains(&frame.len()) {
            self.frames.push_back(frame.to_vec());
        }
        self.ring.memory().write(at, &bytes);
    }

    /// A frame to be sent into the guest.
    pub(super) fn frame(&mut self, len: usize) -> Vec<u8> {
        let mut frame = vec![0; len];
        pattern(&mut frame, &mut self.seed);
        frame
    }

    /// Takes back what was used, and looks at it. Says how many frames arrived.
    pub(super) fn reap(&mut self) -> usize {
        if !self.honest {
            return 0;
        }
        let mut frames = 0;
        while let Some(bytes) = self.take() {
            if self.writes && !bytes.is_empty() {
                self.receive(bytes);
                frames += 1;
            }
        }
        if self.chains.is_empty() {
            self.free = self.first_free;
        }
        frames
    }

    /// Chains that the device has.
    pub(super) fn outstanding(&self) -> usize {
        self.chains.len()
    }

    pub(super) fn header(&self) -> usize {
        match net_hdr::is_long(self.ring.features()) {
            true => net_hdr::LONG as usize,
            false => net_hdr::SHORT as usize,
        }
    }

    /// The bytes that were written into the next chain that was used.
    fn take(&mut self) -> Option<Vec<u8>> {
        let used = self.ring.reap()?;
        let id = u16::try_from(used.id).expect("an id");
        let buffers = self.chains.remove(&id).expect("a chain that the device has");
        let mut bytes = Vec::new();
        for buffer in buffers {
            let mut piece = vec![0; buffer.len as usize];
            self.ring.memory().read(buffer.addr, &mut piece);
            bytes.extend(piece);
        }
        assert!(
            used.len as usize <= bytes.len(),
            "{} bytes of {}",
            used.len,
            bytes.len()
        );
        assert!(self.writes || used.len == 0, "written into what is to be read");
        bytes.truncate(used.len as usize);
        Some(bytes)
    }

    /// A frame arrives whose first buffer holds `first`: it must be one that was sent, and none that was sent before those
    /// that arrived.
    fn receive(&mut self, mut first: Vec<u8>) {
        let (header, mut taken) = (self.header(), 1);
        while first.len() < header {
            first.extend(self.take().expect("a header comes whole"));
            taken += 1;
        }
        let mut frame = first.split_off(header);
        let buffers = first
            .get(10..12)
            .map_or(1, |count| u16::from_le_bytes([count[0], count[1]]));
        let merges = self.ring.features().contains(VIRTIO_NET_F_MRG_RXBUF);
        assert!(buffers == 1 || merges && buffers > 1, "num_buffers {buffers}");
        for _ in taken..buffers {
            frame.extend(self.take().expect("buffers that belong together come together"));
        }
        while let Some(sent) = self.frames.pop_front() {
            if sent == frame {
                return;
            }
        }
        panic!("a frame of {} bytes arrived that nobody sent", frame.len());
    }

    /// Writes what the driver may write, or not, anywhere in its memory.
    pub(super) fn poke(&mut self, input: &mut Input<'_>) {
        self.honest = false;
        poke(self.ring.memory(), addr(input), &tame(input.bytes(16)));
    }
}

/// Writes as much of `bytes` as there is memory for.
pub(super) fn poke(memory: &GuestMemory, at: GuestAddr, bytes: &[u8]) {
    let table = memory.table();
    let mut cursor = table.cursor(0).expect("regions");
    // What is not mapped is not the guest's to write.
    let _unmapped = cursor.write(at, bytes);
}

/// Fills `frame` with bytes that no other has in this place.
fn pattern(frame: &mut [u8], seed: &mut u8) {
    *seed = seed.wrapping_add(1);
    for (byte, at) in frame.iter_mut().zip(0_u8..=250) {
        *byte = (at ^ *seed) & 0x7e;
    }
}

//! Target `device`: requests that make sense one by one, in any order, and bursts in between.
//!
//! Each passes through the session, so nothing reaches the device that a front-end could not send; descriptors, numbers and
//! addresses are mostly of the right kind. `SETUP` is a whole start of the first two queue pairs in one step.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use rustix::event::{eventfd, EventfdFlags};
use rustix::fs::{ftruncate, memfd_create, MemfdFlags};

use super::driver::{Liar, Player};
use super::guest::{addr, is_foreign, Guest, END, REGIONS, START};
use super::input::Input;
use crate::datapath::{RxSlot, TxSlot};
use crate::memory::GuestAddr;
use crate::model::{Driver, PackedDriver, FRONTEND_OFFSET};
use crate::port::Stage;
use crate::vhost_user::message::Flags;
use crate::vhost_user::{Header, Message, Next, ProtocolFeatures};
use crate::virtio::features::*;

/// All but post-copy, which is not offered here.
pub(super) const PROTOCOL: ProtocolFeatures =
    ProtocolFeatures::SUPPORTED.without(ProtocolFeatures::PAGEFAULT);
/// Steps of one input.
const STEPS: usize = 100;
/// Vrings that are spoken of, and entries that a driver has in each.
const VRINGS: u16 = 4;
const SIZE: u16 = 16;
/// Bytes from one ring to the next, with its buffers behind it.
const STRIDE: u64 = 0x2000;

pub(super) fn run(mut input: Input<'_>) {
    Guest::lend(|guest| {
        let packed = input.flags::<1>() == [true];
        match packed {
            true => Bench::<PackedDriver>::new(guest, VIRTIO_F_RING_PACKED).run(&mut input),
            false => Bench::<Driver>::new(guest, Features::NONE).run(&mut input),
        }
    });
}

struct Bench<'g, D> {
    guest: &'g Guest,
    stage: Stage,
    layout: Features,
    players: Vec<Player<D>>,
    /// The last in-flight buffer that was given out.
    in_flight: Option<(Vec<u8>, OwnedFd)>,
    /// The front-end's end of the back-end channel.
    channel: Option<UnixStream>,
}

impl<'g, D: Liar> Bench<'g, D> {
    fn new(guest: &'g Guest, layout: Features) -> Self {
        let player = |vring: u16| {
            let memory = Arc::clone(&guest.memory);
            let at = GuestAddr(START + STRIDE * u64::from(vring));
            Player::new(
                memory,
                at,
                SIZE,
                layout | VIRTIO_RING_F_INDIRECT_DESC,
                vring % 2 == 0,
            )
        };
        Self {
            guest,
            stage: Stage::new(),
            layout,
            players: (0..VRINGS).map(player).collect(),
            in_flight: None,
            channel: None,
        }
    }

    fn run(mut self, input: &mut Input<'_>) {
        for _ in 0..STEPS {
            if input.is_empty() || !self.step(input) {
                break;
            }
        }
    }

    /// Says whether the connection goes on.
    fn step(&mut self, input: &mut Input<'_>) -> bool {
        let kind = input.u8();
        let vring = u16::from(kind >> 4) % VRINGS;
        let player = &mut self.players[usize::from(vring)];
        match kind % 16 {
            0 => return self.set_up(input),
            1 => player.add(input, 0),
            2 => player.ring.publish(),
            3 => self.burst(vring, input),
            4 => player.ring.lie(input),
            5 => player.poke(input),
            6 => player.ring.wish(input),
            7 => self.answer(input),
            _ => return self.request(vring, input),
        }
        true
    }

    /// Negotiation, memory and rings of two queue pairs.
    fn set_up(&mut self, input: &mut Input<'_>) -> bool {
        let protocol = numbers(&[PROTOCOL.0]);
        let mut all = self.say(16, protocol, vec![]) && self.say(2, numbers(&[self.features(input)]), vec![]);
        let table = table(&[0, 1, 2]);
        all &= self.say(5, table, (0..3).map(|_| self.guest.file()).collect());
        for vring in 0..VRINGS {
            let base = if self.layout == Features::NONE {
                0
            } else {
                0x8000_8000
            };
            all = all
                && self.say(8, state(vring, SIZE.into()), vec![])
                && self.say(10, state(vring, base), vec![])
                && self.say(9, self.address(vring, false), vec![])
                && self.say(13, numbers(&[vring.into()]), vec![event()])
                && self.say(12, numbers(&[vring.into()]), vec![event()])
                && self.say(18, state(vring, 1), vec![]);
        }
        all
    }

    /// What a driver acknowledges, of what it is offered.
    fn features(&self, input: &mut Input<'_>) -> u64 {
        let [merges, indirect, event_idx, in_order, iommu, logs, protocol, checksum] = input.flags();
        let bits = [
            (merges, VIRTIO_NET_F_MRG_RXBUF),
            (indirect, VIRTIO_RING_F_INDIRECT_DESC),
            (event_idx, VIRTIO_RING_F_EVENT_IDX),
            (in_order, VIRTIO_F_IN_ORDER),
            (iommu, VIRTIO_F_ACCESS_PLATFORM),
            (logs, VHOST_F_LOG_ALL),
            (protocol, VHOST_USER_F_PROTOCOL_FEATURES),
            (
                checksum,
                VIRTIO_NET_F_CSUM | VIRTIO_NET_F_HOST_TSO4 | VIRTIO_NET_F_GUEST_CSUM,
            ),
        ];
        let bits = bits.iter().filter(|(on, _)| *on);
        bits.fold(self.layout | VIRTIO_F_VERSION_1, |all, (_, bit)| all | *bit)
            .0
    }

    /// One request of any kind.
    fn request(&mut self, vring: u16, input: &mut Input<'_>) -> bool {
        let id = u32::from(input.u8() % 46);
        let (payload, fds) = match id {
            2 => (numbers(&[self.features(input)]), vec![]),
            5 => {
                let regions: Vec<u8> = (0..=input.u8() % 4).map(|_| input.u8()).collect();
                let fds = regions.iter().map(|_| self.guest.file()).collect();
                (table(&regions), fds)
            }
            6 => (numbers(&[64, 64 * u64::from(input.u8() % 4)]), vec![memory()]),
            7 => (vec![], vec![self.descriptor(input)]),
            8 => (state(vring, input.pick(&[16, 8, 1, 100, 32768])), vec![]),
            9 => (self.address(vring, input.u8() % 2 == 1), vec![]),
            10 => (state(vring, input.u32()), vec![]),
            11 => (state(vring, 0), vec![]),
            12..=14 => (numbers(&[vring.into()]), vec![self.descriptor(input)]),
            16 => (numbers(&[input.u64() & PROTOCOL.0]), vec![]),
            18 => (state(vring, u32::from(input.u8() % 2)), vec![]),
            19 | 39 => (numbers(&[input.u64() & 0xffff_ffff_ffff]), vec![]),
            20 => (numbers(&[u64::from(input.u16())]), vec![]),
            21 => (vec![], vec![self.open_channel()]),
            22 => (iotlb(input), vec![]),
            24 | 25 => (input.bytes(24).to_vec(), vec![]),
            31 => (in_flight(input), vec![]),
            32 => match &self.in_flight {
                Some((payload, file)) => (payload.clone(), vec![file.try_clone().expect("a descriptor")]),
                None => (in_flight(input), vec![memory()]),
            },
            37 => (
                [numbers(&[0]), region(input.u8())].concat(),
                vec![self.guest.file()],
            ),
            38 => ([numbers(&[0]), region(input.u8())].concat(), vec![]),
            42 => (state(u16::from(input.u8() % 2), 0), vec![self.descriptor(input)]),
            _ => (vec![], vec![]),
        };
        self.say(id, payload, fds)
    }

    /// Has a message carried out, and says whether the connection goes on.
    fn say(&mut self, request: u32, payload: Vec<u8>, fds: Vec<OwnedFd>) -> bool {
        let header = Header {
            request,
            flags: Flags(9),
            size: u32::try_from(payload.len()).expect("small"),
        };
        let message = Message {
            header,
            payload,
            fds,
            defect: None,
        };
        let outcome = self.stage.handle(message);
        if let (31, Some(reply), Some(file)) = (request, outcome.reply, outcome.fd) {
            self.in_flight = Some((reply[12..].to_vec(), file));
        }
        outcome.next == Next::Continue
    }

    /// Frames out of the guest or into it.
    fn burst(&mut self, vring: u16, input: &mut Input<'_>) {
        let (count, len) = (usize::from(input.u8() % 8), 14 + usize::from(input.u16() % 3000));
        let mut room = vec![0; count * 2048];
        let mut slots: Vec<_> = room.chunks_mut(2048).map(RxSlot::new).collect();
        let queue = self.stage.queue(vring);
        let got = queue.dequeue(&mut slots);
        assert!(got <= count && slots[..got].iter().all(|slot| !is_foreign(slot.frame())));
        let frame = vec![0x42; len];
        let sent = queue.enqueue(&vec![TxSlot::new(&frame); count], 1);
        assert!(sent.packets <= count);
        self.stage.tend();
    }

    /// A vring's address, mostly where its driver has it.
    fn address(&self, vring: u16, log: bool) -> Vec<u8> {
        let config = self.players[usize::from(vring)].ring.config(vring);
        let flags = u32::from(log);
        let at = config.device.0 - FRONTEND_OFFSET;
        let addrs = [config.desc.0, config.device.0, config.driver.0, at];
        [words(&[vring.into(), flags]), numbers(&addrs)].concat()
    }

    /// A descriptor of any kind that a request may have.
    fn descriptor(&self, input: &mut Input<'_>) -> OwnedFd {
        match input.u8() % 8 {
            0 => self.guest.file(),
            1 => memory(),
            2 | 3 => UnixStream::pair().expect("a socket pair").0.into(),
            _ => event(),
        }
    }

    fn open_channel(&mut self) -> OwnedFd {
        let (ours, theirs) = UnixStream::pair().expect("a socket pair");
        self.channel = Some(ours);
        theirs.into()
    }

    /// Says something on the back-end channel: mostly that a question is answered.
    fn answer(&mut self, input: &mut Input<'_>) {
        let Some(channel) = &self.channel else { return };
        let answer = [
            words(&[input.pick(&[1, 1, 1, 7]), input.pick(&[5, 5, 5, 1]), 8]),
            numbers(&[input.u8().into()]),
        ];
        let _lost = rustix::net::send(
            channel.as_fd(),
            &answer.concat(),
            rustix::net::SendFlags::NOSIGNAL,
        );
        self.stage.tend();
    }
}

fn numbers(numbers: &[u64]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_ne_bytes()).collect()
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn state(vring: u16, num: u32) -> Vec<u8> {
    words(&[vring.into(), num])
}

/// One of the guest's regions, or something like it.
fn region(which: u8) -> Vec<u8> {
    let desc = REGIONS[usize::from(which) % REGIONS.len()];
    let (shift, size) = (u64::from(which / 64), u64::from(which / 16 % 4));
    numbers(&[
        desc.guest.0,
        desc.size - size,
        desc.frontend.0,
        desc.mmap_offset + shift,
    ])
}

fn table(regions: &[u8]) -> Vec<u8> {
    let count = u32::try_from(regions.len()).expect("few");
    let regions = regions.iter().flat_map(|which| region(*which));
    words(&[count, 0]).into_iter().chain(regions).collect()
}

/// A translation told or taken back. Mostly addresses lead to themselves as the front-end sees them.
fn iotlb(input: &mut Input<'_>) -> Vec<u8> {
    let [from_ring, all, ..] = input.flags::<8>();
    let target = START + FRONTEND_OFFSET + u64::from(input.u8()) * 0x1000;
    let iova = match from_ring {
        true => target,
        false => addr(input).0,
    };
    let size = match all {
        true => END - START,
        false => u64::from(input.u16()),
    };
    let (perm, kind) = (input.pick(&[3, 1, 2]), input.pick(&[2, 2, 3, 1]));
    [numbers(&[iova, size, target]), vec![perm, kind, 0, 0, 0, 0, 0, 0]].concat()
}

fn in_flight(input: &mut Input<'_>) -> Vec<u8> {
    let (queues, size) = (u32::from(input.u8() % 5), u32::from(input.u8() % 20));
    [numbers(&[4096, 0]), words(&[queues | size << 16])].concat()
}

fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd")
}

/// A page of memory that is not the guest's.
fn memory() -> OwnedFd {
    let file = memfd_create("fuzz-page", MemfdFlags::CLOEXEC).expect("a memfd");
    ftruncate(&file, 4096).expect("room");
    file
}

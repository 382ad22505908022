//! When a vring runs: everything that a front-end may say of it, in every state that it may be in.
//!
//! [`Facts`] is what the specification has a ring wait for, said once more and without rings. From nothing on, each state
//! that some order of requests leads to is visited, each request of an alphabet tried there, and the device must agree.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::Arc;

use rustix::event::{eventfd, EventfdFlags};

use super::DRIVER_OK;
use crate::memory::{Access, FrontendAddr, GuestAddr, IovaRange, RegionDesc, Translation};
use crate::model::{GuestMemory, FRONTEND_OFFSET};
use crate::port::device::PortDevice;
use crate::port::fuzzing;
use crate::port::shared::Port;
use crate::vhost_user::{Device, IotlbRequest, Request, VringAddr};
use crate::virtio::features::*;

/// What the driver acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Driver {
    /// No protocol features: nobody enables its rings.
    Plain,
    Protocol,
    /// Its addresses are an IOMMU's to translate.
    BehindIommu,
}

/// Where the guest's memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Memory {
    Here,
    /// Nothing of it is where the rings are.
    Elsewhere,
}

/// One request; the numbers are vrings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Say {
    Features(Driver),
    Memory(Memory),
    Forget(Memory),
    Num(u16),
    Addr(u16),
    Kick(u16),
    Call(u16),
    Enable(u16, bool),
    GetBase(u16),
    DriverOk(bool),
    Reset,
    Translate,
    Invalidate,
}

/// What is known of one vring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Ring {
    num: bool,
    addr: bool,
    kicked: bool,
    enabled: bool,
    /// To all but the IOMMU, it runs.
    up: bool,
    running: bool,
}

/// What is known of a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Facts {
    driver: Option<Driver>,
    memory: Option<Memory>,
    /// Once the front-end uses the status.
    driver_ok: Option<bool>,
    translated: bool,
    rings: [Ring; 2],
}

impl Facts {
    /// What is known after a request, or `None` if it must be refused.
    fn after(mut self, say: Say) -> Option<Facts> {
        match say {
            Say::Features(driver) if self.driver == Some(driver) => return Some(self),
            Say::Features(_) if self.rings.iter().any(|ring| ring.up) => return None,
            Say::Features(driver) => {
                self.driver = Some(driver);
                self.translated &= driver == Driver::BehindIommu;
            }
            Say::Memory(memory) => self.memory = Some(memory),
            Say::Forget(memory) if self.memory != Some(memory) => return None,
            Say::Forget(_) => self.memory = None,
            Say::Num(ring) => self.ring(ring).num = true,
            Say::Addr(ring) => self.ring(ring).addr = true,
            Say::Kick(ring) => self.ring(ring).kicked = true,
            Say::Call(_) => {}
            Say::Enable(ring, enable) => self.ring(ring).enabled = enable,
            Say::GetBase(ring) => {
                self.ring(ring).kicked = false;
                self.translated &= self.rings.iter().any(|ring| ring.kicked);
            }
            Say::DriverOk(ok) => self.driver_ok = Some(ok),
            Say::Reset => {
                self.driver_ok = self.driver_ok.map(|_| false);
                self.translated = false;
                for ring in &mut self.rings {
                    (ring.kicked, ring.enabled) = (false, false);
                }
            }
            Say::Translate | Say::Invalidate if self.driver != Some(Driver::BehindIommu) => return None,
            Say::Translate if self.memory != Some(Memory::Here) => return None,
            Say::Translate => self.translated = true,
            Say::Invalidate => self.translated = false,
        }
        let stays_up = matches!(say, Say::Enable(..) | Say::Translate | Say::Invalidate);
        for index in 0..2 {
            self.settle(index, stays_up || !say.concerns(index));
        }
        let lies_elsewhere = |index| self.is_ready(index) && !self.is_there() && say.is_of(index);
        match self.driver != Some(Driver::BehindIommu) && (0..2).any(lies_elsewhere) {
            true => None,
            false => Some(self),
        }
    }

    fn ring(&mut self, ring: u16) -> &mut Ring {
        &mut self.rings[usize::from(ring)]
    }

    /// Nothing that a ring needs is missing, but for the memory that it lies in.
    fn is_ready(&self, ring: u16) -> bool {
        let ring = self.rings[usize::from(ring)];
        let said = ring.num && ring.addr && ring.kicked;
        said && self.driver.is_some() && self.memory.is_some() && self.driver_ok != Some(false)
    }

    /// That memory is there.
    fn is_there(&self) -> bool {
        self.memory == Some(Memory::Here) && (self.driver != Some(Driver::BehindIommu) || self.translated)
    }

    fn settle(&mut self, ring: u16, stays_up: bool) {
        let (ready, there) = (self.is_ready(ring), self.is_there());
        let ring = self.ring(ring);
        ring.up = ready && (there || stays_up && ring.up);
        ring.running = ready && there;
    }

    /// Packets pass.
    fn is_usable(&self, ring: usize) -> bool {
        let Ring { up, enabled, .. } = self.rings[ring];
        up && (enabled || self.driver == Some(Driver::Plain))
    }
}

impl Say {
    /// It is said of this vring alone.
    fn is_of(self, index: u16) -> bool {
        match self {
            Say::Num(of)
            | Say::Addr(of)
            | Say::Kick(of)
            | Say::Call(of)
            | Say::Enable(of, _)
            | Say::GetBase(of) => of == index,
            _ => false,
        }
    }

    /// Said of this vring, or of all.
    fn concerns(self, index: u16) -> bool {
        self.is_of(index) || !self.is_of(1 - index)
    }
}

/// A front-end's own side: what its requests are made of.
struct FrontEnd {
    memory: GuestMemory,
    event: OwnedFd,
}

impl FrontEnd {
    /// Bytes of memory, from this address of its own on; a ring lies in each page.
    const BYTES: u64 = 0x2000;
    const START: u64 = 0x1000 + FRONTEND_OFFSET;

    fn new() -> Self {
        Self {
            memory: GuestMemory::new(Self::BYTES),
            event: eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd"),
        }
    }

    fn request(&self, say: Say) -> Request {
        let event = || Some(self.event.try_clone().expect("a descriptor"));
        match say {
            Say::Features(Driver::Plain) => Request::SetFeatures(VIRTIO_F_VERSION_1.0),
            Say::Features(Driver::Protocol) => {
                Request::SetFeatures((VIRTIO_F_VERSION_1 | VHOST_USER_F_PROTOCOL_FEATURES).0)
            }
            Say::Features(Driver::BehindIommu) => Request::SetFeatures(
                (VIRTIO_F_VERSION_1 | VHOST_USER_F_PROTOCOL_FEATURES | VIRTIO_F_ACCESS_PLATFORM).0,
            ),
            Say::Memory(memory) => Request::SetMemTable(vec![(Self::region(memory), self.file())]),
            Say::Forget(memory) => Request::RemMemReg(Self::region(memory)),
            Say::Num(index) => Request::SetVringNum { index, num: 8 },
            Say::Addr(index) => Request::SetVringAddr(Self::ring(index)),
            Say::Kick(index) => Request::SetVringKick { index, fd: event() },
            Say::Call(index) => Request::SetVringCall { index, fd: event() },
            Say::Enable(index, enable) => Request::SetVringEnable { index, enable },
            Say::GetBase(index) => Request::GetVringBase { index },
            Say::DriverOk(ok) => Request::SetStatus(if ok { DRIVER_OK } else { 0 }),
            Say::Reset => Request::ResetDevice,
            Say::Translate => Request::Iotlb(IotlbRequest::Update(Translation {
                iova: Self::addresses(),
                target: FrontendAddr(Self::START),
                access: Access::ReadWrite,
            })),
            Say::Invalidate => Request::Iotlb(IotlbRequest::Invalidate(Self::addresses())),
        }
    }

    fn region(memory: Memory) -> RegionDesc {
        let up = match memory {
            Memory::Here => 0,
            Memory::Elsewhere => 0x10_0000,
        };
        RegionDesc {
            guest: GuestAddr(0x1000 + up),
            size: Self::BYTES,
            frontend: FrontendAddr(Self::START + up),
            mmap_offset: 0,
        }
    }

    fn file(&self) -> OwnedFd {
        self.memory
            .file()
            .as_fd()
            .try_clone_to_owned()
            .expect("a descriptor")
    }

    fn ring(index: u16) -> VringAddr {
        let at = |offset| FrontendAddr(Self::START + 0x1000 * u64::from(index) + offset);
        VringAddr {
            index,
            flags: 0,
            desc: at(0),
            avail: at(0x100),
            used: at(0x200),
            log: GuestAddr(0),
        }
    }

    /// Where the rings lie, to a device behind an IOMMU.
    fn addresses() -> IovaRange {
        IovaRange::new(GuestAddr(Self::START), Self::BYTES).expect("some")
    }
}

/// Visits each state that requests of `alphabet` lead to, once `prologue` was said, and tries each of them there. Returns how
/// many states these are.
///
/// What a device remembers shows only once all else is there: so each time it is also said what `rings` vrings need, but for
/// one thing.
fn explore(prologue: &[Say], alphabet: &[Say], rings: u16) -> usize {
    let (port, front_end, probes) = (fuzzing::port(), FrontEnd::new(), probes(rings));
    let after = |path: &[Say]| {
        path.iter()
            .try_fold(Facts::default(), |facts, say| facts.after(*say))
    };
    let start = after(prologue).expect("nothing that is refused");
    let mut paths = BTreeMap::from([(start, prologue.to_vec())]);
    let mut new = VecDeque::from([start]);
    while let Some(facts) = new.pop_front() {
        let known = paths[&facts].clone();
        for say in alphabet {
            let path = [known.as_slice(), &[*say]].concat();
            let Some(then) = facts.after(*say) else {
                agree(&port, &front_end, &path, known.len());
                continue;
            };
            for probe in &probes {
                agree(&port, &front_end, &[path.as_slice(), probe].concat(), known.len());
            }
            paths.entry(then).or_insert_with(|| {
                new.push_back(then);
                path
            });
        }
    }
    paths.len()
}

/// What vrings need, whole and but for one thing, and after what makes a device forget.
fn probes(rings: u16) -> Vec<Vec<Say>> {
    let of_one = |ring| {
        [
            Say::Num(ring),
            Say::Addr(ring),
            Say::Kick(ring),
            Say::Enable(ring, true),
        ]
    };
    let all: Vec<_> = [MEMORIES[0]]
        .into_iter()
        .chain((0..rings).flat_map(of_one))
        .collect();
    let but = |left_out| {
        let mut some = all.clone();
        some.remove(left_out);
        some
    };
    let firsts = [Say::Reset, DRIVERS[0], DRIVERS[2]];
    let behind = firsts.map(|first| [&[first][..], &all].concat());
    let parts = (0..all.len()).map(but);
    parts.chain(behind).chain([all.clone()]).collect()
}

/// A new device that is said all this must refuse what is to be refused, after which nothing is said to it any more, and from
/// request number `from` on be what the facts say.
fn agree(port: &Arc<Port>, front_end: &FrontEnd, path: &[Say], from: usize) {
    let mut device = PortDevice::new(Arc::clone(port), port.next_offer());
    let mut facts = Facts::default();
    for (number, say) in path.iter().enumerate() {
        let so_far = &path[..=number];
        let (then, answer) = (facts.after(*say), device.handle(front_end.request(*say)));
        assert_eq!(answer.is_ok(), then.is_some(), "{so_far:?}: {answer:?}");
        let Some(then) = then else { break };
        facts = then;
        if number >= from {
            compare(port, &device, &facts, so_far);
        }
    }
    drop(device);
    for queue in &port.queues[..2] {
        assert!(
            queue.snapshot().is_none(),
            "a ring outlived its front-end: {path:?}"
        );
    }
}

fn compare(port: &Port, device: &PortDevice, facts: &Facts, path: &[Say]) {
    let portraits = device.vring_portraits();
    for (index, ring) in facts.rings.iter().enumerate() {
        let running = portraits.get(index).is_some_and(|vring| vring.running);
        let usable = port.usable[index].load(Ordering::Relaxed);
        let found = (running, port.queues[index].snapshot().is_some(), usable);
        let right = (ring.running, ring.running, facts.is_usable(index));
        assert_eq!(found, right, "vring {index}: {path:?}");
    }
    let both = (0..2).all(|ring| facts.is_usable(ring));
    assert_eq!(device.attached(), both, "{path:?}");
}

const DRIVERS: [Say; 3] = [
    Say::Features(Driver::Plain),
    Say::Features(Driver::Protocol),
    Say::Features(Driver::BehindIommu),
];
const MEMORIES: [Say; 4] = [
    Say::Memory(Memory::Here),
    Say::Memory(Memory::Elsewhere),
    Say::Forget(Memory::Here),
    Say::Forget(Memory::Elsewhere),
];
const STATUSES: [Say; 3] = [Say::DriverOk(true), Say::DriverOk(false), Say::Reset];
const TRANSLATIONS: [Say; 2] = [Say::Translate, Say::Invalidate];

/// Kick, stop, enable, disable.
fn starts_and_stops(ring: u16) -> [Say; 4] {
    [
        Say::Kick(ring),
        Say::GetBase(ring),
        Say::Enable(ring, true),
        Say::Enable(ring, false),
    ]
}

fn set_up(ring: u16) -> [Say; 3] {
    [Say::Num(ring), Say::Addr(ring), Say::Call(ring)]
}

#[test]
fn a_vring_runs_when_all_that_it_needs_is_there_in_whatever_order_it_came() {
    let alphabet = [
        &DRIVERS[..],
        &MEMORIES,
        &STATUSES,
        &TRANSLATIONS,
        &set_up(0),
        &starts_and_stops(0),
    ]
    .concat();
    let states = explore(&[], &alphabet, 1);
    assert!(states > 700, "{states} states");
}

#[test]
fn two_vrings_start_and_stop_each_by_itself() {
    for driver in DRIVERS {
        let prologue = [&[driver, MEMORIES[0]][..], &set_up(0), &set_up(1)].concat();
        let alphabet = [
            &MEMORIES[..],
            &STATUSES,
            &TRANSLATIONS,
            &starts_and_stops(0),
            &starts_and_stops(1),
        ]
        .concat();
        let states = explore(&prologue, &alphabet, 2);
        assert!(states > 140, "{driver:?}: {states} states");
    }
}

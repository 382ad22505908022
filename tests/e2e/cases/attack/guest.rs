//! A guest that is the model's, with one queue pair, and canaries around what it lends.
//!
//! ```text
//! its file:   canary | rings and buffers | lent, in no buffer | canary
//! lent:                ~~~~~~~~~~~~~~~~~   ~~~~~~~~~~~~~~~~~~
//! ```
//!
//! What is lent lies apart in the guest's address space, so that neither runs on into the other. Behind an IOMMU the device has
//! addresses for the rings and buffers only, and the guest itself has a canary there: whoever takes the one for the other is
//! found out.

use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use ovs_vhost::memory::{Access, FrontendAddr, GuestAddr};
use ovs_vhost::model::{GuestMemory, Net, Virtqueue, FRONTEND_OFFSET};
use ovs_vhost::virtio::features::*;
use rustix::event::{eventfd, EventfdFlags};

use super::iotlb::translate;
use super::plan::{Plan, VringPlan};
use crate::wait;
use crate::wire::{Message, Wire};

/// What every guest here negotiates.
pub const BARE: Features = VIRTIO_F_VERSION_1.with(VHOST_USER_F_PROTOCOL_FEATURES);
/// Bytes of a buffer: a frame of an ordinary MTU with its header.
pub const ROOM: u32 = 2048;
/// Where its rings and buffers begin.
pub const START: GuestAddr = GuestAddr(0x1000);
/// Where the rest of its memory is, for itself.
const CANARIES: [GuestAddr; 2] = [GuestAddr(0x1000_0000), GuestAddr(0x2000_0000)];
const BESIDE: GuestAddr = GuestAddr(0x3000_0000);
const CANARY_BYTES: usize = 0x1_0000;
const CANARY: u8 = 0xc5;
/// For a frame to come back, with some to spare for a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);
/// After which another is sent: the first may have come too early for a port that has just come up.
const AGAIN: Duration = Duration::from_millis(5);

/// A guest.
pub struct Guest<D> {
    pub memory: Arc<GuestMemory>,
    pub rx: Net<D>,
    pub tx: Net<D>,
    pub features: Features,
    /// What it was given to be called by, for both rings.
    pub calls: [OwnedFd; 2],
    kicks: [OwnedFd; 2],
    /// Frames sent to itself.
    sent: u64,
}

impl<D: Virtqueue> Guest<D> {
    /// A guest with fresh rings of `size`; nobody has heard of it.
    pub fn new(size: u16, features: Features) -> Guest<D> {
        let space = Net::<D>::space(size, ROOM);
        let canary = |addr| (addr, CANARY_BYTES as u64);
        let regions = [
            canary(CANARIES[0]),
            (START, 2 * space),
            canary(BESIDE),
            canary(CANARIES[1]),
        ];
        let memory = Arc::new(GuestMemory::with_regions(&regions));
        for addr in CANARIES.into_iter().chain([BESIDE]) {
            memory.write(addr, &[CANARY; CANARY_BYTES]);
        }
        let ring = |at| Net::within(Arc::clone(&memory), GuestAddr(at), size, ROOM, features);
        let eventfd = || eventfd(0, EventfdFlags::NONBLOCK).expect("an eventfd");
        Guest {
            rx: ring(START.0),
            tx: ring(START.0 + space),
            memory: Arc::clone(&memory),
            features,
            calls: [eventfd(), eventfd()],
            kicks: [eventfd(), eventfd()],
            sent: 0,
        }
    }

    /// What an honest front-end says for it.
    pub fn plan(&self) -> Plan {
        let mut regions = self.memory.regions();
        regions.retain(|(desc, _)| [START, BESIDE].contains(&desc.guest));
        let mut then = Vec::new();
        if self.is_behind_iommu() {
            [regions[0].0.guest, regions[1].0.guest] = [BESIDE, START];
            then.push(self.translate(Access::ReadWrite));
        }
        Plan {
            features: self.features.0,
            first: Vec::new(),
            regions,
            then,
            vrings: [self.vring(0, &self.rx), self.vring(1, &self.tx)],
        }
    }

    fn vring(&self, index: u16, ring: &Net<D>) -> VringPlan {
        let config = ring.driver.config(index);
        let fd = |fds: &[OwnedFd; 2]| fds[usize::from(index)].try_clone().expect("a descriptor");
        VringPlan {
            num: config.size.into(),
            base: config.base,
            flags: 0,
            desc: self.ring_addr(config.desc),
            used: self.ring_addr(config.device),
            avail: self.ring_addr(config.driver),
            log: 0,
            call: fd(&self.calls),
            kick: fd(&self.kicks),
        }
    }

    /// Whether the device knows its memory by other addresses, those that it is told of.
    pub fn is_behind_iommu(&self) -> bool {
        self.features.contains(VIRTIO_F_ACCESS_PLATFORM)
    }

    /// What SET_VRING_ADDR says of a part of a ring: where the device has it behind an IOMMU, where the front-end has it else.
    fn ring_addr(&self, addr: FrontendAddr) -> u64 {
        match self.is_behind_iommu() {
            true => addr.0 - FRONTEND_OFFSET,
            false => addr.0,
        }
    }

    /// The translation of all that its rings and buffers are in.
    pub fn translate(&self, access: Access) -> Message {
        translate(&self.all(), START.0, access)
    }

    /// Where the device has its rings and buffers: what each ring takes, the receiveq first.
    fn halves(&self) -> [Range<u64>; 2] {
        let space = Net::<D>::space(self.size(), ROOM);
        [START.0, START.0 + space].map(|start| start..start + space)
    }

    /// Where the device has all of them.
    pub fn all(&self) -> Range<u64> {
        let [rx, tx] = self.halves();
        rx.start..tx.end
    }

    /// Where the device has its rings: whole pages, the receiveq's first.
    pub fn rings(&self) -> [Range<u64>; 2] {
        let [rx, tx] = self.halves();
        [rx.start..self.rx.buffer(0).0, tx.start..self.tx.buffer(0).0]
    }

    /// Where the device has its buffers: whole pages, those to receive into first.
    pub fn buffers(&self) -> [Range<u64>; 2] {
        let [rx, tx] = self.halves();
        [self.rx.buffer(0).0..rx.end, self.tx.buffer(0).0..tx.end]
    }

    /// Says it all, and nothing may be refused.
    pub fn come_up(&self, wire: &mut Wire) -> Result<()> {
        wire.negotiate()?;
        let heard = self.plan().say(wire)?;
        ensure!(
            heard.is_well(),
            "an honest guest was refused {:?}, closed: {}",
            heard.refused,
            heard.closed
        );
        Ok(())
    }

    /// Entries of each ring.
    pub fn size(&self) -> u16 {
        self.rx.driver.config(0).size
    }

    /// Kicks a ring.
    pub fn kick(&self, ring: usize) -> Result<()> {
        rustix::io::write(&self.kicks[ring], &1_u64.to_ne_bytes())?;
        Ok(())
    }

    /// Sends a frame on a port whose packets come back, and has it come back.
    pub fn echo(&mut self) -> Result<()> {
        let start = Instant::now();
        let mut due = start;
        self.supply();
        loop {
            wait::check_interrupt()?;
            if Instant::now() >= due {
                self.sent += 1;
                self.send(&frame(self.sent));
                due += AGAIN;
            }
            while let Some(received) = self.receive()? {
                let number = number(&received).filter(|number| (1..=self.sent).contains(number));
                let sent = number.map(frame);
                ensure!(
                    sent.as_ref() == Some(&received),
                    "came back altered: {received:x?}"
                );
                if number == Some(self.sent) {
                    return Ok(());
                }
            }
            if start.elapsed() > PATIENCE {
                bail!("nothing came back in {} s", PATIENCE.as_secs());
            }
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    /// Makes every free buffer available to receive into.
    pub fn supply(&mut self) {
        self.rx.supply(usize::from(u16::MAX));
        self.rx.driver.publish();
    }

    /// Sends a frame, if there is a buffer for it.
    pub fn send(&mut self, frame: &[u8]) -> bool {
        while self.tx.driver.reap().is_some() {}
        let sent = self.tx.send(frame);
        self.tx.driver.publish();
        sent
    }

    /// The next frame that was received, announcements of guests left out.
    pub fn receive(&mut self) -> Result<Option<Vec<u8>>> {
        while let Some((offload, frame)) = self.rx.receive_with() {
            ensure!(
                offload == ovs_vhost::datapath::Offload::NONE,
                "nobody asked for {offload:?}"
            );
            if !is_announcement(&frame) {
                return Ok(Some(frame));
            }
        }
        Ok(None)
    }

    /// Nobody wrote where nobody may.
    pub fn check_canaries(&self) -> Result<()> {
        let mut bytes = vec![0; CANARY_BYTES];
        for addr in CANARIES.into_iter().chain([BESIDE]) {
            self.memory.read(addr, &mut bytes);
            let changed = bytes.iter().position(|byte| *byte != CANARY);
            ensure!(
                changed.is_none(),
                "the canary at {addr} was written to at {changed:?}"
            );
        }
        Ok(())
    }
}

fn is_announcement(frame: &[u8]) -> bool {
    frame.get(12..14) == Some(&[0x80, 0x35])
}

const HEADER: [u8; 14] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xb5];

/// A frame that carries its number, and of which every byte follows from it.
pub fn frame(number: u64) -> Vec<u8> {
    let len = 60 + usize::try_from(number * 37 % 1400).expect("short");
    let mut frame = [&HEADER[..], &number.to_be_bytes()].concat();
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    while frame.len() < len {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        frame.extend(state.to_be_bytes());
    }
    frame.truncate(len);
    frame
}

/// The number in a frame of ours.
pub fn number(frame: &[u8]) -> Option<u64> {
    let bytes = frame.strip_prefix(&HEADER)?.first_chunk::<8>()?;
    Some(u64::from_be_bytes(*bytes))
}

/// Brings a guest up on a connection of its own.
pub fn bring_up<D: Virtqueue>(size: u16, features: Features, wire: &mut Wire) -> Result<Guest<D>> {
    let guest = Guest::new(size, features);
    guest.come_up(wire).context("a guest on a fresh connection")?;
    Ok(guest)
}

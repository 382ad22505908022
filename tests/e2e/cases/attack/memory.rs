//! Memory, rings, logs and in-flight buffers that are not what they should be: each row changes one thing of what an honest
//! front-end says.

use std::os::fd::OwnedFd;

use anyhow::{ensure, Result};
use ovs_vhost::memory::{FrontendAddr, GuestAddr};
use ovs_vhost::model::{Driver, PackedDriver, Virtqueue};
use ovs_vhost::vhost_user::samples::inflight;
use ovs_vhost::virtio::features::*;
use rustix::fs::{ftruncate, memfd_create, MemfdFlags};

use super::super::world::Kind;
use super::super::Ctx;
use super::arena::Arena;
use super::guest::{Guest, BARE};
use super::plan::{single_region, Plan};
use crate::wire::Message;

/// A change, and words of the warning that must come of it; none if it is legal and the guest works.
type Row = (&'static str, fn(&mut Plan), &'static str);

pub fn refused(ctx: &Ctx) -> Result<()> {
    let mut arena = Arena::open(ctx, Kind::Server)?;
    for row in REGIONS.iter().chain(LENT).chain(RINGS) {
        play::<Driver>(&mut arena, "split", BARE, row)?;
    }
    for row in RINGS {
        play::<PackedDriver>(&mut arena, "packed", BARE.with(VIRTIO_F_RING_PACKED), row)?;
    }
    arena.close()
}

fn play<D: Virtqueue>(arena: &mut Arena, layout: &str, features: Features, row: &Row) -> Result<()> {
    let (name, change, words) = row;
    arena.play(&format!("{name}, {layout}"), |arena| {
        let mut guest = Guest::<D>::new(64, features);
        let mut plan = guest.plan();
        change(&mut plan);
        let mut wire = arena.connect()?;
        wire.negotiate()?;
        let heard = plan.say(&mut wire)?;
        match *words {
            "" => {
                ensure!(heard.is_well(), "refused {:?}", heard.refused);
                guest.echo()?;
            }
            words => {
                ensure!(!heard.is_well(), "all was done as if it were in order");
                arena.wait_warning(words)?;
            }
        }
        drop(wire);
        guest.check_canaries()
    })
}

const HALF: u64 = 1 << 63;
const PAGE: u64 = 4096;

#[rustfmt::skip] // one row a line
const REGIONS: &[Row] = &[
    ("as it should be", |_| {}, ""),
    ("a region of no bytes", |plan| plan.regions[0].0.size = 0, "is empty"),
    ("a region of 2^63 bytes", |plan| plan.regions[0].0.size = HALF, "needs a file of"),
    ("a region of all bytes", |plan| plan.regions[0].0.size = u64::MAX, "wraps"),
    ("a region one byte longer than its file", |plan| {
        let (desc, fd) = &mut plan.regions[0];
        let len = file_size(fd);
        desc.size = len - desc.mmap_offset + 1;
    }, "needs a file of"),
    ("an offset beyond the file", |plan| plan.regions[0].0.mmap_offset = HALF, "needs a file of"),
    ("an offset that wraps", |plan| plan.regions[0].0.mmap_offset = u64::MAX - 0xfff, "wraps"),
    ("guest addresses that wrap", |plan| plan.regions[0].0.guest = GuestAddr(u64::MAX - 0xfff), "wraps"),
    ("front-end addresses that wrap", |plan| {
        plan.regions[0].0.frontend = FrontendAddr(u64::MAX - 0xfff);
    }, "wraps"),
    ("two regions at one guest address", |plan| {
        plan.regions[1].0.guest = plan.regions[0].0.guest;
    }, "overlap"),
    ("two regions that share a byte", |plan| {
        let first = plan.regions[0].0;
        plan.regions[1].0.guest = GuestAddr(first.guest.0 + first.size - 1);
    }, "overlap"),
    ("a region added over another", |plan| {
        let (desc, fd) = &plan.regions[0];
        let mut desc = *desc;
        desc.frontend = FrontendAddr(0x1000);
        let again = single_region("ADD_MEM_REG", &desc, fd.try_clone().ok());
        plan.then.push(again);
    }, "overlap"),
    ("a region taken away that is not there", |plan| {
        let mut desc = plan.regions[0].0;
        desc.guest = GuestAddr(0x7000_0000);
        plan.then.push(single_region("REM_MEM_REG", &desc, None));
    }, "no region"),
    ("more regions than there are slots", |plan| {
        let (desc, fd) = &plan.regions[1];
        for slot in 0..600 {
            let mut desc = *desc;
            desc.guest = GuestAddr(0x10_0000_0000 + slot * PAGE);
            desc.frontend = FrontendAddr(0x10_0000_0000 + slot * PAGE);
            desc.size = PAGE;
            plan.then.push(single_region("ADD_MEM_REG", &desc, fd.try_clone().ok()));
        }
    }, "regions are more than"),
    ("memory in /dev/null", |plan| plan.regions[0].1 = file("/dev/null"), "memory region refused"),
    ("memory in a directory", |plan| plan.regions[0].1 = file("/"), "memory region refused"),
    ("memory in a pipe", |plan| plan.regions[0].1 = pipe(), "memory region refused"),
    ("memory in an eventfd", |plan| plan.regions[0].1 = plan.vrings[0].call.try_clone().expect("a descriptor"), "memory region refused"),
    ("memory that may only be read", |plan| plan.regions[0].1 = file("/etc/passwd"), "memory region refused"),
];

#[rustfmt::skip] // one row a line
const LENT: &[Row] = &[
    ("a dirty log that its file does not hold", |plan| log(plan, 1 << 20, 0, PAGE), "SET_LOG_BASE"),
    ("a dirty log that begins beyond its file", |plan| log(plan, PAGE, HALF, PAGE), "SET_LOG_BASE"),
    ("a dirty log that wraps", |plan| log(plan, u64::MAX, PAGE, PAGE), "SET_LOG_BASE"),
    ("a dirty log that is shorter than the memory", |plan| log(plan, 8, 0, PAGE), ""),
    ("a dirty log at an odd offset", |plan| log(plan, 64, 3, PAGE), ""),
    ("an in-flight buffer that its file does not hold", |plan| in_flight(plan, inflight(2, 64), PAGE), "SET_INFLIGHT_FD"),
    ("an in-flight buffer for 65535 queues", |plan| in_flight(plan, inflight(0xffff, 64), 1 << 20), "SET_INFLIGHT_FD"),
    ("an in-flight buffer of noise", |plan| {
        let noise: Vec<u8> = (0..1_u32 << 20).map(|at| at.wrapping_mul(2_654_435_761).to_ne_bytes()[3]).collect();
        let fd = memfd(1 << 20);
        rustix::io::pwrite(&fd, &noise, 0).expect("to write");
        plan.then.push(Message::with_fd("SET_INFLIGHT_FD", inflight(2, 64), [fd]));
    }, ""),
    ("a call that may block", |plan| plan.vrings[0].call = pipe(), "no eventfd"),
    ("a call that is memory", |plan| plan.vrings[0].call = memfd(PAGE), "no eventfd"),
    ("a kick that is memory", |plan| plan.vrings[1].kick = memfd(PAGE), ""),
];

#[rustfmt::skip] // one row a line
const RINGS: &[Row] = &[
    ("a ring of no entries", |plan| plan.vrings[0].num = 0, "SET_VRING_NUM"),
    ("a ring of 32769 entries", |plan| plan.vrings[0].num = 32769, "SET_VRING_NUM"),
    ("a ring of 65536 entries", |plan| plan.vrings[0].num = 65536, "SET_VRING_NUM"),
    ("a ring of more than its memory holds", |plan| plan.vrings[1].num = 32768, "cannot start"),
    ("descriptors that are nowhere", |plan| plan.vrings[0].desc = 0, "cannot start"),
    ("a driver's area that is nowhere", |plan| plan.vrings[0].avail = 0, "cannot start"),
    ("a device's area that is nowhere", |plan| plan.vrings[0].used = 0, "cannot start"),
    ("descriptors that wrap", |plan| plan.vrings[0].desc = u64::MAX - 15, "cannot start"),
    ("a device's area that wraps", |plan| plan.vrings[0].used = u64::MAX - 3, "cannot start"),
    ("descriptors one step beyond their region", |plan| plan.vrings[0].desc = end(plan) - 1024 + 16, "cannot start"),
    ("a driver's area one step beyond its region", |plan| plan.vrings[0].avail = end(plan) - 2, "cannot start"),
    ("a device's area one step beyond its region", |plan| plan.vrings[0].used = end(plan) - 4 + 4, "cannot start"),
    ("descriptors that are not aligned", |plan| plan.vrings[0].desc += 8, "cannot start"),
    ("a driver's area that is not aligned", |plan| plan.vrings[0].avail += 1, "cannot start"),
    ("a device's area that is not aligned", |plan| plan.vrings[0].used += 1, "cannot start"),
    ("guest addresses for front-end addresses", |plan| plan.vrings[0].desc = 0x1000, "cannot start"),
    ("a base beyond what a ring has", |plan| plan.vrings[0].base = 0xffff_ffff, "SET_VRING_"),
    ("flags that nobody knows", |plan| plan.vrings[0].flags = 2, "SET_VRING_ADDR"),
];

/// Where the region of the rings ends for the front-end.
fn end(plan: &Plan) -> u64 {
    let desc = plan.regions[0].0;
    desc.frontend.0 + desc.size
}

fn log(plan: &mut Plan, size: u64, offset: u64, file: u64) {
    plan.log(size, offset, memfd(file));
}

fn in_flight(plan: &mut Plan, description: Vec<u8>, file: u64) {
    let message = Message::with_fd("SET_INFLIGHT_FD", description, [memfd(file)]);
    plan.then.push(message);
}

fn memfd(size: u64) -> OwnedFd {
    let fd = memfd_create("lent", MemfdFlags::CLOEXEC).expect("a memfd");
    ftruncate(&fd, size).expect("memory");
    fd
}

fn file(path: &str) -> OwnedFd {
    std::fs::File::open(path).expect(path).into()
}

fn pipe() -> OwnedFd {
    rustix::pipe::pipe().expect("a pipe").1
}

fn file_size(fd: &OwnedFd) -> u64 {
    let size = rustix::fs::fstat(fd).expect("a file").st_size;
    u64::try_from(size).expect("a size")
}

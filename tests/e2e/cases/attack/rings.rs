//! What a driver can write into its rings and buffers: chains that break a rule, frames that are none, and all of it changed
//! while it is read.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{ensure, Result};
use ovs_vhost::datapath::Direction;
use ovs_vhost::model::crimes::Crime;
use ovs_vhost::model::{Driver, Virtqueue};
use ovs_vhost::vhost_user::samples::{numbers, state};
use ovs_vhost::virtio::chain::ChainError;
use ovs_vhost::virtio::features::*;

use super::super::world::{Kind, PATIENCE};
use super::super::Ctx;
use super::arena::{Arena, A_WHILE};
use super::attacker::{Attacker, Shape, Visit};
use super::frames::{self, readable};
use super::guest::{frame, Guest, BARE};
use super::layout::{Layout, Noise, PACKED, SPLIT};
use super::offload;
use crate::wait;
use crate::wire::Message;

/// The vrings of the one queue pair.
const RX: usize = 0;
const TX: usize = 1;
const TABLES: Features = BARE.with(VIRTIO_RING_F_INDIRECT_DESC);
const MERGEABLE: Features = TABLES.with(VIRTIO_NET_F_MRG_RXBUF);

const SHAPES: &[Shape] = &[
    Shape {
        name: "mergeable",
        features: MERGEABLE,
        logged: false,
        directions: &[Direction::Dequeue, Direction::Enqueue],
    },
    Shape {
        name: "mergeable and logged",
        features: MERGEABLE,
        logged: true,
        directions: &[Direction::Dequeue, Direction::Enqueue],
    },
    Shape {
        name: "plain",
        features: TABLES,
        logged: false,
        directions: &[Direction::Dequeue],
    },
    Shape {
        name: "in order, with event indices",
        features: TABLES.with(VIRTIO_F_IN_ORDER).with(VIRTIO_RING_F_EVENT_IDX),
        logged: false,
        directions: &[Direction::Dequeue],
    },
];

/// Split rings, on a server port.
pub fn split(ctx: &Ctx) -> Result<()> {
    let mut arena = Arena::open(ctx, Kind::Server)?;
    avail_jumps(&mut arena)?;
    // A port that takes offloads has room for these.
    arena.play("frames that are too long", |arena| {
        frames::dropped(arena, &SPLIT, &[&[2048, 2048]], frames::OVERSIZE)
    })?;
    family(&mut arena, &SPLIT)?;
    arena.close()
}

/// Packed rings, on a client port that takes offloads; and what headers can ask for there, with either layout.
pub fn packed(ctx: &Ctx) -> Result<()> {
    let mut arena = Arena::open(ctx, Kind::Client)?;
    family(&mut arena, &PACKED)?;
    offload::lies(&mut arena, &SPLIT)?;
    offload::lies(&mut arena, &PACKED)?;
    arena.close()
}

/// What can be written into rings of a layout, whatever is negotiated beside it.
pub fn family<D: Virtqueue + Sync>(arena: &mut Arena, layout: &Layout<D>) -> Result<()> {
    for shape in SHAPES {
        for (crime, direction) in layout
            .crimes
            .iter()
            .flat_map(|crime| shape.directions.iter().map(move |direction| (crime, *direction)))
        {
            let name = format!("{}, {direction:?}, {}", crime.name, shape.name);
            arena.play(&name, |arena| commit(arena, layout, shape, crime, direction))?;
        }
    }
    arena.play("an indirect table that was not negotiated", |arena| {
        let (mut guest, _wire) = arena.guest::<D>(layout.size, BARE | layout.feature)?;
        let (table, buffer) = (guest.tx.buffer(1), readable(&guest, 2, 60));
        guest.tx.driver.add_indirect(table, &[buffer]);
        guest.tx.driver.publish();
        arena.wait_broken(TX, "was not negotiated")
    })?;
    frames::family(arena, layout)?;
    for shape in SHAPES {
        let name = format!("everything changed while it is read, {}", shape.name);
        arena.play(&name, |arena| scribble(arena, layout, shape))?;
    }
    Ok(())
}

/// Breaks a ring, which is told of; what it was to break is left whole.
fn commit<D: Virtqueue>(
    arena: &Arena,
    layout: &Layout<D>,
    shape: &Shape,
    crime: &Crime<D>,
    direction: Direction,
) -> Result<()> {
    let mut attacker = Attacker::new(arena, layout, shape)?;
    let mut visit = attacker.come(arena)?;
    let guest = &mut attacker.guest;
    let (ring, error) = match direction {
        Direction::Dequeue => (TX, crime.commit(&mut guest.tx, direction)),
        Direction::Enqueue => (RX, crime.commit(&mut guest.rx, direction)),
    };
    let missed = missed(&error).filter(|_| guest.is_behind_iommu());
    wait::until_true(&format!("vring {ring} to break: {error}"), PATIENCE, || {
        if direction == Direction::Enqueue {
            // What the guest sends comes back, into the bad chain.
            guest.send(&frame(1));
        }
        visit.refuse()?;
        match &missed {
            Some(words) => Ok(arena.warnings(words)? > 0),
            None => arena.is_broken(ring, &error.to_string()),
        }
    })?;
    if missed.is_none() {
        arena.wait_warning("it stops until it is set up again")?;
    }
    attacker.check_canaries()
}

/// Behind an IOMMU what leads nowhere breaks no ring, which waits until somebody says where that is. So what is told of it.
fn missed(error: &ChainError) -> Option<String> {
    let (ChainError::Unmapped { addr, .. } | ChainError::TableUnmapped(addr)) = error else {
        return None;
    };
    let page = addr.0 & !0xfff;
    Some(format!("no translation of {page:#x} for"))
}

/// Split rings alone have an index that can jump.
pub fn avail_jumps(arena: &mut Arena) -> Result<()> {
    for jump in [65, 0x8000, 0xffff] {
        arena.play(&format!("an avail index that jumps to {jump}"), |arena| {
            avail_jump(arena, jump)
        })?;
    }
    Ok(())
}

fn avail_jump(arena: &Arena, jump: u16) -> Result<()> {
    let (guest, _wire) = arena.guest::<Driver>(SPLIT.size, BARE)?;
    guest.tx.driver.set_avail_idx(jump);
    let words = format!("avail index {jump} is more than 64 ahead");
    arena.wait_broken(TX, &words)?;
    // Also where people look who do not know of our commands.
    arena.wait_status("vring_1_error", &words)
}

/// Threads write any value into everything as fast as they can, while the rings are started again and again.
fn scribble<D: Virtqueue + Sync>(arena: &mut Arena, layout: &Layout<D>, shape: &Shape) -> Result<()> {
    let attacker = Attacker::new(arena, layout, shape)?;
    let mut visit = attacker.come(arena)?;
    let guest = &attacker.guest;
    let stop = AtomicBool::new(false);
    let restarts = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut noise = Noise(1);
            while !stop.load(Ordering::Relaxed) {
                layout.scribble_over(guest, &mut noise);
            }
        });
        let restarts = restart(arena, guest, &mut visit);
        stop.store(true, Ordering::Relaxed);
        restarts
    })?;
    arena.count(restarts);
    attacker.check_canaries()
}

/// Starts both rings anew for a while, says how often, and goes on until one is seen broken: in the log there is not room for all
/// that is told of so many starts.
fn restart<D: Virtqueue>(arena: &Arena, guest: &Guest<D>, visit: &mut Visit) -> Result<usize> {
    let (start, mut rounds) = (Instant::now(), 0);
    while start.elapsed() < A_WHILE {
        restart_once(guest, visit)?;
        rounds += 1;
    }
    wait::until_true("a ring to break", PATIENCE, || {
        restart_once(guest, visit)?;
        Ok(arena.is_broken(RX, "")? || arena.is_broken(TX, "")?)
    })?;
    Ok(rounds)
}

/// A start may be refused: the ring is scribbled over.
fn restart_once<D: Virtqueue>(guest: &Guest<D>, visit: &mut Visit) -> Result<()> {
    for (index, vring) in (0..).zip(guest.plan().vrings) {
        visit.wire.ask(&Message::new("GET_VRING_BASE", state(index, 0)))?;
        visit
            .wire
            .ask(&Message::new("SET_VRING_BASE", state(index, vring.base)))?;
        visit.wire.ask(&Message::with_fd(
            "SET_VRING_KICK",
            numbers(&[index.into()]),
            [vring.kick],
        ))?;
    }
    visit.refuse().map(drop)
}

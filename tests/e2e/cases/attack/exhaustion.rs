//! More of everything than anybody needs: descriptors, regions, entries, kicks, connections, words without an answer. Nothing of
//! it may stay, and nobody else may go short.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use anyhow::{ensure, Context, Result};
use ovs_vhost::memory::{FrontendAddr, GuestAddr};
use ovs_vhost::model::{Buffer, Driver, PackedDriver, Virtqueue};
use ovs_vhost::vhost_user::samples::{handled, id, sample, state, wire, PLAIN};
use ovs_vhost::virtio::features::*;

use super::super::world::{Kind, PATIENCE};
use super::super::Ctx;
use super::arena::{descriptors, Arena, A_WHILE};
use super::guest::{Guest, BARE};
use super::plan::{say_all, single_region, vring_messages};
use crate::usage::Usage;
use crate::wait;
use crate::wire::{Answer, Message};

/// As many as the kernel carries with one message.
const MOST_FDS: usize = 253;
const LARGEST: u16 = 32768;

/// An excess.
type Row = (&'static str, fn(&mut Arena) -> Result<()>);

pub fn nothing_stays(ctx: &Ctx) -> Result<()> {
    let mut arena = Arena::open(ctx, Kind::Server)?;
    // What is made once has been made after this.
    arena.play("an honest guest", |_| Ok(()))?;
    let before = Usage::settled(&arena.world)?;
    for (name, excess) in ROWS {
        arena.play(name, excess)?;
        arena.wait_traffic(100)?;
        // Main is not kept from its work either.
        arena.world.ovs.appctl("version")?;
        before
            .check(&arena.world)
            .with_context(|| format!("after {name}"))?;
    }
    arena.close()
}

const ROWS: &[Row] = &[
    ("every request with 253 descriptors", |arena| {
        let fds = descriptors(MOST_FDS)?;
        for (id, ..) in handled() {
            let mut front_end = arena.connect()?;
            front_end.negotiate()?;
            front_end.send(&wire(id, PLAIN, &sample(id).0), &fds);
            front_end.hear_the_end()?;
        }
        Ok(())
    }),
    ("descriptors without a message", |arena| {
        let (fds, mut wire) = (descriptors(MOST_FDS)?, arena.connect()?);
        while wire.send(&[0], &fds) {}
        wire.hear_the_end()
    }),
    (
        "as many regions as there are slots, each all of the memory",
        |arena| {
            let guest = Guest::<Driver>::new(64, BARE);
            let mut wire = arena.connect()?;
            wire.negotiate()?;
            let (desc, fd) = guest.plan().regions.remove(0);
            for slot in 1..=509 {
                let mut desc = desc;
                desc.guest = GuestAddr(slot << 32);
                desc.frontend = FrontendAddr(slot << 32);
                let message = single_region("ADD_MEM_REG", &desc, Some(fd.try_clone()?));
                ensure!(wire.ask(&message)? == Answer::Done, "slot {slot}");
            }
            Ok(())
        },
    ),
    ("the largest rings, full of the longest chains", |arena| {
        longest_chains::<Driver>(arena, BARE)?;
        longest_chains::<PackedDriver>(arena, BARE | VIRTIO_F_RING_PACKED)
    }),
    ("128 queue pairs", |arena| {
        let (guest, mut wire) = arena.guest::<Driver>(64, BARE)?;
        for ring in 2..256 {
            let [vring, _] = guest.plan().vrings;
            let heard = say_all(vring_messages(ring, vring), &mut wire)?;
            ensure!(heard.is_well(), "vring {ring}: {:?}", heard.refused);
        }
        Ok(())
    }),
    (
        "a flood of kicks on a ring that is started and disabled",
        |arena| {
            let (guest, mut wire) = arena.guest::<Driver>(64, BARE)?;
            wire.ask(&Message::new("SET_VRING_ENABLE", state(1, 0)))?;
            for_a_while(|| guest.kick(1))
        },
    ),
    ("calls that nobody reads", |arena| {
        let (mut guest, _wire) = arena.guest::<Driver>(64, BARE)?;
        for call in &guest.calls {
            fill(call)?;
        }
        for _ in 0..200 {
            guest.echo()?;
        }
        Ok(())
    }),
    ("questions by one who never reads the answers", |arena| {
        let mut wire = arena.connect()?;
        let questions = question().repeat(64);
        while wire.send(&questions, &[]) {}
        wire.hear_the_end()
    }),
    ("half a message, and nothing more", |arena| {
        let mut wire = arena.connect()?;
        wire.send(&question()[..7], &[]);
        wire.hear_the_end()?;
        arena.wait_warning("left a message unfinished")
    }),
    ("connections that come and go", |arena| {
        let mut count = 0;
        for_a_while(|| {
            count += 1;
            arena.knock().map(drop)
        })?;
        arena.count(count);
        Ok(())
    }),
    ("connections that come and stay beside another", |arena| {
        let (_guest, _wire) = arena.guest::<Driver>(64, BARE)?;
        let crowd: Result<Vec<UnixStream>> = (0..200).map(|_| arena.knock()).collect();
        arena.count(crowd?.len());
        arena.wait_warning("refused a second front-end")
    }),
    ("guests that come up and go", |arena| {
        let mut count = 0;
        for_a_while(|| {
            count += 1;
            arena.guest::<Driver>(64, BARE).map(drop)
        })?;
        arena.count(count);
        Ok(())
    }),
];

/// GET_FEATURES.
fn question() -> Vec<u8> {
    wire(id("GET_FEATURES"), PLAIN, &[])
}

/// Fills an eventfd to the brim: who writes to it now would have to wait.
fn fill(eventfd: &OwnedFd) -> Result<()> {
    loop {
        // What the port has written already leaves less room.
        let _ = rustix::io::read(eventfd, &mut [0; 8]);
        if rustix::io::write(eventfd, &(u64::MAX - 1).to_ne_bytes()).is_ok() {
            return Ok(());
        }
    }
}

fn for_a_while(mut what: impl FnMut() -> Result<()>) -> Result<()> {
    let start = Instant::now();
    while start.elapsed() < A_WHILE {
        wait::check_interrupt()?;
        what()?;
    }
    Ok(())
}

/// Chains of as many descriptors as a ring can have, one byte in each.
fn longest_chains<D: Virtqueue>(arena: &Arena, features: Features) -> Result<()> {
    let (mut guest, _wire) = arena.guest::<D>(LARGEST, features)?;
    let byte = Buffer {
        addr: guest.tx.buffer(0),
        len: 1,
        write: false,
    };
    let chain = vec![byte; usize::from(LARGEST)];
    for _ in 0..20 {
        guest.tx.driver.add(&chain).context("no room")?;
        guest.tx.driver.publish();
        wait::until_true("a long chain to be given back", PATIENCE, || {
            Ok(guest.tx.driver.reap().is_some())
        })?;
    }
    guest.echo()?;
    guest.check_canaries()
}

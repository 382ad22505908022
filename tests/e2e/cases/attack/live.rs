//! Settings that change under running rings: every buffer of an attacker is under way, its frames go round, and meanwhile its
//! front-end says what no honest one would.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use ovs_vhost::model::{Driver, PackedDriver, Virtqueue};
use ovs_vhost::vhost_user::corpus::{well_formed, words, Attack};
use ovs_vhost::vhost_user::message::MAX_FDS;
use ovs_vhost::vhost_user::samples::{handled, inflight, numbers, state};
use ovs_vhost::virtio::features::*;

use super::super::world::Kind;
use super::super::Ctx;
use super::arena::{descriptors, Arena};
use super::attacker::{Attacker, Shape, Visit};
use super::dirty_log::DirtyLog;
use super::guest::{Guest, BARE};
use super::layout::{Layout, PACKED, SPLIT};
use super::plan::{mem_table, single_region, vring_addr};
use crate::wire::{Answer, Message};

/// How often each change is made.
pub const ROUNDS: usize = 25;
const SHAPE: Shape = Shape {
    name: "mergeable",
    features: BARE.with(VIRTIO_NET_F_MRG_RXBUF),
    logged: false,
    directions: &[],
};

pub fn changes(ctx: &Ctx) -> Result<()> {
    let mut arena = Arena::open(ctx, Kind::Server)?;
    family::<Driver>(&mut arena, &SPLIT)?;
    family::<PackedDriver>(&mut arena, &PACKED)?;
    arena.close()
}

/// What is said to a running guest, in one round.
pub type Change<D> = (&'static str, fn(&Guest<D>) -> Vec<Message>);

/// All that can change under the rings of a layout.
pub fn family<D: Virtqueue + Sync>(arena: &mut Arena, layout: &Layout<D>) -> Result<()> {
    for change in changes_of::<D>() {
        again_and_again(arena, layout, &SHAPE, &change)?;
    }
    arena.play(
        &format!("every request with any words, {}", layout.name),
        |arena| {
            let fds = descriptors(MAX_FDS)?;
            under_way(arena, layout, &SHAPE, |live| {
                let attacks: Vec<_> = handled()
                    .flat_map(|(id, ..)| words(id))
                    .chain(well_formed())
                    .collect();
                for attack in &attacks {
                    live.play(attack, &fds)?;
                }
                Ok(attacks.len())
            })
        },
    )?;
    arena.play(&format!("memory that is cut short, {}", layout.name), |arena| {
        let attacker = Attacker::new(arena, layout, &SHAPE)?;
        let mut visit = attacker.come(arena)?;
        layout.refill_all(&attacker.guest, 0);
        let file = attacker.guest.plan().regions.remove(0).1;
        rustix::fs::ftruncate(&file, 0)?;
        visit.wire.hear_the_end()?;
        arena.wait_warning("was cut short")
    })
}

/// A change that is made under bursts, several times.
pub fn again_and_again<D: Virtqueue + Sync>(
    arena: &mut Arena,
    layout: &Layout<D>,
    shape: &Shape,
    (name, change): &Change<D>,
) -> Result<()> {
    arena.play(&format!("{name}, {}", layout.name), |arena| {
        under_way(arena, layout, shape, |live| {
            for _ in 0..ROUNDS {
                for message in change(live.guest) {
                    live.say(&message)?;
                }
            }
            Ok(ROUNDS)
        })
    })
}

/// A running guest, and the connection that it has at the moment.
pub struct Live<'a, D> {
    pub arena: &'a Arena<'a>,
    pub guest: &'a Guest<D>,
    attacker: &'a Attacker<D>,
    pub visit: Visit,
}

impl<D: Virtqueue> Live<'_, D> {
    /// Says something, whatever comes of it. Nothing is known of what the port asks meanwhile.
    fn say(&mut self, message: &Message) -> Result<()> {
        let request = message.request;
        let answer = self
            .visit
            .wire
            .ask(message)
            .with_context(|| format!("request {request}"))?;
        self.go_on(answer != Answer::Closed)?;
        self.visit.refuse().map(drop)
    }

    fn play(&mut self, attack: &Attack, fds: &[OwnedFd]) -> Result<()> {
        self.visit.wire.play(attack, fds);
        let lives = self
            .visit
            .wire
            .settle()
            .with_context(|| format!("request {} {}", attack.request, attack.what))?;
        self.go_on(lives)
    }

    /// Comes again if the port has hung up.
    fn go_on(&mut self, lives: bool) -> Result<()> {
        if !lives {
            self.visit = self.attacker.intrude(self.arena)?.0;
        }
        Ok(())
    }
}

/// Attacks while all buffers of a guest are made available again and again; `attack` says how often it did.
pub fn under_way<D: Virtqueue + Sync>(
    arena: &mut Arena,
    layout: &Layout<D>,
    shape: &Shape,
    attack: impl FnOnce(&mut Live<D>) -> Result<usize>,
) -> Result<()> {
    let attacker = Attacker::new(arena, layout, shape)?;
    let visit = attacker.come(arena)?;
    let guest = &attacker.guest;
    let stop = AtomicBool::new(false);
    let count = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut lap = 0;
            while !stop.load(Ordering::Relaxed) {
                layout.refill_all(guest, lap);
                lap = lap.wrapping_add(1);
                std::thread::yield_now();
            }
        });
        let mut live = Live {
            arena,
            guest,
            attacker: &attacker,
            visit,
        };
        let count = arena.wait_bursts().and_then(|()| attack(&mut live));
        stop.store(true, Ordering::Relaxed);
        count
    })?;
    arena.count(count - 1);
    attacker.check_canaries()
}

fn changes_of<D: Virtqueue>() -> Vec<Change<D>> {
    vec![
        ("rings of other sizes", |guest| {
            let sizes = [1, 32, 128, 256, 32768, 3, u32::from(guest.size())];
            both(sizes.map(|size| move |ring| Message::new("SET_VRING_NUM", state(ring, size))))
        }),
        ("rings that are one another", |guest| {
            let [rx, tx] = guest.plan().vrings;
            vec![
                vring_addr(0, &tx),
                vring_addr(1, &rx),
                vring_addr(0, &rx),
                vring_addr(1, &tx),
            ]
        }),
        ("rings that move by a descriptor", |guest| {
            let [mut rx, mut tx] = guest.plan().vrings;
            for vring in [&mut rx, &mut tx] {
                (vring.desc, vring.avail, vring.used) = (vring.desc + 16, vring.avail + 16, vring.used + 16);
            }
            let [rx_again, tx_again] = guest.plan().vrings;
            vec![
                vring_addr(0, &rx),
                vring_addr(1, &tx),
                vring_addr(0, &rx_again),
                vring_addr(1, &tx_again),
            ]
        }),
        ("rings that go nowhere and come back", |guest| {
            let [mut rx, mut tx] = guest.plan().vrings;
            (rx.used, tx.desc) = (0, u64::MAX - 15);
            let [rx_again, tx_again] = guest.plan().vrings;
            vec![
                vring_addr(0, &rx),
                vring_addr(1, &tx),
                vring_addr(0, &rx_again),
                vring_addr(1, &tx_again),
            ]
        }),
        ("rings that are all in one place", |guest| {
            let [mut rx, tx] = guest.plan().vrings;
            (rx.used, rx.avail) = (rx.desc, rx.desc);
            let [rx_again, _] = guest.plan().vrings;
            vec![
                vring_addr(0, &rx),
                vring_addr(1, &rx),
                vring_addr(0, &rx_again),
                vring_addr(1, &tx),
            ]
        }),
        ("the same memory once more", |guest| {
            vec![mem_table(guest.plan().regions)]
        }),
        ("memory without the rings, and with them again", |guest| {
            let mut without = guest.plan().regions;
            without.remove(0);
            vec![mem_table(without), mem_table(guest.plan().regions)]
        }),
        ("memory that lies elsewhere for the guest", |guest| {
            let mut elsewhere = guest.plan().regions;
            elsewhere[0].0.guest.0 += 0x1000;
            vec![mem_table(elsewhere), mem_table(guest.plan().regions)]
        }),
        ("memory that lies elsewhere in its file", |guest| {
            let mut elsewhere = guest.plan().regions;
            elsewhere[0].0.mmap_offset += 0x1000;
            elsewhere[0].0.size -= 0x1000;
            vec![mem_table(elsewhere), mem_table(guest.plan().regions)]
        }),
        ("memory that is half as long", |guest| {
            let mut half = guest.plan().regions;
            half[0].0.size /= 2;
            vec![mem_table(half), mem_table(guest.plan().regions)]
        }),
        ("the memory of the rings taken away and given back", |guest| {
            let (desc, fd) = guest.plan().regions.remove(0);
            vec![
                single_region("REM_MEM_REG", &desc, None),
                single_region("ADD_MEM_REG", &desc, Some(fd)),
            ]
        }),
        ("other features", |guest| {
            let toggled = (0..64).map(|bit| guest.features.0 ^ 1 << bit);
            toggled
                .map(|bits| Message::new("SET_FEATURES", numbers(&[bits])))
                .collect()
        }),
        ("rings on and off", |_| {
            both([0, 1, 0, 1].map(|on| move |ring| Message::new("SET_VRING_ENABLE", state(ring, on))))
        }),
        ("rings that stop and start where they did not stand", |guest| {
            let starts = guest.plan().vrings.into_iter().zip(0..);
            let restart = |(vring, ring): (super::plan::VringPlan, u32)| {
                [
                    Message::new("GET_VRING_BASE", state(ring, 0)),
                    Message::new("SET_VRING_BASE", state(ring, vring.base ^ 5)),
                    with_fd("SET_VRING_KICK", ring, vring.kick),
                ]
            };
            starts.flat_map(restart).collect()
        }),
        ("a base under a running ring", |_| {
            both(
                [0, 7, 0x8000_8000, 0xffff]
                    .map(|base| move |ring| Message::new("SET_VRING_BASE", state(ring, base))),
            )
        }),
        ("other calls and kicks", |guest| {
            let [rx, tx] = guest.plan().vrings;
            vec![
                with_fd("SET_VRING_CALL", 0, rx.kick),
                with_fd("SET_VRING_KICK", 0, rx.call),
                Message::new("SET_VRING_CALL", numbers(&[0x101])),
                with_fd("SET_VRING_CALL", 1, rustix::pipe::pipe().expect("a pipe").1),
                with_fd("SET_VRING_ERR", 1, tx.call),
            ]
        }),
        ("a dirty log that comes and goes", |guest| {
            let log = DirtyLog::new().expect("a log");
            let mut plan = guest.plan();
            log.lend(&mut plan).expect("a descriptor");
            let mut messages = plan.first;
            let bits = [plan.features, guest.features.0];
            messages.extend(bits.map(|bits| Message::new("SET_FEATURES", numbers(&[bits]))));
            messages
        }),
        ("in-flight buffers under running rings", |guest| {
            let memory = guest.plan().regions.remove(0).1;
            vec![Message::with_fd(
                "SET_INFLIGHT_FD",
                inflight(2, guest.size()),
                [memory],
            )]
        }),
        ("a device that is reset", |_| {
            ["RESET_OWNER", "RESET_DEVICE", "SET_OWNER"]
                .map(|name| Message::new(name, vec![]))
                .into()
        }),
        ("a driver that is there and not there", |_| {
            [0, 15, 0, 128, 15]
                .map(|status| Message::new("SET_STATUS", numbers(&[status])))
                .into()
        }),
        ("announcements", |_| {
            vec![Message::new("SEND_RARP", numbers(&[0x0302_0100_5452]))]
        }),
    ]
}

/// What is said of one ring, said of both.
fn both<const N: usize>(say: [impl Fn(u32) -> Message; N]) -> Vec<Message> {
    say.iter().flat_map(|say| [say(0), say(1)]).collect()
}

fn with_fd(name: &str, ring: u32, fd: OwnedFd) -> Message {
    Message::with_fd(name, numbers(&[ring.into()]), [fd])
}

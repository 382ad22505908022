//! Messages that no honest front-end sends, cut, stretched, out of order, a byte at a time; each on a connection of its own.

use anyhow::{ensure, Context, Result};
use ovs_vhost::model::Driver;
use ovs_vhost::vhost_user::corpus::{misshapen, published, words, Attack};
use ovs_vhost::vhost_user::message::MAX_FDS;
use ovs_vhost::vhost_user::requests;
use ovs_vhost::vhost_user::samples::{handled, wire, NEED_REPLY};

use super::super::world::Kind;
use super::super::Ctx;
use super::arena::{descriptors, Arena, Event};
use super::guest::{Guest, BARE};
use super::plan::say_all;
use crate::wire::{Answer, Message};

/// The events of so many connections are kept.
const AT_ONCE: usize = 40;

pub fn refused(ctx: &Ctx) -> Result<()> {
    let mut arena = Arena::open(ctx, Kind::Server)?;
    for attacks in published().chunks(AT_ONCE) {
        arena.play("the published attacks", |arena| end_connections(arena, attacks))?;
    }
    for (id, attacks) in misshapen() {
        let name = format!("{} ({id}) misshapen", requests::name(id));
        arena.play(&name, |arena| end_connections(arena, &attacks))?;
    }
    for (id, name, _) in handled() {
        arena.play(&format!("{name} with any words"), |arena| {
            are_dealt_with(arena, &words(id))
        })?;
    }
    for (name, way) in WAYS {
        arena.play(name, way)?;
    }
    arena.close()
}

/// Each ends its connection, and the port says why.
fn end_connections(arena: &mut Arena, attacks: &[Attack]) -> Result<()> {
    let fds = descriptors(200)?;
    for attack in attacks {
        let mut wire = arena.connect()?;
        if attack.negotiated {
            wire.negotiate()?;
        }
        wire.play(attack, &fds);
        wire.hear_the_end().with_context(|| attack.what.clone())?;
    }
    arena.count(attacks.len() - 1);
    let connections = arena.connections()?;
    let kept = connections
        .len()
        .checked_sub(attacks.len())
        .context("connections that nobody noticed")?;
    for (events, attack) in connections[kept..].iter().zip(attacks) {
        let warnings: Vec<&Event> = events.iter().filter(|event| event.level == "WARN").collect();
        ensure!(warnings.len() == 1, "{}: {events:#?}", attack.what);
    }
    Ok(())
}

/// Each is dealt with or ends its connection; nothing is left to wait for.
fn are_dealt_with(arena: &mut Arena, attacks: &[Attack]) -> Result<()> {
    let fds = descriptors(MAX_FDS)?;
    let mut there = None;
    for attack in attacks {
        let mut wire = match there.take() {
            Some(wire) => wire,
            None => {
                let mut wire = arena.connect()?;
                wire.negotiate()?;
                wire
            }
        };
        wire.play(attack, &fds);
        let lives = wire.settle().with_context(|| attack.what.clone())?;
        there = lives.then_some(wire);
    }
    arena.count(attacks.len().saturating_sub(1));
    Ok(())
}

/// A way to say what an honest front-end says.
type Way = (&'static str, fn(&mut Arena) -> Result<()>);

const WAYS: &[Way] = &[
    ("a byte at a time", |arena| {
        let mut guest = Guest::<Driver>::new(64, BARE);
        let mut wire = arena.connect()?;
        wire.negotiate()?;
        for message in guest.plan().messages() {
            ensure!(wire.send_slowly(&message), "cut off");
            ensure!(wire.answer()? == Answer::Done, "request {}", message.request);
        }
        guest.echo()
    }),
    ("all at once, and nobody reads the answers", |arena| {
        let mut guest = Guest::<Driver>::new(64, BARE);
        let mut wire = arena.connect()?;
        wire.negotiate()?;
        for message in guest.plan().messages() {
            let bytes = wire_bytes(&message);
            ensure!(wire.send(&bytes, &message.fds), "cut off");
        }
        guest.echo()
    }),
    ("hanging up at every byte of a message", |arena| {
        let message = Guest::<Driver>::new(64, BARE).plan().messages().remove(2);
        let bytes = wire_bytes(&message);
        for cut in 1..bytes.len() {
            let mut wire = arena.connect()?;
            wire.negotiate()?;
            wire.send(&bytes[..cut], &message.fds);
        }
        arena.count(bytes.len() - 2);
        Ok(())
    }),
    ("each left out", |arena| {
        rearranged(arena, |messages, at| drop(messages.remove(at)))
    }),
    ("each twice", |arena| {
        rearranged(arena, |messages, at| {
            let again = copy(&messages[at]);
            messages.insert(at, again);
        })
    }),
    ("each last", |arena| {
        rearranged(arena, |messages, at| {
            let moved = messages.remove(at);
            messages.push(moved);
        })
    }),
    ("each first", |arena| {
        rearranged(arena, |messages, at| {
            let moved = messages.remove(at);
            messages.insert(0, moved);
        })
    }),
    ("each with the descriptors of all", |arena| {
        rearranged(arena, |messages, at| {
            let fds: Vec<_> = messages.iter().flat_map(|message| copy(message).fds).collect();
            messages[at].fds.extend(fds);
        })
    }),
];

fn wire_bytes(message: &Message) -> Vec<u8> {
    wire(message.request, NEED_REPLY, &message.payload)
}

/// Says an honest front-end's messages with a change at each place in turn: they are answered, or the connection ends.
fn rearranged(arena: &mut Arena, change: fn(&mut Vec<Message>, usize)) -> Result<()> {
    let count = Guest::<Driver>::new(64, BARE).plan().messages().len();
    for at in 0..count {
        let guest = Guest::<Driver>::new(64, BARE);
        let mut messages = guest.plan().messages();
        change(&mut messages, at);
        let mut wire = arena.connect()?;
        wire.negotiate()?;
        say_all(messages, &mut wire).with_context(|| format!("message {at}"))?;
        drop(wire);
        guest.check_canaries()?;
    }
    arena.count(count - 1);
    Ok(())
}

fn copy(message: &Message) -> Message {
    let fds = message.fds.iter().map(|fd| fd.try_clone().expect("a descriptor"));
    Message {
        request: message.request,
        payload: message.payload.clone(),
        fds: fds.collect(),
    }
}

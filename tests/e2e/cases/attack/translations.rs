//! Translations that are told, changed and taken back: what makes no sense is refused, what was taken back is gone when that is
//! answered, and nothing that is said while bursts run costs anybody else anything.

use anyhow::{ensure, Context, Result};
use ovs_vhost::datapath::Direction;
use ovs_vhost::memory::Access;
use ovs_vhost::model::{Virtqueue, FRONTEND_OFFSET};
use ovs_vhost::vhost_user::samples::{iotlb, wire, PLAIN};
use ovs_vhost::virtio::features::*;

use super::super::world::PATIENCE;
use super::arena::Arena;
use super::attacker::{Attacker, Shape};
use super::guest::{frame, Guest, BARE, START};
use super::iotlb::{say, take_back, take_back_all, translate, Channel, INVALIDATE, UPDATE};
use super::layout::Layout;
use super::live::{again_and_again, under_way, Change, Live};
use crate::wait;
use crate::wire::{Answer, Message};

/// An IOMMU's page.
pub const PAGE: u64 = 4096;
/// A guest that keeps the rules.
pub const PLAIN_SHAPE: Shape = Shape {
    name: "plain",
    features: BARE,
    logged: false,
    directions: &[],
};
/// One that has most of what there is to have.
const FULL: Shape = Shape {
    name: "mergeable and logged",
    features: BARE.with(VIRTIO_NET_F_MRG_RXBUF),
    logged: true,
    directions: &[],
};
/// Where the device has no addresses yet.
const ELSEWHERE: u64 = 1 << 40;
/// More translations than are kept.
const FLOOD: u64 = 9000;

pub fn family<D: Virtqueue + Sync>(arena: &mut Arena, layout: &Layout<D>) -> Result<()> {
    for row in MALFORMED {
        arena.play(row.0, |arena| ends_it(arena, layout, row))?;
    }
    for row in OUTSIDE {
        arena.play(row.0, |arena| is_refused(arena, layout, row))?;
    }
    arena.play("a translation for a guest without an IOMMU", |arena| {
        without_iommu(arena, layout)
    })?;
    for taken in taken_of::<D>() {
        arena.play(taken.name, |arena| is_out_of_reach(arena, layout, &taken))?;
    }
    for change in changes_of::<D>() {
        again_and_again(arena, layout, &FULL, &change)?;
    }
    for (name, payload) in FLOODS {
        arena.play(name, |arena| {
            under_way(arena, layout, &FULL, |live| flood(live, *payload))
        })?;
    }
    Ok(())
}

/// An IOTLB message: addresses, bytes, and where the front-end has them; permission and type.
type Row = (&'static str, [u64; 3], u8, u8);

/// Where a front-end has the first page of a guest's rings, and what is lent beside them.
const THERE: u64 = FRONTEND_OFFSET + 0x1000;
const BESIDE: u64 = FRONTEND_OFFSET + 0x3000_0000;

#[rustfmt::skip] // one row a line
const MALFORMED: &[Row] = &[
    ("an update of no bytes", [0x1000, 0, THERE], 3, UPDATE),
    ("an update that wraps", [u64::MAX, 2, THERE], 3, UPDATE),
    ("an update of all addresses but one", [1, u64::MAX, THERE], 3, UPDATE),
    ("an update of which the target wraps", [0x1000, PAGE, u64::MAX - 0xffe], 3, UPDATE),
    ("an update that permits nothing", [0x1000, PAGE, THERE], 0, UPDATE),
    ("an update that permits what nobody knows", [0x1000, PAGE, THERE], 4, UPDATE),
    ("an update that permits everything", [0x1000, PAGE, THERE], 0xff, UPDATE),
    ("a type that there is not", [0x1000, PAGE, THERE], 3, 0),
    ("a question by the front-end", [0x1000, PAGE, THERE], 3, 1),
    ("a complaint by the front-end", [0x1000, PAGE, THERE], 3, 4),
    ("the beginning of a batch", [0x1000, PAGE, THERE], 3, 5),
    ("an invalidate of no bytes", [0x1000, 0, 0], 0, INVALIDATE),
    ("an invalidate that wraps", [u64::MAX, 2, 0], 0, INVALIDATE),
];

#[rustfmt::skip] // one row a line
const OUTSIDE: &[Row] = &[
    ("an update to memory that nobody lent", [0x1000, PAGE, FRONTEND_OFFSET + 0x1000_0000], 3, UPDATE),
    ("an update that begins a byte before what was lent", [0x1000, PAGE, THERE - 1], 3, UPDATE),
    ("an update that ends a byte behind what was lent", [0x1000, 0x1_0001, BESIDE], 3, UPDATE),
    ("an update across a hole in what was lent", [0, BESIDE - THERE + 1, THERE], 3, UPDATE),
    ("an update to where the guest has it", [0x1000, PAGE, 0x3000_0000], 3, UPDATE),
    ("an update to nowhere", [0x1000, PAGE, 0], 3, UPDATE),
    ("an update to all memory that a process has", [0, 1 << 47, 0], 3, UPDATE),
];

/// The connection ends, and why is told once.
fn ends_it<D: Virtqueue>(arena: &Arena, layout: &Layout<D>, row: &Row) -> Result<()> {
    let (_, [iova, size, uaddr], perm, kind) = *row;
    let words = format!("IOTLB message of type {kind}, permission {perm}, {size:#x} bytes at {iova:#x}");
    let before = arena.warnings_of_all(&words)?;
    let (mut guest, mut wire) = arena.guest::<D>(layout.size, BARE | layout.feature)?;
    guest.echo()?;
    let answer = wire.ask(&say(iova, size, uaddr, perm, kind))?;
    ensure!(answer != Answer::Done, "it was taken for a translation");
    wire.hear_the_end()?;
    wait::until_true(&words, PATIENCE, || Ok(arena.warnings_of_all(&words)? > before))?;
    let warnings = arena.warnings_of_all(&words)? - before;
    ensure!(warnings == 1, "{warnings} warnings");
    guest.check_canaries()
}

/// It is refused, which is told once, and what was known before stays known.
fn is_refused<D: Virtqueue>(arena: &Arena, layout: &Layout<D>, row: &Row) -> Result<()> {
    const WORDS: &str = "are not all in memory regions";
    let (_, [iova, size, uaddr], perm, kind) = *row;
    let (mut guest, mut wire) = arena.guest::<D>(layout.size, BARE | layout.feature)?;
    guest.echo()?;
    let answer = wire.ask(&say(iova, size, uaddr, perm, kind))?;
    ensure!(answer == Answer::Refused, "{answer:?}");
    arena.wait_warning(WORDS)?;
    guest.echo()?;
    let warnings = arena.warnings(WORDS)?;
    ensure!(warnings == 1, "{warnings} warnings");
    guest.check_canaries()
}

fn without_iommu<D: Virtqueue>(arena: &Arena, layout: &Layout<D>) -> Result<()> {
    let mut guest = Guest::<D>::new(layout.size, BARE | layout.feature);
    let mut wire = arena.connect()?;
    guest.come_up(&mut wire)?;
    ensure!(
        wire.ask(&guest.translate(Access::ReadWrite))? == Answer::Refused,
        "it was taken for a translation"
    );
    arena.wait_warning("VIRTIO_F_ACCESS_PLATFORM is not negotiated")?;
    guest.echo()?;
    guest.check_canaries()
}

/// How buffers are put out of the device's reach, which of them, and for what.
struct Taken<D> {
    name: &'static str,
    direction: Direction,
    say: fn(&Guest<D>) -> Message,
}

fn taken_of<D: Virtqueue>() -> Vec<Taken<D>> {
    use Direction::{Dequeue, Enqueue};
    let taken = |name, direction, say| Taken { name, direction, say };
    vec![
        taken("buffers to receive into that were taken back", Enqueue, |guest| {
            take_back(&guest.buffers()[0])
        }),
        taken(
            "buffers to receive into that may only be read",
            Enqueue,
            |guest| {
                let [rx, _] = guest.buffers();
                translate(&rx, rx.start, Access::Read)
            },
        ),
        taken("buffers to be sent that were taken back", Dequeue, |guest| {
            take_back(&guest.buffers()[1])
        }),
        taken("buffers to be sent that may only be written", Dequeue, |guest| {
            let [_, tx] = guest.buffers();
            translate(&tx, tx.start, Access::Write)
        }),
        taken("all that was taken back, to receive into", Enqueue, |_| {
            take_back_all()
        }),
        taken("all that was taken back, to be sent", Dequeue, |_| {
            take_back_all()
        }),
    ]
}

/// From the answer on nobody writes into the buffers, or reads them; the port asks for them instead. When they are given again, the
/// ring goes on.
fn is_out_of_reach<D: Virtqueue>(arena: &Arena, layout: &Layout<D>, taken: &Taken<D>) -> Result<()> {
    let mut attacker = Attacker::new(arena, layout, &PLAIN_SHAPE)?;
    let mut visit = attacker.come(arena)?;
    let guest = &mut attacker.guest;
    guest.echo()?;
    guest.supply();
    visit.tell(&(taken.say)(guest))?;
    let marks = Marks::over(guest);
    let is_kept = |guest: &mut Guest<D>| match taken.direction {
        Direction::Enqueue => marks.check(guest),
        Direction::Dequeue => {
            let read = guest.receive()?;
            ensure!(read.is_none(), "they were read: {read:x?}");
            Ok(())
        }
    };
    let mut asked = 0;
    // Each address is asked for several times, as nobody knows it; so there were bursts after the first.
    wait::until_true("questions", PATIENCE, || {
        guest.send(&frame(1));
        is_kept(guest)?;
        asked += visit.refuse()?.len();
        Ok(asked >= 3)
    })?;
    is_kept(guest)?;
    visit.tell(&guest.translate(Access::ReadWrite))?;
    guest.echo()?;
    attacker.check_canaries()
}

/// What is in the buffers to receive into, byte by byte, and stays there.
pub struct Marks(Vec<u8>);

impl Marks {
    pub fn over<D: Virtqueue>(guest: &Guest<D>) -> Marks {
        let [rx, _] = guest.buffers();
        let marks = vec![0x5b; usize::try_from(rx.end - rx.start).expect("small")];
        guest.memory.write(guest.rx.buffer(0), &marks);
        Marks(marks)
    }

    /// None of them was written to.
    pub fn check<D: Virtqueue>(&self, guest: &Guest<D>) -> Result<()> {
        self.check_all_but(guest, 0)
    }

    /// Nor of those before the last so many.
    pub fn check_all_but<D: Virtqueue>(&self, guest: &Guest<D>, last: u64) -> Result<()> {
        let mut found = vec![0; self.0.len() - usize::try_from(last)?];
        guest.memory.read(guest.rx.buffer(0), &mut found);
        let changed = found.iter().zip(&self.0).position(|(byte, mark)| byte != mark);
        ensure!(changed.is_none(), "byte {changed:?} was written to");
        Ok(())
    }
}

/// What is said while bursts run; afterwards everything leads again to where it should.
fn changes_of<D: Virtqueue>() -> Vec<Change<D>> {
    vec![
        ("translations that run out of what was lent", |guest| {
            let all = guest.all();
            [1, PAGE, 1 << 40]
                .map(|more| translate(&(all.start..all.end + more), all.start, Access::ReadWrite))
                .into()
        }),
        ("translations that lie over one another", |guest| {
            let all = guest.all();
            let shifted = (1..8).map(|page| {
                let (first, to) = (all.start + page * PAGE, all.start + 2 * page * PAGE);
                translate(&(first..first + all.end - to), to, Access::ReadWrite)
            });
            shifted.chain([given(guest)]).collect()
        }),
        ("all pages one after the other led to the last one", |guest| {
            let all = guest.all();
            let pages = all.clone().step_by(4096);
            let one = pages.map(|page| translate(&(page..page + PAGE), all.end - PAGE, Access::ReadWrite));
            one.chain([given(guest)]).collect()
        }),
        (
            "translations that may be read, and that may be written",
            |guest| {
                [Access::Read, Access::Write, Access::ReadWrite]
                    .map(|access| guest.translate(access))
                    .into()
            },
        ),
        ("everything taken back and given again", |guest| {
            vec![take_back_all(), given(guest)]
        }),
        ("rings taken back and given again", |guest| {
            let taken = guest.rings().map(|ring| take_back(&ring));
            taken.into_iter().chain([given(guest)]).collect()
        }),
        ("rings that lead into buffers, and back", |guest| {
            let pairs = guest.rings().into_iter().zip(guest.buffers());
            let there = pairs.map(|(ring, buffers)| translate(&ring, buffers.start, Access::ReadWrite));
            there.chain([given(guest)]).collect()
        }),
        ("rings that lead to one another, and back", |guest| {
            let [rx, tx] = guest.rings();
            let there = [(&rx, tx.start), (&tx, rx.start)];
            let there = there.map(|(ring, other)| translate(ring, other, Access::ReadWrite));
            there.into_iter().chain([given(guest)]).collect()
        }),
        ("buffers taken back and given again", |guest| {
            let taken = guest.buffers().map(|buffers| take_back(&buffers));
            taken.into_iter().chain([given(guest)]).collect()
        }),
        ("buffers that end in the middle", |guest| {
            let ends = guest.buffers().map(|buffers| buffers.start + 2200);
            let taken = ends.map(|end| take_back(&(end..end + 16)));
            taken.into_iter().chain([given(guest)]).collect()
        }),
        ("memory that is lent anew under translations", |guest| {
            let regions = || guest.plan().regions;
            let mut without = regions();
            without.remove(0);
            [without, regions()]
                .map(super::plan::mem_table)
                .into_iter()
                .chain([given(guest)])
                .collect()
        }),
        ("a channel that is hung up", |guest| {
            let (_, hand_over) = Channel::open().expect("a channel");
            asked_in_vain(guest, hand_over)
        }),
        ("a channel that is something else", |guest| {
            let other = guest.calls[0].try_clone().expect("a descriptor");
            asked_in_vain(guest, Message::with_fd("SET_BACKEND_REQ_FD", vec![], [other]))
        }),
    ]
}

/// All that there is to give.
fn given<D: Virtqueue>(guest: &Guest<D>) -> Message {
    guest.translate(Access::ReadWrite)
}

/// A channel on which nobody answers what is asked; then all is told anyway.
fn asked_in_vain<D: Virtqueue>(guest: &Guest<D>, hand_over: Message) -> Vec<Message> {
    let taken = guest.buffers().map(|buffers| take_back(&buffers));
    let mut messages = vec![hand_over];
    messages.extend(taken);
    messages.push(given(guest));
    messages
}

/// What is said by the thousand, by number.
type Flood = (&'static str, fn(u64) -> Vec<u8>);

#[rustfmt::skip] // one row a line
const FLOODS: &[Flood] = &[
    // Not next to each other, or they would become one.
    ("more translations than are kept", |n| iotlb(ELSEWHERE + 2 * n * PAGE, PAGE, THERE, 3, UPDATE)),
    ("translations of a byte each", |n| iotlb(ELSEWHERE + n, 1, THERE + n % 2, 3, UPDATE)),
    ("invalidates of what nobody told", |n| iotlb(ELSEWHERE + n * PAGE, PAGE, 0, 0, INVALIDATE)),
    ("rings taken back over and over", |_| iotlb(START.0, PAGE, 0, 0, INVALIDATE)),
];

/// Nobody waits for answers. Main has time for others meanwhile, and the guest is served in the end.
fn flood<D: Virtqueue>(live: &mut Live<D>, payload: fn(u64) -> Vec<u8>) -> Result<usize> {
    let request = take_back_all().request;
    for n in 0..FLOOD {
        let sent = live.visit.wire.send(&wire(request, PLAIN, &payload(n)), &[]);
        ensure!(sent, "the port hung up after {n}");
    }
    live.arena.world.ovs.appctl("version")?;
    ensure!(live.visit.wire.settle()?, "the port hung up");
    live.visit.tell(&given(live.guest))?;
    live.visit.refuse()?;
    let next = || {
        let told = live.arena.vring(1)?;
        told["next"].as_u64().context("a ring that stands still")
    };
    let before = next()?;
    wait::until_true("bursts", PATIENCE, || Ok(next()? != before))?;
    Ok(usize::try_from(FLOOD)?)
}

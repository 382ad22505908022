//! What a front-end makes of the questions for translations: answers that are none, that say nothing, less or something else each
//! time, or that never come. The ring waits; who asks does not.

use anyhow::{ensure, Result};
use ovs_vhost::memory::Access;
use ovs_vhost::model::Virtqueue;
use ovs_vhost::vhost_user::message::Flags;
use ovs_vhost::vhost_user::samples::{iotlb, numbers, wire, PLAIN};

use super::super::world::PATIENCE;
use super::arena::Arena;
use super::attacker::{Attacker, Visit};
use super::guest::{frame, Guest};
use super::iotlb::{take_back, translate, Channel, Question, IOTLB_MSG, REPLY};
use super::layout::Layout;
use super::live::ROUNDS;
use super::translations::{Marks, PAGE, PLAIN_SHAPE};
use crate::wait;

/// Lines of one start of a device, of all that is wrong with its translations.
const MOST_LINES: usize = 16;

/// What a front-end does with the first question for a buffer to receive into.
type Row<D> = (
    &'static str,
    fn(&Arena, &mut Guest<D>, &mut Visit, &Question) -> Result<()>,
);

pub fn family<D: Virtqueue + Sync>(arena: &mut Arena, layout: &Layout<D>) -> Result<()> {
    for (name, bytes) in NO_ANSWERS {
        arena.play(name, |arena| {
            asked(arena, layout, |arena, guest, visit, _| {
                loses_its_channel(arena, guest, visit, &bytes())
            })
        })?;
    }
    for (name, answer) in rows_of::<D>() {
        arena.play(name, |arena| asked(arena, layout, answer))?;
    }
    Ok(())
}

/// Takes the buffers to receive into back, waits to be asked for one, and attacks. Afterwards, when all is told, the guest is served
/// as ever.
fn asked<D: Virtqueue>(
    arena: &mut Arena,
    layout: &Layout<D>,
    attack: impl FnOnce(&Arena, &mut Guest<D>, &mut Visit, &Question) -> Result<()>,
) -> Result<()> {
    let mut attacker = Attacker::new(arena, layout, &PLAIN_SHAPE)?;
    let mut visit = attacker.come(arena)?;
    let guest = &mut attacker.guest;
    guest.echo()?;
    let question = provoke(guest, &mut visit)?;
    attack(arena, guest, &mut visit, &question)?;
    visit.tell(&guest.translate(Access::ReadWrite))?;
    // What was used until now may have been written anywhere.
    while guest.rx.driver.reap().is_some() {}
    guest.echo()?;
    few_lines(arena)?;
    attacker.check_canaries()
}

/// The first question for a buffer to receive into.
fn provoke<D: Virtqueue>(guest: &mut Guest<D>, visit: &mut Visit) -> Result<Question> {
    let [rx, _] = guest.buffers();
    visit.tell(&take_back(&rx))?;
    guest.supply();
    wait::until("a question for a buffer", PATIENCE, || {
        guest.send(&frame(1));
        Ok(visit.hear()?.filter(|question| rx.contains(&question.iova)))
    })
}

/// A port says what is wrong, and then no more of it.
fn few_lines(arena: &Arena) -> Result<()> {
    let lines = arena.warnings("IOMMU: ")?;
    ensure!(lines <= MOST_LINES, "{lines} lines");
    Ok(())
}

/// What is no answer to the question that was asked.
type NoAnswer = (&'static str, fn() -> Vec<u8>);

#[rustfmt::skip] // one row a line
const NO_ANSWERS: &[NoAnswer] = &[
    ("more answers than questions", || wire(IOTLB_MSG, REPLY, &numbers(&[1])).repeat(200)),
    ("an answer to a request of another number", || wire(2, REPLY, &numbers(&[0]))),
    ("an answer that is too long", || wire(IOTLB_MSG, REPLY, &numbers(&[0, 0]))),
    ("an answer that is too short", || wire(IOTLB_MSG, REPLY, &[0; 4])),
    ("an answer that says to be none", || wire(IOTLB_MSG, PLAIN, &numbers(&[0]))),
    ("an answer that wants an answer", || wire(IOTLB_MSG, Flags(0xd), &numbers(&[0]))),
    ("an answer of another version", || wire(IOTLB_MSG, Flags(0x6), &numbers(&[0]))),
    ("a translation in the place of an answer", || wire(IOTLB_MSG, PLAIN, &iotlb(0x1000, PAGE, 0, 3, 2))),
    ("noise in the place of an answer", || vec![0xff; 4096]),
];

/// It is told of once, and the port asks on the next channel.
fn loses_its_channel<D: Virtqueue>(
    arena: &Arena,
    guest: &mut Guest<D>,
    visit: &mut Visit,
    bytes: &[u8],
) -> Result<()> {
    if let Some(channel) = &mut visit.channel {
        channel.say(bytes);
    }
    let told = || -> Result<usize> {
        Ok(arena.warnings("is no answer to what was asked")? + arena.warnings("back-end channel: ")?)
    };
    wait::until_true("a warning", PATIENCE, || Ok(told()? > 0))?;
    let (channel, hand_over) = Channel::open()?;
    visit.tell(&hand_over)?;
    visit.channel = Some(channel);
    is_served(guest, visit, |page| page)?;
    let warnings = told()?;
    ensure!(warnings == 1, "{warnings} warnings");
    Ok(())
}

/// Frames come back to a guest whose front-end says where the pages lead that it is asked for.
fn is_served<D: Virtqueue>(
    guest: &mut Guest<D>,
    visit: &mut Visit,
    target: impl Fn(u64) -> u64,
) -> Result<()> {
    let mut used = 0;
    // All buffers have been in use.
    wait::until_true("the ring to go on", PATIENCE, || {
        guest.send(&frame(1));
        while let Some(question) = visit.hear()? {
            let page = question.iova;
            visit.tell(&translate(&(page..page + PAGE), target(page), Access::ReadWrite))?;
            visit.answer(&question, true);
        }
        while guest.rx.driver.reap().is_some() {
            used += 1;
        }
        guest.supply();
        Ok(used > 2 * guest.size())
    })
}

fn rows_of<D: Virtqueue>() -> Vec<Row<D>> {
    vec![
        (
            "an answer without a translation",
            |arena, guest, visit, question| {
                visit.answer(question, true);
                let words = format!("no translation of {:#x} for Write", question.iova);
                wait::until_true(&words, PATIENCE, || {
                    guest.send(&frame(1));
                    while let Some(question) = visit.hear()? {
                        visit.answer(&question, true);
                    }
                    Ok(arena.warnings(&words)? == 1)
                })
            },
        ),
        (
            "an answer that allows less than was asked",
            |arena, _, visit, question| {
                let page = question.iova;
                visit.tell(&translate(&(page..page + PAGE), page, Access::Read))?;
                visit.answer(question, true);
                arena.wait_warning(&format!("gave its device {page:#x} for Write"))
            },
        ),
        (
            "a translation of another page than was asked for",
            |arena, guest, visit, question| {
                let page = question.iova;
                let (other, words) = (1 << 40, format!("no translation of {page:#x} for Write"));
                visit.answer(question, true);
                wait::until_true(&words, PATIENCE, || {
                    guest.send(&frame(1));
                    while let Some(question) = visit.hear()? {
                        visit.tell(&translate(&(other..other + PAGE), page, Access::ReadWrite))?;
                        visit.answer(&question, true);
                    }
                    Ok(arena.warnings(&words)? == 1)
                })
            },
        ),
        ("a question that is never answered", |_, guest, visit, _| {
            let (mut sent, mut asked) = (0, 1);
            wait::until_true("frames that have nowhere to go", PATIENCE, || {
                guest.send(&frame(1));
                asked += u64::from(visit.hear()?.is_some());
                sent += 1;
                Ok(sent == 200)
            })?;
            let [rx, _] = guest.buffers();
            let pages = (rx.end - rx.start) / PAGE;
            ensure!(asked <= pages, "asked {asked} times for {pages} pages");
            Ok(())
        }),
        (
            "an answer that is another on the second look",
            |_, guest, visit, question| {
                visit.answer(question, false);
                is_served(guest, visit, |page| page)?;
                let [rx, _] = guest.buffers();
                visit.tell(&take_back(&rx))?;
                let (marks, last) = (Marks::over(guest), rx.end - PAGE);
                is_served(guest, visit, |_| last)?;
                marks.check_all_but(guest, PAGE)
            },
        ),
        ("questions by the hundred", |_, guest, visit, question| {
            visit.answer(question, false);
            for _ in 0..ROUNDS {
                visit.refuse()?;
                visit.tell(&guest.translate(Access::ReadWrite))?;
                while guest.rx.driver.reap().is_some() {}
                let question = provoke(guest, visit)?;
                visit.answer(&question, false);
            }
            visit.refuse().map(drop)
        }),
        ("complaints that nobody reads", |arena, guest, visit, _| {
            let [rx, _] = guest.buffers();
            wait::until_true("the channel to be given up", PATIENCE, || {
                visit.tell(&take_back(&rx))?;
                guest.send(&frame(1));
                visit.tell(&translate(&rx, rx.start, Access::Read))?;
                Ok(arena.warnings("back-end channel")? > 0)
            })
        }),
    ]
}

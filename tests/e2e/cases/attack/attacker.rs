//! A guest of the attacked port with all that it lends, and its visits there.

use anyhow::{ensure, Result};
use ovs_vhost::datapath::Direction;
use ovs_vhost::model::Virtqueue;
use ovs_vhost::virtio::features::Features;

use super::arena::Arena;
use super::dirty_log::DirtyLog;
use super::guest::Guest;
use super::iotlb::{Channel, Question};
use super::layout::Layout;
use crate::wire::{Answer, Message, Wire};

/// What is negotiated beside a layout, whether writes are logged, and which rings crimes are committed in: those in a
/// receiveq are crimes where buffers may be merged.
pub struct Shape {
    pub name: &'static str,
    pub features: Features,
    pub logged: bool,
    pub directions: &'static [Direction],
}

/// A guest, and its dirty log if it has one.
pub struct Attacker<D> {
    pub guest: Guest<D>,
    log: Option<DirtyLog>,
}

/// A connection on which all was said, and the channel on which the port asks for translations if the guest is behind an
/// IOMMU.
pub struct Visit {
    pub wire: Wire,
    pub channel: Option<Channel>,
}

impl<D: Virtqueue> Attacker<D> {
    pub fn new(arena: &Arena, layout: &Layout<D>, shape: &Shape) -> Result<Attacker<D>> {
        Ok(Attacker {
            guest: Guest::new(layout.size, shape.features | layout.feature | arena.platform),
            log: shape.logged.then(DirtyLog::new).transpose()?,
        })
    }

    /// Comes as an honest guest does, and is taken for one.
    pub fn come(&self, arena: &Arena) -> Result<Visit> {
        let (visit, is_well) = self.intrude(arena)?;
        ensure!(is_well, "an honest guest was refused");
        Ok(visit)
    }

    /// Comes with its rings in any state; says whether nothing was refused.
    pub fn intrude(&self, arena: &Arena) -> Result<(Visit, bool)> {
        let mut plan = self.guest.plan();
        if let Some(log) = &self.log {
            log.lend(&mut plan)?;
        }
        let mut channel = None;
        if self.guest.is_behind_iommu() {
            let (ours, hand_over) = Channel::open()?;
            plan.then.push(hand_over);
            channel = Some(ours);
        }
        let mut wire = arena.connect()?;
        wire.negotiate()?;
        let heard = plan.say(&mut wire)?;
        Ok((Visit { wire, channel }, heard.is_well()))
    }

    /// Nobody wrote where nobody may.
    pub fn check_canaries(&self) -> Result<()> {
        self.guest.check_canaries()?;
        self.log.as_ref().map_or(Ok(()), DirtyLog::check_canaries)
    }
}

impl Visit {
    /// Says what must be carried out.
    pub fn tell(&mut self, message: &Message) -> Result<()> {
        ensure!(
            self.wire.ask(message)? == Answer::Done,
            "request {} was refused",
            message.request
        );
        Ok(())
    }

    /// The next question of the port.
    pub fn hear(&mut self) -> Result<Option<Question>> {
        self.channel.as_mut().map_or(Ok(None), Channel::hear)
    }

    /// Answers it: it was carried out, or not.
    pub fn answer(&mut self, question: &Question, done: bool) {
        if let Some(channel) = &mut self.channel {
            channel.answer(question, done);
        }
    }

    /// The addresses that were asked for since the last call, if there is a channel; they lead nowhere, says the answer.
    pub fn refuse(&mut self) -> Result<Vec<u64>> {
        self.channel.as_mut().map_or(Ok(Vec::new()), Channel::refuse)
    }
}

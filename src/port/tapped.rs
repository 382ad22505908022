//! A port whose packets somebody looks at: `vhost-user/pcap` and `vhost-user/trace`. Who looks, and what is kept, is
//! [`crate::tap`]'s affair; here poll threads hand over their bursts, and main starts, stops and tells.

use std::path::Path;

use serde_json::{json, Value};

use crate::datapath::{Offload, Queue, RxSlot, Sent, TxSlot};
use crate::tap::{Seen, Stand};

use super::shared::{direction, Port};

/// What looks at a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tool {
    Pcap,
    Trace,
}

/// As poll threads use it. Unless somebody looks, this costs a burst one branch.
impl Port {
    /// Receives what the guest sent, as [`Queue::dequeue_growing`] does, from a queue of this port.
    #[inline]
    pub fn receive<'a>(
        &self,
        queue: &Queue,
        slots: &mut [RxSlot<'a>],
        grow: impl FnMut(&mut RxSlot<'a>, u32) -> bool,
    ) -> usize {
        let frames = queue.dequeue_growing(slots, grow);
        if let Some(vring) = queue.watched() {
            self.saw_received(queue, vring, slots, frames);
        }
        frames
    }

    #[cold]
    #[inline(never)]
    fn saw_received(&self, queue: &Queue, vring: u16, slots: &[RxSlot<'_>], moved: usize) {
        let frames = slots
            .iter()
            .take(moved)
            .map(|slot| (slot.frame(), slot.offload()));
        self.saw(queue, vring, [slots.len(), moved], frames);
    }

    /// Looks at what was sent to the guest, if somebody wants that.
    #[inline]
    pub(super) fn look_at_sent(&self, queue: &Queue, slots: &[TxSlot<'_>], sent: &Sent) {
        if let Some(vring) = queue.watched() {
            self.saw_sent(queue, vring, slots, sent);
        }
    }

    #[cold]
    #[inline(never)]
    fn saw_sent(&self, queue: &Queue, vring: u16, slots: &[TxSlot<'_>], sent: &Sent) {
        // A frame that was dropped between others is among these; which one it was, nobody knows.
        let frames = slots
            .iter()
            .take(sent.slots)
            .map(|slot| (slot.frame(), slot.offload()));
        self.saw(queue, vring, [slots.len(), sent.slots], frames);
    }

    fn saw<'f>(
        &self,
        queue: &Queue,
        vring: u16,
        [asked, moved]: [usize; 2],
        frames: impl Iterator<Item = (&'f [u8], Offload)>,
    ) {
        // While somebody comes or goes, a burst is not seen.
        let Some(looking) = self.tap.looking() else { return };
        if looking.is_nobody() {
            queue.watch(None);
            return;
        }
        let seen = Seen {
            vring,
            direction: direction(usize::from(vring)),
            asked,
            moved,
        };
        let stand = || Stand {
            next: queue.snapshot().map(|status| status.avail),
            waiting: queue.backlog(),
            missed: queue.has_missed(),
            fault: queue.try_fault(),
        };
        looking.see(&seen, stand, frames);
    }
}

/// As main uses it.
impl Port {
    /// Carries out `vhost-user/pcap` or `vhost-user/trace`, and says what there is to be seen then. `words` are `pcap` or `trace`;
    /// `start`, `stop` or `show`; and options. Files go to `directory` unless the words say otherwise. Allocates what a capture
    /// needs; one that is stopped is waited for, at most a second.
    ///
    /// # Errors
    ///
    /// What is wrong, for who asked.
    pub fn tap(&self, words: &[&str], directory: &Path) -> Result<Value, String> {
        let (tool, verb, options) = match words {
            ["pcap", verb, options @ ..] => (Tool::Pcap, *verb, options),
            ["trace", verb, options @ ..] => (Tool::Trace, *verb, options),
            _ => return Err(format!("{words:?} is no way to look at a port")),
        };
        if let (false, Some(word)) = (verb == "start", options.first()) {
            return Err(format!("what is '{word}'? Only a start takes options"));
        }
        let vrings = 2 * usize::from(self.requested.lock().n_rxq);
        let watch = || {
            (0..)
                .zip(&self.queues)
                .for_each(|(vring, queue)| queue.watch(Some(vring)));
        };
        let told = match (tool, verb) {
            (Tool::Pcap, "start") => {
                self.tap
                    .start_capture(&self.name, vrings, directory, options, watch)?;
                self.tap.tell_capture()
            }
            (Tool::Pcap, "stop") => {
                self.tap.stop_capture()?;
                self.tap.tell_capture()
            }
            (Tool::Pcap, _) => self.tap.tell_capture(),
            (Tool::Trace, "start") => {
                self.tap.start_trace(vrings, options, watch)?;
                self.tap.tell_trace()
            }
            (Tool::Trace, "stop") => self.tap.stop_trace()?,
            (Tool::Trace, _) => self.tap.tell_trace(),
        };
        Ok(self.told(tool, told))
    }

    /// A tree of what a tool tells. The log of bursts, which is long, is beside what is known of it.
    fn told(&self, tool: Tool, mut told: Value) -> Value {
        let mut tree = json!({ "name": self.name() });
        let bursts = told.as_object_mut().and_then(|told| told.remove("bursts"));
        tree[match tool {
            Tool::Pcap => "capture",
            Tool::Trace => "trace",
        }] = told;
        if let Some(bursts) = bursts {
            tree["bursts"] = bursts;
        }
        tree
    }
}

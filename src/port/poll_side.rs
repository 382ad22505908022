//! A port as poll threads use it: packets towards the guest. Packets from it come out of [`Port::receive`].

use std::sync::atomic::Ordering;

use crate::datapath::{Sent, TxSlot};

use super::shared::Port;

impl Port {
    /// Sends packets to the guest by one of the queues Open vSwitch knows. What cannot be sent is
    /// counted; the caller frees all. Says whether it had to wait for another thread's burst.
    #[inline]
    pub fn send(&self, name: u16, slots: &[TxSlot<'_>]) -> bool {
        self.send_queued(name, slots, |_| 0)
    }

    /// Sends as [`Port::send`] does. `queue_of` says for which queue of the port's QoS the slot of that index is; it is asked
    /// only if that matters.
    #[inline]
    pub fn send_queued(&self, name: u16, slots: &[TxSlot<'_>], queue_of: impl Fn(usize) -> u32) -> bool {
        let Sent {
            packets, contended, ..
        } = self.deliver(name, slots, &queue_of);
        if packets < slots.len() {
            self.drops.unsent(slots.len() - packets);
        }
        contended
    }

    /// What reached the guest.
    fn deliver(&self, name: u16, slots: &[TxSlot<'_>], queue_of: &dyn Fn(usize) -> u32) -> Sent {
        let mut all = Sent::default();
        if !self.open.load(Ordering::Relaxed) {
            self.drops.closed(slots.len(), !self.up.load(Ordering::Relaxed));
            return all;
        }
        let Some(queue) = self
            .tx_map
            .queue(name)
            .and_then(|q| self.queues.get(2 * usize::from(q)))
        else {
            self.drops.disabled(slots.len());
            return all;
        };
        let (max_frame, retries) = (
            self.max_frame.load(Ordering::Relaxed),
            self.tx_retries.load(Ordering::Relaxed),
        );
        let fits = |slot: &TxSlot<'_>| slot.wire_len() <= max_frame;
        let mut tried = 0;
        let mut give = |run: &[TxSlot<'_>]| {
            if run.is_empty() {
                return;
            }
            let sent = queue.enqueue(run, retries);
            self.look_at_sent(queue, run, &sent);
            tried += run.len();
            all.packets += sent.packets;
            all.invalid += sent.invalid;
            all.retries += sent.retries;
            all.contended |= sent.contended;
        };
        let shaped = if self.egress.is_on() {
            self.shape(slots, queue_of, fits, give)
        } else {
            // One run, unless a frame is too long for the MTU: then what lies between such frames.
            slots.split(|slot| !fits(slot)).for_each(&mut give);
            0
        };
        self.drops.retries(all.retries);
        let failed = tried - all.packets - all.invalid;
        self.drops.reasons(slots.len() - tried - shaped, shaped, failed);
        all
    }
}

//! What a port lets pass, by the operator's word: policing of what its guest sends, QoS and a limit on packets of what it is
//! sent. The meters are
//! [`crate::qos`]'s; here main sets them and poll threads ask them.
//!
//! Off, they cost a burst one load and one branch. On, poll threads hold a lock for the arithmetic of one burst, and main
//! for that of one change: neither ever holds it while it waits, for a ring or for a peer.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::fmt::Debug;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::clock::now;
use crate::datapath::{RxSlot, TxSlot, BURST};
use crate::qos::{Details, Egress, KiloPackets, Limits, QueueCounts, Refusal, Settings, TYPES};

use super::shared::Port;

/// Meters that poll threads ask while there are any.
#[derive(Default)]
pub(super) struct Guarded<T> {
    /// Whether there are. Main writes it.
    on: AtomicBool,
    meters: Mutex<T>,
}

impl<T> Guarded<T> {
    #[inline(always)]
    pub(super) fn is_on(&self) -> bool {
        // Relaxed: the lock orders the meters; a burst that comes too early or too late for a change is no harm.
        self.on.load(Ordering::Relaxed)
    }

    /// Changes the meters; `change` says whether there are any afterwards.
    fn change(&self, change: impl FnOnce(&mut T) -> bool) {
        let mut meters = self.meters.lock();
        self.on.store(change(&mut meters), Ordering::Relaxed);
    }
}

/// What of the QoS was refused last: of the port (None), or of one of its queues. Open vSwitch asks for all of it again at
/// every change of the database.
#[derive(Default)]
pub(super) struct Complaints(BTreeMap<Option<u32>, String>);

impl Complaints {
    /// Whether `asked` was refused, and that is news.
    fn is_new(&mut self, of: Option<u32>, asked: &impl Debug, result: Result<(), Refusal>) -> bool {
        if result.is_ok() {
            self.0.remove(&of);
            return false;
        }
        let asked = format!("{asked:?}");
        self.0.insert(of, asked.clone()) != Some(asked)
    }

    /// Whether the QoS in force is not the one that was last asked for.
    fn qos_is_refused(&self) -> bool {
        self.0.contains_key(&None)
    }
}

// A burst's verdicts fit the word in which they cross the border.
const _: () = assert!(BURST <= u32::BITS as usize);

/// As poll threads use it.
impl Port {
    /// Which of the frames that the guest sent are to be dropped, and counts them: bit i for `frames[i]`, at most [`BURST`].
    #[inline]
    pub fn police(&self, frames: &[RxSlot<'_>]) -> u32 {
        if self.ingress.is_on() && !frames.is_empty() {
            self.police_frames(frames)
        } else {
            0
        }
    }

    #[inline(never)]
    fn police_frames(&self, frames: &[RxSlot<'_>]) -> u32 {
        let now = now();
        let mut ingress = self.ingress.meters.lock();
        let refused = (0..BURST).zip(frames).fold(0, |refused, (index, frame)| {
            refused | u32::from(!ingress.admit(now, frame.len())) << index
        });
        drop(ingress);
        self.drops.policed(refused.count_ones() as usize);
        refused
    }

    /// Calls `give` with those of `slots` that may be sent: those that `fits` and that the limits let pass. Returns how many
    /// they did not let pass. `queue_of` says which queue the slot of that index is for.
    #[inline(never)]
    pub(super) fn shape(
        &self,
        slots: &[TxSlot<'_>],
        queue_of: &dyn Fn(usize) -> u32,
        fits: impl Fn(&TxSlot<'_>) -> bool,
        mut give: impl FnMut(&[TxSlot<'_>]),
    ) -> usize {
        let (now, mut refused) = (now(), 0);
        for (group, first) in slots.chunks(BURST).zip((0..).step_by(BURST)) {
            let mut egress = self.egress.meters.lock();
            let mut admits = |slot: &TxSlot<'_>, index| {
                let admitted = egress.admit(now, slot.len(), || queue_of(index));
                refused += usize::from(!admitted);
                admitted
            };
            let admitted = group
                .iter()
                .zip(first..)
                .filter(|(slot, index)| fits(slot) && admits(slot, *index));
            let (mut passed, mut count) = ([TxSlot::new(&[]); BURST], 0);
            for (place, (slot, _)) in passed.iter_mut().zip(admitted) {
                *place = *slot;
                count += 1;
            }
            drop(egress);
            give(&passed[..count]);
        }
        refused
    }
}

/// As main uses it.
impl Port {
    /// Puts limits on what the guest sends. Those that do not change keep their tokens.
    pub fn set_policing(&self, limits: Limits) {
        self.ingress.change(|ingress| {
            ingress.set(limits, now());
            ingress.is_set()
        });
    }

    /// The limits in force on what the guest sends: of bytes, of packets; each as its rate per second and its burst.
    pub fn policing(&self) -> [Option<(u64, u64)>; 2] {
        self.ingress.meters.lock().limits()
    }

    /// Puts a limit on the packets that the guest is sent. One that does not change keeps its tokens.
    pub(super) fn set_egress_packets(&self, limit: KiloPackets) {
        self.egress.change(|egress| {
            egress.set_packets(limit, now());
            egress.is_set()
        });
    }

    /// The limit in force on packets that the guest is sent: rate per second, and burst.
    pub fn egress_packets(&self) -> Option<(u64, u64)> {
        self.egress.meters.lock().packets()
    }

    /// Types of QoS that [`Port::set_qos`] takes.
    pub fn qos_types() -> [&'static CStr; 2] {
        TYPES
    }

    /// The QoS in force: its type and details.
    pub fn qos(&self) -> Option<(&'static CStr, Settings)> {
        let egress = self.egress.meters.lock();
        egress.qos.as_ref().map(|qos| (qos.name(), qos.settings()))
    }

    /// Puts QoS of type `name` in force, or with an empty name none. If it is refused, the one before stays.
    pub fn set_qos(&self, name: &str, details: &Details<'_>) -> Result<(), Refusal> {
        let mut result = Ok(());
        self.egress.change(|egress| {
            result = set_qos(&mut egress.qos, name, details);
            egress.is_set()
        });
        let is_new = self.qos_complaints.lock().is_new(None, &(name, details), result);
        if let (true, Err(error)) = (is_new, result) {
            if error == Refusal::Invalid && name.as_bytes() == TYPES[0].to_bytes() {
                log::error!("Could not create rte meter for egress policer");
            }
            log::error!("Failed to set QoS type {name} on port {}: {error}", self.name);
        }
        result
    }

    /// The numbers of the QoS's queues.
    pub fn qos_queues(&self) -> Result<Vec<u32>, Refusal> {
        self.with_qos(|egress| egress.queues())
    }

    /// What is in force for a queue, and what it counted.
    pub fn qos_queue(&self, id: u32) -> Result<(Settings, QueueCounts), Refusal> {
        self.with_qos(|egress| egress.queue(id))
    }

    /// Makes a queue, or changes it. If it is refused, what was before stays.
    pub fn set_qos_queue(&self, id: u32, details: &Details<'_>) -> Result<(), Refusal> {
        let result = self.change_queues(|egress| egress.set_queue(id, details, now()));
        // Open vSwitch sets queue 0 whatever the QoS is.
        let is_new = result != Err(Refusal::Unsupported)
            && self.qos_complaints.lock().is_new(Some(id), &details, result);
        if let (true, Err(error)) = (is_new, result) {
            log::error!("Failed to set QoS queue {id} on port {}: {error}", self.name);
        }
        result
    }

    /// Takes a queue away.
    pub fn delete_qos_queue(&self, id: u32) -> Result<(), Refusal> {
        self.change_queues(|egress| egress.delete_queue(id, now()))
    }

    /// Open vSwitch goes on to the queues of a QoS also when that was refused: they are not for the one that is in force.
    fn change_queues(&self, change: impl FnOnce(&mut Egress) -> Result<(), Refusal>) -> Result<(), Refusal> {
        if self.qos_complaints.lock().qos_is_refused() {
            return Err(Refusal::Unsupported);
        }
        self.with_qos(change)
    }

    fn with_qos<T>(&self, body: impl FnOnce(&mut Egress) -> Result<T, Refusal>) -> Result<T, Refusal> {
        let mut egress = self.egress.meters.lock();
        egress.qos.as_mut().map_or(Err(Refusal::Unsupported), body)
    }
}

fn set_qos(qos: &mut Option<Egress>, name: &str, details: &Details<'_>) -> Result<(), Refusal> {
    match qos {
        _ if name.is_empty() => *qos = None,
        Some(qos) if qos.name().to_bytes() == name.as_bytes() => qos.set(details, now())?,
        _ => *qos = Some(Egress::new(name, details, now())?),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_news_once_until_something_else_is_asked_for() {
        let mut complaints = Complaints::default();
        let refused = Err(Refusal::Invalid);
        assert!(complaints.is_new(None, &"cir=0", refused));
        assert!(!complaints.is_new(None, &"cir=0", refused));
        assert!(complaints.is_new(None, &"cir=1", refused));
        assert!(!complaints.is_new(None, &"cir=2", Ok(())));
        assert!(complaints.is_new(None, &"cir=1", refused), "it worked in between");
        assert!(
            complaints.is_new(Some(0), &"cir=1", refused),
            "each queue has its own"
        );
        assert!(!complaints.is_new(None, &"cir=1", refused));
    }

    #[test]
    fn the_clock_goes_on() {
        let before = now();
        let limit = before + 10_000_000_000;
        while now() <= before {
            std::hint::spin_loop();
        }
        assert!(now() < limit, "in nanoseconds");
    }
}

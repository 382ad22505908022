//! Where to go on in a packed ring that another back-end may have served.
//!
//! After an orderly stop SET_VRING_BASE says it. After a crash nobody knows: QEMU sends the base of the last start or
//! stop, virtio-user that of a fresh ring. But the ring itself tells, since each descriptor's AVAIL bit is that of the
//! lap in which the driver last wrote it:
//!
//! ```text
//!              driver                          driver one lap before
//!   lap n: 0 ... d-1 | lap n-1: d ... size-1   =>  in order of time: d ... size-1, 0 ... d-1
//!
//!   in order of time:  used used used used | available available available
//!                                          ^ the device goes on here
//! ```
//!
//! * The driver stands at the first AVAIL bit that differs from that of descriptor 0; if none does, at descriptor 0, in
//!   the next lap. (Memory of a ring not yet used is zero, which is a used lap before the first.)
//! * The device goes on behind the last used descriptor, in order of time. It marks all descriptors of a chain as used,
//!   so that what looks available is available; the driver reads only the first.
//! * Available descriptors before a used one are chains of a burst that was being published when its back-end died, of
//!   which the driver has seen nothing: publication ends with the first one. They are given back now, so each frame of
//!   that burst is moved once: what came from the guest is lost with the process that had it, what went to the guest is
//!   there, though the driver may be told too great a length, since the true one was never written.
//! * Available descriptors before a used one are also what a front-end passes over that serves the ring itself while its
//!   back-end is gone, from where it last knew the ring to stand: QEMU drops what a guest sends then. The base it names
//!   afterwards is right, but the driver waits for what was passed over, so that is given back as well.
//!
//! A burst that died before its publication is moved again: frames that the dead process had already sent on come twice,
//! at most one burst of them.
//!
//! Ambiguous are rings that a back-end served which does not mark whole chains, as ours does: descriptors behind the
//! first of a used chain look available. So a base that the ring can confirm goes before what the ring says alone:
//! if only the rest of the last used chain, recognised by NEXT flags and by its id, lies before it. (Not descriptor 0,
//! which is what front-ends name that know nothing. Another stale base passes for that only if it happens to be just
//! behind one available chain, which reuses the id of the chain before.) What cannot be helped
//! is a ring with such chains whose back-end crashed: it may stall, or move the rest of one chain as a frame.
//!
//! The driver may add while we look, so descriptors that were read late may be newer than those before them, and a chain
//! shows its first descriptor last. Where the driver stood is then a descriptor of an old lap before newer ones. So what
//! counts as used is only what is used in its own lap; and the driver stands at descriptor 0, whatever lies in between,
//! if that is used and the last one has the same AVAIL bit. And a driver that fills the whole ring shows the first of a batch
//! last; what it leaves until then looks as if a back-end had died over it. There the base is believed, if all is available
//! from there on but for one descriptor, and that one was used in the lap before.

use crate::datapath::config::{Found, RingError};
use crate::virtio::chain::DescRing;
use crate::virtio::desc::{Desc, VIRTQ_DESC_F_INDIRECT, VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE};
use crate::virtio::features::{self, Features};
use crate::virtio::packed_ring::{PackedMem, Position, Used, VIRTQ_DESC_F_AVAIL, VIRTQ_DESC_F_USED};

/// Where to go on in a ring for which the front-end said `base`. Gives back what a dead back-end was publishing.
///
/// # Errors
///
/// [`RingError::Base`] if `base` is no position in a ring of this size, be the ring as it may.
pub(super) fn resume(
    mem: &PackedMem,
    base: u32,
    features: Features,
    found: &mut Vec<Found>,
) -> Result<Position, RingError> {
    let (avail, used) = positions(base, mem.size())?;
    let Some(scan) = Scan::new(mem) else {
        return Ok(Position::START);
    };
    if avail == used && scan.is_filled_from(used) {
        return Ok(used);
    }
    // The two differ if the back-end before had taken more than it gave back, or if the used half was left 0.
    if let Some(base) = [avail, used].into_iter().find(|base| scan.confirms(*base)) {
        // Of buffers used in order a back-end may mark only some.
        if !features.contains(features::VIRTIO_F_IN_ORDER) {
            let (lone, chains) = scan.passed_over();
            if !chains.is_empty() {
                found.push(Found::PassedOver(chains.len()));
            }
            scan.give_back(mem, &chains);
            if let Some(oldest) = lone {
                scan.give_back_oldest(mem, oldest);
            }
        }
        return Ok(base);
    }
    let next = scan.next();
    found.push(Found::Elsewhere {
        base,
        next: next.bits(),
    });
    scan.give_back(mem, &scan.unpublished());
    Ok(next)
}

/// The two positions that `base` says: the next to take, and the next to give back.
///
/// # Errors
///
/// [`RingError::Base`] if either is no position in a ring of this size.
pub(super) fn positions(base: u32, size: u16) -> Result<(Position, Position), RingError> {
    let [used_high, used_low, avail_high, avail_low] = base.to_be_bytes();
    let position = |high, low| {
        let bits = u16::from_be_bytes([high, low]);
        Position::from_bits(bits, size).ok_or(RingError::Base { base, size })
    };
    let used = position(used_high, used_low)?;
    Ok((position(avail_high, avail_low)?, used))
}

/// All descriptors of a ring, fetched once, and what they tell.
struct Scan {
    /// In order of time, the oldest first: from where the driver stands, around the ring.
    descs: Vec<Desc>,
    /// Where the driver stood one lap before.
    start: Position,
    /// How many of them are behind the device.
    passed: u16,
}

impl Scan {
    /// `None` for a ring without descriptors, which there is none.
    fn new(mem: &PackedMem) -> Option<Self> {
        let mut descs: Vec<_> = (0..mem.size()).filter_map(|index| mem.desc(index)).collect();
        let (first, last) = (descs.first()?, descs.last()?);
        let lap = first.has(VIRTQ_DESC_F_AVAIL);
        let at_first = last.has(VIRTQ_DESC_F_AVAIL) == lap && first.has(VIRTQ_DESC_F_USED) == lap;
        let driver = match at_first {
            true => None,
            false => descs.iter().position(|desc| desc.has(VIRTQ_DESC_F_AVAIL) != lap),
        };
        let start = Position {
            index: u16::try_from(driver.unwrap_or(0)).ok()?,
            wrap: if driver.is_some() { !lap } else { lap },
        };
        descs.rotate_left(usize::from(start.index));
        let mut scan = Self {
            descs,
            start,
            passed: 0,
        };
        let mut times = (0..scan.size()).rev();
        scan.passed = times.find(|time| scan.is_used(*time)).map_or(0, |last| last + 1);
        Some(scan)
    }

    /// Whether the descriptor was used in its own lap.
    fn is_used(&self, time: u16) -> bool {
        let wrap = self.at(time).wrap;
        let desc = self.descs.get(usize::from(time));
        desc.is_some_and(|desc| desc.has(VIRTQ_DESC_F_AVAIL) == wrap && desc.has(VIRTQ_DESC_F_USED) == wrap)
    }

    fn size(&self) -> u16 {
        u16::try_from(self.descs.len()).unwrap_or(u16::MAX)
    }

    /// The position of the descriptor that is `time`-oldest; for the ring's size, where the driver stands.
    fn at(&self, time: u16) -> Position {
        self.start.advance(time, self.size())
    }

    /// Where the device goes on.
    fn next(&self) -> Position {
        self.at(self.passed)
    }

    /// Whether the device may go on at `base`: it does, or what lies between is the rest of the last used chain.
    fn confirms(&self, base: Position) -> bool {
        if base == self.next() {
            return true;
        }
        // Descriptor 0 is what front-ends name that know nothing.
        if base.index == 0 {
            return false;
        }
        let Some(time) = (self.passed..=self.size()).find(|time| self.at(*time) == base) else {
            return false;
        };
        let (before, between) = (
            self.passed.checked_sub(1),
            usize::from(self.passed)..usize::from(time),
        );
        // A descriptor that nobody ever wrote heads no chain.
        let head = before
            .and_then(|last| self.descs.get(usize::from(last)))
            .filter(|head| head.addr != 0);
        match (head, self.descs.get(between).and_then(<[_]>::split_last)) {
            (Some(head), Some((last, others))) => {
                let chained = others.iter().all(|desc| desc.has(VIRTQ_DESC_F_NEXT));
                chained && !last.has(VIRTQ_DESC_F_NEXT) && last.next == head.next
            }
            _ => false,
        }
    }

    /// Whether a driver has made all available that there is, from `base` on, but for one descriptor, which it shows last.
    fn is_filled_from(&self, base: Position) -> bool {
        let size = self.size();
        let flags = |at: Position| {
            let time = (at.index + size - self.start.index) % size;
            self.descs.get(usize::from(time)).map_or(0, |desc| desc.flags)
        };
        let is_old = |at: Position| {
            let turn = [VIRTQ_DESC_F_AVAIL, VIRTQ_DESC_F_USED].map(|bit| flags(at) & bit != 0);
            turn == [!at.wrap; 2]
        };
        let all = (0..size).map(|offset| base.advance(offset, size));
        let mut hidden = all.filter(|at| !at.is_available(flags(*at)));
        size > 1 && hidden.next().is_some_and(is_old) && hidden.next().is_none()
    }

    /// The chains that a dead back-end used and did not publish, in order, each with its time.
    fn unpublished(&self) -> Vec<(u16, Used)> {
        let mut found = Vec::new();
        let mut time = 0;
        while time < self.passed {
            let from = usize::from(time);
            let available = |desc: &&Desc| self.at(time).is_available(desc.flags);
            match self.descs.get(from).filter(available) {
                Some(_) => {
                    let used = self.whole(from);
                    found.push((time, used));
                    time += used.descs;
                }
                None => time += 1,
            }
        }
        found
    }

    /// The chains that somebody passed over, in order: those of [`Scan::unpublished`].
    ///
    /// Some may be the rest of a used chain. That is the driver's own again, which does not look at it before it writes to
    /// it, so it is harmless to mark. But for the oldest, which the driver writes to next, and perhaps now: a lone chain
    /// there comes apart from the others. It may also be of a full ring, and what the driver waits for.
    fn passed_over(&self) -> (Option<Used>, Vec<(u16, Used)>) {
        let mut chains = self.unpublished();
        let lone = match chains.as_slice() {
            [(0, first), (second, _), ..] => first.descs < *second,
            [(0, _)] => true,
            _ => false,
        };
        let lone = lone.then(|| chains.remove(0).1);
        (lone, chains)
    }

    /// Gives chains back to the driver.
    fn give_back(&self, mem: &PackedMem, chains: &[(u16, Used)]) {
        // Backwards, so that the driver sees nothing of them before the first.
        for (time, used) in chains.iter().rev() {
            super::staged::mark_behind(mem, self.at(*time), used.descs);
            mem.publish_used(self.at(*time), *used);
        }
    }

    /// Gives the oldest chain back, if the driver does not write to it: then what it writes is what stays.
    fn give_back_oldest(&self, mem: &PackedMem, oldest: Used) {
        let descs = (0..oldest.descs).zip(&self.descs).rev();
        descs.for_each(|(time, desc)| mem.mark_unless_changed(self.at(time), desc));
    }

    /// The chain from `first` on, given back with all the length it has.
    fn whole(&self, first: usize) -> Used {
        let rest = self.descs.get(first..).unwrap_or_default();
        let ends = rest.iter().position(|desc| !desc.has(VIRTQ_DESC_F_NEXT));
        let chain = rest.get(..=ends.unwrap_or(0)).unwrap_or_default();
        // The length of a table is not that of its buffers; and a buffer that is only read has no length.
        let counts = |desc: &&Desc| desc.has(VIRTQ_DESC_F_WRITE) && !desc.has(VIRTQ_DESC_F_INDIRECT);
        let len = chain.iter().filter(counts).map(|desc| desc.len);
        Used {
            id: chain.last().map_or(0, |last| last.next),
            descs: u16::try_from(chain.len()).unwrap_or(1).max(1),
            len: len.fold(0, u32::saturating_add),
        }
    }
}

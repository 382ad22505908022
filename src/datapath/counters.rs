//! What a queue counts. One burst at a time adds to it, once; anybody reads it.

use super::unsent::{Unsent, UNSENT};
use crate::sync::{AtomicU64, Ordering};

/// Names of the frame size bins, in the order of [`QueueStats::size_bins`].
pub const SIZE_BIN_NAMES: [&str; BINS] = [
    "undersize_packets",
    "size_64_packets",
    "size_65_127_packets",
    "size_128_255_packets",
    "size_256_511_packets",
    "size_512_1023_packets",
    "size_1024_1518_packets",
    "size_1519_max_packets",
];

const BINS: usize = 8;

/// A queue's counters since the port was made: they outlive rings and connections.
#[derive(Debug, Default)]
pub struct Counters {
    good_packets: AtomicU64,
    good_bytes: AtomicU64,
    multicast: AtomicU64,
    broadcast: AtomicU64,
    size_bins: [AtomicU64; BINS],
    guest_notifications: AtomicU64,
    runts: AtomicU64,
    oversize: AtomicU64,
    discarded: AtomicU64,
    invalid: AtomicU64,
    starved: AtomicU64,
    /// By [`Unsent`].
    unsent: [AtomicU64; UNSENT],
}

/// The values of [`Counters`] at one time, each exact, not all of the same moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueStats {
    /// Frames moved.
    pub good_packets: u64,
    /// Their bytes, without virtio header and checksum.
    pub good_bytes: u64,
    /// Of these, frames to a group address other than broadcast.
    pub multicast_packets: u64,
    /// Of these, frames to everybody.
    pub broadcast_packets: u64,
    /// Of these, frames per size, see [`SIZE_BIN_NAMES`].
    pub size_bins: [u64; BINS],
    /// Writes to the call eventfd.
    pub guest_notifications: u64,
    /// Buffers from the guest that hold no more than a virtio header; given back, nothing received.
    pub runts: u64,
    /// Frames larger than what they should go into: a slot of ours, or a buffer of the guest's that may not be merged.
    pub oversize: u64,
    /// Buffers that the guest sent on a queue that is started and disabled; given back unread.
    pub discarded: u64,
    /// Frames to which something was left to be done that cannot be done.
    pub invalid: u64,
    /// Polls that left frames with the guest, because there was no memory to take them.
    pub starved: u64,
    /// Frames that were to be sent and were not, see [`QueueStats::unsent`].
    unsent: [u64; UNSENT],
}

impl QueueStats {
    /// Frames that were not sent for `reason`. Those that were [too large](Self::oversize) or [invalid](Self::invalid)
    /// count there.
    pub fn unsent(&self, reason: Unsent) -> u64 {
        self.unsent.get(reason as usize).copied().unwrap_or(0)
    }

    /// These values, each put together with the same one of `other`.
    #[must_use]
    pub fn with(self, other: &Self, join: impl Fn(u64, u64) -> u64) -> Self {
        let joined = |one: &[u64], two: &[u64], at: usize| match (one.get(at), two.get(at)) {
            (Some(one), Some(two)) => join(*one, *two),
            _ => 0,
        };
        Self {
            good_packets: join(self.good_packets, other.good_packets),
            good_bytes: join(self.good_bytes, other.good_bytes),
            multicast_packets: join(self.multicast_packets, other.multicast_packets),
            broadcast_packets: join(self.broadcast_packets, other.broadcast_packets),
            size_bins: std::array::from_fn(|bin| joined(&self.size_bins, &other.size_bins, bin)),
            guest_notifications: join(self.guest_notifications, other.guest_notifications),
            runts: join(self.runts, other.runts),
            oversize: join(self.oversize, other.oversize),
            discarded: join(self.discarded, other.discarded),
            invalid: join(self.invalid, other.invalid),
            starved: join(self.starved, other.starved),
            unsent: std::array::from_fn(|reason| joined(&self.unsent, &other.unsent, reason)),
        }
    }
}

impl Counters {
    /// The values now. Never disturbs a burst.
    pub fn read(&self) -> QueueStats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        QueueStats {
            good_packets: get(&self.good_packets),
            good_bytes: get(&self.good_bytes),
            multicast_packets: get(&self.multicast),
            broadcast_packets: get(&self.broadcast),
            size_bins: std::array::from_fn(|bin| self.size_bins.get(bin).map_or(0, get)),
            guest_notifications: get(&self.guest_notifications),
            runts: get(&self.runts),
            oversize: get(&self.oversize),
            discarded: get(&self.discarded),
            invalid: get(&self.invalid),
            starved: get(&self.starved),
            unsent: std::array::from_fn(|reason| self.unsent.get(reason).map_or(0, get)),
        }
    }

    /// Adds what one burst did. Only who is inside the gate may: so loads and stores do, and no locked addition.
    #[inline]
    pub(super) fn add(&self, tally: &Tally) {
        add(&self.good_packets, tally.packets);
        add(&self.good_bytes, tally.bytes);
        for (bin, counter) in self.size_bins.iter().enumerate() {
            add(counter, (tally.size_bins >> (8 * bin)) & 0xff);
        }
        add(&self.multicast, tally.groups - tally.broadcast);
        add(&self.broadcast, tally.broadcast);
        add(&self.runts, tally.runts);
        add(&self.oversize, tally.oversize);
        add(&self.invalid, tally.invalid);
    }

    /// Counts buffers given back unread, under the gate too.
    pub(super) fn count_discarded(&self, chains: usize) {
        add(&self.discarded, chains as u64);
    }

    /// Counts frames that were not sent. Also for who stands before a closed gate, perhaps beside others: so, a locked
    /// addition.
    #[cold]
    pub(super) fn count_unsent(&self, reason: Unsent, frames: usize) {
        if let Some(counter) = self.unsent.get(reason as usize) {
            counter.fetch_add(frames as u64, Ordering::Relaxed);
        }
    }

    /// Counts a poll that left frames with the guest.
    #[cold]
    pub(super) fn count_starved(&self) {
        self.starved.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts one write to the call eventfd, under the gate too.
    pub(super) fn count_call(&self) {
        add(&self.guest_notifications, 1);
    }
}

#[inline(always)]
fn add(counter: &AtomicU64, more: u64) {
    if more != 0 {
        // Relaxed: a number with no data behind it, and with one writer, whom the gate orders after the one before.
        counter.store(
            counter.load(Ordering::Relaxed).wrapping_add(more),
            Ordering::Relaxed,
        );
    }
}

/// What one burst counts.
#[derive(Debug, Default)]
pub(super) struct Tally {
    packets: u64,
    bytes: u64,
    /// One byte per bin: a burst has far fewer than 256 frames.
    size_bins: u64,
    /// Frames to group addresses, broadcast included.
    groups: u64,
    broadcast: u64,
    pub(super) runts: u64,
    pub(super) oversize: u64,
    pub(super) invalid: u64,
}

impl Tally {
    /// Counts frames that were moved.
    #[inline(always)]
    pub(super) fn frames<'f>(&mut self, frames: impl Iterator<Item = &'f [u8]>) {
        let (mut packets, mut bytes, mut size_bins) = (0, 0, 0);
        // Frames of one size come together.
        let (mut last, mut bin) = (usize::MAX, 0);
        for frame in frames {
            packets += 1;
            bytes += frame.len() as u64;
            if frame.len() != last {
                last = frame.len();
                bin = 1 << (8 * size_bin(last));
            }
            size_bins += bin;
            if is_to_group(frame) {
                self.count_group(frame);
            }
        }
        self.packets += packets;
        self.bytes += bytes;
        self.size_bins += size_bins;
    }

    /// Counts a frame of `len` bytes that was moved and begins with these.
    pub(super) fn count(&mut self, front: &[u8], len: usize) {
        self.packets += 1;
        self.bytes += len as u64;
        self.size_bins += 1 << (8 * size_bin(len));
        if is_to_group(front) {
            self.count_group(front);
        }
    }

    #[cold]
    fn count_group(&mut self, front: &[u8]) {
        let destination = destination(front);
        self.groups += destination & 1;
        self.broadcast += u64::from(destination == BROADCAST);
    }
}

const BROADCAST: u64 = 0xffff_ffff_ffff;

/// Whether the frame's destination is a group, everybody included.
#[inline(always)]
fn is_to_group(frame: &[u8]) -> bool {
    frame.first().is_some_and(|first| first & 1 != 0)
}

/// The first six bytes as a little-endian number; 0, which is no group, for a frame too short to have them.
#[inline(always)]
fn destination(frame: &[u8]) -> u64 {
    match frame.first_chunk::<8>() {
        Some(first) => u64::from_le_bytes(*first) & BROADCAST,
        None => short_destination(frame),
    }
}

#[cold]
fn short_destination(frame: &[u8]) -> u64 {
    match frame.first_chunk::<6>() {
        Some(&[a, b, c, d, e, f]) => u64::from_le_bytes([a, b, c, d, e, f, 0, 0]),
        None => 0,
    }
}

/// Which of [`SIZE_BIN_NAMES`] a frame of `len` bytes counts in.
#[inline(always)]
fn size_bin(len: usize) -> u32 {
    match len {
        0..=64 => u32::from(len == 64),
        // 65..=127 has 7 significant bits and is bin 2; each further bit is the next bin.
        65..=1023 => usize::BITS - len.leading_zeros() - 5,
        _ => 6 + u32::from(len > 1518),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bin_edges_are_those_of_rte_vhost() {
        let rows = [
            (0, 0),
            (63, 0),
            (64, 1),
            (65, 2),
            (127, 2),
            (128, 3),
            (255, 3),
            (256, 4),
            (511, 4),
            (512, 5),
            (1023, 5),
            (1024, 6),
            (1518, 6),
            (1519, 7),
            (9216, 7),
        ];
        for (len, bin) in rows {
            assert_eq!(size_bin(len), bin, "{len} bytes");
        }
    }

    #[test]
    fn multicast_does_not_count_broadcast() {
        let counters = Counters::default();
        let mut tally = Tally::default();
        tally.frames([&[0xff; 60][..]].into_iter());
        tally.frames([&[0x01; 60][..]].into_iter());
        tally.frames([&[0x02; 60][..]].into_iter());
        tally.frames([&[0xff; 6][..]].into_iter());
        tally.frames([&[0xff; 5][..]].into_iter());
        counters.add(&tally);
        let stats = counters.read();
        assert_eq!((stats.good_packets, stats.good_bytes), (5, 191));
        assert_eq!((stats.multicast_packets, stats.broadcast_packets), (1, 2));
        assert_eq!(stats.size_bins, [5, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn a_full_burst_of_one_size_fits_its_bin() {
        let counters = Counters::default();
        let mut tally = Tally::default();
        for _ in 0..super::super::BURST {
            tally.frames([&[0; 1518][..]].into_iter());
        }
        counters.add(&tally);
        assert_eq!(counters.read().size_bins, [0, 0, 0, 0, 0, 0, 32, 0]);
    }
}

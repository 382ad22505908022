//! The device IOTLB: what a front-end has told of its IOMMU (VIRTIO_F_ACCESS_PLATFORM; vhost-user, "IOMMU support").
//!
//! Behind an IOMMU the addresses in descriptors and of rings are I/O virtual addresses. The front-end says piece by
//! piece where in its own address space they lead, and takes back what the guest unmaps. An [`Iotlb`] is that set,
//! by addresses alone; [`MemTable::behind`](super::MemTable::behind) joins it with mapped memory.

use super::addr::{FrontendAddr, GuestAddr};

/// The most translations kept for one front-end: four times what guests of a few queues use, and a table that is
/// built anew in less time than the message that changes it takes.
pub const MAX_TRANSLATIONS: usize = 8192;

/// What the device may do with memory, or wants to (`perm` of `struct vhost_iotlb_msg`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Access {
    /// Read it.
    Read = 1,
    /// Write it.
    Write = 2,
    /// Both.
    ReadWrite = 3,
}

impl Access {
    /// The access that a `perm` says, if it says one.
    pub fn from_perm(perm: u8) -> Option<Self> {
        [Self::Read, Self::Write, Self::ReadWrite]
            .into_iter()
            .find(|access| *access as u8 == perm)
    }

    /// Its `perm`.
    pub fn perm(self) -> u8 {
        self as u8
    }

    /// Whether who has this may do `wanted`.
    pub fn allows(self, wanted: Self) -> bool {
        self.perm() & wanted.perm() == wanted.perm()
    }
}

/// An address that no translation is known for which allows what the device wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Miss {
    /// The I/O virtual address.
    pub iova: GuestAddr,
    /// What the device wants to do there.
    pub access: Access,
}

/// A run of I/O virtual addresses, of one or more, which may end with the last there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IovaRange {
    first: u64,
    last: u64,
}

impl IovaRange {
    /// The `size` addresses from `first` on, or `None` if they are none or wrap around.
    pub fn new(first: GuestAddr, size: u64) -> Option<Self> {
        let last = first.0.checked_add(size.checked_sub(1)?)?;
        Some(Self { first: first.0, last })
    }

    /// All addresses.
    pub const ALL: Self = Self {
        first: 0,
        last: u64::MAX,
    };

    /// The first address.
    pub fn first(self) -> GuestAddr {
        GuestAddr(self.first)
    }

    /// How many they are, which for all there are is one too few.
    pub fn size(self) -> u64 {
        (self.last - self.first).saturating_add(1)
    }

    /// Whether `addr` is one of them.
    pub fn contains(self, addr: GuestAddr) -> bool {
        (self.first..=self.last).contains(&addr.0)
    }

    /// Whether any address is in both.
    pub fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

/// Where a run of addresses leads: to as many of the front-end's own, from `target` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// The addresses.
    pub iova: IovaRange,
    /// Where the first of them leads.
    pub target: FrontendAddr,
    /// What the device may do there.
    pub access: Access,
}

impl Translation {
    /// The translation that is the part of this one within `first..=last`, which lies in it.
    fn part(&self, first: u64, last: u64) -> Self {
        Self {
            iova: IovaRange { first, last },
            target: FrontendAddr(self.target.0.wrapping_add(first - self.iova.first)),
            ..*self
        }
    }

    /// Addresses less one.
    pub(super) fn extent(&self) -> u64 {
        self.iova.last - self.iova.first
    }

    /// Whether `next` goes on where this one ends, in both spaces and with the same access.
    fn continues_in(&self, next: &Self) -> bool {
        self.access == next.access
            && self.iova.last.checked_add(1) == Some(next.iova.first)
            && self
                .target
                .0
                .checked_add(self.extent())
                .and_then(|last| last.checked_add(1))
                == Some(next.target.0)
    }
}

/// Translations, by address: no two overlap, and none that could be one are two.
#[derive(Clone, Debug, Default)]
pub struct Iotlb {
    entries: Vec<Translation>,
}

impl Iotlb {
    /// The translations, by address.
    pub fn translations(&self) -> &[Translation] {
        &self.entries
    }

    /// Adds a translation, in place of what its addresses led to before.
    ///
    /// If there are [`MAX_TRANSLATIONS`], every other one is forgotten, except those that `keep` names: what was
    /// forgotten is a miss when it is next used.
    pub fn update(&mut self, new: Translation, keep: &[IovaRange]) {
        self.invalidate(new.iova);
        if self.entries.len() >= MAX_TRANSLATIONS {
            self.thin(keep);
        }
        let at = self.above(new.iova.first);
        self.entries.insert(at, new);
        self.join(at);
        if let Some(before) = at.checked_sub(1) {
            self.join(before);
        }
    }

    /// Forgets what these addresses lead to, and nothing else.
    pub fn invalidate(&mut self, range: IovaRange) {
        let from = self
            .entries
            .partition_point(|entry| entry.iova.last < range.first);
        let to = self.above(range.last).max(from);
        let mut rest = [None; 2];
        if let Some(entry) = self.entries.get(from).filter(|_| from < to) {
            if entry.iova.first < range.first {
                rest[0] = Some(entry.part(entry.iova.first, range.first - 1));
            }
        }
        if let Some(entry) = to
            .checked_sub(1)
            .and_then(|last| self.entries.get(last))
            .filter(|_| from < to)
        {
            if entry.iova.last > range.last {
                rest[1] = Some(entry.part(range.last + 1, entry.iova.last));
            }
        }
        self.entries.splice(from..to, rest.into_iter().flatten());
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.entries.clear();
    }

    /// How many entries begin at or before `iova`.
    fn above(&self, iova: u64) -> usize {
        self.entries.partition_point(|entry| entry.iova.first <= iova)
    }

    /// Makes entry `at` and the one behind it one, if they are.
    fn join(&mut self, at: usize) {
        let Some([low, high]) = self.entries.get_mut(at..).and_then(|rest| rest.first_chunk_mut()) else {
            return;
        };
        if low.continues_in(high) {
            low.iova.last = high.iova.last;
            self.entries.remove(at + 1);
        }
    }

    fn thin(&mut self, keep: &[IovaRange]) {
        let mut odd = false;
        self.entries.retain(|entry| {
            odd = !odd;
            odd || keep.iter().any(|range| range.overlaps(entry.iova))
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::effort;

    /// Address by address: where it leads, and how.
    type Naive = Vec<Option<(u64, Access)>>;

    fn range(first: u64, size: u64) -> IovaRange {
        IovaRange::new(GuestAddr(first), size).unwrap()
    }

    fn translation(first: u64, size: u64, target: u64, access: Access) -> Translation {
        Translation {
            iova: range(first, size),
            target: FrontendAddr(target),
            access,
        }
    }

    fn flat(iotlb: &Iotlb, addresses: u64) -> Naive {
        let mut naive = vec![None; usize::try_from(addresses).unwrap()];
        for entry in iotlb.translations() {
            for iova in entry.iova.first..=entry.iova.last {
                let old = naive[usize::try_from(iova).unwrap()]
                    .replace((entry.target.0 + iova - entry.iova.first, entry.access));
                assert_eq!(old, None, "{iova} is there twice");
            }
        }
        naive
    }

    fn is_minimal(iotlb: &Iotlb) -> bool {
        let entries = iotlb.translations();
        entries
            .windows(2)
            .all(|pair| pair[0].iova.last < pair[1].iova.first && !pair[0].continues_in(&pair[1]))
    }

    /// A generator of numbers below a bound, the same each time.
    fn dice(seed: u64) -> impl FnMut(u64) -> u64 {
        let mut state = seed;
        move |below| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        }
    }

    #[test]
    fn any_updates_and_invalidates_leave_what_a_table_of_single_addresses_has() {
        const ADDRESSES: u64 = 200;
        let mut roll = dice(1);
        let accesses = [Access::Read, Access::Write, Access::ReadWrite];
        for _ in 0..effort::of(300, 1) {
            let mut iotlb = Iotlb::default();
            let mut naive: Naive = vec![None; 200];
            for _ in 0..60 {
                let first = roll(ADDRESSES);
                let size = 1 + roll((ADDRESSES - first).min(40));
                // Few targets, so that neighbours often go on where others end.
                let (target, access) = (
                    1000 + first + 300 * roll(2),
                    accesses[usize::try_from(roll(3)).unwrap()],
                );
                let update = roll(3) > 0;
                match update {
                    true => iotlb.update(translation(first, size, target, access), &[]),
                    false => iotlb.invalidate(range(first, size)),
                }
                for iova in first..first + size {
                    naive[usize::try_from(iova).unwrap()] = update.then_some((target + iova - first, access));
                }
                assert_eq!(flat(&iotlb, ADDRESSES), naive);
                assert!(is_minimal(&iotlb), "{:?}", iotlb.translations());
            }
        }
    }

    #[test]
    fn adjacent_pages_become_one_only_if_target_and_access_go_on_too() {
        let mut iotlb = Iotlb::default();
        iotlb.update(translation(0x2000, 0x1000, 0x7000, Access::ReadWrite), &[]);
        iotlb.update(translation(0x1000, 0x1000, 0x6000, Access::ReadWrite), &[]);
        assert_eq!(
            iotlb.translations(),
            [translation(0x1000, 0x2000, 0x6000, Access::ReadWrite)]
        );
        iotlb.update(translation(0x3000, 0x1000, 0x9000, Access::ReadWrite), &[]);
        iotlb.update(translation(0x0, 0x1000, 0x5000, Access::Read), &[]);
        assert_eq!(iotlb.translations().len(), 3);
    }

    #[test]
    fn an_invalidate_in_the_middle_leaves_both_ends() {
        let mut iotlb = Iotlb::default();
        iotlb.update(translation(0x1000, 0x3000, 0x6000, Access::Read), &[]);
        iotlb.invalidate(range(0x2000, 0x1000));
        assert_eq!(
            iotlb.translations(),
            [
                translation(0x1000, 0x1000, 0x6000, Access::Read),
                translation(0x3000, 0x1000, 0x8000, Access::Read)
            ]
        );
        iotlb.invalidate(IovaRange::ALL);
        assert_eq!(iotlb.translations(), []);
    }

    #[test]
    fn ranges_reach_the_last_address_and_never_wrap() {
        let top = IovaRange::new(GuestAddr(u64::MAX - 0xfff), 0x1000).unwrap();
        assert!(top.contains(GuestAddr(u64::MAX)));
        for (first, size) in [(0, 0), (u64::MAX, 2), (1, u64::MAX), (u64::MAX, u64::MAX)]
            .into_iter()
            .filter(|(first, size)| (*first, *size) != (1, u64::MAX))
        {
            assert_eq!(
                IovaRange::new(GuestAddr(first), size),
                None,
                "{size} at {first:#x}"
            );
        }
        let mut iotlb = Iotlb::default();
        iotlb.update(
            Translation {
                iova: top,
                target: FrontendAddr(0x1000),
                access: Access::Read,
            },
            &[],
        );
        iotlb.invalidate(range(u64::MAX, 1));
        assert_eq!(iotlb.translations().len(), 1);
        iotlb.invalidate(top);
        assert_eq!(iotlb.translations(), []);
    }

    #[test]
    #[cfg_attr(miri, ignore = "thousands of steps that are all the same")]
    fn a_full_table_forgets_half_but_never_what_is_to_be_kept() {
        let mut iotlb = Iotlb::default();
        // Every other page, so that no two join.
        let page = |n: u64| translation(n * 0x2000, 0x1000, 0x10_0000 + n * 0x5000, Access::Read);
        let kept = [range(0x2000, 8), range(0x6ffc, 0x2000)];
        for n in 0..MAX_TRANSLATIONS as u64 {
            iotlb.update(page(n), &kept);
        }
        assert_eq!(iotlb.translations().len(), MAX_TRANSLATIONS);
        iotlb.update(page(1 << 20), &kept);
        let len = iotlb.translations().len();
        assert!(
            (MAX_TRANSLATIONS / 2..MAX_TRANSLATIONS / 2 + 4).contains(&len),
            "{len}"
        );
        for n in [1, 3, 1 << 20] {
            assert!(iotlb.translations().contains(&page(n)), "{n}");
        }
    }

    #[test]
    fn access_is_what_the_wire_says() {
        assert_eq!(
            [0, 1, 2, 3, 4].map(Access::from_perm),
            [
                None,
                Some(Access::Read),
                Some(Access::Write),
                Some(Access::ReadWrite),
                None
            ]
        );
        assert!(Access::ReadWrite.allows(Access::Write) && Access::Read.allows(Access::Read));
        assert!(!Access::Read.allows(Access::Write) && !Access::Write.allows(Access::ReadWrite));
    }
}

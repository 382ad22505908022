//! What a device knows of its front-end's IOMMU: the translations it was told, and what it has asked and not heard yet.
//! Pure: what is to be said on the back-end channel and in the log is collected here, and taken by who can say it.

use std::collections::{BTreeMap, BTreeSet};

use crate::memory::{GuestAddr, Iotlb, IovaRange, MemTable, Miss, Translation};
use crate::vhost_user::BackendRequest;
use crate::virtio::ring::Area;

/// Questions that may be open at a time. Each is answered within a round trip, and what they take to send fits the
/// channel's output, so that only a front-end that does not read can fill it.
const MAX_OPEN: usize = 64;
/// Questions remembered, those in vain included.
const MAX_ASKED: usize = 1024;
/// Pages are what is asked for; no IOMMU of a guest knows smaller ones.
const PAGE: u64 = 4096;
/// Lines for the log, of one start of the device.
const MAX_NOTES: usize = 16;

/// How often a translation is asked for that the front-end does not have. More than once, since what a question is about
/// may be mapped anew while it is on its way.
const TRIES: u32 = 3;

/// What became of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    /// The front-end has yet to say; so the question's number, and how often it was asked before.
    Open(u64, u32),
    /// There was no such translation, so many times.
    Failed(u32),
    /// There is no such translation, or none that allows this. Not asked again before that may have changed.
    InVain,
}

impl Asked {
    fn is_open(self) -> bool {
        matches!(self, Asked::Open(..))
    }
}

/// One front-end's IOMMU.
#[derive(Default)]
pub(super) struct Iommu {
    iotlb: Iotlb,
    /// By page and access.
    asked: BTreeMap<Miss, Asked>,
    /// The number of the next question.
    next: u64,
    outgoing: Vec<BackendRequest>,
    notes: Vec<String>,
    /// What was said in the log, so that it is said once.
    said: BTreeSet<String>,
}

impl Iommu {
    pub(super) fn iotlb(&self) -> &Iotlb {
        &self.iotlb
    }

    /// Asks where an address leads, unless that was asked already. False: not now, too many questions are open.
    pub(super) fn ask(&mut self, miss: Miss) -> bool {
        let page = Miss {
            iova: GuestAddr(miss.iova.0 & !(PAGE - 1)),
            ..miss
        };
        let before = match self.asked.get(&page) {
            None => 0,
            Some(Asked::Failed(TRIES)) => {
                self.asked.insert(page, Asked::InVain);
                let (iova, access) = (page.iova.0, page.access);
                self.note(format!(
                    "IOMMU: the front-end has no translation of {iova:#x} for {access:?}, which a vring waits for"
                ));
                return true;
            }
            Some(Asked::Failed(times)) => *times,
            Some(Asked::Open(..) | Asked::InVain) => return true,
        };
        if self.open() >= MAX_OPEN {
            return false;
        }
        if self.asked.len() >= MAX_ASKED {
            self.asked.retain(|_, state| state.is_open());
        }
        self.asked.insert(page, Asked::Open(self.next, before));
        self.outgoing.push(BackendRequest::IotlbMiss(page, self.next));
        self.next += 1;
        true
    }

    /// Asks for what is missing of the areas of a ring, and says whether anything is.
    pub(super) fn ask_for_ring(&mut self, mem: &MemTable, areas: &[Area]) -> bool {
        let mut missing = false;
        for area in areas {
            let (mut at, mut left) = (GuestAddr(area.addr.0), area.bytes);
            while let Some(iova) = mem.first_miss(at, left, area.access) {
                missing = true;
                let access = area.access;
                let next = (iova.0 | (PAGE - 1)).checked_add(1);
                let passed = next.and_then(|next| u32::try_from(next - at.0).ok());
                if !self.ask(Miss { iova, access }) {
                    break;
                }
                let Some(passed) = passed.filter(|passed| *passed < left) else {
                    break;
                };
                (at, left) = (GuestAddr(at.0 + u64::from(passed)), left - passed);
            }
        }
        missing
    }

    /// Whether there is room for a good number of questions.
    pub(super) fn has_room(&self) -> bool {
        self.open() <= MAX_OPEN / 2
    }

    /// The front-end tells a translation; `keep` are addresses that it must not cost their own.
    pub(super) fn update(&mut self, translation: Translation, keep: &[IovaRange]) {
        self.iotlb.update(translation, keep);
        let told = |page: &Miss| translation.iova.contains(page.iova);
        let refused: Vec<Miss> = self
            .asked
            .iter()
            .filter(|(page, state)| state.is_open() && told(page) && !translation.access.allows(page.access))
            .map(|(page, _)| *page)
            .collect();
        self.asked
            .retain(|page, _| !(told(page) && translation.access.allows(page.access)));
        for page in refused {
            self.asked.insert(page, Asked::InVain);
            self.outgoing.push(BackendRequest::IotlbAccessFail(page));
            let (iova, access) = (page.iova.0, page.access);
            self.note(format!(
                "IOMMU: the guest gave its device {iova:#x} for {access:?}, which its page tables do not allow"
            ));
        }
    }

    /// The front-end takes translations back.
    pub(super) fn invalidate(&mut self, range: IovaRange) {
        self.iotlb.invalidate(range);
        self.asked.retain(|page, state| {
            let page = IovaRange::new(page.iova, PAGE);
            // An open question stays one: its answer is on the way, or will say that there is none.
            state.is_open() || !page.is_some_and(|page| page.overlaps(range))
        });
    }

    /// The front-end has answered a question. A translation came before its answer: there is none, if the question is
    /// still open. It may be asked again, if there is still need.
    pub(super) fn answered(&mut self, request: BackendRequest) {
        let BackendRequest::IotlbMiss(page, number) = request else {
            return;
        };
        if let Some(state) = self.asked.get_mut(&page) {
            match *state {
                Asked::Open(open, before) if open == number => *state = Asked::Failed(before + 1),
                _ => {}
            }
        }
    }

    /// Questions in vain may be asked again: a driver started anew.
    pub(super) fn forgive(&mut self) {
        self.asked.retain(|_, state| state.is_open());
    }

    /// Questions were lost with their channel.
    pub(super) fn forget_questions(&mut self) {
        self.asked.clear();
        self.outgoing.clear();
    }

    /// The device stops, or is no more behind an IOMMU. Nobody tells of what changes from here on.
    pub(super) fn clear(&mut self) {
        self.iotlb.clear();
        self.said.clear();
        self.forget_questions();
    }

    /// What is to be said on the back-end channel.
    pub(super) fn take_outgoing(&mut self) -> Vec<BackendRequest> {
        std::mem::take(&mut self.outgoing)
    }

    /// What is to be said in the log.
    pub(super) fn take_notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }

    pub(super) fn note(&mut self, text: String) {
        if self.said.len() < MAX_NOTES && self.said.insert(text.clone()) {
            self.notes.push(text);
        }
    }

    fn open(&self) -> usize {
        self.asked.values().filter(|state| state.is_open()).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{Access, FrontendAddr};

    fn miss(iova: u64, access: Access) -> Miss {
        Miss {
            iova: GuestAddr(iova),
            access,
        }
    }

    fn update(iommu: &mut Iommu, iova: u64, access: Access) {
        let translation = Translation {
            iova: IovaRange::new(GuestAddr(iova), PAGE).unwrap(),
            target: FrontendAddr(0x7f00_0000_0000),
            access,
        };
        iommu.update(translation, &[]);
    }

    /// The questions among what is to be said.
    fn questions(iommu: &mut Iommu) -> Vec<BackendRequest> {
        let mut all = iommu.take_outgoing();
        all.retain(|request| matches!(request, BackendRequest::IotlbMiss(..)));
        all
    }

    #[test]
    fn a_page_is_asked_for_once_until_it_was_told() {
        let mut iommu = Iommu::default();
        assert!(iommu.ask(miss(0x1234, Access::Read)));
        assert!(iommu.ask(miss(0x1fff, Access::Read)));
        let page = miss(0x1000, Access::Read);
        assert_eq!(iommu.take_outgoing(), [BackendRequest::IotlbMiss(page, 0)]);
        update(&mut iommu, 0x1000, Access::Read);
        assert!(iommu.ask(miss(0x1234, Access::Read)));
        assert_eq!(iommu.take_outgoing(), [BackendRequest::IotlbMiss(page, 1)]);
    }

    #[test]
    fn a_question_in_vain_is_asked_a_few_times_and_then_only_after_an_invalidate_or_a_new_start() {
        let again: [fn(&mut Iommu); 2] = [|iommu| iommu.invalidate(IovaRange::ALL), Iommu::forgive];
        for change in again {
            let mut iommu = Iommu::default();
            let page = miss(0x5000, Access::Write);
            for _ in 0..TRIES {
                assert!(iommu.ask(page) && iommu.ask(page));
                let asked = questions(&mut iommu);
                assert_eq!(asked.len(), 1);
                iommu.answered(asked[0]);
                assert!(iommu.take_notes().is_empty());
            }
            for _ in 0..3 {
                assert!(iommu.ask(page) && iommu.take_outgoing().is_empty());
            }
            assert_eq!(iommu.take_notes().len(), 1);
            change(&mut iommu);
            assert!(iommu.ask(page) && iommu.take_outgoing().len() == 1);
        }
    }

    #[test]
    fn the_late_answer_to_a_question_says_nothing_of_the_next_one() {
        let mut iommu = Iommu::default();
        let page = miss(0x5000, Access::Write);
        assert!(iommu.ask(page));
        let first = questions(&mut iommu);
        update(&mut iommu, 0x5000, Access::Write);
        iommu.invalidate(IovaRange::ALL);
        assert!(iommu.ask(page));
        assert_eq!(questions(&mut iommu).len(), 1);
        iommu.answered(first[0]);
        assert!(iommu.ask(page) && iommu.take_outgoing().is_empty());
    }

    #[test]
    fn a_translation_that_does_not_allow_what_was_asked_is_complained_of_once() {
        let mut iommu = Iommu::default();
        let page = miss(0x5000, Access::Write);
        assert!(iommu.ask(page));
        let asked = questions(&mut iommu);
        for _ in 0..3 {
            update(&mut iommu, 0x5000, Access::Read);
            assert!(iommu.ask(page));
        }
        assert_eq!(iommu.take_outgoing(), [BackendRequest::IotlbAccessFail(page)]);
        assert_eq!(iommu.take_notes().len(), 1);
        // The front-end's answer to the question itself comes last, and changes nothing.
        iommu.answered(asked[0]);
        assert!(iommu.ask(page) && iommu.take_outgoing().is_empty());
        update(&mut iommu, 0x5000, Access::ReadWrite);
        assert!(iommu.ask(page) && iommu.take_outgoing().len() == 1);
    }

    #[test]
    fn few_questions_are_open_at_a_time_and_few_remembered() {
        let mut iommu = Iommu::default();
        let pages = || (0..).map(|n| miss(n * PAGE, Access::Read));
        assert_eq!(pages().take_while(|page| iommu.ask(*page)).count(), MAX_OPEN);
        assert!(!iommu.has_room());
        for page in pages().skip(MAX_OPEN).take(4 * MAX_ASKED) {
            for request in iommu.take_outgoing() {
                iommu.answered(request);
            }
            iommu.ask(page);
        }
        assert!(iommu.asked.len() <= MAX_ASKED, "{}", iommu.asked.len());
        assert!(iommu.notes.len() <= MAX_NOTES);
    }
}

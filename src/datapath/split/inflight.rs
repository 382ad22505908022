//! What a split ring keeps for the back-end after this one (vhost-user, "Inflight I/O tracking", `QueueRegionSplit`).
//!
//! Every burst gives back what it takes, so no chain is ever in flight when a burst ends, and one that dies within a burst has
//! taken nothing: the used index, which one store publishes, is the truth. It is repeated here because the specification
//! says so. What another back-end left in flight is given back unused: buffers to receive into have nothing in them, and
//! frames to send are lost, as frames may be; no buffer is.

use crate::datapath::config::Found;
use crate::memory::InflightQueue;
use crate::virtio::chain::DescRing;
use crate::virtio::ring::SplitMem;

/// Fields of the part.
const LAST_BATCH_HEAD: usize = 12;
const USED_IDX: usize = 14;
/// Its descriptor states, and the fields of each.
const STATES: usize = 16;
const STATE: usize = 16;
const INFLIGHT: usize = 0;
const NEXT: usize = 6;
const COUNTER: usize = 8;

/// A split ring's part of the in-flight buffer.
pub(super) struct Track(InflightQueue);

impl Track {
    /// Keeps a part that this process kept before, of a ring at rest.
    pub(super) fn go_on(part: InflightQueue) -> Self {
        Self(part)
    }

    /// Takes over a part, of which little is true if the back-end before died. After it the used index of `mem` says
    /// where to go on.
    pub(super) fn attach(part: InflightQueue, mem: &SplitMem, found: &mut Vec<Found>) -> Self {
        let track = Self(part);
        if track.0.is_initialized() {
            track.forget_last_batch(mem.used_idx());
            track.give_back(mem, found);
        }
        track.published(mem.used_idx());
        track.0.initialize();
        track
    }

    /// The used index was published.
    #[inline(always)]
    pub(super) fn published(&self, used_idx: u16) {
        self.0.store_u16(USED_IDX, used_idx);
    }

    /// The chains that were published last may still be marked: from the index kept here to the one in the ring.
    fn forget_last_batch(&self, used_idx: u16) {
        let batch = used_idx.wrapping_sub(self.0.load_u16(USED_IDX));
        let mut head = self.0.load_u16(LAST_BATCH_HEAD);
        for _ in 0..batch.min(self.0.entries()) {
            if head >= self.0.entries() {
                break;
            }
            self.0.store_u8(state(head) + INFLIGHT, 0);
            head = self.0.load_u16(state(head) + NEXT);
        }
        self.published(used_idx);
    }

    /// Gives back, in the order in which they were taken, the chains that are still marked.
    fn give_back(&self, mem: &SplitMem, found: &mut Vec<Found>) {
        let mut heads: Vec<(u64, u16)> = (0..mem.size())
            .filter(|head| self.0.load_u8(state(*head) + INFLIGHT) == 1)
            .map(|head| (self.0.load_u64(state(head) + COUNTER), head))
            .collect();
        heads.sort_unstable();
        let mut used_idx = mem.used_idx();
        for (_, head) in &heads {
            self.0
                .store_u16(state(*head) + NEXT, self.0.load_u16(LAST_BATCH_HEAD));
            self.0.store_u16(LAST_BATCH_HEAD, *head);
            mem.write_used(used_idx, *head, 0);
            used_idx = used_idx.wrapping_add(1);
        }
        if !heads.is_empty() {
            found.push(Found::InFlight(heads.len()));
            mem.publish_used(used_idx);
        }
        for (_, head) in heads {
            self.0.store_u8(state(head) + INFLIGHT, 0);
        }
    }
}

/// Where the state of the chain `head` is; beyond the part's end for a head that it does not have.
fn state(head: u16) -> usize {
    STATES + STATE * usize::from(head)
}

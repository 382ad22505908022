//! Does the driver want a call? (VIRTIO 1.2, 2.7.7 and 2.7.10)

use super::desc::VIRTQ_AVAIL_F_NO_INTERRUPT;
use super::ring::SplitMem;
use crate::memory::cpu;

/// Whether an index that moved from `old` to `new` passed `event`, all of them free-running.
#[inline]
pub fn need_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

/// Whether the driver wants to hear that used.idx was published, from `old` to `new`.
#[inline]
pub fn driver_wants_call<const EVENT_IDX: bool>(ring: &SplitMem, old: u16, new: u16) -> bool {
    // Pairs with the driver's barrier between writing its wish and looking at used.idx once more:
    // either it sees our index, or we see its wish.
    cpu::full_barrier();
    if EVENT_IDX {
        need_event(ring.used_event(), new, old)
    } else {
        ring.avail_flags() & VIRTQ_AVAIL_F_NO_INTERRUPT == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_needed_only_when_the_index_passes_it() {
        // (event, old, new, needed)
        let rows = [
            (5, 5, 6, true),
            (5, 4, 5, false),
            (5, 6, 9, false),
            (5, 0, 32, true),
            (31, 0, 32, true),
            (32, 0, 32, false),
            (0xffff, 0xfffe, 2, true),
            (1, 0xfffe, 2, true),
            (2, 0xfffe, 2, false),
            (7, 7, 7, false),
        ];
        for (event, old, new, needed) in rows {
            assert_eq!(
                need_event(event, new, old),
                needed,
                "event {event} old {old} new {new}"
            );
        }
    }
}

//! Does the driver want a call? (VIRTIO 1.2, 2.7.7, 2.7.10 and 2.8.10)

use super::chain::DescRing;
use super::desc::VIRTQ_AVAIL_F_NO_INTERRUPT;
use super::packed_ring::{
    Event, PackedMem, Position, RING_EVENT_FLAGS, RING_EVENT_FLAGS_DESC, RING_EVENT_FLAGS_DISABLE,
};
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

/// Whether the driver of a packed ring wants to hear that `descs` descriptors, more than none, were given back, after
/// which the device is at `now`.
#[inline]
pub fn packed_driver_wants_call<const EVENT_IDX: bool>(ring: &PackedMem, descs: u16, now: Position) -> bool {
    // Pairs with the driver's barrier between writing its wish and looking at the next descriptor once more.
    cpu::full_barrier();
    let event = ring.driver_event();
    match event.flags & RING_EVENT_FLAGS {
        RING_EVENT_FLAGS_DISABLE => false,
        RING_EVENT_FLAGS_DESC if EVENT_IDX => passed(event, descs, now, ring.size()),
        // Enabled, or nothing the driver may say: a call too many does no harm.
        _ => true,
    }
}

/// Whether the descriptor that `event` names is one of the `descs` before `now`.
fn passed(event: Event, descs: u16, now: Position, size: u16) -> bool {
    let index = event.desc & 0x7fff;
    let lap_before = (event.desc >> 15 != 0) != now.wrap;
    let behind = i32::from(now.index) - i32::from(index) + if lap_before { i32::from(size) } else { 0 };
    (1..=i32::from(descs)).contains(&behind)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::effort;

    #[test]
    fn a_packed_event_is_passed_also_across_the_end_of_the_ring() {
        // In a ring of 10: (event, descriptors, now, passed); bit 15 is the wrap counter.
        let rows = [
            (0x8003, 1, 0x8004, true),
            (0x8003, 4, 0x8007, true),
            (0x8003, 3, 0x8007, false),
            (0x8004, 4, 0x8004, false),
            (0x8005, 4, 0x8004, false),
            // One lap on, from counter 1 to 0.
            (0x8009, 1, 0x0000, true),
            (0x8009, 3, 0x0002, true),
            (0x8008, 3, 0x0002, false),
            (0x0001, 3, 0x0002, true),
            (0x0002, 3, 0x0002, false),
            // A whole ring at once.
            (0x8002, 10, 0x0002, true),
            (0x0001, 10, 0x0002, true),
            // No index of this ring.
            (0xffff, 10, 0x0002, false),
        ];
        for (desc, descs, now, wanted) in rows {
            let now = Position::from_bits(now, 10).unwrap();
            let event = Event { desc, flags: 2 };
            assert_eq!(passed(event, descs, now, 10), wanted, "{desc:#x} {descs} {now:?}");
        }
    }

    #[test]
    fn a_packed_event_is_passed_when_a_step_is_on_it_in_every_small_ring() {
        for size in 1..=effort::of(12_u16, 4) {
            let at = |count: u16| Position {
                index: count % size,
                wrap: (count / size) % 2 == 0,
            };
            for (from, descs) in (0..2 * size).flat_map(|from| (1..=size).map(move |descs| (from, descs))) {
                for event in 0..2 * size {
                    // Step by step: was the device at the event before one of its steps?
                    let stepped = (from..from + descs).any(|count| at(count) == at(event));
                    let named = Event {
                        desc: at(event).bits(),
                        flags: RING_EVENT_FLAGS_DESC,
                    };
                    let now = at(from + descs);
                    assert_eq!(
                        passed(named, descs, now, size),
                        stepped,
                        "{from}+{descs} {event} of {size}"
                    );
                }
            }
        }
    }

    #[test]
    fn an_event_is_needed_when_a_step_is_on_it_wherever_the_index_wraps() {
        for old in [0_u16, 1, 0x7fff, 0x8000, 0xffc0, 0xffff] {
            for steps in (0..=effort::of(40, 2)).chain([255, 256, 32768]) {
                let new = old.wrapping_add(steps);
                for event in (0..=u16::MAX).step_by(effort::of(1, 1021)) {
                    // The event is one of the values that the index had before a step.
                    let stepped = event.wrapping_sub(old) < steps;
                    assert_eq!(need_event(event, new, old), stepped, "{event} {new} {old}");
                }
            }
        }
    }

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

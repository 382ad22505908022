//! Guests at odds with an operator: they run with features that are kept back now, and cannot be offered less before they
//! are started anew. What is said of them, in the log and in `status`.

use crate::virtio::features::Features;

use super::offer::KeptBack;

/// A front-end left without having taken any features. Of a guest that has acknowledged more than it is offered now, QEMU
/// says no more than this. `before` is what the port's last guest took.
pub(super) fn of_one_that_left(kept_back: KeptBack, before: Features) -> Option<String> {
    let running = before & kept_back.features;
    if running != Features::NONE {
        return Some(format!(
            "the front-end left when it had seen what is offered: its guest runs with {}, {REMEDY}",
            running.names()
        ));
    }
    (kept_back != KeptBack::default()).then(|| {
        format!(
            "the front-end left when it had seen what is offered; if its guest runs with {kept_back}, {REMEDY}"
        )
    })
}

/// A front-end took features that it was not offered.
pub(super) fn of_one_that_insists(kept_back: KeptBack, excess: Features) -> Option<String> {
    let running = excess & kept_back.features;
    (running != Features::NONE).then(|| format!("the guest runs with {}, {REMEDY}", running.names()))
}

const REMEDY: &str =
    "kept back by the port's options: it must be restarted, or the options changed and it connected anew";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::features::{VIRTIO_F_IN_ORDER, VIRTIO_F_RING_PACKED};

    #[test]
    fn what_a_guest_runs_with_and_is_not_offered_is_named_and_nothing_else() {
        let kept_back = KeptBack {
            features: VIRTIO_F_RING_PACKED,
            ..KeptBack::default()
        };
        let both = VIRTIO_F_RING_PACKED | VIRTIO_F_IN_ORDER;
        let names =
            |text: Option<String>| text.is_some_and(|t| t.contains("runs with VIRTIO_F_RING_PACKED, kept"));
        assert!(names(of_one_that_insists(kept_back, both)));
        assert!(names(of_one_that_left(kept_back, both)));
        assert!(names(of_one_that_left(kept_back, Features::NONE)), "it may be");
        assert_eq!(of_one_that_insists(kept_back, VIRTIO_F_IN_ORDER), None);
        assert_eq!(of_one_that_left(KeptBack::default(), both), None);
    }
}

//! Why a frame did not reach the driver. Each that a queue is given is sent, or has one of these reasons, or is too large or
//! invalid by itself, which is found and counted where it is looked at.

/// How many reasons there are.
pub(super) const UNSENT: usize = 5;

/// Why a queue did not send a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsent {
    /// No ring runs, or it is disabled, or the control thread was changing it.
    Disabled,
    /// The driver broke the ring before.
    Broken,
    /// The driver had no buffers, or not enough for it.
    Full,
    /// The driver broke the ring just now: what it made available breaks the rules.
    Malformed,
    /// Behind an IOMMU: the buffer's address is not known yet.
    Missing,
}

// The last one counts too.
const _: () = assert!(Unsent::Missing as usize + 1 == UNSENT);

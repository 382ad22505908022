//! An attacker against a real switch, with innocent traffic on the same poll thread.
//!
//! * `arena`: the switch, the attacked port, and what must be so after each attack; `innocent`: the traffic beside it;
//!   `usage`: what the switch holds.
//! * `guest`: a guest with canaries around its memory; `plan`: what its front-end says, said over a `wire`; `layout`: what its rings
//!   differ in; `dirty_log`: what it lends for a migration; `iotlb`: what is said of its IOMMU; `attacker`: all of that together.
//! * `messages`, `memory`, `rings` with `frames` and `offload`, `live`, `exhaustion`: the attacks, a table in each.
//! * `behind_iommu`: those in rings once more, behind an IOMMU, with `translations` and `answers`, which exist only there.

mod answers;
mod arena;
mod attacker;
mod behind_iommu;
pub mod dirty_log;
mod exhaustion;
mod frames;
pub mod guest;
pub mod innocent;
mod iotlb;
mod layout;
mod live;
mod memory;
mod messages;
mod offload;
pub mod plan;
mod rings;
mod translations;

pub use behind_iommu::{packed as iommu_packed, split as iommu_split};
pub use exhaustion::nothing_stays as exhaustion;
pub use live::changes as live_changes;
pub use memory::refused as memory;
pub use messages::refused as messages;
pub use rings::{packed as rings_packed, split as rings_split};

//! Guest memory: addresses, regions, and the only ways to touch guest bytes.
//!
//! A front-end hands over files and says where in the guest's and in its own address space they belong.
//! [`Region`] maps one, [`MemTable`] is the immutable set of them, [`Cursor`] translates, and what comes
//! out is a [`GuestSlice`]: bytes that are mapped, and that the guest may change at any time. Nothing
//! here ever makes a Rust reference to them. What is written while a guest moves goes into a [`DirtyLog`]; a
//! [`Userfault`] makes who touches a page that has not arrived yet wait for it; one that is taken away is [lost](MemTable::is_lost).

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )
)]

mod addr;
mod backing;
mod copy;
pub(crate) mod cpu;
pub(crate) mod crash;
mod cursor;
mod dirty_log;
mod error;
mod inflight;
mod iotlb;
mod lost;
mod mapping;
pub(crate) mod meddle;
mod numa;
#[cfg_attr(miri, path = "pages_miri.rs")]
mod pages;
mod region;
mod stitch;
mod table;
mod userfault;
mod write_log;

pub use addr::{FrontendAddr, GuestAddr};
pub use backing::Backing;
pub use copy::GuestSlice;
pub use cursor::{Cursor, Unmapped};
pub use dirty_log::{DirtyLog, LogError, LOG_PAGE, MAX_LOG_BYTES};
pub use error::MemError;
pub use inflight::{InflightDesc, InflightError, InflightLayout, InflightMem, InflightQueue};
pub use iotlb::{Access, Iotlb, IovaRange, Miss, Translation, MAX_TRANSLATIONS};
pub use lost::news as lost_news;
pub use mapping::Mapping;
#[cfg(any(test, feature = "model"))]
pub(crate) use pages::memfd;
pub use region::{Region, RegionDesc};
pub use table::{MemTable, MAX_REGIONS};
pub use userfault::{Remnant, Userfault, UserfaultError};
pub use write_log::{WriteLog, Written};

//! Guest memory: addresses, regions, and the only ways to touch guest bytes.

mod addr;

pub use addr::{FrontendAddr, GuestAddr, RegionDesc};

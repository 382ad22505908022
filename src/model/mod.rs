//! A guest over ordinary memory, for tests and benches: its memory, its virtqueue driver, its network driver.
//!
//! Models are small and obey the specification unless told otherwise; what is impossible panics.

pub mod crimes;
mod driver;
mod memory;
mod net;
mod packed;
mod page_server;
mod pool;
mod scattered;
mod virtqueue;

pub use driver::Driver;
pub use memory::{GuestMemory, FRONTEND_OFFSET};
pub use net::Net;
pub use packed::{PackedDesc, PackedDriver};
pub use page_server::PageServer;
pub use pool::Pool;
pub use scattered::Scattered;
pub use virtqueue::{Buffer, Virtqueue};

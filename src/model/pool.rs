//! Packet memory of a host, for bursts.

use crate::datapath::RxSlot;

/// Packet buffers of one size.
#[derive(Debug)]
pub struct Pool {
    memory: Vec<u8>,
    room: usize,
}

impl Pool {
    /// `count` buffers of `room` bytes.
    pub fn new(count: usize, room: usize) -> Self {
        Self {
            memory: vec![0; count * room],
            room,
        }
    }

    /// A slot over each buffer.
    pub fn slots(&mut self) -> Vec<RxSlot<'_>> {
        self.memory.chunks_mut(self.room).map(RxSlot::new).collect()
    }
}

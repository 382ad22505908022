//! Both sides over guests of the same kind, round by round in turn.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use ovs_vhost::datapath::BURST;
use ovs_vhost::virtio::features::Features;

use crate::guest::{Guest, Place, Work, RING};
use crate::packets::{Packet, Pool};
use crate::plugin::Plugin;
use crate::report::Row;
use crate::stock::Stock;

/// Bursts in a ring full of packets.
const ROUND: u64 = RING as u64 / BURST as u64;
/// Rounds of one side before it is the other's turn.
const SLICE: u64 = 16;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Stock,
    Plugin,
}

impl Side {
    pub fn name(self) -> &'static str {
        match self {
            Side::Stock => "stock",
            Side::Plugin => "plugin",
        }
    }
}

/// Which way packets go.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Out of the guest.
    Dequeue,
    /// Into the guest.
    Enqueue,
}

impl Way {
    pub fn name(self) -> &'static str {
        match self {
            Way::Dequeue => "dequeue",
            Way::Enqueue => "enqueue",
        }
    }
}

/// A vhost back-end with one queue pair.
pub trait BackEnd {
    /// Fills `packets` with new ones, out of the guest.
    fn dequeue(&mut self, packets: &mut [Packet; BURST]) -> usize;
    /// Copies packets into the guest.
    fn enqueue(&mut self, packets: &mut [Packet; BURST]) -> usize;
}

/// One side: a back-end and its guest.
struct Party {
    // Before the guest, whose memory it uses.
    back_end: Box<dyn BackEnd>,
    guest: Guest,
}

pub struct Duel {
    stock: Party,
    plugin: Party,
    pool: Pool,
    size: usize,
}

impl Duel {
    /// Both sides with a guest each, which sends frames of `size` bytes.
    pub fn new(features: Features, size: usize, place: Place) -> RefCell<Duel> {
        let guest = || crate::guest(features, size, place);
        let (stock_guest, plugin_guest) = (guest(), guest());
        let pool = Pool::new();
        RefCell::new(Duel {
            stock: Party {
                back_end: Box::new(Stock::new(&stock_guest, &pool)),
                guest: stock_guest,
            },
            plugin: Party {
                back_end: Box::new(Plugin::new(&plugin_guest, &pool)),
                guest: plugin_guest,
            },
            pool,
            size,
        })
    }

    /// Runs about `bursts` bursts of either side in turn, notes both in `row`, and says how long so many of `side` take.
    pub fn time(&mut self, row: &mut Row, side: Side, bursts: u64) -> Duration {
        let rounds = bursts.div_ceil(ROUND);
        let (mut left, mut total) = (rounds, Duration::ZERO);
        while left > 0 {
            let slice = left.min(SLICE);
            let stock = self.slice(Side::Stock, row.way, slice);
            let plugin = self.slice(Side::Plugin, row.way, slice);
            row.add(slice * u64::from(RING), stock, plugin);
            total += if side == Side::Stock { stock } else { plugin };
            left -= slice;
        }
        total.mul_f64(bursts as f64 / (rounds * ROUND) as f64)
    }

    fn slice(&mut self, side: Side, way: Way, rounds: u64) -> Duration {
        let party = match side {
            Side::Stock => &mut self.stock,
            Side::Plugin => &mut self.plugin,
        };
        let round = match way {
            Way::Dequeue => Party::dequeue,
            Way::Enqueue => Party::enqueue,
        };
        (0..rounds).map(|_| round(party, &self.pool, self.size)).sum()
    }
}

impl Party {
    /// Takes a ring full of frames out of the guest.
    fn dequeue(&mut self, pool: &Pool, size: usize) -> Duration {
        self.guest.run(Work::Transmit);
        let mut packets = [Packet::NONE; BURST];
        let mut elapsed = Duration::ZERO;
        for _ in 0..ROUND {
            let start = Instant::now();
            let count = self.back_end.dequeue(&mut packets);
            elapsed += start.elapsed();
            assert_eq!(count, BURST, "frames out of the guest");
            assert!(packets.iter().all(|packet| packet.frame().len() == size));
            pool.free(&mut packets);
            switch();
        }
        elapsed
    }

    /// Gives the guest a ring full of frames.
    fn enqueue(&mut self, pool: &Pool, size: usize) -> Duration {
        self.guest.run(Work::Supply);
        let mut packets = [Packet::NONE; BURST];
        pool.alloc(&mut packets);
        for packet in &mut packets {
            packet.fill(size);
        }
        let mut elapsed = Duration::ZERO;
        for _ in 0..ROUND {
            let start = Instant::now();
            let count = self.back_end.enqueue(&mut packets);
            elapsed += start.elapsed();
            assert_eq!(count, BURST, "frames into the guest");
            switch();
        }
        pool.free(&mut packets);
        elapsed
    }
}

/// What a poll thread does between bursts takes about this long: parsing, looking up, the other port.
const SWITCHING: Duration = Duration::from_micros(2);

/// Lets the time pass that a switch needs for a burst.
fn switch() {
    let start = Instant::now();
    while start.elapsed() < SWITCHING {
        std::hint::spin_loop();
    }
}

//! Our side: two queues, and slots made of mbufs as the C shim makes them.

use std::sync::Arc;

use ovs_vhost::datapath::{Direction, Queue, RingConfig, RxSlot, TxSlot, BURST};

use crate::duel::BackEnd;
use crate::guest::Guest;
use crate::packets::{Packet, Pool};

pub struct Plugin {
    receiveq: Queue,
    transmitq: Queue,
    pool: Pool,
}

impl Plugin {
    pub fn new(guest: &Guest, pool: &Pool) -> Plugin {
        let started = |direction, config: &RingConfig| {
            let queue = Queue::new(direction, Arc::new(|_| {}));
            queue.start(config.clone()).expect("the ring is in order");
            queue.set_enabled(true);
            queue
        };
        Plugin {
            receiveq: started(Direction::Enqueue, &guest.receiveq),
            transmitq: started(Direction::Dequeue, &guest.transmitq),
            pool: pool.clone(),
        }
    }
}

impl BackEnd for Plugin {
    fn dequeue(&mut self, packets: &mut [Packet; BURST]) -> usize {
        self.pool.alloc(packets);
        let mut slots = packets.each_mut().map(|packet| RxSlot::new(packet.room()));
        let count = self.transmitq.dequeue(&mut slots);
        let lens = slots.each_ref().map(RxSlot::len);
        for (packet, len) in packets.iter_mut().zip(lens) {
            packet.set_len(len);
        }
        count
    }

    fn enqueue(&mut self, packets: &mut [Packet; BURST]) -> usize {
        let slots = packets.each_ref().map(|packet| TxSlot::new(packet.frame()));
        self.receiveq.enqueue(&slots, 0).packets
    }
}

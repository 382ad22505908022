//! The guest: the model's driver on a receiveq and a transmitq, on this core or on another.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;

use ovs_vhost::datapath::RingConfig;
use ovs_vhost::memory::GuestAddr;
use ovs_vhost::model::{GuestMemory, Net, Virtqueue};
use ovs_vhost::virtio::features::Features;

pub const RING: u16 = 256;
/// Bytes of a buffer: what virtio-net drivers give.
const ROOM: u32 = 2048;

/// Where the guest runs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Place {
    SameCore,
    OtherCore,
}

impl Place {
    pub fn name(self) -> &'static str {
        match self {
            Place::SameCore => "same-core",
            Place::OtherCore => "other-core",
        }
    }
}

/// What a guest is told to do.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Work {
    /// Take back all buffers of the transmitq, and send a ring full of frames.
    Transmit = 1,
    /// Take back all buffers of the receiveq, and make a ring full of them available.
    Supply = 2,
}

/// No work, or work done.
const IDLE: u32 = 0;
const STOP: u32 = 3;

pub struct Guest {
    pub features: Features,
    pub memory: Arc<GuestMemory>,
    pub receiveq: RingConfig,
    pub transmitq: RingConfig,
    hands: Hands,
}

enum Hands {
    Here(Box<dyn FnMut(Work)>),
    There(Arc<AtomicU32>, Option<JoinHandle<()>>),
}

impl Guest {
    /// A guest that sends frames of `size` bytes.
    pub fn new<D: Virtqueue + Send + 'static>(features: Features, size: usize, place: Place) -> Guest {
        let space = Net::<D>::space(RING, ROOM);
        let memory = Arc::new(GuestMemory::new(2 * space));
        let ring = |number: u64| {
            let at = GuestAddr(0x1000 + number * space);
            Net::<D>::within(Arc::clone(&memory), at, RING, ROOM, features)
        };
        let (receiveq, transmitq) = (ring(0), ring(1));
        let (receiveq_config, transmitq_config) = (receiveq.driver.config(0), transmitq.driver.config(1));
        let mut driver = NetDriver {
            receiveq,
            transmitq,
            frame: (0_u8..=250).cycle().take(size).collect(),
            given: [0; 2],
        };
        let work = move |work| driver.work(work);
        Guest {
            features,
            memory: Arc::clone(&memory),
            receiveq: receiveq_config,
            transmitq: transmitq_config,
            hands: match place {
                Place::SameCore => Hands::Here(Box::new(work)),
                Place::OtherCore => Hands::there(work),
            },
        }
    }

    /// Has the guest do its work, and waits for it.
    pub fn run(&mut self, work: Work) {
        match &mut self.hands {
            Hands::Here(hands) => hands(work),
            Hands::There(order, thread) => {
                order.store(work as u32, Ordering::Release);
                while order.load(Ordering::Acquire) != IDLE {
                    let lives = thread.as_ref().is_some_and(|thread| !thread.is_finished());
                    assert!(lives, "the guest found something wrong");
                    std::hint::spin_loop();
                }
            }
        }
    }
}

impl Hands {
    fn there(mut hands: impl FnMut(Work) + Send + 'static) -> Hands {
        let order = Arc::new(AtomicU32::new(IDLE));
        let orders = Arc::clone(&order);
        let thread = std::thread::spawn(move || {
            crate::packets::run_on_another_core();
            loop {
                match orders.load(Ordering::Acquire) {
                    // The other side's guest may want the core.
                    IDLE => std::thread::yield_now(),
                    STOP => return,
                    work => {
                        hands(if work == Work::Transmit as u32 {
                            Work::Transmit
                        } else {
                            Work::Supply
                        });
                        orders.store(IDLE, Ordering::Release);
                    }
                }
            }
        });
        Hands::There(order, Some(thread))
    }
}

impl Drop for Hands {
    fn drop(&mut self) {
        if let Hands::There(order, thread) = self {
            order.store(STOP, Ordering::Release);
            thread.take().map(JoinHandle::join);
        }
    }
}

struct NetDriver<D> {
    receiveq: Net<D>,
    transmitq: Net<D>,
    frame: Vec<u8>,
    /// Buffers that the device has, of either ring.
    given: [usize; 2],
}

impl<D: Virtqueue> NetDriver<D> {
    fn work(&mut self, work: Work) {
        let [supplied, sent] = &mut self.given;
        match work {
            Work::Transmit => {
                let mut back = 0;
                while self.transmitq.driver.reap().is_some() {
                    back += 1;
                }
                assert_eq!(back, *sent, "frames taken");
                *sent = 0;
                while self.transmitq.send(&self.frame) {
                    *sent += 1;
                }
                self.transmitq.driver.publish();
            }
            Work::Supply => {
                let header = self.receiveq.header();
                let mut back = 0;
                while let Some(used) = self.receiveq.driver.reap() {
                    assert_eq!(used.len as usize, self.frame.len() + header as usize);
                    // Of a round one frame is looked at whole; all are counted.
                    if back == 0 {
                        let buffer = self.receiveq.buffer(u16::try_from(used.id).expect("a head"));
                        let mut frame = vec![0; self.frame.len()];
                        let memory = self.receiveq.driver.memory();
                        memory.read(GuestAddr(buffer.0 + u64::from(header)), &mut frame);
                        assert_eq!(frame, self.frame, "what arrived");
                    }
                    back += 1;
                }
                assert_eq!(back, *supplied, "frames given");
                *supplied = self.receiveq.supply(usize::from(RING));
                self.receiveq.driver.publish();
            }
        }
    }
}

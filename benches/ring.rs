//! How long does one packet take, on the poll thread alone, when nothing has to come from another core?
//!
//! Bursts of 32 over a ring of 256, split or packed, the model driver on the same thread and outside the measured time.
//! What is measured is one `Queue::dequeue` or `Queue::enqueue` per 32 packets: gate, ring, checks, copy, counters,
//! publication; no call eventfd. `logged` is the same while the guest moves: every write goes into a dirty log, whose bits
//! are all set already, as between two looks of a front-end that is never quite done. The machine's clock runs at its own rate: compare runs on one machine only.
//!
//! `cargo bench --no-default-features --bench ring`

#![expect(missing_docs, reason = "criterion's macros make public functions")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{criterion_group, criterion_main, BenchmarkGroup, BenchmarkId, Criterion, Throughput};

use ovs_vhost::datapath::{Direction, Queue, RingConfig, RingLog, TxSlot, BURST};
use ovs_vhost::memory::{DirtyLog, WriteLog};
use ovs_vhost::model::{Driver, GuestMemory, Net, PackedDriver, Pool, Virtqueue};
use ovs_vhost::virtio::features::{
    Features, VIRTIO_F_RING_PACKED, VIRTIO_F_VERSION_1, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_RING_F_EVENT_IDX,
    VIRTIO_RING_F_INDIRECT_DESC,
};

type Group<'a> = BenchmarkGroup<'a, WallTime>;

const RING: u16 = 256;
const ROOM: u32 = 2048;
/// Bytes from packet buffer to packet buffer of the host: a DPDK mbuf's room, an odd number of cache lines.
const STRIDE: usize = 2240;
const SIZES: [usize; 3] = [64, 512, 1518];

/// What Linux and DPDK guests negotiate beside mergeable buffers.
const COMMON: Features = VIRTIO_F_VERSION_1
    .with(VIRTIO_RING_F_EVENT_IDX)
    .with(VIRTIO_RING_F_INDIRECT_DESC);

/// Without and with mergeable buffers.
const SPLIT: [(&str, Features); 2] = [
    ("split", COMMON),
    ("split-mergeable", COMMON.with(VIRTIO_NET_F_MRG_RXBUF)),
];
const PACKED: [(&str, Features); 2] = [
    ("packed", COMMON.with(VIRTIO_F_RING_PACKED)),
    (
        "packed-mergeable",
        COMMON.with(VIRTIO_F_RING_PACKED).with(VIRTIO_NET_F_MRG_RXBUF),
    ),
];

fn started<D: Virtqueue>(direction: Direction, features: Features) -> (Queue, Net<D>) {
    let net: Net<D> = Net::new(RING, ROOM, features);
    let queue = Queue::new(direction, Arc::new(|_| {}));
    queue
        .start(net.driver.config(0))
        .expect("the model's ring is in order");
    queue.set_enabled(true);
    (queue, net)
}

/// Runs `bursts` bursts, timing only `burst`; `prepare` is the driver's work to fill a ring for them.
fn timed<D: Virtqueue>(
    bursts: u64,
    net: &mut Net<D>,
    prepare: impl Fn(&mut Net<D>),
    mut burst: impl FnMut() -> usize,
) -> Duration {
    let per_ring = u64::from(RING) / BURST as u64;
    let mut elapsed = Duration::ZERO;
    let mut left = bursts;
    while left > 0 {
        let now = left.min(per_ring);
        prepare(net);
        net.driver.publish();
        let start = Instant::now();
        for _ in 0..now {
            assert_eq!(burst(), BURST);
        }
        elapsed += start.elapsed();
        // The driver takes back what was used; what was not is left for the next round.
        while net.driver.reap().is_some() {}
        left -= now;
    }
    elapsed
}

fn dequeue(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("dequeue");
    group.throughput(Throughput::Elements(BURST as u64));
    dequeue_cases::<Driver>(&mut group, SPLIT);
    dequeue_cases::<PackedDriver>(&mut group, PACKED);
    group.finish();
}

fn dequeue_cases<D: Virtqueue>(group: &mut Group<'_>, cases: [(&'static str, Features); 2]) {
    for (name, features) in cases {
        for size in SIZES {
            let (queue, mut net) = started::<D>(Direction::Dequeue, features);
            let frame = vec![0x5a; size];
            let mut pool = Pool::new(BURST, STRIDE);
            let mut slots = pool.slots();
            group.bench_function(BenchmarkId::new(name, size), |bencher| {
                bencher.iter_custom(|bursts| {
                    let prepare = |net: &mut Net<D>| while net.send(&frame) {};
                    timed(bursts, &mut net, prepare, || queue.dequeue(&mut slots))
                });
            });
        }
    }
}

fn enqueue(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("enqueue");
    group.throughput(Throughput::Elements(BURST as u64));
    enqueue_cases::<Driver>(&mut group, SPLIT);
    enqueue_cases::<PackedDriver>(&mut group, PACKED);
    group.finish();
}

fn enqueue_cases<D: Virtqueue>(group: &mut Group<'_>, cases: [(&'static str, Features); 2]) {
    for (name, features) in cases {
        for size in SIZES {
            let (queue, mut net) = started::<D>(Direction::Enqueue, features);
            let pool = vec![0x5a_u8; BURST * STRIDE];
            let slots: Vec<TxSlot<'_>> = pool
                .chunks(STRIDE)
                .map(|buffer| TxSlot::new(&buffer[..size]))
                .collect();
            group.bench_function(BenchmarkId::new(name, size), |bencher| {
                bencher.iter_custom(|bursts| {
                    let prepare = |net: &mut Net<D>| {
                        net.supply(usize::from(RING));
                    };
                    timed(bursts, &mut net, prepare, || queue.enqueue(&slots, 0).packets)
                });
            });
        }
    }
}

/// What the dirty log costs while it is on.
fn logged(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("logged");
    group.throughput(Throughput::Elements(BURST as u64));
    logged_cases::<Driver>(&mut group, Direction::Enqueue, SPLIT[1]);
    logged_cases::<PackedDriver>(&mut group, Direction::Enqueue, PACKED[1]);
    logged_cases::<Driver>(&mut group, Direction::Dequeue, SPLIT[1]);
    logged_cases::<PackedDriver>(&mut group, Direction::Dequeue, PACKED[1]);
    group.finish();
}

fn logged_cases<D: Virtqueue>(
    group: &mut Group<'_>,
    direction: Direction,
    (name, features): (&'static str, Features),
) {
    let (queue, mut net) = started::<D>(direction, features);
    let bits = GuestMemory::new(4096);
    let log = DirtyLog::map(4096, 0, bits.file()).expect("a log");
    let config = net.driver.config(0);
    let log = RingLog {
        writes: Arc::new(WriteLog::new(Arc::new(log), &config.mem)),
        used: None,
        notify: None,
    };
    queue
        .restart(RingConfig {
            log: Some(log),
            ..config
        })
        .expect("the ring runs");
    let way = match direction {
        Direction::Dequeue => "dequeue",
        Direction::Enqueue => "enqueue",
    };
    for size in SIZES {
        let id = BenchmarkId::new(format!("{way}-{name}"), size);
        let frame = vec![0x5a; size];
        let mut pool = Pool::new(BURST, STRIDE);
        let mut slots = pool.slots();
        let sent: Vec<TxSlot<'_>> = (0..BURST).map(|_| TxSlot::new(&frame)).collect();
        group.bench_function(id, |bencher| {
            bencher.iter_custom(|bursts| match direction {
                Direction::Dequeue => {
                    let prepare = |net: &mut Net<D>| while net.send(&frame) {};
                    timed(bursts, &mut net, prepare, || queue.dequeue(&mut slots))
                }
                Direction::Enqueue => {
                    let prepare = |net: &mut Net<D>| {
                        net.supply(usize::from(RING));
                    };
                    timed(bursts, &mut net, prepare, || queue.enqueue(&sent, 0).packets)
                }
            });
        });
    }
}

/// What a poll thread pays for a queue that has nothing for it.
fn idle(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("idle");
    let (queue, _net) = started::<PackedDriver>(Direction::Dequeue, PACKED[0].1);
    let mut pool = Pool::new(BURST, STRIDE);
    let mut slots = pool.slots();
    group.bench_function("empty-packed", |bencher| {
        bencher.iter(|| queue.dequeue(&mut slots))
    });
    let (queue, _net) = started::<Driver>(Direction::Dequeue, SPLIT[0].1);
    let mut pool = Pool::new(BURST, STRIDE);
    let mut slots = pool.slots();
    group.bench_function("empty", |bencher| bencher.iter(|| queue.dequeue(&mut slots)));
    queue.stop();
    group.bench_function("stopped", |bencher| bencher.iter(|| queue.dequeue(&mut slots)));
    group.finish();
}

criterion_group! {
    name = ring;
    config = Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    targets = dequeue, enqueue, logged, idle
}
criterion_main!(ring);

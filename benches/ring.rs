//! How long does one packet take, on the poll thread alone, when nothing has to come from another core?
//!
//! Bursts of 32 over a split ring of 256, the model driver on the same thread and outside the measured time.
//! What is measured is one `Queue::dequeue` or `Queue::enqueue` per 32 packets: gate, ring, checks, copy, counters,
//! publication; no call eventfd. The machine's clock runs at its own rate: compare runs on one machine only.
//!
//! `cargo bench --no-default-features --bench ring`

#![expect(missing_docs, reason = "criterion's macros make public functions")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{criterion_group, criterion_main, BenchmarkId, Criterion, Throughput};

use ovs_vhost::datapath::{Direction, Queue, TxSlot, BURST};
use ovs_vhost::model::{Net, Pool};
use ovs_vhost::virtio::features::{
    Features, VIRTIO_F_VERSION_1, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_RING_F_EVENT_IDX,
    VIRTIO_RING_F_INDIRECT_DESC,
};

const RING: u16 = 256;
const ROOM: u32 = 2048;
/// Bytes from packet buffer to packet buffer of the host: a DPDK mbuf's room, an odd number of cache lines.
const STRIDE: usize = 2240;
const SIZES: [usize; 3] = [64, 512, 1518];

/// Without and with mergeable buffers; the rest is what Linux and DPDK guests negotiate.
const FEATURES: [(&str, Features); 2] = {
    let common = VIRTIO_F_VERSION_1
        .with(VIRTIO_RING_F_EVENT_IDX)
        .with(VIRTIO_RING_F_INDIRECT_DESC);
    [
        ("split", common),
        ("split-mergeable", common.with(VIRTIO_NET_F_MRG_RXBUF)),
    ]
};

fn started(direction: Direction, features: Features) -> (Queue, Net) {
    let net = Net::new(RING, ROOM, features);
    let queue = Queue::new(direction, Arc::new(|| {}));
    queue
        .start(net.driver.config(0))
        .expect("the model's ring is in order");
    queue.set_enabled(true);
    (queue, net)
}

/// Runs `bursts` bursts, timing only `burst`; `prepare` is the driver's work to fill a ring for them.
fn timed(
    bursts: u64,
    net: &mut Net,
    prepare: impl Fn(&mut Net),
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
    for (name, features) in FEATURES {
        for size in SIZES {
            let (queue, mut net) = started(Direction::Dequeue, features);
            let frame = vec![0x5a; size];
            let mut pool = Pool::new(BURST, STRIDE);
            let mut slots = pool.slots();
            group.bench_function(BenchmarkId::new(name, size), |bencher| {
                bencher.iter_custom(|bursts| {
                    let prepare = |net: &mut Net| while net.send(&frame) {};
                    timed(bursts, &mut net, prepare, || queue.dequeue(&mut slots))
                });
            });
        }
    }
    group.finish();
}

fn enqueue(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("enqueue");
    group.throughput(Throughput::Elements(BURST as u64));
    for (name, features) in FEATURES {
        for size in SIZES {
            let (queue, mut net) = started(Direction::Enqueue, features);
            let pool = vec![0x5a_u8; BURST * STRIDE];
            let slots: Vec<TxSlot<'_>> = pool
                .chunks(STRIDE)
                .map(|buffer| TxSlot::new(&buffer[..size]))
                .collect();
            group.bench_function(BenchmarkId::new(name, size), |bencher| {
                bencher.iter_custom(|bursts| {
                    let prepare = |net: &mut Net| {
                        net.supply(usize::from(RING));
                    };
                    timed(bursts, &mut net, prepare, || queue.enqueue(&slots, 0).packets)
                });
            });
        }
    }
    group.finish();
}

/// What a poll thread pays for a queue that has nothing for it.
fn idle(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("idle");
    let (queue, _net) = started(Direction::Dequeue, FEATURES[0].1);
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
    targets = dequeue, enqueue, idle
}
criterion_main!(ring);

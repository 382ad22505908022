//! Our bursts against DPDK's: `Queue::dequeue` and `Queue::enqueue` beside `rte_vhost_dequeue_burst` and
//! `rte_vhost_enqueue_burst`, in one process, over the same guests.
//!
//! Both sides get packets from one kind of mempool and serve rings of 256 in shared memory of the same kind, which the
//! model's driver fills from another core, as a guest would, or from this one. The driver's work is outside the measured
//! time. A round is a ring full of packets, 8 bursts; stock and plugin take rounds in turn, so that what the machine does
//! meanwhile hits both alike. What counts is the ratio: the median over pairs of neighbouring slices.
//!
//! `make bench`: with a table of ratios at the end, and the same as JSON in `target/bench/burst.json`.

mod duel;
#[path = "../../tests/common/frontend.rs"]
mod frontend;
mod guest;
mod packets;
mod plugin;
mod report;
mod stock;

use std::cell::RefCell;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput};
use ovs_vhost::datapath::BURST;
use ovs_vhost::model::{Driver, PackedDriver};
use ovs_vhost::virtio::features::{
    Features, VIRTIO_F_IN_ORDER, VIRTIO_F_RING_PACKED, VIRTIO_F_VERSION_1, VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};

use duel::{Duel, Side, Way};
use guest::{Guest, Place};
use report::Report;

const SIZES: [usize; 3] = [64, 512, 1518];

/// What Linux and DPDK guests negotiate, whatever else.
const PLAIN: Features = VIRTIO_F_VERSION_1
    .with(VIRTIO_RING_F_EVENT_IDX)
    .with(VIRTIO_RING_F_INDIRECT_DESC);
const MERGEABLE: Features = PLAIN.with(VIRTIO_NET_F_MRG_RXBUF);

const RINGS: [(&str, Features); 5] = [
    ("split-mergeable", MERGEABLE),
    ("split", PLAIN),
    ("in-order", MERGEABLE.with(VIRTIO_F_IN_ORDER)),
    ("packed-mergeable", MERGEABLE.with(VIRTIO_F_RING_PACKED)),
    ("packed", PLAIN.with(VIRTIO_F_RING_PACKED)),
];

/// A guest with rings of these features, for one of the two sides.
fn guest(features: Features, size: usize, place: Place) -> Guest {
    match features.contains(VIRTIO_F_RING_PACKED) {
        true => Guest::new::<PackedDriver>(features, size, place),
        false => Guest::new::<Driver>(features, size, place),
    }
}

fn duels(criterion: &mut Criterion, report: &mut Report) {
    for place in [Place::OtherCore, Place::SameCore] {
        for (rings, features) in RINGS {
            for size in SIZES {
                let duel = Duel::new(features, size, place);
                for way in [Way::Dequeue, Way::Enqueue] {
                    let row = report.row(rings, size, place, way);
                    run(criterion, &duel, row);
                }
            }
        }
    }
}

/// Measures both sides of one row.
fn run(criterion: &mut Criterion, duel: &RefCell<Duel>, row: &mut report::Row) {
    let mut group = criterion.benchmark_group(row.way.name());
    group.throughput(Throughput::Elements(BURST as u64));
    for side in [Side::Stock, Side::Plugin] {
        let id = BenchmarkId::new(
            format!("{}/{}", side.name(), row.rings),
            format!("{}/{}", row.size, row.place.name()),
        );
        group.bench_function(id, |bencher| {
            bencher.iter_custom(|bursts| duel.borrow_mut().time(row, side, bursts));
        });
    }
    group.finish();
}

fn main() {
    packets::start_eal();
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(800))
        .sample_size(20)
        .configure_from_args();
    let mut report = Report::default();
    duels(&mut criterion, &mut report);
    criterion.final_summary();
    report.finish();
}

//! What is measured, by name, with what is sent.

use super::load;
use super::peers::Guests;
use super::sample::Shape;
use crate::quick_guest::{Kind, Sends, USUAL as USUAL_GUEST};
use crate::testpmd::{Capacity, Rings, USUAL};
use crate::traffic::Ways;

const fn testpmd(rings: Rings) -> Guests {
    Guests::Testpmd {
        rings,
        queues: 1,
        capacity: USUAL,
    }
}

/// testpmd's rings are as long.
const QUICK: Kind = Kind {
    size: 256,
    polls: true,
    ..USUAL_GUEST
};

const fn quick(kind: Kind) -> Guests {
    Guests::Quick {
        kind,
        ways: Ways::Both,
    }
}

const TWO_PORTS: Shape = Shape {
    name: "split",
    ports: 2,
    guests: testpmd(Rings::PLAIN),
    other_config: &[],
    dpdk: true,
    loads: &[load::B64, load::B256, load::B512, load::B1518, load::IMIX],
};

const TWO_QUICK: Shape = Shape {
    name: "quick",
    guests: quick(QUICK),
    loads: &[load::B64],
    ..TWO_PORTS
};

pub static SHAPES: [Shape; 14] = [
    Shape {
        name: "split-mergeable",
        guests: testpmd(Rings::MERGEABLE),
        ..TWO_PORTS
    },
    TWO_PORTS,
    Shape {
        name: "in-order",
        guests: testpmd(Rings {
            in_order: true,
            ..Rings::PLAIN
        }),
        loads: &[load::B64, load::B512],
        ..TWO_PORTS
    },
    Shape {
        name: "packed",
        guests: testpmd(Rings::PACKED_MERGEABLE),
        ..TWO_PORTS
    },
    Shape {
        name: "two-queue-pairs",
        guests: Guests::Testpmd {
            rings: Rings::MERGEABLE,
            queues: 2,
            capacity: USUAL,
        },
        loads: &[load::B64],
        ..TWO_PORTS
    },
    Shape {
        name: "eight-ports",
        guests: testpmd(Rings::MERGEABLE),
        ports: 8,
        loads: &[load::B64],
        ..TWO_PORTS
    },
    Shape {
        name: "thousand-flows",
        guests: Guests::Testpmd {
            rings: Rings::MERGEABLE,
            queues: 1,
            capacity: Capacity { ring: 1024, ..USUAL },
        },
        loads: &[load::FLOWS],
        ..TWO_PORTS
    },
    Shape {
        name: "jumbo",
        guests: Guests::Testpmd {
            rings: Rings::MERGEABLE,
            queues: 1,
            capacity: Capacity { mtu: 9000, ..USUAL },
        },
        loads: &[load::B9000],
        ..TWO_PORTS
    },
    Shape {
        name: "without-dpdk",
        guests: testpmd(Rings::MERGEABLE),
        dpdk: false,
        ..TWO_PORTS
    },
    // What the ones below are to be seen beside.
    TWO_QUICK,
    Shape {
        name: "quick-one-way",
        guests: Guests::Quick {
            kind: QUICK,
            ways: Ways::There,
        },
        ..TWO_QUICK
    },
    Shape {
        name: "quick-dirty-log",
        guests: quick(Kind { moves: true, ..QUICK }),
        ..TWO_QUICK
    },
    Shape {
        name: "quick-iommu",
        guests: quick(Kind { iommu: true, ..QUICK }),
        other_config: &["vhost-iommu-support=true"],
        ..TWO_QUICK
    },
    Shape {
        name: "quick-tso",
        guests: quick(Kind {
            size: 1024,
            sends: Sends::Segments,
            ..QUICK
        }),
        other_config: &["userspace-tso-enable=true"],
        loads: &[load::B64K],
        ..TWO_QUICK
    },
];

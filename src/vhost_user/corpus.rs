//! Messages that mean harm: those of the published attacks, and each request in every shape that it must not have. Unit
//! tests play them against a session, the end-to-end cases against a switch.

use super::message::{Flags, Header, MAX_FDS, MAX_PAYLOAD};
use super::requests::{row, Gate, TABLE};
use super::samples::{handled, iotlb, mem_table, numbers, sample, state, wire, NEED_REPLY, PLAIN};

/// One message, for a connection on which all that is offered is negotiated unless it says otherwise.
#[derive(Clone, Debug)]
pub struct Attack {
    /// What is wrong with it.
    pub what: String,
    /// The number of the request that it pretends to be.
    pub request: u32,
    /// Its bytes: header and payload.
    pub bytes: Vec<u8>,
    /// How many descriptors come with it.
    pub fds: usize,
    /// Whether protocol features are negotiated first.
    pub negotiated: bool,
}

impl Attack {
    fn new(what: impl Into<String>, request: u32, payload: &[u8], fds: usize) -> Attack {
        Attack {
            what: what.into(),
            request,
            bytes: wire(request, PLAIN, payload),
            fds,
            negotiated: true,
        }
    }

    fn with_header(self, flags: Flags, size: usize) -> Attack {
        let size = u32::try_from(size).unwrap_or(u32::MAX);
        let header = Header {
            request: self.request,
            flags,
            size,
        };
        let bytes = [&header.encode(), &self.bytes[12..]].concat();
        Attack { bytes, ..self }
    }

    /// The same, asking for an acknowledgement.
    #[must_use]
    pub fn asking(mut self) -> Attack {
        self.bytes[4..8].copy_from_slice(&NEED_REPLY.0.to_ne_bytes());
        self
    }
}

/// The messages of the published attacks on back-ends, and their kin. Each ends the connection.
pub fn published() -> Vec<Attack> {
    let region = |values: [u64; 4]| [state(1, 0), numbers(&values)].concat();
    let count = |count: u32| [state(count, 0), vec![0; 256]].concat();
    let rows: Vec<(&str, u32, Vec<u8>, usize)> = vec![
        (
            "SET_LOG_BASE that wraps (CVE-2020-10722)",
            6,
            numbers(&[0xffff_ffff_ffff_ff00, 0x200]),
            1,
        ),
        (
            "SET_VRING_NUM index 0x10000 (CVE-2020-10723)",
            8,
            state(0x1_0000, 256),
            0,
        ),
        ("SET_VRING_BASE index 0x100", 10, state(0x100, 0), 0),
        ("SET_VRING_ENABLE index 0xffffffff", 18, state(u32::MAX, 1), 0),
        ("SET_VRING_KICK index 0x10000", 12, numbers(&[0x1_0000]), 1),
        ("CREATE_CRYPTO_SESSION (CVE-2020-10724)", 26, vec![0xff; 200], 0),
        ("GET_INFLIGHT_FD (CVE-2020-10726)", 31, vec![0; 24], 0),
        (
            "GET_INFLIGHT_FD with descriptors (CVE-2022-0669)",
            31,
            vec![0; 24],
            8,
        ),
        (
            "SET_INFLIGHT_FD of 65535 queues (CVE-2021-3839)",
            32,
            vec![0xff; 24],
            1,
        ),
        ("SET_INFLIGHT_FD without a descriptor", 32, vec![0; 24], 0),
        (
            "SET_MEM_TABLE offset wraps",
            5,
            region([0, 0x1000, 0, u64::MAX - 0xfff]),
            1,
        ),
        ("SET_MEM_TABLE size 0", 5, region([0, 0, 0, 0]), 1),
        ("SET_MEM_TABLE of 9 regions", 5, count(9), 8),
        ("SET_MEM_TABLE of 0xffffffff regions", 5, count(u32::MAX), 8),
        ("SET_MEM_TABLE without descriptors", 5, mem_table(8), 0),
        ("SET_MEM_TABLE short of a descriptor", 5, mem_table(8), 7),
        ("SET_MEM_TABLE with 9 descriptors", 5, mem_table(8), 9),
        ("SET_BACKEND_REQ_FD without a descriptor", 21, vec![], 0),
        ("SET_BACKEND_REQ_FD with two descriptors", 21, vec![], 2),
        (
            "IOTLB_MSG update that wraps",
            22,
            iotlb(u64::MAX, 2, 0x1000, 3, 2),
            0,
        ),
        (
            "IOTLB_MSG update of no bytes",
            22,
            iotlb(0x1000, 0, 0x1000, 3, 2),
            0,
        ),
        (
            "IOTLB_MSG miss of the front-end",
            22,
            iotlb(0x1000, 0x1000, 0x1000, 3, 1),
            0,
        ),
        ("POSTCOPY_ADVISE with a descriptor of its own", 28, vec![], 1),
        (
            "a region that is acknowledged with an error",
            37,
            numbers(&[1]),
            0,
        ),
        (
            "an acknowledgement with a region's descriptor",
            37,
            numbers(&[0]),
            1,
        ),
        (
            "SET_VRING_KICK says none and brings one",
            12,
            numbers(&[0x101]),
            1,
        ),
        ("request -1", u32::MAX, vec![], 0),
        ("request 0x80000001", 0x8000_0001, vec![], 0),
        ("NONE", 0, vec![], 0),
    ];
    let attack = |(what, id, payload, fds): (&str, u32, Vec<u8>, usize)| Attack::new(what, id, &payload, fds);
    rows.into_iter().map(attack).collect()
}

/// The numbers of the specification, those right behind them, and those that a careless cast would take for one of them.
pub fn every_number() -> impl Iterator<Item = u32> {
    let known = u32::try_from(TABLE.len()).expect("a short table");
    (0..known + 20).chain([0x100, 0x101, 0x1_0001, 0x8000_0001, u32::MAX])
}

/// The sample of a handled request at every length that is wrong for it and on either side of a right one.
pub fn other_lengths(id: u32) -> Vec<(Vec<u8>, usize)> {
    let (good, fds) = sample(id);
    let lengths = [0, 1, 4, 7, 8, 9, 12, 39, 40, 41, MAX_PAYLOAD];
    let near = [good.len().saturating_sub(1), good.len() + 1];
    let mut wrong: Vec<_> = lengths.into_iter().chain(near).collect();
    wrong.sort_unstable();
    wrong.dedup();
    wrong.retain(|length| *length != good.len());
    let resized = |length| {
        let mut payload = good.clone();
        payload.resize(length, 0);
        payload
    };
    // Few requests have several lengths.
    let takes = |payload: &Vec<u8>| {
        let rule = row(id).and_then(|row| row.rule.as_ref());
        rule.is_some_and(|rule| rule.payload.admits(payload))
    };
    let wrong = wrong.into_iter().map(resized).filter(|payload| !takes(payload));
    wrong.map(|payload| (payload, fds)).collect()
}

/// Every number of descriptors that is wrong with the sample of a handled request.
pub fn other_fds(id: u32) -> Vec<usize> {
    let (_, right) = sample(id);
    // REM_MEM_REG: some front-ends send one.
    let tolerated = if id == 38 { 1 } else { right };
    let wrong = |fds: &usize| ![right, tolerated].contains(fds);
    (0..=MAX_FDS).filter(wrong).collect()
}

/// Every request, known or not, in every shape that it must not have; by request. Each ends the connection.
pub fn misshapen() -> Vec<(u32, Vec<Attack>)> {
    every_number().map(|id| (id, misshapen_request(id))).collect()
}

fn misshapen_request(id: u32) -> Vec<Attack> {
    let Some(rule) = row(id).and_then(|row| row.rule.as_ref()) else {
        let bodies = [(vec![], 0), (vec![0; 8], 1), (vec![0xff; MAX_PAYLOAD], MAX_FDS)];
        return bodies
            .map(|(payload, fds)| Attack::new("is not there", id, &payload, fds))
            .into();
    };
    let (good, fds) = sample(id);
    let sample = |what: &str| Attack::new(what, id, &good, fds);
    let mut attacks: Vec<_> = other_lengths(id)
        .into_iter()
        .map(|(payload, fds)| Attack::new(format!("of {} bytes", payload.len()), id, &payload, fds))
        .collect();
    attacks.extend(
        other_fds(id)
            .into_iter()
            .chain([MAX_FDS + 1, 200])
            .map(|fds| Attack::new(format!("with {fds} descriptors"), id, &good, fds)),
    );
    for flags in [0x0, 0x2, 0x3, 0x5, 0x11, 0x8000_0001, u32::MAX] {
        attacks.push(sample(&format!("with flags {flags:#x}")).with_header(Flags(flags), good.len()));
    }
    for size in [MAX_PAYLOAD + 1, 0x7fff_ffff, usize::MAX] {
        attacks.push(sample(&format!("with a header of {size:#x} bytes")).with_header(PLAIN, size));
    }
    if let Gate::Negotiated(feature) = rule.gate {
        attacks.push(Attack {
            negotiated: false,
            ..sample(&format!("without {feature}"))
        });
    }
    attacks
}

/// A handled request with each word of its payload, in turn, at the edges of what a word can be. Some are right, most are
/// wrong: each must be answered or end the connection.
pub fn words(id: u32) -> Vec<Attack> {
    const WORDS: [u32; 8] = [0, 1, 0xff, 0x100, 0xffff, 0x1_0000, 0x8000_0000, u32::MAX];
    const LONG_WORDS: [u64; 4] = [1 << 32, 1 << 63, u64::MAX - 0xfff, u64::MAX];
    let (good, fds) = sample(id);
    let mut attacks = Vec::new();
    let mut put = |at: usize, bytes: &[u8]| {
        let mut payload = good.clone();
        let Some(place) = payload.get_mut(at..at + bytes.len()) else {
            return;
        };
        place.copy_from_slice(bytes);
        let what = format!("with {bytes:x?} at {at}");
        attacks.push(Attack::new(what, id, &payload, fds).asking());
    };
    for at in (0..good.len()).step_by(4) {
        WORDS.iter().for_each(|word| put(at, &word.to_ne_bytes()));
        if at % 8 == 0 {
            LONG_WORDS.iter().for_each(|word| put(at, &word.to_ne_bytes()));
        }
    }
    attacks
}

/// The handled requests, well-formed, each asking for an acknowledgement.
pub fn well_formed() -> Vec<Attack> {
    let attack = |(id, name, _)| {
        let (payload, fds) = sample(id);
        Attack::new(name, id, &payload, fds).asking()
    };
    handled().map(attack).collect()
}

//! Target `net_hdr`: any header before any frame. What comes out of a guest is proven, or nothing comes; what goes into
//! one is in a form that it negotiated.

use std::sync::Arc;

use super::input::Input;
use crate::datapath::{Direction, Queue, RingConfig, RxSlot, TxSlot};
use crate::model::{Driver, Net, PackedDriver, Virtqueue};
use crate::virtio::features::*;
use crate::virtio::net_hdr::{Offload, GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, NEEDS_CSUM};

const ROOM: u32 = 8192;
const TCP: u8 = 6;
const UDP: u8 = 17;

pub(super) fn run(mut input: Input<'_>) {
    let [packed, guest_is_proven, ..] = input.flags::<2>();
    match packed {
        true => pass::<PackedDriver>(&mut input, VIRTIO_F_RING_PACKED, guest_is_proven),
        false => pass::<Driver>(&mut input, Features::NONE, guest_is_proven),
    }
}

/// One frame out of one guest, and into another.
fn pass<D: Virtqueue>(input: &mut Input<'_>, layout: Features, only_proven: bool) {
    let layout = layout | VIRTIO_F_VERSION_1 | VIRTIO_NET_F_MRG_RXBUF;
    let word = Offload::decode(std::array::from_fn(|_| input.u8()));
    let device = chosen(
        input,
        [
            VIRTIO_NET_F_CSUM,
            VIRTIO_NET_F_HOST_TSO4,
            VIRTIO_NET_F_HOST_TSO6,
            VIRTIO_NET_F_HOST_ECN,
        ],
    );
    let driver = chosen(
        input,
        [
            VIRTIO_NET_F_GUEST_CSUM,
            VIRTIO_NET_F_GUEST_TSO4,
            VIRTIO_NET_F_GUEST_TSO6,
            VIRTIO_NET_F_GUEST_ECN,
        ],
    );
    let frame = frame(input);
    let came = out_of::<D>(layout | device, word, &frame);
    if let Some((proven, bytes)) = &came {
        assert_eq!(bytes.len(), frame.len());
        prove(*proven, bytes, device);
        into::<D>(layout | driver, driver, *proven, bytes, true);
    }
    if !only_proven {
        into::<D>(layout | driver, driver, word, &frame, false);
    }
}

fn chosen(input: &mut Input<'_>, bits: [Features; 4]) -> Features {
    let on = input.flags::<4>();
    let chosen = bits.iter().zip(on).filter(|(_, on)| *on);
    chosen.fold(Features::NONE, |all, (bit, _)| all | *bit)
}

/// Bytes as they are, or headers that fit each other with some bytes changed.
fn frame(input: &mut Input<'_>) -> Vec<u8> {
    let [made, v6, udp, tag, tag_too, padded] = input.flags();
    let len = usize::from(input.u16() % 6000);
    if !made {
        let mut frame = input.bytes(len.max(1)).to_vec();
        frame.resize(frame.len().max(14), 0);
        return frame;
    }
    let (options, protocol) = (usize::from(input.u8() % 6), if udp { UDP } else { TCP });
    let l4 = if udp { 8 } else { 20 + 4 * options };
    let mut frame = vec![2; 12];
    for _ in [tag, tag_too].iter().filter(|on| **on) {
        frame.extend([0x81, 0, 0, 7]);
    }
    let [high, low] = u16::try_from(len + l4 + if v6 { 0 } else { 20 })
        .expect("small")
        .to_be_bytes();
    match v6 {
        true => frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, high, low, protocol, 64]),
        false => frame.extend([8, 0, 0x45, 0, high, low, 0, 1, 0x40, 0, 64, protocol, 0, 0]),
    }
    frame.extend(vec![3; if v6 { 32 } else { 8 }]);
    let mut header = vec![4; l4];
    if !udp {
        header[12] = u8::try_from(l4 / 4).expect("small") << 4;
    }
    frame.extend(header);
    frame.extend((0..len).map(|at| at.to_le_bytes()[0]));
    frame.resize(frame.len() + if padded { 9 } else { 0 }, 0);
    while !input.is_empty() {
        let (at, byte) = (usize::from(input.u8()) % frame.len(), input.u8());
        frame[at] = byte;
    }
    frame
}

/// A ring that runs.
fn started<D: Virtqueue>(direction: Direction, size: u16, features: Features) -> (Queue, Net<D>) {
    let net = Net::<D>::new(size, ROOM, features);
    let queue = Queue::new(direction, Arc::new(|_| {}));
    queue.set_enabled(true);
    let config = RingConfig {
        offloads: true,
        ..net.driver.config(0)
    };
    queue.start(config).expect("a ring that is in order");
    (queue, net)
}

/// What comes of a frame that a guest sends.
fn out_of<D: Virtqueue>(features: Features, word: Offload, frame: &[u8]) -> Option<(Offload, Vec<u8>)> {
    let (queue, mut net) = started::<D>(Direction::Dequeue, 4, features);
    assert!(net.send_with(word, frame), "room");
    net.driver.publish();
    let mut room = vec![0; ROOM as usize];
    let mut slots = [RxSlot::new(&mut room)];
    let count = queue.dequeue(&mut slots);
    assert_eq!(queue.fault(), None);
    assert!(net.driver.reap().is_some(), "the buffer comes back");
    let stats = queue.counters().read();
    assert_eq!(stats.good_packets + stats.invalid, 1);
    (count == 1).then(|| (slots[0].offload(), slots[0].frame().to_vec()))
}

/// Whether what is left to be done can be done by who knows only this.
fn prove(word: Offload, frame: &[u8], negotiated: Features) {
    if word == Offload::NONE {
        return;
    }
    let start = usize::from(word.csum_start);
    let (protocol, l4) = transport(frame).expect("headers that can be found");
    assert_eq!((word.flags, start), (NEEDS_CSUM, l4), "{word:?}");
    let field = if protocol == TCP { 16 } else { 6 };
    assert!(protocol == TCP || protocol == UDP, "{word:?}");
    assert!(usize::from(word.csum_offset) == field && start + field + 2 <= frame.len());
    assert!(negotiated.contains(VIRTIO_NET_F_CSUM));
    let needs = match word.gso_type & !GSO_ECN {
        GSO_NONE => return assert_eq!(word.gso_type, GSO_NONE),
        GSO_TCPV4 => VIRTIO_NET_F_HOST_TSO4,
        GSO_TCPV6 => VIRTIO_NET_F_HOST_TSO6,
        other => panic!("gso_type {other}"),
    };
    assert!(protocol == TCP && negotiated.contains(needs), "{word:?}");
    assert!(word.gso_type & GSO_ECN == 0 || negotiated.contains(VIRTIO_NET_F_HOST_ECN));
    let payload = l4 + usize::from(frame[l4 + 12] >> 4) * 4;
    assert!(word.gso_size > 0 && usize::from(word.hdr_len) == payload && payload <= frame.len());
}

/// Protocol and place of the transport header, of one tag at most and IPv6 options of any number.
fn transport(frame: &[u8]) -> Option<(u8, usize)> {
    let tagged = frame.get(12..14)? == [0x81, 0] || frame.get(12..14)? == [0x88, 0xa8];
    let l3 = if tagged { 18 } else { 14 };
    match frame.get(l3 - 2..l3)? {
        [0x08, 0x00] => Some((*frame.get(l3 + 9)?, l3 + 4 * usize::from(frame.get(l3)? & 0xf))),
        [0x86, 0xdd] => {
            let (mut next, mut at) = (*frame.get(l3 + 6)?, l3 + 40);
            while next == 0 || next == 60 {
                let length = 8 * (1 + usize::from(*frame.get(at + 1)?));
                (next, at) = (*frame.get(at)?, at + length);
            }
            Some((next, at))
        }
        _ => None,
    }
}

/// What a guest gets is of its own kind; of what was proven, all of it, once.
fn into<D: Virtqueue>(features: Features, negotiated: Features, word: Offload, frame: &[u8], proven: bool) {
    let (queue, mut net) = started::<D>(Direction::Enqueue, 256, features);
    net.supply(256);
    net.driver.publish();
    let sent = queue.enqueue(&[TxSlot::with_offload(frame, word)], 0);
    assert_eq!((queue.fault(), sent.packets + sent.invalid), (None, 1));
    let (header, mut payload) = (usize::from(word.hdr_len), 0);
    while let Some((form, bytes)) = net.receive_with() {
        let needs = match form.gso_type & !GSO_ECN {
            GSO_NONE => Features::NONE,
            GSO_TCPV4 => VIRTIO_NET_F_GUEST_TSO4,
            GSO_TCPV6 => VIRTIO_NET_F_GUEST_TSO6,
            other => panic!("gso_type {other}"),
        };
        let checksum = form.flags == 0 || negotiated.contains(VIRTIO_NET_F_GUEST_CSUM);
        let ecn = form.gso_type & GSO_ECN == 0 || negotiated.contains(VIRTIO_NET_F_GUEST_ECN);
        assert!(
            negotiated.contains(needs) && checksum && ecn,
            "{form:?} to {negotiated}"
        );
        payload += bytes.len().saturating_sub(header);
    }
    if proven && word.is_gso() && sent.packets == 1 {
        assert!(payload <= frame.len() - header, "more than there was");
    }
}

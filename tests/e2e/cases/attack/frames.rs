//! Buffers of a transmitq that hold no frame, or hold it in pieces that cut its header anywhere (CVE-2022-2132).

use anyhow::{ensure, Context, Result};
use ovs_vhost::model::{Buffer, Virtqueue};
use ovs_vhost::virtio::features::VIRTIO_NET_F_MRG_RXBUF;
use ovs_vhost::virtio::net_hdr;

use super::super::world::PATIENCE;
use super::arena::Arena;
use super::guest::{frame, Guest, BARE};
use super::layout::Layout;
use crate::wait;

pub const OVERSIZE: &str = "ovs_vhost_rx_oversize_drops";
const RUNTS: &str = "ovs_vhost_rx_runt_drops";

/// Frames by the lengths of their buffers, header included.
type Frames = &'static [&'static [u32]];

#[rustfmt::skip] // one row a line
const DROPPED: &[(&str, Frames, &str)] = &[
    ("frames of nothing", &[&[0], &[0, 0], &[0, 0, 0]], RUNTS),
    ("frames that are part of a header", &[&[1], &[11], &[1, 1, 1]], RUNTS),
    ("frames that are a header", &[&[12], &[1, 11], &[10, 2], &[12, 0]], RUNTS),
    ("frames of 80 KiB", &[&[2048; 40]], OVERSIZE),
];
const IN_PIECES: Frames = &[
    &[1, 1, 10, 60],
    &[5, 7, 60],
    &[11, 61],
    &[0, 12, 0, 20],
    &[1; 40],
    &[13, 50, 0],
];

pub fn family<D: Virtqueue>(arena: &mut Arena, layout: &Layout<D>) -> Result<()> {
    for (name, frames, counter) in DROPPED {
        arena.play(name, |arena| dropped(arena, layout, frames, counter))?;
    }
    for pieces in IN_PIECES {
        arena.play(&format!("a frame in pieces of {pieces:?}"), |arena| {
            whole(arena, layout, pieces)
        })?;
    }
    Ok(())
}

/// Each of these is given back and counted, and the ring goes on.
pub fn dropped<D: Virtqueue>(
    arena: &Arena,
    layout: &Layout<D>,
    frames: &[&[u32]],
    counter: &str,
) -> Result<()> {
    let (mut guest, _wire) = arena.guest::<D>(layout.size, BARE | layout.feature)?;
    guest.echo()?;
    let before = arena.counter(counter)?;
    for lengths in frames {
        send_pieces(&mut guest, lengths)?;
    }
    let due = before + u64::try_from(frames.len())?;
    wait::until_true(&format!("{counter} to tell of them"), PATIENCE, || {
        Ok(arena.counter(counter)? == due)
    })?;
    guest.echo()?;
    guest.check_canaries()
}

/// It arrives as if it had been in one piece.
fn whole<D: Virtqueue>(arena: &Arena, layout: &Layout<D>, pieces: &[u32]) -> Result<()> {
    let features = BARE.with(VIRTIO_NET_F_MRG_RXBUF) | layout.feature;
    let (mut guest, _wire) = arena.guest::<D>(layout.size, features)?;
    guest.echo()?;
    let sent = content(pieces);
    send_pieces(&mut guest, pieces)?;
    let received = wait::until("it to come back", PATIENCE, || {
        Ok(guest
            .receive()?
            .filter(|frame| frame.len() < 60 || *frame == sent))
    })?;
    ensure!(received == sent, "{sent:x?} came back as {received:x?}");
    guest.check_canaries()
}

/// The frame for pieces of these lengths.
fn content(pieces: &[u32]) -> Vec<u8> {
    let len = pieces.iter().sum::<u32>().saturating_sub(net_hdr::LONG);
    let mut bytes = frame(1);
    bytes.resize(usize::try_from(len).unwrap_or(0), 0);
    bytes
}

/// Makes one chain of buffers of these lengths available, header and frame in them.
fn send_pieces<D: Virtqueue>(guest: &mut Guest<D>, pieces: &[u32]) -> Result<()> {
    while guest.tx.driver.reap().is_some() {}
    let mut bytes = [vec![0; 12], content(pieces)].concat();
    let mut buffers = Vec::new();
    for (place, len) in (1..).zip(pieces) {
        let rest = bytes.split_off(bytes.len().min(usize::try_from(*len)?));
        guest.memory.write(guest.tx.buffer(place), &bytes);
        bytes = rest;
        buffers.push(readable(guest, place, *len));
    }
    guest.tx.driver.add(&buffers).context("no room")?;
    guest.tx.driver.publish();
    Ok(())
}

/// A buffer of the transmitq, to be read.
pub fn readable<D: Virtqueue>(guest: &Guest<D>, place: u16, len: u32) -> Buffer {
    Buffer {
        addr: guest.tx.buffer(place),
        len,
        write: false,
    }
}

//! `ovs-appctl vhost-user/ring-dump`: where a vring stands as the port knows it, and what lies in guest memory at this moment:
//! indices, wishes for notification, the next descriptors. Never what they point to.
//!
//! Guest memory is read beside the bursts, not in one: nobody waits for it, and no packet is lost by it. The table that maps
//! it is held as long as that takes. Addresses are the guest's own; where the front-end or this process has that memory is
//! nobody's business.

use std::sync::Arc;

use serde_json::{json, Value};

use crate::datapath::Queue;
use crate::memory::{FrontendAddr, MemTable};
use crate::virtio::desc::{Desc, VIRTQ_DESC_F_INDIRECT, VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE};
use crate::virtio::features::{Features, VIRTIO_F_RING_PACKED};
use crate::virtio::packed_ring::{Event, VIRTQ_DESC_F_AVAIL, VIRTQ_DESC_F_USED};
use crate::virtio::ring::{LayoutError, RingAddrs};
use crate::virtio::sight::{PackedSight, Seen, SplitSight};

use super::describe::describe_vring;
use super::portrait::{Portrait, VringPortrait};
use super::shared::Port;

/// As main uses it.
impl Port {
    /// The vring of that number, or all of them. Disturbs no burst.
    ///
    /// # Errors
    ///
    /// What is wrong with the number, for people.
    pub fn dump_rings(&self, wanted: Option<&str>) -> Result<Value, String> {
        let number = |word: &str| {
            word.parse::<usize>()
                .map_err(|_| format!("\"{word}\" is no vring's number"))
        };
        let wanted = wanted.map(number).transpose()?;
        let portrait = self.portrait.lock().clone();
        let vrings = portrait
            .as_ref()
            .map(|portrait| portrait.vrings.as_slice())
            .unwrap_or_default();
        if let Some(index) = wanted.filter(|index| *index >= vrings.len()) {
            return Err(format!(
                "port '{}' has no vring {index}: it has {}",
                self.name(),
                vrings.len()
            ));
        }
        let dump = |(index, (vring, queue))| dump(portrait.as_ref()?, index, vring, queue);
        let each = vrings.iter().zip(&self.queues).enumerate();
        let rows: Vec<Value> = each
            .filter(|(index, _)| wanted.is_none_or(|wanted| wanted == *index))
            .filter_map(dump)
            .collect();
        Ok(json!({ "name": self.name(), "vrings": rows }))
    }
}

fn dump(portrait: &Portrait, index: usize, vring: &VringPortrait, queue: &Queue) -> Option<Value> {
    let features = portrait.acknowledged.unwrap_or_default();
    let mut tree = describe_vring(index, vring, queue, features);
    let looked = match (portrait.is_complete, portrait.memory.upgrade()) {
        (false, _) => Err("the guest's memory is still arriving".to_owned()),
        (true, Some(memory)) => look(&mut tree, vring, queue, features, &memory),
        (true, None) => Err("the guest's memory is just being changed".to_owned()),
    };
    if let Err(obstacle) = looked {
        tree["not-seen"] = json!(obstacle);
    }
    Some(tree)
}

/// Adds what lies in guest memory, if the ring runs.
fn look(
    tree: &mut Value,
    vring: &VringPortrait,
    queue: &Queue,
    features: Features,
    memory: &Arc<MemTable>,
) -> Result<(), String> {
    let (Some(addrs), Some(status)) = (vring.addrs, queue.snapshot().filter(|_| vring.running)) else {
        return Ok(());
    };
    tree["addresses"] = addresses(memory, addrs);
    let seen = match features.contains(VIRTIO_F_RING_PACKED) {
        true => see_packed(tree, memory, status.size, addrs, status.avail),
        false => see_split(tree, memory, status.size, addrs, status.avail),
    };
    seen.map_err(|error| error.to_string())
}

fn see_split(
    tree: &mut Value,
    memory: &Arc<MemTable>,
    size: u16,
    addrs: RingAddrs,
    next: u16,
) -> Result<(), LayoutError> {
    let sight = SplitSight::of(Arc::clone(memory), size, addrs, next)?;
    tree["avail"] = json!({
        "index": sight.avail_idx,
        "flags": sight.avail_flags,
        "used-event": sight.used_event,
    });
    tree["used"] = json!({
        "index": sight.used_idx,
        "flags": sight.used_flags,
        "avail-event": sight.avail_event,
    });
    // What the guest made available and has not got back.
    tree["in-flight"] = json!(sight.avail_idx.wrapping_sub(sight.used_idx));
    let row = |seen: &Seen| -> Value {
        let avail = ("avail", json!(seen.avail));
        std::iter::once(avail).chain(fields(seen, "next")).collect()
    };
    tree["descriptors"] = sight.descs.iter().map(row).collect();
    Ok(())
}

fn see_packed(
    tree: &mut Value,
    memory: &Arc<MemTable>,
    size: u16,
    addrs: RingAddrs,
    next: u16,
) -> Result<(), LayoutError> {
    let sight = PackedSight::of(Arc::clone(memory), size, addrs, next)?;
    tree["next"] = json!(next & !WRAP);
    tree["wrap"] = json!(next & WRAP != 0);
    tree["driver-event"] = event(sight.driver_event);
    tree["device-event"] = event(sight.device_event);
    tree["in-flight"] = json!(sight.available);
    let row = |seen: &Seen| -> Value { fields(seen, "id").into_iter().collect() };
    tree["descriptors"] = sight.descs.iter().map(row).collect();
    Ok(())
}

/// A descriptor's fields; the layouts have another `last`.
fn fields(seen: &Seen, last: &'static str) -> [(&'static str, Value); 5] {
    [
        ("index", json!(seen.index)),
        ("address", json!(format!("{:#x}", seen.desc.addr))),
        ("length", json!(seen.desc.len)),
        ("flags", flags(&seen.desc)),
        (last, json!(seen.desc.next)),
    ]
}

/// The bit of a packed ring's position that is the wrap counter.
const WRAP: u16 = 1 << 15;

fn event(event: Event) -> Value {
    json!({ "flags": event.flags, "index": event.desc & !WRAP, "wrap": event.desc & WRAP != 0 })
}

/// Where the parts of a ring are, as the guest knows it.
fn addresses(memory: &MemTable, addrs: RingAddrs) -> Value {
    let guest = |addr: FrontendAddr| {
        let known = if memory.is_behind_iommu() {
            Some(addr.0)
        } else {
            guest_address(memory, addr)
        };
        known.map(|addr| format!("{addr:#x}"))
    };
    json!({
        "descriptors": guest(addrs.desc),
        "driver": guest(addrs.driver),
        "device": guest(addrs.device),
    })
}

fn guest_address(memory: &MemTable, addr: FrontendAddr) -> Option<u64> {
    memory.regions().iter().find_map(|region| {
        let desc = region.desc();
        let offset = addr.0.checked_sub(desc.frontend.0)?;
        (offset < desc.size).then_some(desc.guest.0 + offset)
    })
}

/// The names of a descriptor's flags, and in hexadecimal what has none.
fn flags(desc: &Desc) -> Value {
    const NAMES: [(u16, &str); 5] = [
        (VIRTQ_DESC_F_NEXT, "NEXT"),
        (VIRTQ_DESC_F_WRITE, "WRITE"),
        (VIRTQ_DESC_F_INDIRECT, "INDIRECT"),
        (VIRTQ_DESC_F_AVAIL, "AVAIL"),
        (VIRTQ_DESC_F_USED, "USED"),
    ];
    let set = NAMES.iter().filter(|(flag, _)| desc.has(*flag));
    let mut names: Vec<String> = set.map(|(_, name)| (*name).to_owned()).collect();
    let unnamed = NAMES.iter().fold(desc.flags, |left, (flag, _)| left & !flag);
    if unnamed != 0 {
        names.push(format!("{unnamed:#x}"));
    }
    json!(names.join("|"))
}

//! What `ovs-appctl vhost-user/...` tells of a port, as a tree: here `show` and `events`, in `report`, `latency` and
//! `ring_dump` the others. People and programs get the same: the tree indented, or the tree as JSON.

use std::fmt::Write;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::Instant;

use serde_json::{json, Map, Value};

use crate::datapath::Queue;
use crate::memory::Region;
use crate::virtio::features::{Features, VIRTIO_F_RING_PACKED};

use super::portrait::{Portrait, VringPortrait};
use super::shared::Port;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topic {
    /// What it is and who is there.
    Show,
    /// What happened to it.
    Events,
    /// What it moved and dropped.
    Stats,
    /// How long packets waited; the word `on` or `off` begins and ends the measuring.
    Latency,
    /// What lies in its rings; a word is the number of a vring.
    Rings,
}

impl Port {
    /// What is known of a topic; a word says which part of it, where there is a choice.
    ///
    /// # Errors
    ///
    /// What is wrong with the word, for people.
    pub fn tell(&self, topic: Topic, word: Option<&str>) -> Result<Value, String> {
        match (topic, word) {
            (Topic::Show, _) => Ok(self.describe()),
            (Topic::Events, _) => Ok(self.describe_events()),
            (Topic::Stats, _) => Ok(self.describe_stats()),
            (Topic::Rings, word) => self.dump_rings(word),
            (Topic::Latency, Some(word @ ("on" | "off"))) => {
                self.measure_latency(word == "on");
                Ok(self.describe_latency())
            }
            (Topic::Latency, Some(word)) => Err(format!("\"{word}\" is neither on nor off")),
            (Topic::Latency, None) => Ok(self.describe_latency()),
        }
    }

    /// What the port is, who its front-end is and what that has said, and where each ring stands. Main; takes locks that
    /// are held briefly, and disturbs no burst.
    pub fn describe(&self) -> Value {
        // Long before it is told: who polls has time to say so.
        self.counted_queues().iter().for_each(Queue::ask_poller);
        let mut tree = Map::new();
        let mut put = |key: &str, value: Value| tree.insert(key.into(), value);
        put("name", json!(self.name()));
        self.status(&mut |key, value| {
            // The rest of it comes in more detail below.
            if ["mode", "status", "error"].contains(&key) {
                put(key, json!(value));
            }
        });
        put("socket", json!(self.path()));
        self.describe_settings(&mut put);
        self.describe_limits(&mut put);
        let portrait = self.portrait.lock().clone();
        if let Some(portrait) = portrait {
            self.describe_front_end(&portrait, &mut put);
        }
        Value::Object(tree)
    }

    /// What options made of the port.
    fn describe_settings(&self, put: &mut dyn FnMut(&str, Value) -> Option<Value>) {
        let file = self
            .door
            .lock()
            .as_ref()
            .map(|door| door.file().path().to_owned());
        if let Some(meta) = file.and_then(|path| path.symlink_metadata().ok()) {
            let protection = json!({
                "owner": meta.uid(),
                "group": meta.gid(),
                "mode": format!("{:04o}", meta.mode() & 0o7777),
            });
            put("socket-file", protection);
        }
        if let Some(users) = &self.options.lock().allowed_users {
            put("allowed-uids", json!(users));
        }
        let kept_back = self.next_offer().kept_back.names();
        if !kept_back.is_empty() {
            put("kept-back", json!(kept_back));
        }
    }

    fn describe_limits(&self, put: &mut dyn FnMut(&str, Value) -> Option<Value>) {
        let limit =
            |limit: Option<(u64, u64)>| limit.map(|(rate, burst)| json!({ "rate": rate, "burst": burst }));
        let policing = self.policing();
        if policing.iter().any(Option::is_some) {
            let [bytes, packets] = policing.map(limit);
            put("ingress-policing", json!({ "bytes": bytes, "packets": packets }));
        }
        if let Some(packets) = limit(self.egress_packets()) {
            put("egress-policing", json!({ "packets": packets }));
        }
        if let Some((name, settings)) = self.qos() {
            let mut tree = json!({ "type": name.to_string_lossy() });
            settings.iter().for_each(|(key, value)| tree[key] = json!(value));
            if let Ok(queues) = self.qos_queues() {
                tree["queues"] = queues
                    .into_iter()
                    .filter_map(|id| self.describe_qos_queue(id))
                    .collect();
            }
            put("qos", tree);
        }
    }

    fn describe_qos_queue(&self, id: u32) -> Option<Value> {
        let (settings, counts) = self.qos_queue(id).ok()?;
        let mut tree = json!({ "queue": id });
        settings.iter().for_each(|(key, value)| tree[key] = json!(value));
        tree["packets"] = json!(counts.tx_packets);
        tree["dropped"] = json!(counts.tx_errors);
        Some(tree)
    }

    fn describe_front_end(&self, portrait: &Portrait, put: &mut dyn FnMut(&str, Value) -> Option<Value>) {
        if let Some(visitor) = &portrait.visitor {
            let front_end = json!({
                "pid": visitor.pid,
                "command": visitor.command,
                "uid": visitor.uid,
                "seconds": visitor.since.elapsed().as_secs(),
            });
            put("front-end", front_end);
        }
        let acknowledged = portrait.acknowledged.unwrap_or_default();
        let features = json!({
            "offered": portrait.offered.to_string(),
            "acknowledged": portrait.acknowledged.map(|features| features.to_string()),
            "names": names(&acknowledged.names()),
            "left": names(&portrait.offered.without(acknowledged).names()),
        });
        put("features", features);
        let protocol = portrait.protocol;
        let protocol =
            json!({ "acknowledged": format!("{:#x}", protocol.0), "names": names(&protocol.to_string()) });
        put("protocol-features", protocol);
        let memory = portrait.memory.upgrade();
        let regions = memory.as_ref().map(|memory| memory.regions()).unwrap_or_default();
        put(
            "memory",
            regions.iter().map(|region| describe_region(region)).collect(),
        );
        let vrings = portrait.vrings.iter().zip(&self.queues).enumerate();
        put(
            "vrings",
            vrings
                .map(|(index, (vring, queue))| describe_vring(index, vring, queue, acknowledged))
                .collect(),
        );
    }

    /// What happened to the port, oldest first. Main; takes a lock that is held briefly.
    pub fn describe_events(&self) -> Value {
        let event = |told: super::events::Told| {
            json!({
                "seconds-ago": (told.ago.as_secs_f64() * 1e3).round() / 1e3,
                "level": told.level.as_str(),
                "text": told.text,
            })
        };
        let events: Value = self.events.tell(Instant::now()).into_iter().map(event).collect();
        json!({ "name": self.name(), "events": events })
    }
}

fn describe_region(region: &Region) -> Value {
    let (desc, backing) = (region.desc(), region.backing());
    json!({
        "guest-address": format!("{:#x}", desc.guest.0),
        "size": desc.size,
        "front-end-address": format!("{:#x}", desc.frontend.0),
        "backing": backing.kind(),
        "page-size": backing.page(),
        "seals": backing.seals(),
        "numa-nodes": region.nodes(),
    })
}

pub(super) fn describe_vring(
    index: usize,
    vring: &VringPortrait,
    queue: &Queue,
    features: Features,
) -> Value {
    let packed = features.contains(VIRTIO_F_RING_PACKED);
    let mut tree = json!({
        "index": index,
        "direction": if index % 2 == 0 { "to the guest" } else { "from the guest" },
        "layout": if packed { "packed" } else { "split" },
        "size": vring.size,
        "enabled": vring.enabled,
        "running": vring.running,
    });
    // The number of the next buffer, modulo 65536.
    if let Some(status) = queue.snapshot().filter(|_| vring.running) {
        tree["next"] = json!(status.avail);
    }
    if let Some(thread) = queue.poller().filter(|_| index % 2 == 1) {
        tree["polled-by"] = json!(thread_name(thread));
    }
    if let Some(fault) = queue.try_fault() {
        tree["error"] = json!(fault.reason.to_string());
    }
    tree
}

/// What Open vSwitch calls a thread of this process, which for a poll thread says its core; None if it is gone.
fn thread_name(thread: u32) -> Option<String> {
    let name = fs::read_to_string(format!("/proc/self/task/{thread}/comm"));
    name.ok().map(|name| name.trim_end().to_owned())
}

/// `A|B` as a list; none of it may be written as `none`.
fn names(text: &str) -> Value {
    text.split('|')
        .filter(|name| !["", "none"].contains(name))
        .collect()
}

/// A tree for people: members indented under their name; lists of plain values, and the members of lists, in one line.
pub fn indented(tree: &Value) -> String {
    let mut text = String::new();
    match tree.as_object() {
        Some(members) => members
            .iter()
            .for_each(|(name, value)| indent(&mut text, 0, name, value)),
        None => text.push_str(&plain(tree)),
    }
    text
}

fn indent(text: &mut String, depth: usize, name: &str, value: &Value) {
    let _ = write!(text, "{:1$}{name}:", "", 2 * depth);
    match value {
        Value::Object(members) => {
            text.push('\n');
            for (name, value) in members {
                indent(text, depth + 1, name, value);
            }
        }
        Value::Array(elements) if elements.iter().any(Value::is_object) => {
            text.push('\n');
            for element in elements {
                let _ = writeln!(text, "{:1$}- {2}", "", 2 * (depth + 1), plain(element));
            }
        }
        value => {
            let _ = writeln!(text, " {}", plain(value));
        }
    }
}

/// A value in one line.
fn plain(value: &Value) -> String {
    let list = |texts: Vec<String>| texts.join(", ");
    match value {
        Value::Null => "-".into(),
        Value::String(text) => text.clone(),
        Value::Array(elements) if elements.is_empty() => "-".into(),
        Value::Array(elements) => list(elements.iter().map(plain).collect()),
        Value::Object(members) => list(
            members
                .iter()
                .map(|(name, value)| format!("{name}: {}", plain(value)))
                .collect(),
        ),
        value => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_reads_as_lines_in_the_order_it_was_made_in() {
        let tree = json!({
            "name": "vhost1",
            "front-end": { "pid": 7, "command": "qemu" },
            "features": { "acknowledged": null, "names": ["B", "A"] },
            "memory": [],
            "vrings": [{ "index": 0, "running": true }, { "index": 1, "running": false }],
        });
        let expected = "\
name: vhost1
front-end:
  pid: 7
  command: qemu
features:
  acknowledged: -
  names: B, A
memory: -
vrings:
  - index: 0, running: true
  - index: 1, running: false
";
        assert_eq!(indented(&tree), expected);
    }

    #[test]
    fn names_become_a_list_and_no_name_an_empty_one() {
        assert_eq!(names("A|B"), json!(["A", "B"]));
        assert_eq!(names(""), json!([]));
        assert_eq!(names("none"), json!([]));
    }
}

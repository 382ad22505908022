//! Captures and logs as threads see them: what is kept, what is counted, what is left behind.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::capture::Capture;
use super::writer::Writer;
use super::{pcapng, Seen, Stand, Tap};
use crate::datapath::{Direction, FaultReason, Offload, RingFault};

const FRAME: [u8; 60] = [7; 60];

fn seen(vring: u16, moved: usize) -> Seen {
    let direction = match vring % 2 {
        0 => Direction::Enqueue,
        _ => Direction::Dequeue,
    };
    Seen {
        vring,
        direction,
        asked: 32,
        moved,
    }
}

fn frames(count: usize) -> impl Iterator<Item = (&'static [u8], Offload)> {
    std::iter::repeat_n((&FRAME[..], Offload::NONE), count)
}

/// A port with two queue pairs that is captured into a directory of its own.
struct Rig {
    tap: Arc<Tap>,
    dir: tempfile::TempDir,
}

impl Rig {
    fn new() -> Rig {
        Rig {
            tap: Arc::default(),
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn start(&self, options: &[&str]) -> Result<(), String> {
        let words: Vec<&str> = ["file"].iter().chain(options).copied().collect();
        self.tap.start_capture("p", 4, self.dir.path(), &words, || ())
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("file")
    }

    /// A burst as a poll thread hands it over. Says whether anybody looked.
    fn burst(&self, vring: u16, count: usize) -> bool {
        let Some(looking) = self.tap.looking() else {
            return false;
        };
        looking.see(&seen(vring, count), Stand::default, frames(count));
        !looking.is_nobody()
    }

    fn told(&self, key: &str) -> Value {
        self.tap.tell_capture()[key].clone()
    }

    fn wait_for_end(&self) {
        let start = Instant::now();
        while self.told("running") == true {
            assert!(start.elapsed() < Duration::from_secs(60), "it never ends");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// The blocks of packets in the file.
    fn packets(&self) -> Vec<Vec<u8>> {
        let bytes = fs::read(self.file()).unwrap();
        let blocks: Vec<_> = pcapng::packets(&bytes).map(|(_, block)| block.to_vec()).collect();
        assert_eq!(
            blocks.iter().map(Vec::len).sum::<usize>(),
            bytes.len(),
            "not whole"
        );
        assert_eq!(blocks.last().unwrap()[0], 5, "no statistics");
        blocks.into_iter().filter(|block| block[0] == 6).collect()
    }
}

#[test]
fn what_passes_while_somebody_looks_is_in_the_file_and_nothing_else() {
    let rig = Rig::new();
    assert!(!rig.burst(1, 3));
    rig.start(&[]).unwrap();
    assert!(rig.burst(2, 2));
    assert!(rig.burst(1, 3));
    rig.tap.stop_capture().unwrap();
    assert!(!rig.burst(1, 3));
    let packets = rig.packets();
    assert_eq!(packets.len(), 5);
    assert!(packets.iter().all(|packet| packet[28..88] == FRAME));
    // Direction and queue, in the order of time.
    let marks = packets.iter().map(|packet| (packet[92], packet[100]));
    assert_eq!(
        marks.collect::<Vec<_>>(),
        [(2, 1), (2, 1), (1, 0), (1, 0), (1, 0)]
    );
    assert_eq!((rig.told("passed"), rig.told("written")), (5.into(), 5.into()));
    assert_eq!(rig.told("ended"), "it was stopped");
    assert_eq!(rig.told("file-bytes"), fs::metadata(rig.file()).unwrap().len());
}

#[test]
fn only_what_is_asked_for_is_taken() {
    let rig = Rig::new();
    rig.start(&["direction=in", "queue=1", "sample=4", "snaplen=16"])
        .unwrap();
    for _ in 0..3 {
        (0..4).for_each(|vring| assert!(rig.burst(vring, 7)));
    }
    rig.tap.stop_capture().unwrap();
    let packets = rig.packets();
    assert_eq!((rig.told("passed"), packets.len()), (21.into(), 6));
    for packet in packets {
        assert_eq!((packet[20], packet[24]), (16, 60));
    }
}

#[test]
fn a_limit_ends_a_capture_and_nobody_looks_any_more() {
    let rows = [
        ("packets=3", 3, "it has 3 packets"),
        (
            "bytes=4096",
            34,
            "another packet would make it longer than 4096 bytes",
        ),
    ];
    for (limit, count, why) in rows {
        let rig = Rig::new();
        rig.start(&[limit]).unwrap();
        rig.burst(1, 40);
        rig.wait_for_end();
        assert!(!rig.burst(0, 1), "{limit}");
        assert_eq!(rig.told("ended"), why);
        assert_eq!(rig.packets().len(), count, "{limit}");
        assert!(fs::metadata(rig.file()).unwrap().len() <= 4096);
        assert!(rig.tap.stop_capture().is_err());
    }
}

#[test]
fn a_capture_that_is_forgotten_ends_by_itself() {
    let rig = Rig::new();
    rig.start(&["seconds=1"]).unwrap();
    rig.wait_for_end();
    assert!(!rig.burst(0, 1));
    assert_eq!(rig.told("ended"), "its time of 1 s is over");
    assert_eq!(rig.packets().len(), 0);
}

#[test]
fn a_full_buffer_loses_frames_counts_them_and_does_not_grow() {
    let dir = tempfile::tempdir().unwrap();
    // Nobody writes.
    let (capture, _file) = Capture::new("p", 2, dir.path(), &["file"]).unwrap();
    let capacity = capture.buffers.try_at(1).unwrap().capacity();
    let bursts = 2 * capacity / (32 * FRAME.len());
    (0..bursts).for_each(|_| capture.take(&seen(1, 32), frames(32)));
    let buffer = capture.buffers.try_at(1).unwrap();
    assert_eq!(buffer.capacity(), capacity);
    let (kept, lost) = (
        pcapng::packets(&buffer).count(),
        capture.tell()["lost"].as_u64().unwrap(),
    );
    assert!(lost > 0 && kept > 0, "{kept} kept, {lost} lost");
    assert_eq!(kept as u64 + lost, 32 * bursts as u64);
}

#[test]
fn a_poll_thread_waits_for_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let (capture, _file) = Capture::new("p", 2, dir.path(), &["file"]).unwrap();
    let held = capture.buffers.try_at(1).unwrap();
    capture.take(&seen(1, 5), frames(5));
    capture.take(&seen(0, 3), frames(3));
    drop(held);
    let told = capture.tell();
    assert_eq!((&told["passed"], &told["lost"]), (&8.into(), &5.into()));
}

#[test]
fn what_a_poll_thread_is_at_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let (capture, file) = Capture::new("p", 2, dir.path(), &["file"]).unwrap();
    let capture = Arc::new(capture);
    (0..2).for_each(|vring| capture.take(&seen(vring, 1), frames(1)));
    let mut writer = Writer::new(Arc::clone(&capture), file, 2);
    let begun = Barrier::new(2);
    std::thread::scope(|scope| {
        let held = capture.buffers.try_at(0).unwrap();
        scope.spawn(|| {
            begun.wait();
            writer.exchange();
        });
        begun.wait();
        std::thread::sleep(Duration::from_micros(200));
        drop(held);
    });
    assert!(capture.buffers.iter().all(|part| part.lock().is_empty()));
}

#[test]
fn of_what_threads_hand_over_at_once_each_frame_is_written_or_counted() {
    const BURSTS: u64 = 2000;
    let rig = Rig::new();
    rig.start(&[]).unwrap();
    let handed = std::thread::scope(|scope| {
        // Two of them at each vring, and somebody who comes and goes.
        let hand_over = |vring| (0..BURSTS).filter(|_| rig.burst(vring, 8)).count() as u64;
        let threads: Vec<_> = [0, 1, 0, 1]
            .map(|vring| scope.spawn(move || hand_over(vring)))
            .into();
        for _ in 0..20 {
            rig.tap.start_trace(2, &[], || ()).unwrap();
            rig.tap.stop_trace().unwrap();
        }
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .sum::<u64>()
    });
    rig.tap.stop_capture().unwrap();
    let number = |key| rig.told(key).as_u64().unwrap();
    assert_eq!(number("passed"), 8 * handed);
    assert_eq!(number("written") + number("lost"), 8 * handed);
    assert_eq!(rig.packets().len() as u64, number("written"));
}

#[test]
fn nothing_is_left_of_a_capture_but_its_file() {
    let rig = Rig::new();
    rig.start(&[]).unwrap();
    rig.burst(1, 3);
    let capture = Arc::clone(&rig.tap.capture.lock().as_ref().unwrap().capture);
    rig.tap.stop_capture().unwrap();
    for buffer in capture.buffers.iter() {
        assert_eq!(buffer.lock().capacity(), 0);
    }
    let links = fs::read_dir("/proc/self/fd").unwrap().flatten();
    let open: Vec<_> = links.filter_map(|link| fs::read_link(link.path()).ok()).collect();
    assert!(!open.contains(&rig.file()), "{open:?}");
}

#[test]
fn one_runs_at_a_time_and_no_file_is_overwritten() {
    let rig = Rig::new();
    rig.start(&[]).unwrap();
    let refusal = rig
        .tap
        .start_capture("p", 4, rig.dir.path(), &["other"], || ())
        .unwrap_err();
    assert!(refusal.contains("is being captured into"), "{refusal}");
    assert!(!rig.dir.path().join("other").exists());
    rig.tap.stop_capture().unwrap();
    let refusal = rig.start(&[]).unwrap_err();
    assert!(refusal.contains("exists"), "{refusal}");
    assert_eq!(rig.told("ended"), "it was stopped");
    rig.tap
        .start_capture("p", 4, rig.dir.path(), &["other"], || ())
        .unwrap();
    assert_eq!(rig.told("running"), true);
    rig.tap.stop_capture().unwrap();
}

#[test]
fn with_its_port_a_capture_ends_and_its_file_is_whole() {
    let rig = Rig::new();
    rig.start(&[]).unwrap();
    rig.burst(1, 3);
    rig.tap.close();
    rig.wait_for_end();
    assert_eq!(rig.packets().len(), 3);
}

#[test]
fn a_file_that_takes_no_more_ends_a_capture_with_the_reason() {
    let full = Path::new("/dev/full");
    let dir = tempfile::tempdir().unwrap();
    let (capture, _file) = Capture::new("p", 2, dir.path(), &["file"]).unwrap();
    let capture = Arc::new(capture);
    let file = fs::OpenOptions::new().write(true).open(full).unwrap();
    let (_stop, stopped) = crossbeam::channel::bounded(0);
    super::writer::Writer::new(Arc::clone(&capture), file, 2).run(&stopped, || ());
    let told = capture.tell();
    assert!(
        told["ended"].as_str().unwrap().contains("No space left"),
        "{told}"
    );
}

// ---- the log of bursts ----

fn stand(next: u16, waiting: u32) -> Stand {
    Stand {
        next: Some(next),
        waiting,
        ..Stand::default()
    }
}

fn note(tap: &Tap, seen: &Seen, stand: Stand) {
    tap.looking().unwrap().see(seen, || stand, frames(seen.moved));
}

#[test]
fn a_log_says_of_each_burst_what_it_moved_and_where_the_ring_stood() {
    let tap = Tap::default();
    tap.start_trace(4, &[], || ()).unwrap();
    note(&tap, &seen(1, 32), stand(32, 8));
    note(&tap, &seen(1, 8), stand(40, 0));
    // Polls that find nothing.
    note(&tap, &seen(1, 0), stand(40, 0));
    // A buffer that held no frame.
    note(&tap, &seen(1, 0), stand(41, 0));
    note(&tap, &seen(2, 30), stand(30, 0));
    let told = tap.tell_trace();
    let bursts = told["bursts"].as_array().unwrap();
    let rows: Vec<_> = bursts
        .iter()
        .map(|burst| {
            let number = |key: &str| burst[key].as_u64();
            (
                number("moved").unwrap(),
                number("before"),
                number("after"),
                burst["ended"].as_str(),
            )
        })
        .collect();
    let empty = Some("the guest sent no more");
    let expected = [
        (32, None, Some(32), None),
        (8, Some(32), Some(40), empty),
        (0, Some(40), Some(41), empty),
        (30, None, Some(30), Some("the guest has no buffers")),
    ];
    assert_eq!(rows, expected);
    assert_eq!(
        (&bursts[3]["queue"], &bursts[3]["direction"]),
        (&1.into(), &"out".into())
    );
}

#[test]
fn a_log_keeps_the_last_bursts_until_it_is_stopped() {
    let tap = Tap::default();
    tap.start_trace(2, &["bursts=16", "direction=in"], || ()).unwrap();
    for next in 1..=100 {
        note(&tap, &seen(1, 1), stand(next, 0));
        note(&tap, &seen(0, 1), stand(next, 0));
    }
    let told = tap.stop_trace().unwrap();
    let bursts = told["bursts"].as_array().unwrap();
    assert_eq!(bursts.len(), 16);
    assert_eq!(
        (&bursts[0]["after"], &bursts[15]["after"]),
        (&85.into(), &100.into())
    );
    assert!(tap.stop_trace().is_err());
    assert_eq!(tap.tell_trace(), Value::Null);
}

#[test]
fn a_log_that_is_forgotten_ends_by_itself_and_can_be_read() {
    let tap = Tap::default();
    tap.start_trace(2, &["seconds=1"], || ()).unwrap();
    let start = Instant::now();
    while !tap.looking().unwrap().is_nobody() {
        assert!(start.elapsed() < Duration::from_secs(60), "it never ends");
        std::thread::sleep(Duration::from_millis(2));
    }
    note(&tap, &seen(1, 1), stand(1, 0));
    let told = tap.tell_trace();
    assert_eq!(told["running"], false);
    assert_eq!(told["bursts"].as_array().map(Vec::len), Some(0));
}

#[test]
fn a_ring_that_breaks_is_in_the_log_once_with_the_reason() {
    let tap = Tap::default();
    tap.start_trace(2, &[], || ()).unwrap();
    let reason = FaultReason::AvailJump {
        avail: 9,
        next: 1,
        size: 4,
    };
    let broken = Stand {
        fault: Some(RingFault { vring: 1, reason }),
        ..stand(1, 0)
    };
    (0..3).for_each(|_| note(&tap, &seen(1, 0), broken));
    let told = tap.tell_trace();
    assert_eq!(told["bursts"].as_array().map(Vec::len), Some(1));
    assert_eq!(told["bursts"][0]["ended"], reason.to_string());
}

//! `ovs-appctl vhost-user/pcap` and `vhost-user/trace` while packets move: tshark reads what the switch wrote, the numbers are
//! those of the counters, no packet is lost for it, and nothing is left behind.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{bail, ensure, Context, Result};
use serde_json::Value;

use super::describe::json;
use super::offload;
use super::world::{self, ping_all, Guest, Kind, World, PATIENCE};
use super::{dpdk, Ctx};
use crate::ovs::Options;
use crate::testpmd::Rings;
use crate::tshark::{self, Frame, INBOUND, OUTBOUND};
use crate::{tcp, wait};

/// One frame of so many goes into the capture that sees them all.
const SAMPLE: u64 = 1000;

/// testpmd's packets go round through two ports, of which one is captured from before the first packet until after the last,
/// the other for a moment.
pub fn flood(ctx: &Ctx) -> Result<()> {
    let world = World::new(&ctx.settings, &ctx.dir, true)?;
    let ports = world.testpmd_ports(Kind::Client)?;
    world.cross_connect(&ports)?;
    let all = world.dir.join("all.pcapng");
    start(
        &world,
        "vhost1",
        &format!("{} seconds=600 snaplen=64 sample={SAMPLE}", all.display()),
    )?;
    ctx.step("start testpmd");
    let mut testpmd = world.start_testpmd(&ports, Rings::PLAIN)?;
    testpmd.command("start tx_first 2", "packet forwarding")?;
    ctx.step("a capture that ends by itself");
    let few = world.dir.join("few.pcapng");
    start(&world, "vhost2", &format!("{} packets=2000", few.display()))?;
    let told = wait_for_end(&world, "vhost2")?;
    ensure!(told["ended"] == "it has 2000 packets", "{told}");
    check_few(&few)?;
    ctx.step("trace");
    trace(&world)?;
    ctx.step("drain and compare");
    let dropped = dpdk::stop(&mut testpmd)?;
    ensure!(dropped == 0, "testpmd could not send {dropped} packets");
    let mut packets = 0;
    for (from, to) in [(0, 1), (1, 0)] {
        packets += dpdk::compare(&world, &mut testpmd, [&ports[from], &ports[to]], [from, to])?;
    }
    let told = stop(&world, "vhost1")?;
    check_all(&told, &all, packets)?;
    ctx.result(&format!(
        "{packets} packets passed by, {} captured, none lost",
        told["written"]
    ));
    ctx.step("a port that goes");
    let last = world.dir.join("last.pcapng");
    start(&world, "vhost2", &last.display().to_string())?;
    world.ovs.vsctl("del-port vhost2")?;
    nothing_is_open(&world)?;
    ensure!(
        tshark::frames(&last)?.is_empty(),
        "packets of a port that is gone"
    );
    refuse(&world)?;
    drop(testpmd);
    world.finish(&[])
}

/// The capture of a moment: whole frames of both directions, in the order of their time.
fn check_few(file: &Path) -> Result<()> {
    let mode = fs::metadata(file)?.permissions().mode();
    ensure!(mode & 0o777 == 0o600, "anybody may read it: {mode:o}");
    let frames = tshark::frames(file)?;
    ensure!(frames.len() == 2000, "{} packets", frames.len());
    for frame in &frames {
        // What testpmd sends unless it is told otherwise.
        let is_ours = frame.source == "198.18.0.1" && frame.port == "9" && frame.lens == [64, 64];
        ensure!(is_ours && frame.interface == "vhost2", "{frame:?}");
        ensure!(frame.queue == 0 && frame.comment.is_empty(), "{frame:?}");
    }
    for direction in [INBOUND, OUTBOUND] {
        let times: Vec<f64> = frames
            .iter()
            .filter(|frame| frame.direction == direction)
            .map(|frame| frame.seconds)
            .collect();
        ensure!(!times.is_empty(), "no packet of direction {direction}");
        ensure!(times.is_sorted(), "direction {direction} is in no order");
    }
    Ok(())
}

/// The capture of all: of `packets` each way, every one passed by, and of those one in [`SAMPLE`] is in the file.
fn check_all(told: &Value, file: &Path, packets: u64) -> Result<()> {
    let number = |key: &str| told[key].as_u64().with_context(|| format!("no {key} in {told}"));
    let (passed, lost, written) = (number("passed")?, number("lost")?, number("written")?);
    ensure!(passed == packets, "{passed} of {packets} packets passed by");
    ensure!(written + lost == passed.div_ceil(SAMPLE), "{told} of {passed}");
    let frames = tshark::frames(file)?;
    ensure!(
        frames.len() as u64 == written,
        "{} packets in {told}",
        frames.len()
    );
    ensure!(number("file-bytes")? == fs::metadata(file)?.len(), "{told}");
    Ok(())
}

/// The log of bursts: on split rings each packet is one index.
fn trace(world: &World) -> Result<()> {
    world.ovs.appctl("vhost-user/trace start vhost1")?;
    let enough = |told: &Value| {
        told[0]["bursts"]
            .as_array()
            .is_some_and(|bursts| bursts.len() == 256)
    };
    let told = wait::until("bursts in the log", PATIENCE, || {
        Ok(Some(json(world, "vhost-user/trace vhost1 --json")?).filter(enough))
    })?;
    let bursts = told[0]["bursts"].as_array().context("no bursts")?;
    for direction in ["in", "out"] {
        let of_it = bursts.iter().filter(|burst| burst["direction"] == direction);
        let mut known = of_it.filter(|burst| burst["before"].is_u64()).peekable();
        ensure!(known.peek().is_some(), "no burst of direction {direction}");
        for burst in known {
            let number = |key: &str| {
                burst[key]
                    .as_u64()
                    .with_context(|| format!("no {key} in {burst}"))
            };
            let went = number("after")?.wrapping_sub(number("before")?) & 0xffff;
            ensure!(went == number("moved")? && number("queue")? == 0, "{burst}");
        }
    }
    let text = world.ovs.appctl("vhost-user/trace stop vhost1")?;
    ensure!(text.contains("direction: out, queue: 0, asked: "), "{text}");
    let Err(error) = world.ovs.appctl("vhost-user/trace stop vhost1") else {
        bail!("it goes on");
    };
    ensure!(format!("{error:#}").contains("not traced"), "{error:#}");
    Ok(())
}

/// What is refused, each with its reason.
fn refuse(world: &World) -> Result<()> {
    let existing = world.dir.join("all.pcapng");
    let existing = existing.display();
    for (arguments, complaint) in [
        ("start nobody", "no such vhost-user port"),
        ("start --json", "the name of a port is missing"),
        ("stop vhost1", "it is not being captured"),
        ("start vhost1 ../up", "'..' is not allowed"),
        (
            "start vhost1 a/b",
            "neither an absolute path nor the name of a file in",
        ),
        ("start vhost1 snaplen=0", "not a number from 16 to 65535"),
        ("start vhost1 colour=red", "there is no option colour"),
        (&format!("start vhost1 {existing}"), "File exists"),
    ] {
        let Err(error) = world.ovs.appctl(&format!("vhost-user/pcap {arguments}")) else {
            bail!("\"{arguments}\" is not refused");
        };
        ensure!(
            format!("{error:#}").contains(complaint),
            "not \"{complaint}\": {error:#}"
        );
    }
    Ok(())
}

/// Guests that leave segments to the switch: what their virtio-net headers say is a comment on each frame.
pub fn tso(ctx: &Ctx) -> Result<()> {
    let options = Options {
        tso: true,
        ..world::options(&ctx.settings, false)
    };
    let world = World::with(&ctx.settings, &ctx.dir, options, false)?;
    let (ports, vms) = world.boot(&[Kind::Client, Kind::Client], Guest::new(1))?;
    let name = &ports[0].name;
    let told = start(&world, name, "direction=in")?;
    let file = PathBuf::from(told["file"].as_str().context("no file")?);
    let is_usual = file
        .file_name()
        .is_some_and(|file| file.to_string_lossy().starts_with(name.as_str()));
    ensure!(is_usual, "{} is no usual name", file.display());
    ping_all(&vms[0], 2, 5)?;
    tcp::transfer(&vms[0], &vms[1], 4)?;
    let told = stop(&world, name)?;
    ensure!(told["lost"] == 0, "{told}");
    for port in &ports {
        offload::check_no_drops(&world, port)?;
    }
    let frames = tshark::frames(&file)?;
    ensure!(
        told["written"] == frames.len(),
        "{} packets in {told}",
        frames.len()
    );
    ensure!(
        frames.iter().all(|frame| frame.direction == INBOUND),
        "not only from the guest"
    );
    let large: Vec<&Frame> = frames.iter().filter(|frame| frame.lens[0] > 1514).collect();
    ensure!(large.len() > 10, "{} frames to be cut", large.len());
    for frame in &large {
        let words = [
            "virtio-net flags=1 ",
            "gso_type=1 ",
            "csum_start=34 ",
            "csum_offset=16",
        ];
        let all = words.iter().all(|word| frame.comment.contains(word));
        ensure!(all && frame.lens[0] == frame.lens[1], "{frame:?}");
    }
    ensure!(
        frames.iter().any(|frame| frame.comment.is_empty()),
        "pings need no header"
    );
    nothing_is_open(&world)?;
    world.finish(&[])
}

fn start(world: &World, port: &str, words: &str) -> Result<Value> {
    let told = json(world, &format!("vhost-user/pcap --json start {port} {words}"))?;
    let told = told[0]["capture"].clone();
    ensure!(told["running"] == true, "{told}");
    Ok(told)
}

fn stop(world: &World, port: &str) -> Result<Value> {
    let told = json(world, &format!("vhost-user/pcap stop {port} --json"))?;
    let told = told[0]["capture"].clone();
    ensure!(told["ended"] == "it was stopped", "{told}");
    Ok(told)
}

fn wait_for_end(world: &World, port: &str) -> Result<Value> {
    wait::until("the capture to end", PATIENCE, || {
        let told = json(world, &format!("vhost-user/pcap {port} --json"))?[0]["capture"].clone();
        Ok(Some(told).filter(|told| told["running"] == false))
    })
}

/// Holds once the switch has no capture open, and no thread for one.
fn nothing_is_open(world: &World) -> Result<()> {
    let process = PathBuf::from(format!("/proc/{}", world.ovs.pid()?));
    wait::until_true("captures to be closed", PATIENCE, || {
        let of = |folder: &str| fs::read_dir(process.join(folder)).map(Iterator::flatten);
        let open = of("fd")?.filter_map(|link| fs::read_link(link.path()).ok());
        let is_capture = |file: PathBuf| file.extension().is_some_and(|name| name == "pcapng");
        let names = of("task")?.filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
        Ok(open.filter(|file| is_capture(file.clone())).count() == 0
            && names.filter(|name| name.trim() == "ovs-vhost-pcap").count() == 0)
    })
}

//! A process in the guest that looks after its memory: what was written once must stay, and what is written anew all
//! the time must be there at the next look. And the look from outside: two QEMU processes' guest memory compared.

use std::fs::{read_dir, read_link, File};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use anyhow::{bail, ensure, Result};

use crate::shell::Job;
use crate::vm::Vm;
use crate::wait;

/// Size of the file that is written once: an eighth of the guest's memory.
const PATTERN: u32 = 32 << 20;
/// Size of the file that is written anew in every round.
const GENERATION: u32 = 1 << 20;
/// For one round.
const PATIENCE: Duration = Duration::from_secs(60);
const NAME: &str = "memory-check";
const PAGE: usize = 4096;

/// Starts the process; it looks until the guest ends.
pub fn start(vm: &Vm) -> Result<()> {
    let script = format!(
        r#"head -c {PATTERN} /dev/urandom >/tmp/pattern
sum=$(md5sum </tmp/pattern)
generation=0
yes $generation | head -c {GENERATION} >/tmp/generation
while :; do
    [ "$(md5sum </tmp/pattern)" = "$sum" ] || {{ echo BROKEN pattern; exit 1; }}
    yes $generation | head -c {GENERATION} | cmp - /tmp/generation || exit 1
    generation=$((generation + 1))
    yes $generation | head -c {GENERATION} >/tmp/generation
    echo round $generation
done"#
    );
    vm.run(&format!("cat >/tmp/script <<'END'\n{script}\nEND"))?;
    vm.spawn(NAME, "sh /tmp/script")?;
    wait_rounds(&vm.job(NAME), 1)
}

/// Waits until a whole round has begun and ended from now on; fails if any round found a byte changed.
pub fn check(vm: &Vm) -> Result<()> {
    let job = vm.job(NAME);
    // The round under way began before; the one after it did not.
    wait_rounds(&job, rounds(&job)? + 2)
}

fn wait_rounds(job: &Job, goal: u64) -> Result<()> {
    wait::until_true("a round of the guest's memory check", PATIENCE, || {
        Ok(rounds(job)? >= goal)
    })
}

fn rounds(job: &Job) -> Result<u64> {
    let last = job.printed("tail -n 1")?;
    match last.trim().strip_prefix("round ") {
        Some(number) => Ok(number.parse()?),
        None if last.is_empty() => Ok(0),
        None => bail!("the guest's memory has changed: {}", last.trim()),
    }
}

/// Compares the guest memory of two stopped QEMU processes, byte for byte: how many bytes there are.
pub fn compare(ours: u32, theirs: u32) -> Result<u64> {
    let (ours, theirs) = (guest_memory(ours)?, guest_memory(theirs)?);
    let size = ours.metadata()?.len();
    ensure!(
        size == theirs.metadata()?.len(),
        "guest memory of different sizes"
    );
    let (mut a, mut b) = (vec![0; 256 * PAGE], vec![0; 256 * PAGE]);
    let mut different = Vec::new();
    let mut offset = 0;
    while offset < size {
        ours.read_exact_at(&mut a, offset)?;
        theirs.read_exact_at(&mut b, offset)?;
        if a != b {
            let pages = a.chunks(PAGE).zip(b.chunks(PAGE)).enumerate();
            different.extend(
                pages
                    .filter(|(_, (a, b))| a != b)
                    .map(|(page, _)| offset + (page * PAGE) as u64),
            );
        }
        offset += a.len() as u64;
    }
    if !different.is_empty() {
        let shown: Vec<_> = different
            .iter()
            .take(8)
            .map(|page| format!("{page:#x}"))
            .collect();
        bail!(
            "{} pages of guest memory differ: {}",
            different.len(),
            shown.join(" ")
        );
    }
    Ok(size)
}

/// The file that is the guest's memory (`memory-backend-memfd,share=on`).
fn guest_memory(qemu: u32) -> Result<File> {
    for entry in read_dir(format!("/proc/{qemu}/fd"))? {
        let path = entry?.path();
        if read_link(&path).is_ok_and(|target| target.to_string_lossy().contains("memfd:memory-backend")) {
            return Ok(File::open(path)?);
        }
    }
    bail!("QEMU has no guest memory open")
}

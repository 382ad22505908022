//! What a person would look at first when traffic has stopped: on both sides of the ports, taken while it is still so,
//! since nothing of it is left once a case has ended.

use std::fmt::Write;
use std::process::Command;

use crate::ovs::Ovs;
use crate::vm::Vm;

/// On the switch: who polls what, and what each port moved and dropped.
const SWITCH: &[&str] = &["dpif-netdev/pmd-rxq-show", "dpif-netdev/pmd-stats-show"];
/// In a guest: what its queues moved, whether it is still interrupted and who runs, what its kernel complains of and who
/// in it is stuck, and what the last pings said.
const GUEST: &[&str] = &[
    "ethtool -S eth0 | grep _packets",
    "grep virtio /proc/interrupts; sleep 2; grep virtio /proc/interrupts",
    "ps | grep -E 'ping|iperf'",
    "dmesg | tail -n 3",
    "echo w >/proc/sysrq-trigger; dmesg | tail -n 30",
    "tail -n 2 /tmp/ping*.out /tmp/ping*.rc",
];

/// The evidence, as text that goes behind an error. What cannot be had says why.
pub fn of_silence(ovs: &Ovs, ports: &[&str], vms: &[Vm]) -> String {
    let mut text = String::from("what could be seen:");
    let mut add = |title: String, found: anyhow::Result<String>| {
        let found = found.unwrap_or_else(|error| format!("{error:#}"));
        let lines = found.lines().map(str::trim).filter(|line| !line.is_empty());
        // Writing to a string cannot fail.
        let _ = write!(text, "\n  {title}: {}", lines.collect::<Vec<_>>().join("; "));
    };
    for command in SWITCH {
        add((*command).into(), ovs.appctl(command));
    }
    for port in ports {
        add(format!("status of {port}"), ovs.interface(port, "status"));
        add(format!("statistics of {port}"), ovs.counted(port));
    }
    for (vm, command) in vms
        .iter()
        .flat_map(|vm| GUEST.iter().map(move |command| (vm, command)))
    {
        // A filter that lets nothing through has exit status 1.
        let found = vm
            .run_within(command, crate::shell::COMMAND)
            .map(|(_, output)| output);
        add(format!("{}: {command}", vm.spec.name), found);
    }
    text
}

/// Where each thread of the switch is, of one that does not answer: as a debugger sees it, or, where there is none, by what
/// it waits for in the kernel.
pub fn of_stillness(ovs: &Ovs) -> String {
    let found = ovs.pid().map(|pid| stacks(pid).unwrap_or_else(|| waits(pid)));
    format!(
        "the switch's threads:\n{}",
        found.unwrap_or_else(|error| format!("{error:#}"))
    )
}

fn stacks(pid: u32) -> Option<String> {
    let pid = pid.to_string();
    let arguments = ["-p", &pid, "-batch", "-ex", "thread apply all backtrace 16"];
    let output = Command::new("gdb").args(arguments).output().ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

fn waits(pid: u32) -> String {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task"));
    let mut text = String::new();
    for thread in threads.into_iter().flatten().flatten() {
        let told = ["comm", "wchan", "syscall"].map(|file| {
            std::fs::read_to_string(thread.path().join(file)).unwrap_or_else(|error| error.to_string())
        });
        // Writing to a string cannot fail.
        let _ = writeln!(text, "  {}", told.each_ref().map(|told| told.trim()).join(" "));
    }
    text
}

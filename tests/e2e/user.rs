//! Who vswitchd is where it is not root. Users by their numbers: no account has to exist, and none is left behind.

use std::io;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::settings::tool;

/// A user, and how vswitchd becomes it.
#[derive(Clone, Debug)]
pub struct User {
    /// Its number, and its group's.
    pub id: u32,
    /// Capabilities of the process, as the kernel's headers name them: all that it ever has.
    pub capabilities: Vec<&'static str>,
    /// vswitchd is started as root and gives that up by itself (`--user`), for a user of this name.
    pub by_itself: Option<&'static str>,
}

impl User {
    /// A command that runs `command` as the user, which can get no more rights than it has then.
    pub fn run(&self, command: &Command) -> Command {
        // "-all,+net_admin,...": nothing but these.
        let names = self.capabilities.iter().map(|name| {
            let name = name.trim_start_matches("CAP_").to_lowercase();
            format!(",+{name}")
        });
        let set: String = ["-all".into()].into_iter().chain(names).collect();
        let mut run = tool("setpriv");
        run.args(["--no-new-privs", &format!("--bounding-set={set}")]);
        if self.by_itself.is_none() {
            run.args([
                format!("--reuid={}", self.id),
                format!("--regid={}", self.id),
                "--clear-groups".into(),
                format!("--inh-caps={set}"),
                format!("--ambient-caps={set}"),
                // The kernel forgets this when a process becomes somebody else.
                "--pdeathsig=KILL".into(),
            ]);
        }
        run.arg(command.get_program()).args(command.get_args());
        for (key, value) in command.get_envs() {
            match value {
                Some(value) => run.env(key, value),
                None => run.env_remove(key),
            };
        }
        run
    }

    /// Gives it a file.
    pub fn give(&self, file: &Path) -> Result<()> {
        chown(file, Some(self.id), Some(self.id))
            .with_context(|| format!("cannot give {} away", file.display()))
    }
}

/// Root without CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH is told EACCES like anybody else.
pub fn drop_dac_override(command: &mut Command) {
    const CAP_DAC_OVERRIDE: libc::c_ulong = 1;
    const CAP_DAC_READ_SEARCH: libc::c_ulong = 2;
    let drop_both = || {
        for capability in [CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH] {
            // SAFETY: prctl with integer options touches no memory.
            if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } == -1 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: between fork and exec `drop_both` makes system calls only.
    unsafe { command.pre_exec(drop_both) };
}

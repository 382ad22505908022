//! A system call filter for a child process. A call that it does not allow ends the process by SIGSYS, so that no test
//! passes over it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::str::FromStr;
use std::sync::Arc;

use anyhow::{bail, Result};
use seccompiler::{
    apply_filter, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};
use syscalls::Sysno;

/// What is allowed, as a program for the kernel.
#[derive(Clone)]
pub struct Filter(Arc<BpfProgram>);

impl Filter {
    /// Allows calls by their names, sockets of these families only and, if `code_is_fixed`, no memory to become code that was
    /// or is writable. Names that this architecture does not have are left out, as systemd does it.
    pub fn new(names: &BTreeSet<String>, families: &[&str], code_is_fixed: bool) -> Result<Filter> {
        let numbers = names.iter().filter_map(|name| Sysno::from_str(name).ok());
        // No rule: whatever the arguments.
        let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
            numbers.map(|call| (i64::from(call.id()), Vec::new())).collect();
        let families = families.iter().map(|name| family(name));
        let families = families.map(|family| rule(0, SeccompCmpOp::Eq, family?));
        rules.insert(libc::SYS_socket, families.collect::<Result<_>>()?);
        if code_is_fixed {
            for (call, rule) in without_new_code()? {
                rules.insert(call, rule);
            }
        }
        let arch = std::env::consts::ARCH.try_into()?;
        let filter = SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, arch)?;
        Ok(Filter(Arc::new(filter.try_into()?)))
    }

    /// Puts `command` under it, from its exec on. It can get no more rights from then on.
    pub fn put_on(&self, command: &mut Command) {
        let program = Arc::clone(&self.0);
        let apply = move || apply_filter(&program).map_err(|_| io::Error::last_os_error());
        // SAFETY: between fork and exec `apply` makes two system calls only.
        unsafe { command.pre_exec(apply) };
    }
}

/// Calls that map memory or change its protection, and what is allowed of each: never writable and executable at once, and
/// executable from the beginning or not at all.
fn without_new_code() -> Result<[(i64, Vec<SeccompRule>); 3]> {
    const WRITE: u64 = libc::PROT_WRITE as u64;
    const EXEC: u64 = libc::PROT_EXEC as u64;
    let is = |mask, bits| rule(2, SeccompCmpOp::MaskedEq(mask), bits);
    let never_executable = || Ok::<_, anyhow::Error>(vec![is(EXEC, 0)?]);
    Ok([
        (libc::SYS_mmap, vec![is(EXEC, 0)?, is(WRITE, 0)?]),
        (libc::SYS_mprotect, never_executable()?),
        (libc::SYS_pkey_mprotect, never_executable()?),
    ])
}

/// Argument `index` compares like that with `value`.
fn rule(index: u8, comparison: SeccompCmpOp, value: u64) -> Result<SeccompRule> {
    let condition = SeccompCondition::new(index, SeccompCmpArgLen::Dword, comparison, value)?;
    Ok(SeccompRule::new(vec![condition])?)
}

/// An address family by the name that systemd knows it by.
fn family(name: &str) -> Result<u64> {
    let family = match name {
        "AF_UNIX" => libc::AF_UNIX,
        "AF_NETLINK" => libc::AF_NETLINK,
        "AF_INET" => libc::AF_INET,
        "AF_INET6" => libc::AF_INET6,
        "AF_PACKET" => libc::AF_PACKET,
        _ => bail!("which number has {name}?"),
    };
    Ok(u64::try_from(family)?)
}

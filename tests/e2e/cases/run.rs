//! The loop that runs cases, and what it gives to each.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context;

use crate::settings::{Need, Settings};
use crate::{turn, wait};

use super::{Case, CASES};

/// What a case is given.
pub struct Ctx {
    /// The caller's choices.
    pub settings: Settings,
    /// The case's own directory: sockets, logs, databases.
    pub dir: PathBuf,
}

enum Outcome {
    Passed,
    Failed(String),
    Skipped(String),
}

/// Prints the names of the cases that `filters` select, with the reason where one would be skipped.
pub fn list(settings: &Settings, filters: &[String]) {
    for case in selected(settings, filters) {
        match missing(settings, case) {
            None => println!("{}", case.name),
            Some(reason) => println!("{} (SKIP: {reason})", case.name),
        }
    }
}

/// Runs the cases that `filters` select; success if none failed and, where CI=true, none was skipped.
pub fn run(settings: &Settings, filters: &[String]) -> ExitCode {
    let cases = selected(settings, filters);
    if cases.is_empty() {
        eprintln!("no case is called like {filters:?}; see e2e --list");
        return ExitCode::from(2);
    }
    // Others may pass through it: a switch that is not root has its own directory below it.
    let passable = Permissions::from_mode(0o711);
    let logs = match tempfile::Builder::new()
        .prefix("ovs-e2e-")
        .permissions(passable)
        .tempdir()
    {
        Ok(dir) => dir.keep(),
        Err(error) => {
            eprintln!("no directory for logs: {error}");
            return ExitCode::FAILURE;
        }
    };
    let _turn = match turn::take(|text| eprintln!("{text}")) {
        Ok(turn) => turn,
        Err(error) => {
            eprintln!("{error:#}");
            return ExitCode::FAILURE;
        }
    };
    let (mut passed, mut skipped, mut failures) = (0, 0, Vec::new());
    for case in cases {
        if wait::interrupted() {
            break;
        }
        let start = Instant::now();
        let outcome = run_one(settings, case, &logs);
        let seconds = start.elapsed().as_secs_f64();
        match outcome {
            Outcome::Passed => {
                passed += 1;
                println!("ok {} ({seconds:.1} s)", case.name);
            }
            Outcome::Failed(reason) => {
                let failure = format!("FAILED {} ({seconds:.1} s): {reason}", case.name);
                println!("{failure}");
                failures.push(failure);
            }
            Outcome::Skipped(reason) => {
                skipped += 1;
                println!("SKIP: {}: {reason}", case.name);
            }
        }
    }
    // Empty unless a case failed and left its logs.
    let _ = std::fs::remove_dir(&logs);
    let and_skipped = if skipped > 0 {
        format!(", {skipped} skipped")
    } else {
        String::new()
    };
    // Once more where they are looked for: above there may be an hour of output, and who keeps that may keep its end only.
    for failure in &failures {
        println!("{failure}");
    }
    println!("{passed} passed, {} failed{and_skipped}", failures.len());
    if !failures.is_empty() || wait::interrupted() || settings.ci && skipped > 0 {
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn selected(settings: &Settings, filters: &[String]) -> Vec<&'static Case> {
    let wanted = |case: &&Case| {
        let named = filters.is_empty() || filters.iter().any(|filter| case.name.contains(filter.as_str()));
        named && !(case.plugin_only && settings.stock())
    };
    CASES.iter().filter(wanted).collect()
}

fn missing(settings: &Settings, case: &Case) -> Option<String> {
    let stock_needs: &[Need] = if settings.stock() { &[Need::Hugepages] } else { &[] };
    let needs = [&[Need::Switch], case.needs, stock_needs].concat();
    needs.iter().find_map(|need| need.missing(settings))
}

fn run_one(settings: &Settings, case: &Case, logs: &Path) -> Outcome {
    if let Some(reason) = missing(settings, case) {
        return Outcome::Skipped(reason);
    }
    let dir = logs.join(case.name.replace('/', "-"));
    let ctx = Ctx {
        settings: settings.clone(),
        dir: dir.clone(),
    };
    let result = std::fs::create_dir(&dir)
        .context("no directory for the case")
        .and_then(|()| (case.run)(&ctx));
    match result {
        Ok(()) => {
            let _ = std::fs::remove_dir_all(&dir);
            Outcome::Passed
        }
        Err(error) => Outcome::Failed(format!(
            "{error:#}\n  last step: {}\n  logs: {}",
            ctx.last_step(),
            dir.display()
        )),
    }
}

impl Ctx {
    /// Notes in `steps.log` what comes next, so that a failure says where it happened.
    pub fn step(&self, text: &str) {
        use std::io::Write;
        let file = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.steps());
        if let Ok(mut file) = file {
            let _ = writeln!(file, "{text}");
        }
    }

    /// Prints a measured result, under which the case's own line comes.
    pub fn result(&self, text: &str) {
        println!("  {text}");
    }

    fn last_step(&self) -> String {
        crate::process::tail(&self.steps(), 1)
    }

    fn steps(&self) -> PathBuf {
        self.dir.join("steps.log")
    }
}

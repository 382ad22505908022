//! One port that a fault happens to, and others that are not to notice.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{anyhow, ensure, Context, Result};
use ovs_vhost::port::Mode;

use crate::calls::CALLS;
use crate::census::Census;
use crate::common::TestPort;
use crate::injector::{arm, failed, on_main, seen, Fault};
use crate::lines;
use crate::site::{Life, Site};
use crate::visits::Running;

/// Two ports with guests that run, and room for a third.
pub struct Stage {
    directory: tempfile::TempDir,
    innocents: Vec<(Arc<TestPort>, Running)>,
}

impl Stage {
    pub fn new() -> Stage {
        lines::keep();
        let mut stage = Stage {
            directory: tempfile::tempdir().expect("a directory"),
            innocents: Vec::new(),
        };
        for (name, mode) in [
            ("innocent-client", Mode::Client),
            ("innocent-server", Mode::Server),
        ] {
            let site = Site::new(stage.directory.path(), name, mode);
            let port = site.open().expect("a port");
            let running = site.arrive().and_then(|stream| Running::on(&port, stream));
            stage.innocents.push((port, running.expect("a guest")));
        }
        stage
    }

    /// Lives a life with a fault in it, or with none; says how often each call was made.
    pub fn play(&mut self, life: &Life, fault: Option<Fault>) -> Result<Vec<u32>> {
        let before = Census::take();
        let site = Site::new(self.directory.path(), life.name, life.mode);
        let mut said = Vec::new();
        lines::take();
        arm(fault);
        let port = site.open();
        let outcome = match &port {
            Ok(port) => site.visit(port, life),
            Err(error) => Err(anyhow!("{error:#}")),
        };
        let port = match fault.filter(|_| failed() > 0) {
            Some(fault) => {
                arm(None);
                judge(port.as_deref().ok(), &outcome, fault, &mut said)?;
                let port = port.or_else(|_| site.open()).context("once the fault is gone")?;
                site.visit_again(&port, life).context("once the fault is gone")?;
                port
            }
            // It may happen yet, as the port goes.
            None => outcome.and(port)?,
        };
        on_main(move || drop(port));
        let seen = seen();
        arm(None);
        said.extend(lines::take());
        let nameless = said.iter().find(|line| !line.contains(life.name));
        ensure!(
            nameless.is_none(),
            "a line does not say whose it is: {nameless:?}"
        );
        for (port, guest) in &mut self.innocents {
            guest
                .goes_on(port)
                .with_context(|| format!("a guest of {}", port.name()))?;
        }
        drop(site);
        before.comes_back()?;
        Ok(seen)
    }

    /// Lives a life in which a fault happens, and front-ends do not notice.
    pub fn undisturbed(&mut self, life: &Life, fault: Fault) -> Result<()> {
        let site = Site::new(self.directory.path(), life.name, life.mode);
        arm(Some(fault));
        let port = site.open()?;
        let outcome = site.visit(&port, life);
        let happened = failed() > 0;
        arm(None);
        on_main(move || drop(port));
        ensure!(happened, "nothing failed");
        outcome
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let innocents = std::mem::take(&mut self.innocents);
        on_main(move || drop(innocents));
    }
}

/// What a fault came to must have been told, or not have come to anything. Adds the lines `said` meanwhile.
fn judge(port: Option<&TestPort>, outcome: &Result<()>, fault: Fault, said: &mut Vec<String>) -> Result<()> {
    let Err(error) = outcome else { return Ok(()) };
    let call = &CALLS[fault.call];
    let told = format!("{error:#}");
    ensure!(!call.passing.contains(&fault.errno), "it was noticed: {told}");
    // A front-end may hear of it a moment before the log does.
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut texts = vec![told];
    while !texts.iter().any(|text| lines::tells_of(text, fault.errno)) {
        ensure!(Instant::now() < deadline, "nobody was told why: {texts:#?}");
        let lines = lines::take();
        texts.extend(lines.iter().cloned());
        said.extend(lines);
        texts.extend(port.and_then(|port| port.status("error")));
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

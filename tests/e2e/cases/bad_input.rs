//! What users get wrong. The port exists and says what is wrong, naming the option, the value and what is allowed;
//! nothing of the user's is touched, and a guest on another port notices nothing.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;

use anyhow::{ensure, Context, Result};

use super::vm::UNDISTURBED;
use super::world::{self, wait_reachable, Guest, Kind, World, PATIENCE, PING_INTERVAL};
use super::Ctx;
use crate::frontend::Frontend;
use crate::netns::{NetNs, OBSERVER};
use crate::ovs::Ovs;
use crate::ping::Ping;
use crate::wait;

/// One thing that is wrong.
struct Mistake {
    what: &'static str,
    port: String,
    /// Arguments after `set Interface PORT`.
    set: Vec<String>,
    /// What `Interface.error` or the log must contain.
    says: Vec<String>,
}

/// Every mistake in turn, under a running ping of another port.
pub fn paths_and_options(ctx: &Ctx) -> Result<()> {
    let options = crate::ovs::Options {
        obey_permissions: true,
        ..world::options(&ctx.settings, false)
    };
    let mut world = World::with(&ctx.settings, &ctx.dir, options, false)?;
    let good = world.add_port(Kind::Client, "good")?;
    let mut vm = world.start_guest(&good, Guest::new(1))?;
    vm.wait_ready()?;
    wait_reachable(&vm, OBSERVER)?;
    let users = users_files(&world.dir)?;
    for mistake in mistakes(&world, &users)? {
        ctx.step(mistake.what);
        let ping = Ping::start(&vm, OBSERVER, PING_INTERVAL)?;
        make(&mut world.ovs, &mistake).with_context(|| mistake.what)?;
        ping.wait_more(10, PATIENCE)?;
        ping.stop()?
            .check_undisturbed(UNDISTURBED)
            .with_context(|| mistake.what)?;
        check_users_files(&users).with_context(|| mistake.what)?;
    }
    ctx.step("afterwards");
    world.ovs.check_alive()?;
    // The log is full of the complaints that were asked for; nothing else may be in it.
    world.check_log(COMPLAINTS)
}

/// Lines that a mistake may leave, from the plugin and from the layers above it.
const COMPLAINTS: &[&str] = &[
    "bad",
    "could not ",
    "vhost-server-path",
    "tx-retries-max",
    "failed to connect",
];

fn mistakes(world: &World, users: &Path) -> Result<Vec<Mistake>> {
    let client = |what, port: &str, path: Option<String>, says: &[&str]| Mistake {
        what,
        port: port.into(),
        set: ["type=dpdkvhostuserclient".to_string()]
            .into_iter()
            .chain(path.map(|path| format!("options:vhost-server-path=\"{path}\"")))
            .collect(),
        says: says.iter().map(|text| text.to_string()).collect(),
    };
    let file = |name: &str| users.join(name).display().to_string();
    let long = format!("{}/{}", users.display(), "x".repeat(4096));
    let taken = world.port(Kind::Client, "good").socket.display().to_string();
    let retries = |what, port: &str, value: &str| Mistake {
        what,
        port: port.into(),
        set: vec![
            "type=dpdkvhostuserclient".into(),
            format!("options:vhost-server-path=\"{}\"", users.join(port).display()),
            format!("options:tx-retries-max=\"{value}\""),
        ],
        says: vec!["tx-retries-max".into(), value.into(), "32".into()],
    };
    let server = |what, port: &str, says: &[&str]| Mistake {
        what,
        port: port.into(),
        set: vec!["type=dpdkvhostuser".into()],
        says: says.iter().map(|text| text.to_string()).collect(),
    };
    let long_name = format!("bad{}", "x".repeat(110));
    Ok(vec![
        client("no path", "bad-none", None, &["vhost-server-path"]),
        client(
            "empty path",
            "bad-empty",
            Some(String::new()),
            &["vhost-server-path"],
        ),
        client(
            "path too long",
            "bad-long",
            Some(long.clone()),
            &["vhost-server-path", &long, "4095"],
        ),
        client(
            "path is a directory",
            "bad-dir",
            Some(file("dir")),
            &[&file("dir")],
        ),
        client(
            "path is a regular file",
            "bad-file",
            Some(file("file")),
            &[&file("file")],
        ),
        client(
            "path may not be read",
            "bad-locked",
            Some(file("locked/sock")),
            &[&file("locked/sock"), "user 0 may not search", &file("locked")],
        ),
        client(
            "path of another port",
            "bad-taken",
            Some(taken.clone()),
            &[&taken, "good"],
        ),
        retries("tx-retries-max too large", "bad-many", "33"),
        retries("tx-retries-max negative", "bad-few", "-1"),
        retries("tx-retries-max no number", "bad-word", "many"),
        server("name with a slash", "bad/slash", &["bad/slash", "valid name"]),
        server("name too long for a socket", &long_name, &[&long_name, "107"]),
    ])
}

/// Adds the port, looks for the complaint, deletes the port.
fn make(ovs: &mut Ovs, mistake: &Mistake) -> Result<()> {
    let mark = ovs.log_mark();
    let mut args = vec![
        "add-port",
        "br0",
        &mistake.port,
        "--",
        "set",
        "Interface",
        &mistake.port,
    ];
    args.extend(mistake.set.iter().map(String::as_str));
    // It exits with 0 and repeats the port's error on stderr; the error itself is what is looked at.
    ovs.vsctl_finish(&args)?;
    let complained = wait::until(&format!("a complaint with {:?}", mistake.says), PATIENCE, || {
        ovs.check_alive()?;
        let error = ovs.interface(&mistake.port, "error")?;
        let log = ovs.log_since(mark).into_iter().map(|line| line.text);
        let says_all = |text: &String| mistake.says.iter().all(|part| text.contains(part.as_str()));
        Ok(log.chain([error]).find(says_all))
    });
    let complaint = complained.with_context(|| {
        let lines: Vec<String> = ovs.log_since(mark).into_iter().map(|line| line.text).collect();
        format!(
            "Interface.error {:?}, log {lines:#?}",
            ovs.interface(&mistake.port, "error")
        )
    })?;
    ensure!(!complaint.is_empty(), "no complaint");
    ovs.vsctl_args(&["del-port", &mistake.port]).map(drop)
}

const CONTENT: &str = "something of the user's\n";

/// A directory, a file and a locked directory that a path may point to by mistake.
fn users_files(dir: &Path) -> Result<std::path::PathBuf> {
    let users = dir.join("users");
    fs::create_dir_all(users.join("dir"))?;
    fs::write(users.join("dir/content"), CONTENT)?;
    fs::write(users.join("file"), CONTENT)?;
    fs::create_dir(users.join("locked"))?;
    fs::set_permissions(users.join("locked"), fs::Permissions::from_mode(0o000))?;
    Ok(users)
}

fn check_users_files(users: &Path) -> Result<()> {
    for file in ["dir/content", "file"] {
        let found = fs::read_to_string(users.join(file)).with_context(|| format!("{file} is gone"))?;
        ensure!(found == CONTENT, "{file} has changed");
    }
    ensure!(users.join("locked").is_dir(), "locked is gone");
    Ok(())
}

/// Where a server port's socket should be: a stale socket is replaced; a live one, a regular file and a directory are
/// not touched, at exit neither.
pub fn foreign_and_stale_sockets(ctx: &Ctx) -> Result<()> {
    let ns = NetNs::create()?;
    let run = ctx.dir.join("run");
    let mut ovs = Ovs::start(world::options(&ctx.settings, false), &run, &ns)?;
    let add = |ovs: &Ovs, port: &str| {
        ovs.vsctl_finish(&[
            "add-port",
            "br0",
            port,
            "--",
            "set",
            "Interface",
            port,
            "type=dpdkvhostuser",
        ])
    };
    ctx.step("stale socket");
    drop(UnixListener::bind(run.join("stale"))?);
    add(&ovs, "stale")?;
    Frontend::connect(&run.join("stale"), PATIENCE)?.get_features()?;
    ctx.step("live socket of somebody else");
    let live = UnixListener::bind(run.join("live"))?;
    add(&ovs, "live")?;
    ctx.step("regular file and directory");
    fs::write(run.join("plain"), CONTENT)?;
    fs::create_dir(run.join("folder"))?;
    for port in ["plain", "folder"] {
        add(&ovs, port)?;
    }
    for port in ["live", "plain", "folder"] {
        let path = run.join(port).display().to_string();
        ovs.wait_log(0, &[&path], PATIENCE)
            .with_context(|| format!("no complaint about {port}"))?;
    }
    ctx.step("exit leaves them alone");
    ovs.exit(PATIENCE)?;
    std::os::unix::net::UnixStream::connect(run.join("live")).context("the live socket is gone")?;
    ensure!(
        fs::read_to_string(run.join("plain"))? == CONTENT,
        "the file has changed"
    );
    ensure!(run.join("folder").is_dir(), "the directory is gone");
    ensure!(
        !run.join("stale").exists(),
        "the switch left its own socket behind"
    );
    drop(live);
    Ok(())
}

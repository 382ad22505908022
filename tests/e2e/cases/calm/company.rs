//! Who is on the ports that come and go: front-ends from patient to obstinate. To a port, one that was stopped with SIGSTOP or
//! hangs looks the same as one that holds its socket and does nothing; one that died, as one that closes it.

use std::io::{ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Result;
use ovs_vhost::memory::GuestAddr;
use ovs_vhost::model::GuestMemory;
use ovs_vhost::vhost_user::samples::{id, wire, PLAIN};

use super::super::world::{Kind, Port, PATIENCE};
use super::stage::Stage;
use crate::frontend::Listener;
use crate::sides::Side;

/// Company, and what it does while ports come and go.
pub type Row = (&'static str, fn(&mut Stage) -> Result<()>);

const KINDS: [Kind; 2] = [Kind::Server, Kind::Client];
/// How often somebody comes back.
const TIMES: usize = 30;
/// For a port to take what it has been sent.
const MOMENT: Duration = Duration::from_millis(20);

/// All of it that `side` bears.
pub fn rows(side: Side) -> impl Iterator<Item = Row> {
    let stock_never_returns = move |(company, _): &Row| side == Side::Stock && *company == DEAF;
    ROWS.iter().copied().filter(move |row| !stock_never_returns(row))
}

/// While one of these is there, `del-port` of a stock port does not return.
const DEAF: &str = "front-ends that ask and never read";

const ROWS: &[Row] = &[
    ("nobody", |stage| {
        KINDS
            .repeat(3)
            .into_iter()
            .try_for_each(|kind| stage.come_and_go(kind))
    }),
    ("guests that are up", |stage| {
        on_new_ports(stage, |stage, port| stage.guest(port))
    }),
    ("guests that come back", |stage| {
        let port = stage.add_port(Kind::Server)?;
        for _ in 0..TIMES {
            drop(stage.guest(&port)?);
        }
        stage.come_and_go(Kind::Client)?;
        stage.delete(&port)
    }),
    ("guests that come back with other numbers of queues", |stage| {
        let port = stage.add_port(Kind::Client)?;
        for pairs in [2, 1, 4] {
            let mut guest = stage.guest(&port)?;
            (1..pairs).try_for_each(|pair| guest.start_pair(pair))?;
            stage.world.ovs.wait_link(&port.name, true, PATIENCE)?;
            drop(guest);
            stage.world.ovs.wait_link(&port.name, false, PATIENCE)?;
            stage.told_wait();
        }
        stage.come_and_go(Kind::Server)?;
        stage.delete(&port)
    }),
    ("front-ends that stop in the middle of a message", |stage| {
        on_new_ports(stage, |stage, port| {
            let mut stream = UnixStream::from(stage.front_end(port)?);
            stream.write_all(&question()[..7])?;
            Ok(stream)
        })
    }),
    (DEAF, |stage| {
        on_new_ports(stage, |stage, port| {
            let mut stream = UnixStream::from(stage.front_end(port)?);
            fill(&mut stream)?;
            Ok(stream)
        })
    }),
    ("a socket on which nobody accepts", |stage| {
        let port = stage.next_port(Kind::Client);
        let listener = Listener::bind(&port.socket)?;
        // Room for one, which is taken.
        rustix::net::listen(&listener, 0)?;
        let _first = UnixStream::connect(&port.socket)?;
        stage.add_this(&port)?;
        stage.come_and_go(Kind::Server)?;
        stage.delete(&port)
    }),
    ("front-ends that connect and hang up", |stage| {
        let port = stage.add_port(Kind::Server)?;
        let path = port.socket.clone();
        meanwhile(stage, &port, move || {
            let _ = UnixStream::connect(&path);
        })
    }),
    ("a guest that changes its memory table", |stage| {
        let port = stage.add_port(Kind::Server)?;
        let guest = stage.guest(&port)?;
        let more = GuestMemory::with_regions(&[(GuestAddr(1 << 40), 1 << 28)]).regions();
        meanwhile(stage, &port, move || {
            let _ = guest.lend(&more).and_then(|()| guest.lend(&[]));
        })
    }),
];

/// On ports of both kinds in turn: somebody comes, others come and go, the port goes, and only then whoever was on it.
fn on_new_ports<T>(stage: &mut Stage, come: fn(&Stage, &Port) -> Result<T>) -> Result<()> {
    for kind in KINDS {
        let port = stage.add_port(kind)?;
        let somebody = come(stage, &port)?;
        stage.come_and_go(kind)?;
        stage.delete(&port)?;
        drop(somebody);
    }
    Ok(())
}

/// While somebody acts on `port` all the time: others come and go, and then the port does.
fn meanwhile(stage: &mut Stage, port: &Port, mut act: impl FnMut() + Send) -> Result<()> {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                act();
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        let gone = KINDS
            .into_iter()
            .try_for_each(|kind| stage.come_and_go(kind))
            .and_then(|()| stage.delete(port));
        over.store(true, Ordering::Relaxed);
        gone
    })
}

/// GET_FEATURES.
fn question() -> Vec<u8> {
    wire(id("GET_FEATURES"), PLAIN, &[])
}

/// Asks until there is no room for another question.
fn fill(stream: &mut UnixStream) -> Result<()> {
    stream.set_nonblocking(true)?;
    let mut full = 0;
    while full < 3 {
        match stream.write(&question()) {
            Ok(_) => full = 0,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                full += 1;
                std::thread::sleep(MOMENT);
            }
            // The port has had enough of it.
            Err(_) => break,
        }
    }
    Ok(())
}

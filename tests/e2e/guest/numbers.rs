//! Numbered datagrams, by which is counted what was lost and what came twice. This is a program of its own: the guest
//! image has it as /opt/numbers (see `image`), and `numbered` runs it.
//!
//! ```text
//! numbers send ADDRESS:PORT RATE   sends so many a second until killed, numbered from 0
//! numbers receive PORT             until killed; every 100 ms prints "ARRIVED LOST TWICE LATE" in all so far
//! ```

use std::error::Error;
use std::io::{self, ErrorKind, Write};
use std::net::UdpSocket;
use std::time::{Duration, Instant};

/// Of a datagram, the number and what makes it an ordinary small packet.
const SIZE: usize = 64;
/// No run sends more; a larger number is not ours.
const LIMIT: usize = 1 << 26;
const REPORT: Duration = Duration::from_millis(100);

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["send", to, rate] => send(to, rate.parse()?),
        ["receive", port] => receive(port.parse()?),
        _ => Err("usage: numbers send ADDRESS:PORT RATE | numbers receive PORT".into()),
    }
}

fn send(to: &str, rate: u32) -> Result<(), Box<dyn Error>> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(to)?;
    let mut datagram = [0; SIZE];
    let mut due = Instant::now();
    for number in 0_u64.. {
        datagram[..8].copy_from_slice(&number.to_be_bytes());
        // Refused for now (no room, nobody there yet): the number has not been sent.
        while socket.send(&datagram).is_err() {
            std::thread::sleep(Duration::from_millis(1));
        }
        due += Duration::from_secs(1) / rate;
        let now = Instant::now();
        if due > now + Duration::from_millis(2) {
            std::thread::sleep(due - now);
        }
        // What could not be sent while the way was closed is not made up for in one go.
        due = due.max(now.checked_sub(REPORT).unwrap_or(now));
    }
    Ok(())
}

#[derive(Default)]
struct Seen {
    numbers: Vec<bool>,
    arrived: usize,
    twice: u64,
    late: u64,
}

impl Seen {
    fn add(&mut self, number: usize) {
        if number >= LIMIT {
            return;
        }
        if self.numbers.get(number).is_some_and(|seen| *seen) {
            self.twice += 1;
            return;
        }
        if number < self.numbers.len() {
            self.late += 1;
        } else {
            self.numbers.resize(number + 1, false);
        }
        self.numbers[number] = true;
        self.arrived += 1;
    }

    /// Numbers that have not come although a higher one has.
    fn lost(&self) -> usize {
        self.numbers.len() - self.arrived
    }
}

fn receive(port: u16) -> Result<(), Box<dyn Error>> {
    let socket = UdpSocket::bind(("0.0.0.0", port))?;
    socket.set_read_timeout(Some(REPORT))?;
    let (mut seen, mut datagram, mut reported) = (Seen::default(), [0; SIZE], Instant::now());
    loop {
        match socket.recv(&mut datagram) {
            Ok(SIZE) => {
                let number = u64::from_be_bytes(datagram[..8].try_into()?);
                seen.add(usize::try_from(number).unwrap_or(LIMIT));
            }
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => return Err(error.into()),
        }
        if reported.elapsed() >= REPORT {
            reported = Instant::now();
            let (lost, twice, late) = (seen.lost(), seen.twice, seen.late);
            writeln!(io::stdout(), "{} {lost} {twice} {late}", seen.arrived)?;
        }
    }
}

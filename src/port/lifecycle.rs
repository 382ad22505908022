//! The life of a port's connection: a pure state machine. It knows no socket and no clock: what
//! happened and what time it is come in, what to do next goes out.
//!
//! ```text
//!            Configured                  Established            RingsUp
//!   Idle ----------------> Connecting -----------------> Negotiating <=====> Running
//!    ^ Unconfigured          |     ^                         |     RingsDown    |
//!    +---- (any state)       |     | Appeared, Tick          | Lost             | Lost
//!                            v     |                         v                  v
//!                            Backoff <-------------- client mode <--------------+
//!                                           Listening <- server mode
//! ```
//!
//! `Closed` follows `Close` from every state and is left by nothing.

use std::time::{Duration, Instant};

use super::options::Mode;

/// Where a port is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Nothing to connect to: no usable path, or another port has it.
    Idle,
    /// Server mode: waiting for a front-end.
    Listening,
    /// Client mode: an attempt is being made now.
    Connecting,
    /// Client mode: the last attempt failed; the next one is due at `until`.
    Backoff { until: Instant },
    /// A front-end is there; its first queue pair does not run yet.
    Negotiating,
    /// The first queue pair moves packets.
    Running,
    /// The port is gone.
    Closed,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// There is a path to connect to, perhaps another than before.
    Configured,
    /// There is no path to connect to any more.
    Unconfigured,
    /// Something changed where the socket should be.
    Appeared,
    /// Time passed.
    Tick,
    /// The connection stands.
    Established,
    /// The attempt to connect failed.
    Failed,
    /// The connection ended.
    Lost,
    /// The first queue pair runs.
    RingsUp,
    /// It does not any more.
    RingsDown,
    /// The port is deleted.
    Close,
}

/// What to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Nothing.
    Stay,
    /// Try to connect now and report `Established` or `Failed`.
    Connect,
    /// Take down the connection, if there is one.
    Disconnect,
    /// Take down the connection, if there is one, then connect.
    Reconnect,
}

/// Retries start here after a failure and double up to [`SLOWEST`].
const FASTEST: Duration = Duration::from_millis(5);
/// inotify tells of most sockets sooner. This bounds the wait where it cannot: a peer that listens
/// late on a socket it bound early, a file system that reports nothing.
const SLOWEST: Duration = Duration::from_millis(100);

/// The wait after `failures` attempts without a running queue between them.
fn backoff(failures: u32) -> Duration {
    FASTEST.saturating_mul(1 << failures.min(16)).min(SLOWEST)
}

/// One port's life cycle.
#[derive(Debug)]
pub(super) struct Lifecycle {
    mode: Mode,
    state: State,
    /// Attempts and connections since the first queue pair last ran, so that a front-end that accepts
    /// and hangs up at once is not redialled in a tight loop.
    failures: u32,
}

impl Lifecycle {
    pub(super) fn new(mode: Mode) -> Lifecycle {
        let state = match mode {
            Mode::Server => State::Listening,
            Mode::Client => State::Idle,
        };
        Lifecycle {
            mode,
            state,
            failures: 0,
        }
    }

    pub(super) fn state(&self) -> State {
        self.state
    }

    /// When this port next needs an `Event::Tick`, if it does.
    pub(super) fn wakes_at(&self) -> Option<Instant> {
        match self.state {
            State::Backoff { until } => Some(until),
            _ => None,
        }
    }

    /// Takes in what happened at `now`; returns what to do.
    pub(super) fn on(&mut self, event: Event, now: Instant) -> Action {
        use {Action as A, Event as E, State as S};
        let (next, action) = match (self.state, event) {
            (S::Closed, _) => (S::Closed, A::Stay),
            (_, E::Close) => (S::Closed, A::Disconnect),
            (_, E::Unconfigured) => (S::Idle, A::Disconnect),
            (_, E::Configured) => {
                self.failures = 0;
                (S::Connecting, A::Reconnect)
            }
            (S::Backoff { .. }, E::Appeared) => {
                // Quick again from here: bind() makes the file appear, listen() follows a moment later.
                self.failures = 0;
                (S::Connecting, A::Connect)
            }
            (S::Backoff { until }, E::Tick) if now >= until => (S::Connecting, A::Connect),
            (S::Connecting | S::Listening, E::Established) => (S::Negotiating, A::Stay),
            (S::Connecting, E::Failed) => (self.back_off(now), A::Stay),
            (S::Negotiating, E::RingsUp) => {
                self.failures = 0;
                (S::Running, A::Stay)
            }
            (S::Running, E::RingsDown) => (S::Negotiating, A::Stay),
            (S::Negotiating | S::Running, E::Lost) => match self.mode {
                Mode::Server => (S::Listening, A::Disconnect),
                Mode::Client => (self.back_off(now), A::Disconnect),
            },
            (state, _) => (state, A::Stay),
        };
        self.state = next;
        action
    }

    fn back_off(&mut self, now: Instant) -> State {
        let wait = backoff(self.failures);
        self.failures = self.failures.saturating_add(1);
        State::Backoff { until: now + wait }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// A port brought into `state` by its own events.
    fn port(mode: Mode, events: &[Event], now: Instant) -> Lifecycle {
        let mut life = Lifecycle::new(mode);
        for event in events {
            life.on(*event, now);
        }
        life
    }

    #[test]
    fn every_transition_of_the_drawing() {
        use {Action as A, Event as E, State as S};
        let now = Instant::now();
        let until = now + FASTEST;
        let client: &[(&[E], E, S, A)] = &[
            (&[], E::Configured, S::Connecting, A::Reconnect),
            (&[E::Configured], E::Established, S::Negotiating, A::Stay),
            (&[E::Configured], E::Failed, S::Backoff { until }, A::Stay),
            (
                &[E::Configured, E::Failed],
                E::Appeared,
                S::Connecting,
                A::Connect,
            ),
            (
                &[E::Configured, E::Failed],
                E::Tick,
                S::Backoff { until },
                A::Stay,
            ),
            (&[E::Configured, E::Established], E::RingsUp, S::Running, A::Stay),
            (
                &[E::Configured, E::Established],
                E::Appeared,
                S::Negotiating,
                A::Stay,
            ),
            (
                &[E::Configured, E::Established],
                E::Lost,
                S::Backoff { until },
                A::Disconnect,
            ),
            (
                &[E::Configured, E::Established],
                E::Configured,
                S::Connecting,
                A::Reconnect,
            ),
            (
                &[E::Configured, E::Established, E::RingsUp],
                E::RingsDown,
                S::Negotiating,
                A::Stay,
            ),
            (
                &[E::Configured, E::Established, E::RingsUp],
                E::Lost,
                S::Backoff { until },
                A::Disconnect,
            ),
            (
                &[E::Configured, E::Established, E::RingsUp],
                E::Unconfigured,
                S::Idle,
                A::Disconnect,
            ),
            (
                &[E::Configured, E::Established, E::RingsUp],
                E::Close,
                S::Closed,
                A::Disconnect,
            ),
            (&[E::Close], E::Configured, S::Closed, A::Stay),
        ];
        let server: &[(&[E], E, S, A)] = &[
            (&[], E::Established, S::Negotiating, A::Stay),
            (&[], E::Tick, S::Listening, A::Stay),
            (&[E::Established], E::Lost, S::Listening, A::Disconnect),
            (
                &[E::Established, E::RingsUp],
                E::Lost,
                S::Listening,
                A::Disconnect,
            ),
            (&[E::Established, E::RingsUp], E::Close, S::Closed, A::Disconnect),
        ];
        for (mode, rows) in [(Mode::Client, client), (Mode::Server, server)] {
            for (before, event, state, action) in rows {
                let mut life = port(mode, before, now);
                assert_eq!(life.on(*event, now), *action, "{mode:?} {before:?} {event:?}");
                assert_eq!(life.state(), *state, "{mode:?} {before:?} {event:?}");
            }
        }
    }

    /// A day of nobody listening, in no time: the wait grows to its bound and stays there.
    #[test]
    fn attempts_are_never_further_apart_than_the_slowest_backoff() {
        let mut now = Instant::now();
        let end = now + Duration::from_secs(24 * 60 * 60);
        let mut life = port(Mode::Client, &[Event::Configured], now);
        let mut attempts = 0u32;
        while now < end {
            assert_eq!(life.on(Event::Failed, now), Action::Stay);
            let next = life.wakes_at().expect("a failed attempt has a successor");
            assert!(next > now && next - now <= SLOWEST);
            assert_eq!(life.on(Event::Tick, next - MS), Action::Stay);
            assert_eq!(life.on(Event::Tick, next), Action::Connect);
            now = next;
            attempts += 1;
        }
        assert!(attempts >= 24 * 60 * 60 * 10);
    }

    #[test]
    fn a_front_end_that_hangs_up_at_once_is_redialled_ever_more_slowly() {
        let now = Instant::now();
        let mut life = port(Mode::Client, &[Event::Configured], now);
        let mut waits = Vec::new();
        for _ in 0..7 {
            life.on(Event::Established, now);
            life.on(Event::Lost, now);
            waits.push(life.wakes_at().unwrap() - now);
            life.on(Event::Tick, now + SLOWEST);
        }
        assert_eq!(waits, [5, 10, 20, 40, 80, 100, 100].map(|ms| ms * MS));
    }

    #[test]
    fn a_port_that_ran_is_redialled_at_once() {
        let now = Instant::now();
        let mut life = port(
            Mode::Client,
            &[Event::Configured, Event::Failed, Event::Appeared],
            now,
        );
        life.on(Event::Established, now);
        life.on(Event::RingsUp, now);
        life.on(Event::Lost, now);
        assert_eq!(life.wakes_at(), Some(now + FASTEST));
    }
}

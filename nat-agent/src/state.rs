//! What a session is in: a pure function of its two halves, computed by whoever
//! looks (the sweep, `natctl flows`), never by the packet path.

use std::time::Duration;

use nat_common::{
    abi::{Half, Pool},
    packet::{
        tcp::{ACK, FIN, RST, SYN},
        transport::{TCP, UDP},
    },
};

use crate::clock::Clock;

/// A session's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// TCP: one side has spoken, or neither has acknowledged the other yet.
    Opening,
    /// TCP: both sides have acknowledged each other.
    Established,
    /// TCP: one side has said that it is done.
    Closing,
    /// TCP: both sides have.
    Closed,
    /// TCP: one side has reset the connection.
    Reset,
    /// UDP or ICMP: nothing has come back yet.
    Unanswered,
    /// UDP or ICMP: something has.
    Active,
}

impl State {
    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Opening => "opening",
            Self::Established => "established",
            Self::Closing => "closing",
            Self::Closed => "closed",
            Self::Reset => "reset",
            Self::Unanswered => "unanswered",
            Self::Active => "active",
        }
    }
}

/// The state of a session; `reverse` is `None` where the reverse half is gone.
pub fn state(protocol: u8, forward: &Half, reverse: Option<&Half>) -> State {
    let back = reverse.map_or(0, |half| half.seen);
    if protocol != TCP {
        let answered = reverse.is_some_and(|half| half.packets > 0);
        return if answered {
            State::Active
        } else {
            State::Unanswered
        };
    }
    let both = forward.seen & back;
    let either = forward.seen | back;
    if either & RST != 0 {
        State::Reset
    } else if both & FIN != 0 {
        State::Closed
    } else if both & ACK == 0 || (forward.seen & SYN != 0) != (back & SYN != 0) {
        // Picked up in the middle, neither side has shown a SYN: that is no opening.
        State::Opening
    } else if either & FIN != 0 {
        State::Closing
    } else {
        State::Established
    }
}

/// How long a session in this state may be idle. Half-closed connections may
/// carry data for hours: they keep the long timer (RFC 5382 section 5).
pub fn timeout(protocol: u8, state: State, pool: &Pool) -> Duration {
    let seconds = match (protocol, state) {
        (TCP, State::Established | State::Closing) => pool.tcp_established,
        (TCP, _) => pool.tcp_transitory,
        (UDP, _) => pool.udp,
        _ => pool.icmp,
    };
    Duration::from_secs(u64::from(seconds))
}

/// How long neither half has been refreshed.
pub fn idle(clock: &Clock, forward: &Half, reverse: Option<&Half>) -> Duration {
    let idle = clock.since(forward.last_seen);
    reverse.map_or(idle, |half| idle.min(clock.since(half.last_seen)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn half(seen: u8) -> Half {
        Half {
            seen,
            packets: 1,
            ..Half::default()
        }
    }

    fn tcp(forward: u8, reverse: u8) -> State {
        state(TCP, &half(forward), Some(&half(reverse)))
    }

    #[test]
    fn a_connections_life() {
        assert_eq!(tcp(SYN, 0), State::Opening);
        assert_eq!(tcp(SYN, SYN | ACK), State::Opening);
        assert_eq!(tcp(SYN | ACK, SYN | ACK), State::Established);
        assert_eq!(tcp(SYN | ACK | FIN, SYN | ACK), State::Closing);
        assert_eq!(tcp(SYN | ACK | FIN, SYN | ACK | FIN), State::Closed);
        assert_eq!(tcp(SYN | ACK, SYN | ACK | RST), State::Reset);
    }

    #[test]
    fn picked_up_in_the_middle() {
        assert_eq!(tcp(ACK, ACK), State::Established);
        assert_eq!(tcp(ACK, 0), State::Opening);
        assert_eq!(state(TCP, &half(ACK), None), State::Opening);
    }

    #[test]
    fn a_scan_never_gets_the_long_timer() {
        let pool = Pool {
            tcp_established: 7440,
            tcp_transitory: 240,
            ..pool()
        };
        for (forward, reverse) in [(SYN, 0), (SYN, RST | ACK), (SYN, SYN | ACK), (ACK, RST)] {
            let state = tcp(forward, reverse);
            assert_eq!(timeout(TCP, state, &pool).as_secs(), 240, "{state:?}");
        }
    }

    #[test]
    fn others_are_answered_or_not() {
        assert_eq!(
            state(UDP, &half(0), Some(&Half::default())),
            State::Unanswered
        );
        assert_eq!(state(UDP, &half(0), Some(&half(0))), State::Active);
    }

    fn pool() -> Pool {
        let name = nat_common::abi::Name {
            length: 0,
            bytes: [0; 320],
        };
        Pool {
            name,
            tcp_established: 0,
            tcp_transitory: 0,
            udp: 0,
            icmp: 0,
            rest: 0,
            direct: 0,
        }
    }
}

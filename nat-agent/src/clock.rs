//! The tables' coarse clock: ticks, which are jiffies shifted right until one
//! is about a second.

use std::time::Duration;

use nat_common::abi::Settings;
use rustix::time::{ClockId, clock_gettime};

/// Values of the kernel's HZ, all that its configuration offers.
const HZ: [u32; 4] = [100, 250, 300, 1000];

/// Reads ticks and turns them into time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    settings: Settings,
}

impl Clock {
    /// The clock that the settings describe.
    pub const fn new(settings: Settings) -> Self {
        Self { settings }
    }

    /// By how many bits jiffies are shifted: 2^shift is the power of two nearest to HZ.
    pub fn shift(&self) -> u32 {
        f64::from(self.settings.hz.max(1)).log2().round() as u32
    }

    /// The tick it is now. Jiffies advance with the monotonic clock.
    pub fn now(&self) -> u32 {
        let elapsed = monotonic().saturating_sub(self.settings.monotonic);
        let jiffies = u128::from(elapsed) * u128::from(self.settings.hz) / 1_000_000_000;
        ((self.settings.jiffies + jiffies as u64) >> self.shift()) as u32
    }

    /// How long a number of ticks is.
    pub fn duration(&self, ticks: u32) -> Duration {
        let jiffies = f64::from(ticks) * f64::from(1_u32 << self.shift());
        Duration::from_secs_f64(jiffies / f64::from(self.settings.hz.max(1)))
    }

    /// How long ago a tick was; zero for one that is yet to come.
    pub fn since(&self, tick: u32) -> Duration {
        self.duration(age(self.now(), tick))
    }
}

/// Ticks from `tick` to `now`; zero for one that is yet to come, which happens
/// when a packet was faster than the reader.
pub const fn age(now: u32, tick: u32) -> u32 {
    let age = now.wrapping_sub(tick);
    if age > u32::MAX / 2 { 0 } else { age }
}

/// Nanoseconds of the monotonic clock.
pub fn monotonic() -> u64 {
    nanoseconds(ClockId::Monotonic)
}

/// What this thread has used of a processor so far.
pub fn spent() -> Duration {
    Duration::from_nanos(nanoseconds(ClockId::ThreadCPUTime))
}

fn nanoseconds(clock: ClockId) -> u64 {
    let now = clock_gettime(clock);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// The HZ that is nearest to what was measured: jiffies in some nanoseconds.
pub fn nearest_hz(jiffies: u64, nanoseconds: u64) -> u32 {
    let measured = jiffies as f64 * 1e9 / nanoseconds.max(1) as f64;
    let distance = |hz: u32| (f64::from(hz).ln() - measured.max(1.0).ln()).abs();
    HZ.into_iter()
        .min_by(|a, b| distance(*a).total_cmp(&distance(*b)))
        .unwrap_or(HZ[1])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clock(hz: u32) -> Clock {
        Clock::new(Settings {
            generation: 1,
            hz,
            jiffies: 1 << 20,
            monotonic: monotonic(),
            seed: 0,
        })
    }

    #[test]
    fn a_tick_is_about_a_second_for_every_hz() {
        for hz in HZ {
            let second = clock(hz).duration(1).as_secs_f64();
            assert!((0.7..1.4).contains(&second), "HZ {hz}: {second}");
        }
    }

    #[test]
    fn measured_hz_snaps_to_what_kernels_have() {
        assert_eq!(nearest_hz(29, 120_000_000), 250);
        assert_eq!(nearest_hz(31, 120_000_000), 250);
        assert_eq!(nearest_hz(36, 120_000_000), 300);
        assert_eq!(nearest_hz(13, 120_000_000), 100);
        assert_eq!(nearest_hz(121, 120_000_000), 1000);
    }

    #[test]
    fn waiting_spends_nothing() {
        let (before, began) = (spent(), monotonic());
        std::thread::sleep(Duration::from_millis(50));
        let waited = Duration::from_nanos(monotonic() - began);
        assert!(spent() - before < waited / 2);
    }

    #[test]
    fn ages_survive_the_wrap_and_the_future() {
        assert_eq!(age(3, u32::MAX), 4);
        assert_eq!(age(5, 6), 0);
    }
}

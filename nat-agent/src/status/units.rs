//! Quantities for a person: durations in their two largest units, bytes in
//! powers of 1024, times in UTC.

use std::time::{Duration, UNIX_EPOCH};

/// Units of time, largest first, in seconds.
const TIME: [(u64, &str); 4] = [(86_400, "d"), (3600, "h"), (60, "m"), (1, "s")];
/// Units of data above the byte.
const DATA: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

/// Seconds as `2h 4m`: the two largest units that are not zero, cut, not rounded.
pub fn duration(seconds: u64) -> String {
    let largest = TIME
        .iter()
        .position(|(size, _)| seconds >= *size)
        .unwrap_or(TIME.len() - 1);
    let (size, unit) = TIME[largest];
    let first = format!("{}{unit}", seconds / size);
    match TIME.get(largest + 1) {
        Some((next, unit)) if seconds % size >= *next => {
            format!("{first} {}{unit}", seconds % size / next)
        }
        _ => first,
    }
}

/// Bytes as `3.4 KiB`.
pub fn bytes(bytes: u64) -> String {
    let mut value = bytes as f64;
    let mut unit = "B";
    for next in DATA {
        // What would be shown as 1024.0 is one of the next unit.
        if value < 1023.95 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    if unit == "B" {
        format!("{bytes} B")
    } else {
        format!("{value:.1} {unit}")
    }
}

/// Unix seconds as `2026-01-31 23:59:59 UTC`.
pub fn time(unix: u64) -> String {
    // The formatter panics past the year 9999, and this may come from a damaged report.
    let unix = unix.min(253_402_300_799);
    let text =
        humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(unix)).to_string();
    text.replace('T', " ").replace('Z', " UTC")
}

/// A part of a whole as `12.5 %`; what is not quite nothing or not quite all is shown so.
pub fn percent(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "-".to_owned();
    }
    let percent = part as f64 * 100.0 / whole as f64;
    if part > 0 && percent < 0.1 {
        "< 0.1 %".to_owned()
    } else if part < whole && percent > 99.9 {
        "> 99.9 %".to_owned()
    } else {
        format!("{percent:.1} %")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (seconds, text) in [
            (0, "0s"),
            (59, "59s"),
            (60, "1m"),
            (7440, "2h 4m"),
            (3601, "1h"),
            (90_061, "1d 1h"),
        ] {
            assert_eq!(duration(seconds), text);
        }
    }

    #[test]
    fn data() {
        for (count, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1_048_575, "1.0 MiB"),
            (5_368_709_120, "5.0 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(bytes(count), text);
        }
    }

    #[test]
    fn times() {
        assert_eq!(time(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(time(1_763_690_400), "2025-11-21 02:00:00 UTC");
        assert_eq!(time(u64::MAX), "9999-12-31 23:59:59 UTC");
    }

    #[test]
    fn parts() {
        assert_eq!(percent(0, 10), "0.0 %");
        assert_eq!(percent(1, 262_144), "< 0.1 %");
        assert_eq!(percent(262_143, 262_144), "> 99.9 %");
        assert_eq!(percent(10, 10), "100.0 %");
        assert_eq!(percent(0, 0), "-");
    }
}

//! `natctl.io/egress-ip` and `natctl.io/cutover`: what a pod asks for, on itself or by its namespace.

use std::net::{IpAddr, Ipv4Addr};

/// The annotation's key.
pub const KEY: &str = "natctl.io/egress-ip";
/// The key of the annotation that says what becomes of a pod's flows when its address changes.
pub const CUTOVER: &str = "natctl.io/cutover";
/// What opts a pod out of its namespace's annotation.
const NONE: &str = "none";

/// What a pod asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Nothing: its packets leave as the node sends them.
    Nothing,
    /// One of these addresses, the first that can be used.
    Addresses(Vec<Ipv4Addr>),
    /// Any address of the pool of this name.
    Pool(String),
}

/// What becomes of a pod's flows when it gets another egress address, or none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cutover {
    /// They keep the address that they have until they end.
    #[default]
    Drain,
    /// They end at once.
    Immediate,
}

/// Reads the annotation [`CUTOVER`]; a pod's own goes before its namespace's.
///
/// # Errors
///
/// What is wrong; what to do.
pub fn cutover(pod: Option<&str>, namespace: Option<&str>) -> Result<Cutover, String> {
    match pod.or(namespace).map(str::trim) {
        None | Some("drain") => Ok(Cutover::Drain),
        Some("immediate") => Ok(Cutover::Immediate),
        Some(text) => Err(format!(
            "{CUTOVER}: `{}` is neither drain nor immediate; flows are drained",
            text.escape_debug()
        )),
    }
}

/// Reads the annotation [`KEY`]; a pod's own goes before its namespace's.
///
/// # Errors
///
/// What is wrong; what to do.
pub fn wish(pod: Option<&str>, namespace: Option<&str>) -> Result<Wish, String> {
    match (pod, namespace) {
        (Some(text), _) => read(text),
        (None, Some(text)) => read(text).map_err(|problem| format!("{problem} (its namespace's)")),
        (None, None) => Ok(Wish::Nothing),
    }
}

fn read(text: &str) -> Result<Wish, String> {
    let text = text.trim();
    let items: Vec<&str> = text.split(',').map(str::trim).collect();
    if text == NONE {
        return Ok(Wish::Nothing);
    }
    if let [name] = items[..]
        && name.parse::<IpAddr>().is_err()
    {
        return pool(name);
    }
    let mut addresses = Vec::new();
    for item in items {
        let address = address(item)?;
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    Ok(Wish::Addresses(addresses))
}

fn address(text: &str) -> Result<Ipv4Addr, String> {
    match text.parse() {
        Ok(IpAddr::V4(address)) => Ok(address),
        Ok(IpAddr::V6(_)) => Err(format!(
            "`{text}` is IPv6, which is not translated yet; write an IPv4 address"
        )),
        Err(_) => Err(format!(
            "`{}` is not an address; a list holds addresses only, as in 203.0.113.10, 203.0.113.11",
            text.escape_debug()
        )),
    }
}

/// A pool's name is an object's: letters, digits, `-` and `.`.
fn pool(name: &str) -> Result<Wish, String> {
    let named = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    // Digits and dots only: an address that is none.
    let number = name.chars().all(|c| c.is_ascii_digit() || c == '.');
    if name.is_empty() {
        return Err("is empty; write an address, a pool's name, or none".to_owned());
    }
    if number || !name.chars().all(named) {
        return Err(format!(
            "`{}` is neither an address nor a pool's name; write 203.0.113.10, the name of an \
             EgressPool, or none",
            name.escape_debug()
        ));
    }
    Ok(Wish::Pool(name.to_owned()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ip(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(203, 0, 113, last)
    }

    #[test]
    fn what_can_be_asked_for() {
        for (text, wish) in [
            ("203.0.113.10", Wish::Addresses(vec![ip(10)])),
            (
                " 203.0.113.10 , 203.0.113.11,203.0.113.10",
                Wish::Addresses(vec![ip(10), ip(11)]),
            ),
            ("office", Wish::Pool("office".into())),
            ("a-1.b", Wish::Pool("a-1.b".into())),
            ("none", Wish::Nothing),
        ] {
            assert_eq!(read(text), Ok(wish), "{text}");
        }
    }

    #[test]
    fn what_cannot() {
        for (text, words) in [
            ("", "is empty"),
            ("203.0.113.300", "neither an address nor a pool's name"),
            ("203.0.113.10/32", "neither"),
            ("Office", "neither"),
            ("2001:db8::1", "IPv6"),
            ("203.0.113.10,office", "a list holds addresses only"),
            ("203.0.113.10,", "is not an address"),
            ("none,203.0.113.10", "is not an address"),
        ] {
            let problem = read(text).unwrap_err();
            assert!(problem.contains(words), "{text}: {problem}");
        }
    }

    #[test]
    fn the_pods_own_goes_first() {
        assert_eq!(wish(Some("none"), Some("office")), Ok(Wish::Nothing));
        assert_eq!(
            wish(Some("lab"), Some("office")),
            Ok(Wish::Pool("lab".into()))
        );
        assert_eq!(wish(None, Some("office")), Ok(Wish::Pool("office".into())));
        assert_eq!(wish(None, None), Ok(Wish::Nothing));
        assert!(
            wish(None, Some("?"))
                .unwrap_err()
                .contains("its namespace's")
        );
        assert!(
            wish(Some("?"), Some("office")).is_err(),
            "a mistake is no wish for the default"
        );
    }

    #[test]
    fn flows_are_drained_unless_they_are_to_end() {
        assert_eq!(cutover(None, None), Ok(Cutover::Drain));
        assert_eq!(cutover(None, Some("immediate")), Ok(Cutover::Immediate));
        assert_eq!(
            cutover(Some("drain"), Some("immediate")),
            Ok(Cutover::Drain)
        );
        let problem = cutover(Some("now"), Some("immediate")).unwrap_err();
        assert!(problem.contains("flows are drained"), "{problem}");
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in ".{0,40}") {
            let _ = read(&text);
        }
    }
}

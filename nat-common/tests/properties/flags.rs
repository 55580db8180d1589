//! TCP flags that can stand together.

use nat_common::packet::tcp::{ACK, FIN, RST, SYN, valid};

/// Every valid combination of the four flags that make a state.
const VALID: [u8; 8] = [
    SYN,
    SYN | ACK,
    ACK,
    FIN | ACK,
    RST,
    RST | ACK,
    RST | FIN,
    RST | FIN | ACK,
];

#[test]
fn exactly_these_are_valid() {
    let state = FIN | SYN | RST | ACK;
    for flags in (0..=u8::MAX).filter(|flags| flags & !state == 0) {
        assert_eq!(valid(flags), VALID.contains(&flags), "{flags:#04x}");
    }
}

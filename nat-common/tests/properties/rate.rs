//! New mappings: as many in a tick as a client may make, and not one more.

use nat_common::{rate::take, reason::Reason};
use proptest::prelude::*;

use crate::setup::Shape;

proptest! {
    #[test]
    fn as_many_in_a_tick_as_it_may(
        most in 1..200_u32,
        rounds in prop::collection::vec((0..3_u32, 0..300_u32), 1..20),
        start in any::<u16>(),
    ) {
        let mut world = Shape::ALONE.world();
        world.tables.slices[0].mappings = most;
        let mut now = u32::from(start);
        let mut made = 0;
        for (pause, asks) in rounds {
            if pause > 0 {
                made = 0;
            }
            now += pause;
            world.now = now;
            for _ in 0..asks {
                let taken = take(&world, &world.tables.clients[0], &world.tables.slices[0]);
                let expected = if made < most { Ok(()) } else { Err(Reason::MappingRate) };
                prop_assert_eq!(taken, expected, "{} of {} at {}", made, most, now);
                made += u32::from(taken.is_ok());
            }
        }
    }
}

#[test]
fn without_a_limit_nothing_is_counted() {
    let world = Shape::ALONE.world();
    for _ in 0..100_000 {
        let taken = take(&world, &world.tables.clients[0], &world.tables.slices[0]);
        assert_eq!(taken, Ok(()));
    }
    assert_eq!(world.tables.clients[0].mapped.load(), 0);
}

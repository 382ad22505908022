//! Rings of either layout behind an IOMMU: what is not translated is neither read nor written, and costs no frame.
//!
//! `behind`: such a ring; `body`: the tests, which run once per layout.

mod behind;
mod body;

use crate::model::{Driver, PackedDriver};

/// Runs a test on both layouts.
macro_rules! both {
    ($($name:ident;)*) => {
        $(
            #[test]
            fn $name() {
                body::$name::<Driver>();
                body::$name::<PackedDriver>();
            }
        )*
    };
}

both! {
    a_transmit_ring_waits_at_a_miss_and_loses_nothing;
    a_receive_ring_waits_at_a_miss_and_writes_nothing;
    an_access_after_an_invalidate_is_refused;
    a_buffer_is_used_only_as_its_page_tables_allow;
    an_indirect_table_is_a_miss_of_its_own_and_only_read;
    a_ring_whose_own_memory_is_taken_back_stops_at_once_and_goes_on_where_it_stood;
    what_is_due_soon_is_missed_before_a_frame_is_lost;
    a_ring_that_is_disabled_gets_the_new_table_too;
    random_updates_and_invalidates_lose_double_or_reorder_nothing_out_of_the_guest;
    random_updates_and_invalidates_lose_double_or_reorder_nothing_into_the_guest;
}

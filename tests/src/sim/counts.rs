//! Counters that a report shows by name and that add up over seeds.

/// Declares a struct of counters.
macro_rules! counts {
    ($(#[$meta:meta])* $name:ident { $($(#[$field_meta:meta])* $field:ident),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $name {
            $($(#[$field_meta])* pub $field: u64,)*
        }

        impl $name {
            pub fn add(&mut self, other: &Self) {
                $(self.$field += other.$field;)*
            }

            /// Names and values, in order.
            pub fn named(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($field), self.$field)),*]
            }
        }
    };
}

counts! {
    /// Faults that took place, so that a report can show what a set of seeds has covered.
    FaultCounts {
        short_sends,
        cleared_more,
        no_buffers,
        cancelled,
        accept_faults,
        cuts,
        vanished,
        client_crashes,
        power_failures,
        kills,
        restarts,
    }
}

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
        // ring
        short_sends,
        short_receives,
        cleared_more,
        no_buffers,
        cancelled,
        accept_faults,
        late_submits,
        overflows,
        // network
        splits,
        lost_packets,
        lost_resets,
        partitions,
        cuts,
        vanished,
        rogues,
        false_acks,
        // datagrams
        lost_datagrams,
        doubled_datagrams,
        joined_datagrams,
        failed_datagram_sends,
        rebinds,
        strangers,
        // clients
        client_crashes,
        absences,
        slow_readers,
        // the process and its machine
        power_failures,
        kills,
        restarts,
        reshardings_cut_off,
        clock_steps,
        // the disk
        slow_syncs,
        slow_reads,
        crashes_in_sync,
        failed_writes,
        failed_syncs,
        failed_reads,
        misdirected_writes,
        flipped_bits,
        disk_full,
        directory_failures,
    }
}

counts! {
    /// What the gateway and the apps did, so that a report shows what was reached at all.
    Coverage {
        connections,
        quic_connections,
        handovers,
        // at the end, in the last process
        quic_paths_proven,
        quic_retries,
        quic_resets,
        datagrams_foreign,
        // all along
        floods,
        tokens_renewed,
        tokens_refused,
        background_connections,
        sends_per_device,
        sends_mortal,
        sends_to_unknown,
        sends_too_large,
        // keys, device lists, groups
        directory_commits,
        calls_refused,
        keys_published,
        bundles_taken,
        keys_handed_out,
        keys_low_told,
        lists_changed,
        lists_pushed,
        rosters_changed,
        group_sends,
        sends_listed,
        sends_stale,
        sends_of_strangers,
        group_messages_told,
        group_orders_compared,
        // what was stored
        gaps_full,
        gaps_expired,
        gaps_damaged,
        process_starts,
        process_failures,
        stores_reopened,
        reshardings,
        batches_written,
        segments_reclaimed,
        bytes_copied_by_reclaim,
        reads_from_disk,
        damaged_records,
        expired_records,
        checkpoints_written,
        checkpoints_failed,
    }
}

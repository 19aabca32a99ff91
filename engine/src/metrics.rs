//! What the gateway counts, and how it is exposed (Prometheus text format, version 0.0.4).
//!
//! Each shard owns one [`ShardMetrics`]: plain numbers, no atomics, because only its thread touches
//! them. The control thread asks for a copy when somebody looks, and sums the copies. A new metric
//! is one entry of `shard_metrics!`; the compiler and the exposition follow.

use std::fmt::Write;

use ringpost_ring::RingCounters;
use ringpost_storage::StoreStats;

use crate::transport::quic::QuicEndpoint;

mod causes;
mod kinds;
mod process;

pub use kinds::{Counter, Family, Gauge, Highest, Histogram, Label, Nanoseconds, Records, Scale};
use kinds::{Metric, labels};
pub use process::ProcessMetrics;

labels! {
    /// Why a connection ended before its Welcome.
    pub enum RefusedHello by "code" {
        /// Something else than one valid Hello.
        BadFrame = "bad_frame",
        /// A token that the [`Verifier`](crate::control::auth::Verifier) refused.
        TokenInvalid = "token_invalid",
        TokenExpired = "token_expired",
        /// The token names another device than the Hello.
        TokenMismatch = "token_mismatch",
        /// The user has as many devices as allowed.
        DevicesFull = "devices_full",
        /// A newer connection of the device came first.
        Replaced = "replaced",
        /// No Hello in time.
        Timeout = "timeout",
    }
}

labels! {
    /// Why a connection ended before its TLS handshake.
    pub enum RefusedConnection by "reason" {
        /// Its address opens them too fast.
        AddressRate = "address_rate",
        /// Its address has as many as allowed.
        AddressConnections = "address_connections",
        /// It comes from none of the balancers.
        ProxyUntrusted = "proxy_untrusted",
        /// It does not begin with the header of a balancer.
        ProxyHeader = "proxy_header",
    }
}

labels! {
    /// A bound that made something wait, or be refused.
    pub enum Bound by "bound" {
        ConnectionsPerShard = "connections_per_shard",
        DevicesPerShard = "devices_per_shard",
        /// Handshake work put off to a later turn.
        Handshakes = "handshakes",
        /// As many connections as allowed were not verified yet.
        HandshakesPending = "handshakes_pending",
        /// A connection that was not read for a while, because it had sent too many frames.
        ConnectionFrames = "connection_frames",
        /// The same, too many bytes.
        ConnectionBytes = "connection_bytes",
        /// A Send refused because its user sends too fast.
        UserSends = "user_sends",
        /// A request refused because its user has read keys or device lists of too many users.
        UserKeyReads = "user_key_reads",
        /// A connection whose address was not counted, because too many are.
        Addresses = "addresses",
        /// A connection that sent more bytes than it may in one turn.
        ReceiveBytes = "receive_bytes",
        /// The same, more frames.
        ReceiveFrames = "receive_frames",
        /// A connection that does not read the answers to what it sends, and so is not read.
        Answers = "answers",
        /// A mailbox that took a message no more: it has as many as allowed, or as many bytes.
        Mailbox = "mailbox",
        /// A sender that holds its quarter of a mailbox.
        SenderShare = "sender_share",
        SendsUnanswered = "sends_unanswered",
        DeliversUnacked = "delivers_unacked",
        MeshCredits = "mesh_credits",
        InboundBytes = "inbound_bytes",
        OutboundBytes = "outbound_bytes",
        UnsyncedRecords = "unsynced_records",
        /// Sends that waited too long, or had no room to wait, while the store was not open.
        StoreWaiting = "store_waiting",
        /// The disk has no room for more messages.
        DiskRoom = "disk_room",
        CompletionsPerTurn = "completions_per_turn",
        /// Requests to groups refused because as many as allowed were under way.
        GroupRequests = "group_requests",
        /// Sends to groups that more devices did not get than can be named.
        SkippedDevices = "skipped_devices",
        /// Datagrams that waited because as many sends as allowed were in flight.
        DatagramSends = "datagram_sends",
        /// Datagrams dropped on the way to their shard, because as many as allowed were under way.
        ForeignDatagrams = "foreign_datagrams",
        /// A device list that went from memory because another one came.
        DeviceListCache = "device_list_cache",
        /// A Send whose device list was not checked, or that was refused for now, because as many as
        /// allowed wait for the lists of their recipients.
        DeviceListWaiting = "device_list_waiting",
        /// A request refused because as many as allowed wait for the directory, of the shard or of the
        /// connection.
        DirectoryRequests = "directory_requests",
    }
}

labels! {
    /// Why a Send was refused: the codes of the protocol.
    pub enum RefusedSend by "code" {
        Unspecified = "unspecified",
        UnknownRecipient = "unknown_recipient",
        MailboxFull = "mailbox_full",
        SenderShare = "sender_share",
        RateLimited = "rate_limited",
        StorageFull = "storage_full",
        StorageFailed = "storage_failed",
        Overloaded = "overloaded",
        TooLarge = "too_large",
        Unsupported = "unsupported",
        Blocked = "blocked",
        NotAMember = "not_a_member",
        StaleRoster = "stale_roster",
        StaleDevices = "stale_devices",
    }
}

macro_rules! shard_metrics {
    ($($field:ident: $kind:ty = $name:literal, $help:literal;)*) => {
        /// Everything that one shard counts.
        #[derive(Clone, Debug, Default)]
        pub struct ShardMetrics {
            $(#[doc = $help] pub $field: $kind,)*
        }

        impl ShardMetrics {
            /// Adds another shard's numbers.
            pub fn merge(&mut self, other: &Self) {
                $(self.$field.merge(&other.$field);)*
            }

            /// Appends the text exposition.
            pub fn expose(&self, out: &mut String) {
                $(
                    expose_head(out, $name, $help, <$kind as Metric>::TYPE);
                    self.$field.expose($name, out);
                )*
            }
        }
    };
}

shard_metrics! {
    connections: Gauge = "ringpost_connections", "Open client sockets.";
    accepts: Counter = "ringpost_accepts_total", "Sockets accepted.";
    accept_failures: Counter =
        "ringpost_accept_failures_total", "Sockets that could not be accepted.";
    connections_refused: Family<RefusedConnection> =
        "ringpost_connections_refused_total", "Connections closed before their TLS handshake.";
    handshakes_pending: Gauge =
        "ringpost_handshakes_pending", "Connections that are not verified yet.";
    addresses: Highest = "ringpost_addresses", "Addresses of clients that are counted.";
    handshakes: Counter =
        "ringpost_handshakes_total", "TLS handshakes over TCP completed.";
    handshakes_failed: Counter =
        "ringpost_handshakes_failed_total", "TLS handshakes over TCP that failed.";
    hello_accepted: Counter = "ringpost_hello_accepted_total", "Connections welcomed.";
    hello_refused: Family<RefusedHello> =
        "ringpost_hello_refused_total", "Connections ended before their Welcome.";
    moves: Counter =
        "ringpost_moves_total", "Connections that moved to the home shard of their user.";
    peer_faults: Counter =
        "ringpost_peer_faults_total", "Connections ended because of what the client sent.";
    frames_received: Counter = "ringpost_frames_received_total", "Frames received from clients.";
    received_bytes: Counter = "ringpost_received_bytes_total", "Ciphertext received.";
    sent_bytes: Counter = "ringpost_sent_bytes_total", "Ciphertext sent.";
    messages_accepted: Counter =
        "ringpost_messages_accepted_total", "Sends stored durably and answered Accepted.";
    messages_rejected: Family<RefusedSend> =
        "ringpost_messages_rejected_total", "Sends answered Rejected.";
    messages_delivered: Counter =
        "ringpost_messages_delivered_total", "Messages sent to a device, repetitions included.";
    time_to_delivery: Histogram<Nanoseconds> = "ringpost_time_to_delivery_seconds",
        "Time from storing a message to sending it to its device, absence included.";
    queued_records: Gauge =
        "ringpost_queued_records", "Records in mailboxes that are not acknowledged.";
    mailboxes: Gauge = "ringpost_mailboxes", "Devices that have a mailbox.";
    store_sync: Histogram<Nanoseconds> =
        "ringpost_store_sync_seconds", "Time of one fdatasync of the store.";
    store_batch: Histogram<Records> =
        "ringpost_store_batch_records", "Records made durable by one fdatasync.";
    read_faults: Counter =
        "ringpost_store_read_faults_total", "Stored records that are damaged and could not be read.";
    store_segments: Gauge = "ringpost_store_segments", "Segment files.";
    store_live_bytes: Gauge =
        "ringpost_store_live_bytes", "Bytes of the records that are still needed.";
    store_index_bytes: Gauge = "ringpost_store_index_bytes", "Memory of the indexes.";
    store_expired: Counter =
        "ringpost_store_expired_total", "Messages that were kept for their whole time.";
    store_lost_batches: Gauge = "ringpost_store_lost_batches",
        "Batches of records that were durable and could not be read when the store was opened.";
    store_damaged: Counter = "ringpost_store_damaged_total",
        "Entries of mailboxes that cannot be read any more; gaps took their places.";
    store_written_bytes: Counter =
        "ringpost_store_written_bytes_total", "Bytes of the batches written.";
    store_reclaimed_segments: Counter =
        "ringpost_store_reclaimed_segments_total", "Segment files removed.";
    store_reclaim_bytes: Counter = "ringpost_store_reclaim_copied_bytes_total",
        "Bytes of needed records copied out of old segments.";
    store_checkpoints: Counter =
        "ringpost_store_checkpoints_total", "Checkpoints of the indexes completed.";
    store_checkpoint_bytes: Counter =
        "ringpost_store_checkpoint_bytes_total", "Bytes of the checkpoints completed.";
    store_checkpoints_failed: Counter =
        "ringpost_store_checkpoints_failed_total", "Checkpoints given up.";
    store_disk_reads: Counter =
        "ringpost_store_disk_reads_total", "Records that were not in memory when they were wanted.";
    store_reads_waiting: Gauge = "ringpost_store_reads_waiting",
        "Reads of records that wait until others have ended.";
    expiry_clock_lag: Highest = "ringpost_expiry_clock_lag_seconds",
        "How far the expiry clock is behind the host's, on the shard where it is most.";
    stores_full: Gauge = "ringpost_stores_full",
        "Stores that refuse Sends because their disk is full.";
    stores_reopening: Gauge = "ringpost_stores_reopening",
        "Stores that have failed and are not open again.";
    store_reopens: Counter =
        "ringpost_store_reopens_total", "Stores that failed and were opened again in place.";
    store_reopen: Histogram<Nanoseconds> = "ringpost_store_reopen_seconds",
        "Time from the failure of a store until it served again.";
    sends_waiting: Gauge =
        "ringpost_sends_waiting", "Sends that wait for a store that is not open.";
    sends_unknown: Counter = "ringpost_sends_unknown_total",
        "Sends that a store failed on; their clients were sent away and replay them.";
    store_bytes: Gauge = "ringpost_store_bytes", "Bytes of the segment files.";
    groups: Gauge = "ringpost_groups", "Groups in the memory of their home shards.";
    group_changes: Counter = "ringpost_group_changes_total", "Changes of rosters.";
    group_sends: Counter = "ringpost_group_sends_total", "Sends that were given to the homes of members.";
    group_requests_unanswered: Gauge = "ringpost_group_requests_unanswered",
        "Requests to groups, Sends among them, that are not answered.";
    group_sends_open: Gauge =
        "ringpost_group_sends_open", "Sends to groups whose parts are not all stored or refused.";
    group_mailboxes: Counter =
        "ringpost_group_mailboxes_total", "Mailboxes that messages to groups were stored in.";
    mesh_unanswered: Gauge = "ringpost_mesh_unanswered", "Requests to other shards that wait for their answer.";
    mesh_depth: Gauge = "ringpost_mesh_depth", "Messages waiting in the queues between shards.";
    mesh_credit_waits: Counter =
        "ringpost_mesh_credit_waits_total", "Requests that waited for a credit of another shard.";
    directory_unanswered: Gauge = "ringpost_directory_unanswered",
        "Requests to the directory that wait for their answer.";
    device_lists_cached: Gauge =
        "ringpost_device_lists_cached", "Users whose device list, or want of one, is in memory.";
    timers: Gauge = "ringpost_timers", "Deadlines in the timer wheels.";
    slow_consumers: Counter =
        "ringpost_slow_consumers_total", "Connections ended because they did not read.";
    bound_hits: Family<Bound> =
        "ringpost_bound_hits_total", "Times that a bound made something wait or be refused.";
    ring_enters: Counter = "ringpost_ring_enters_total", "Calls of io_uring_enter.";
    ring_submitted: Counter = "ringpost_ring_submitted_total", "Operations given to the kernel.";
    ring_completions: Counter = "ringpost_ring_completions_total", "Completions of operations.";
    ring_spilled: Counter = "ringpost_ring_spilled_total",
        "Operations that waited because the submission queue was full.";
    ring_overflows: Counter =
        "ringpost_ring_overflows_total", "Turns with a completion queue overflow.";
    receive_pool_empty: Counter =
        "ringpost_receive_pool_empty_total", "Receives that found no free buffer.";
    ring_leases_out: Gauge = "ringpost_ring_leases_out", "Receive buffers on loan.";
    quic_connections: Gauge = "ringpost_quic_connections",
        "QUIC connections on the shards that their ids name, those included that begin or end.";
    quic_handshakes_pending: Gauge = "ringpost_quic_handshakes_pending",
        "QUIC clients that have not opened their stream yet.";
    quic_handshakes: Counter = "ringpost_quic_handshakes_total", "QUIC handshakes completed.";
    quic_handshakes_failed: Counter = "ringpost_quic_handshakes_failed_total",
        "QUIC handshakes that failed, or whose clients opened no stream in time.";
    quic_retries: Counter = "ringpost_quic_retries_total",
        "Clients that had to prove their address before a QUIC handshake.";
    quic_floods: Counter = "ringpost_quic_floods_total",
        "Times that a shard saw so many handshakes that new clients were spread by the kernel's hash.";
    quic_refused: Counter = "ringpost_quic_refused_total",
        "Clients that were told that there is no room, or not answered.";
    quic_resets: Counter = "ringpost_quic_stateless_resets_total",
        "Clients that were told that their QUIC connection is not known.";
    quic_path_changes: Counter =
        "ringpost_quic_path_changes_total", "QUIC clients that sent from another address.";
    quic_path_validations: Counter =
        "ringpost_quic_path_validations_total", "New addresses that were proven.";
    quic_path_failures: Counter = "ringpost_quic_path_failures_total",
        "New addresses that were not proven: the old one was taken again.";
    quic_stream_violations: Counter = "ringpost_quic_stream_violations_total",
        "QUIC connections ended because they used other streams than the one.";
    quic_panics: Counter = "ringpost_quic_panics_total",
        "Bugs in QUIC that ended one connection, or lost one datagram.";
    datagrams_received: Counter = "ringpost_datagrams_received_total", "Datagrams received.";
    datagrams_sent: Counter = "ringpost_datagrams_sent_total", "Datagrams sent.";
    datagrams_foreign: Counter = "ringpost_datagrams_foreign_total",
        "Datagrams that came to another shard than the one of their connection.";
    datagrams_forwarded: Counter = "ringpost_datagrams_forwarded_total",
        "Datagrams that another shard has passed on, counted where their connection is.";
    datagrams_dropped: Counter = "ringpost_datagrams_dropped_total",
        "Datagrams of other shards that were dropped: too many waited, or nobody's.";
    datagrams_per_receive: Histogram<Records> = "ringpost_datagrams_per_receive",
        "Datagrams that the kernel joined into one receive.";
    datagrams_per_send: Histogram<Records> =
        "ringpost_datagrams_per_send", "Datagrams that the kernel made of one send.";
    datagram_sends_failed: Counter =
        "ringpost_datagram_sends_failed_total", "Sends of datagrams that failed.";
    datagram_trains_refused: Counter = "ringpost_datagram_trains_refused_total",
        "Sends of several datagrams that the kernel refused; they went out one by one.";
    datagram_trains_split: Counter = "ringpost_datagram_trains_split_total",
        "Sends of several datagrams that went out one by one, because several before were refused.";
    datagrams_truncated: Counter = "ringpost_datagrams_truncated_total",
        "Datagrams that did not fit into a receive buffer.";
    datagram_pool_empty: Counter = "ringpost_datagram_pool_empty_total",
        "Receives of datagrams that found no free buffer.";
}

impl ShardMetrics {
    /// An entry of a mailbox went out; a message has waited for `waited_ms`, anything else for nothing.
    pub(crate) fn count_delivery(&mut self, waited_ms: Option<u64>) {
        if let Some(waited_ms) = waited_ms {
            self.messages_delivered += 1;
            self.time_to_delivery.observe(waited_ms * 1_000_000);
        }
    }

    /// Takes over the figures of an open store; called before a copy is handed out.
    /// `before`: what the shard's stores before this one counted.
    pub(crate) fn set_store(&mut self, stats: &StoreStats, before: StoreCounts) {
        self.queued_records.set(stats.entries);
        self.store_segments.set(stats.segments);
        self.store_bytes.set(stats.file_bytes);
        self.store_live_bytes.set(stats.live_bytes);
        self.store_index_bytes.set(stats.index_bytes);
        self.store_reads_waiting.set(stats.reads_waiting);
        self.stores_full.set(u64::from(stats.disk_full));
        self.store_lost_batches.set(stats.lost_batches);
        let mut counts = before;
        counts += StoreCounts::of(stats);
        self.store_expired.set(counts.expired_records);
        self.store_damaged.set(counts.damaged_records);
        self.store_written_bytes.set(counts.batch_bytes_written);
        self.store_reclaimed_segments.set(counts.reclaimed_segments);
        self.store_reclaim_bytes.set(counts.reclaim_copied_bytes);
        self.store_checkpoints.set(counts.checkpoints_written);
        self.store_checkpoint_bytes.set(counts.checkpoint_bytes_written);
        self.store_checkpoints_failed.set(counts.checkpoints_failed);
        self.store_disk_reads.set(counts.reads_from_disk);
    }

    /// Takes over what the ring counted; called before a copy is handed out.
    pub fn set_ring(&mut self, ring: &RingCounters) {
        self.ring_enters.set(ring.enters);
        self.ring_submitted.set(ring.submitted);
        self.ring_completions.set(ring.completions);
        self.ring_spilled.set(ring.spilled);
        self.ring_overflows.set(ring.overflows);
        self.receive_pool_empty.set(ring.receive_pool_empty);
        self.ring_leases_out.set(ring.leases_out + ring.datagram_leases_out);
        self.datagram_pool_empty.set(ring.datagram_pool_empty);
        self.datagrams_truncated.set(ring.datagrams_truncated);
        self.datagram_trains_refused.set(ring.segmentations_refused);
        self.datagram_trains_split.set(ring.trains_split);
    }

    /// Takes over what the QUIC endpoint counted; called before a copy is handed out.
    pub(crate) fn set_quic(&mut self, endpoint: &QuicEndpoint) {
        self.quic_connections.set(endpoint.connections() as u64);
        self.quic_handshakes_pending.set(endpoint.handshakes_pending() as u64);
        let quic = endpoint.counters();
        self.quic_handshakes.set(quic.handshakes);
        self.quic_handshakes_failed.set(quic.handshakes_failed + quic.handshakes_late);
        self.quic_retries.set(quic.retries);
        self.quic_refused.set(quic.refused + quic.ignored);
        // The shard counts those of which it heard only with their stream.
        self.connections_refused
            .add_many(RefusedConnection::AddressRate, quic.refused_address_rate);
        let refused = quic.refused_address_connections;
        self.connections_refused.add_many(RefusedConnection::AddressConnections, refused);
        self.quic_resets.set(quic.resets);
        self.quic_path_changes.set(quic.path_changes);
        self.quic_path_validations.set(quic.path_validations);
        self.quic_path_failures.set(quic.path_failures);
        self.quic_stream_violations.set(quic.stream_violations);
        self.quic_panics.set(quic.panics);
        self.datagrams_received.set(quic.datagrams_received);
        self.datagrams_sent.set(quic.datagrams_sent);
        self.datagrams_foreign.set(quic.foreign);
        self.datagrams_forwarded.set(quic.forwarded);
        let dropped = quic.foreign_dropped + quic.misrouted;
        self.datagrams_dropped.set(dropped + self.bound_hits.get(Bound::ForeignDatagrams));
    }
}

/// What a store counts for metrics, so that it goes on when the store is opened again.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct StoreCounts {
    expired_records: u64,
    damaged_records: u64,
    batch_bytes_written: u64,
    reclaimed_segments: u64,
    reclaim_copied_bytes: u64,
    reads_from_disk: u64,
    checkpoints_written: u64,
    checkpoint_bytes_written: u64,
    checkpoints_failed: u64,
}

impl StoreCounts {
    pub(crate) fn of(stats: &StoreStats) -> Self {
        Self {
            expired_records: stats.expired_records,
            damaged_records: stats.damaged_records,
            batch_bytes_written: stats.batch_bytes_written,
            reclaimed_segments: stats.reclaimed_segments,
            reclaim_copied_bytes: stats.reclaim_copied_bytes,
            reads_from_disk: stats.reads_from_disk,
            checkpoints_written: stats.checkpoints_written,
            checkpoint_bytes_written: stats.checkpoint_bytes_written,
            checkpoints_failed: stats.checkpoints_failed,
        }
    }
}

impl std::ops::AddAssign for StoreCounts {
    fn add_assign(&mut self, other: Self) {
        self.expired_records += other.expired_records;
        self.damaged_records += other.damaged_records;
        self.batch_bytes_written += other.batch_bytes_written;
        self.reclaimed_segments += other.reclaimed_segments;
        self.reclaim_copied_bytes += other.reclaim_copied_bytes;
        self.reads_from_disk += other.reads_from_disk;
        self.checkpoints_written += other.checkpoints_written;
        self.checkpoint_bytes_written += other.checkpoint_bytes_written;
        self.checkpoints_failed += other.checkpoints_failed;
    }
}

/// Appends one number that belongs to no shard.
pub fn expose_gauge(out: &mut String, name: &str, help: &str, value: u64) {
    expose_head(out, name, help, "gauge");
    write_line(out, format_args!("{name} {value}"));
}

/// Appends one counter of the process.
pub fn expose_counter(out: &mut String, name: &str, help: &str, value: u64) {
    expose_head(out, name, help, "counter");
    write_line(out, format_args!("{name} {value}"));
}

/// Appends one counter for each value of a label, of the process.
pub fn expose_counts(
    out: &mut String,
    name: &str,
    help: &str,
    label: &str,
    counts: &[(&str, u64)],
) {
    expose_head(out, name, help, "counter");
    for (value, count) in counts {
        write_line(out, format_args!("{name}{{{label}=\"{value}\"}} {count}"));
    }
}

/// Appends a histogram of the process.
pub fn expose_histogram<S: Scale>(
    out: &mut String,
    name: &str,
    help: &str,
    histogram: &Histogram<S>,
) {
    expose_head(out, name, help, <Histogram<S> as Metric>::TYPE);
    histogram.expose(name, out);
}

fn expose_head(out: &mut String, name: &str, help: &str, kind: &str) {
    write_line(out, format_args!("# HELP {name} {help}\n# TYPE {name} {kind}"));
}

fn write_line(out: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(out, "{line}").expect("writing to a String");
}

#[cfg(test)]
mod tests;

//! The end of a world: everybody leaves, and nothing may be left behind.

use ringpost_protocol::limits::HEARTBEAT_BACKGROUND_MS_MAX;

use super::clock::MS;
use super::oracle::Violation;
use super::world::World;

impl World {
    pub(super) fn end(&mut self) -> Result<(), Violation> {
        self.crash = None; // nobody would come back to take what it makes undone
        // The last acknowledgements arrive, become durable and set off their receipts.
        let acked_ns = self.host.borrow().clock.now_ns() + ACKS_MS_MAX * MS;
        self.run_until(acked_ns, |world| world.gateway.queued_records() == Some(0))?;
        self.pass(5_000)?;
        self.is_over = true;
        for client in &mut self.clients {
            client.retire(&mut self.host.borrow_mut());
        }
        // Connections left without a word time out, those of background devices late.
        self.pass(if self.shape.background > 0 { BACKGROUND_MS_MAX } else { FOREGROUND_MS_MAX })?;
        self.oracle.check_orders();
        self.check_leaks()?;
        self.check_durable()?;
        self.drain();
        let process = self.host.borrow().process;
        let now_ns = self.host.borrow().clock.now_ns();
        self.run_until(now_ns + DRAIN_MS_MAX * MS + MS, |world| {
            world.host.borrow().process != process
        })?;
        let files = self.host.borrow().disk.open_files();
        self.oracle.require(files == 0, || format!("{files} files are left open"));
        Ok(())
    }

    /// No lease, credit, timer, operation, connection or record is left.
    fn check_leaks(&mut self) -> Result<(), Violation> {
        let answers = self.gateway.request_metrics();
        self.pass(100)?;
        let sockets = self.host.borrow().open_sockets();
        let in_flight = self.gateway.in_flight();
        let shards = usize::from(self.shape.shards);
        let metrics = std::mem::take(&mut *answers.lock().expect("one thread"));
        let oracle = &mut self.oracle;
        let is_excused = oracle.has_excuses();
        let reads_failed = oracle.reads_failed;
        oracle.require(metrics.len() == shards, || {
            format!("{} of {shards} shards answer", metrics.len())
        });
        oracle.require(sockets == 0, || format!("{sockets} sockets are left open"));
        // The accept stays armed, and with QUIC the receive of datagrams.
        let armed = if self.host.borrow().faults.weights.quic > 0 { 2 } else { 1 };
        oracle.require(in_flight.iter().all(|&count| count == armed), || {
            format!("operations are left in flight: {in_flight:?}")
        });
        for metrics in metrics {
            let coverage = &mut self.host.borrow_mut().coverage;
            coverage.quic_paths_proven += metrics.quic_path_validations.get();
            coverage.quic_retries += metrics.quic_retries.get();
            coverage.quic_resets += metrics.quic_resets.get();
            coverage.datagrams_foreign += metrics.datagrams_foreign.get();
            let left = [
                ("connections", metrics.connections.get()),
                ("timers", metrics.timers.get()),
                ("leases", metrics.ring_leases_out.get()),
                ("QUIC connections", metrics.quic_connections.get()),
                ("queued records", metrics.queued_records.get()),
                ("unanswered mesh requests", metrics.mesh_unanswered.get()),
                ("mesh messages", metrics.mesh_depth.get()),
                ("requests to the directory", metrics.directory_unanswered.get()),
                ("requests to groups", metrics.group_requests_unanswered.get()),
                ("Sends to groups", metrics.group_sends_open.get()),
                ("read faults", metrics.read_faults.get()),
            ];
            for (what, count) in left {
                let is_excused = is_excused && matches!(what, "queued records" | "read faults")
                    || reads_failed && what == "read faults";
                oracle.require(count == 0 || is_excused, || format!("{count} {what} are left"));
            }
        }
        oracle.verdict()
    }

    /// A last power failure: what was acknowledged stays gone.
    fn check_durable(&mut self) -> Result<(), Violation> {
        self.gateway.watch_stores(&mut self.oracle);
        self.end_process(true);
        let end_ns = self.host.borrow().clock.now_ns() + OPEN_MS_MAX * MS;
        let opened = self.run_until(end_ns, |world| world.gateway.queued_records().is_some())?;
        self.oracle.require(opened, || "a store does not open".into());
        self.oracle.verdict()
    }

    pub(super) fn pass(&mut self, duration_ms: u64) -> Result<(), Violation> {
        let end_ns = self.host.borrow().clock.now_ns() + duration_ms * MS;
        self.run_until(end_ns, |_| false).map(|_| ())
    }
}

/// Two and a half of the longest heartbeat, and two turns of the timer wheel.
const BACKGROUND_MS_MAX: u64 = HEARTBEAT_BACKGROUND_MS_MAX / 2 * 5 + 300_000;
/// The same for the usual heartbeat, and the timers of the last connection behind it.
const FOREGROUND_MS_MAX: u64 = 300_000;
/// A start, and the reading of a few segments.
const OPEN_MS_MAX: u64 = 60_000;
const ACKS_MS_MAX: u64 = 300_000;
pub(super) const DRAIN_MS_MAX: u64 = 60_000;

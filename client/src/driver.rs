//! The task behind a [`Client`](crate::Client): connects, moves events between the session and the
//! [`Ledger`], writes batches on a blocking thread, and gives the app its events.
//!
//! While a batch is written, commands and deliveries gather for the next one.

mod command;
mod connect;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ringpost_protocol::id::DeviceId;
use ringpost_protocol::message::{ClientEvent, ErrorCode, Mode, Reply};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};

use crate::calls::CallError;
use crate::calls::table::Calls;
use crate::dial::Dialler;
use crate::event::{Event, Status};
use crate::ledger::Ledger;
use crate::limits::{CLOSE_MS_MAX, COMMANDS_PER_TURN_MAX, GO_AWAY_MS_MAX, OUTPUT_BYTES_MAX};
use crate::link::{Link, LinkFault};
use crate::messenger::desk::Desk;
use crate::path::{Paths, Transport};
use crate::reconnect::Reconnect;
use crate::store::{StoreFault, Written};
use crate::stream::Stream;
use crate::token::{TokenFault, TokenSource};

use command::Waiter;
pub(crate) use command::{Command, Told};

pub(crate) struct Driver {
    pub(crate) ledger: Ledger,
    /// Reads and writes what the ledger carries, if a messenger was opened.
    pub(crate) desk: Option<Box<Desk>>,
    pub(crate) addresses: Vec<String>,
    pub(crate) dialler: Dialler,
    pub(crate) token_source: Arc<dyn TokenSource>,
    pub(crate) device: DeviceId,
    pub(crate) mode: Mode,
    pub(crate) reconnect: Reconnect,
    pub(crate) paths: Paths,
    /// What the present connection uses, once it is welcome.
    pub(crate) transport: watch::Sender<Option<Transport>>,
    /// The server has answered all that the app sent.
    pub(crate) is_flushed: watch::Sender<bool>,
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) events: mpsc::Sender<Event>,
    pub(crate) started: Instant,
    pub(crate) phase: Phase,
    /// QUIC, tried beside a connection over TLS.
    pub(crate) retrying: Option<Connecting>,
    pub(crate) calls: Calls<oneshot::Sender<Result<Reply, CallError>>>,
    /// Answers for the app, by the batch that must be durable first.
    pub(crate) waiters: VecDeque<(u64, Waiter)>,
    pub(crate) writing: Option<JoinHandle<Result<Written, StoreFault>>>,
    /// Taken from the ledger, waiting for room in the channel.
    pub(crate) next_event: Option<Event>,
    /// Named by a GoAway; tried once, before the configured ones.
    pub(crate) other_address: Option<String>,
    /// In a row, without a Welcome between.
    pub(crate) token_refusal_count: u32,
}

pub(crate) enum Phase {
    /// Until the app asks.
    Stopped,
    Waiting {
        until_ms: u64,
    },
    Connecting(Connecting),
    Online {
        link: Box<Link>,
        /// Where it leads to.
        address: String,
        is_welcome: bool,
        /// The server said GoAway: the wait it asked for, and when we stop listening.
        leaving: Option<(u64, u64)>,
    },
}

pub(crate) type Connecting = JoinHandle<Result<Dialled, ConnectFault>>;

/// A fresh token, and the connection to use it on.
pub(crate) struct Dialled {
    token: String,
    address: String,
    stream: Stream,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectFault {
    #[error(transparent)]
    Link(#[from] LinkFault),
    #[error(transparent)]
    Token(#[from] TokenFault),
    #[error("no connection within {ms_max} ms")]
    TimedOut { ms_max: u64 },
}

/// What one turn waited for.
enum Input {
    Commands(usize),
    Connected(Result<Dialled, ConnectFault>),
    Retried(Result<Dialled, ConnectFault>),
    Link(Result<(), LinkFault>),
    Written(Result<Written, StoreFault>),
    EventGiven,
    AppGone,
    Timer,
}

/// Why a connection is given up.
enum End {
    Fault(String),
    /// The same, and maybe because of the path to the server.
    Lost(String),
    GoAway {
        wait_ms: u64,
    },
    Replaced,
    TokenRefused(String),
}

impl Driver {
    /// Runs until the app closes the client or drops every handle of it.
    pub(crate) async fn run(mut self) {
        let mut commands = Vec::new();
        let closing = loop {
            self.turn();
            match self.next_input(&mut commands).await {
                Input::Commands(0) | Input::AppGone => break Some(None),
                Input::Commands(_) => {
                    if let Some(reply) = self.handle_commands(&mut commands) {
                        break Some(Some(reply));
                    }
                }
                Input::Connected(Ok(dialled)) => self.open_session(dialled),
                Input::Connected(Err(fault)) => self.handle_connect_fault(fault),
                Input::Retried(result) => self.handle_retried(result),
                Input::Link(result) => self.handle_link(result),
                Input::Written(Ok(written)) => {
                    self.ledger.finish_commit(written);
                    self.answer_waiters();
                }
                Input::Written(Err(fault)) => {
                    self.fail(&fault);
                    break None;
                }
                Input::EventGiven => {}
                Input::Timer => self.handle_timer(),
            }
        };
        self.transport.send_replace(None);
        // Memory and disk of a database that failed may differ: nothing more may come of it.
        let Some(reply) = closing else { return };
        self.close().await;
        // The database is free again when the app hears of it.
        drop(self);
        if let Some(reply) = reply {
            // The app may have stopped waiting.
            let _ = reply.send(());
        }
    }

    /// Everything that follows from the last input.
    fn turn(&mut self) {
        let now_ms = self.now_ms();
        if let Phase::Online { link, .. } = &mut self.phase {
            while self.ledger.transmit(&mut link.session) && link.collect(now_ms) < OUTPUT_BYTES_MAX
            {
            }
            link.collect(now_ms);
        }
        self.turn_calls(now_ms);
        if let Some(desk) = &mut self.desk {
            desk.turn(unix_ms(), &mut self.ledger);
        }
        // After the transmit: what the server is not even asked about is news as well.
        if self.writing.is_none()
            && let Some(batch) = self.ledger.begin_commit(now_ms)
        {
            self.writing = Some(tokio::task::spawn_blocking(move || batch.write()));
        }
        // Before the app hears that something is on disk: from then on it counts.
        self.note_flushed();
        self.answer_waiters();
        if self.next_event.is_none() {
            self.next_event = self.ledger.poll_event();
        }
    }

    /// Sends calls once the server has welcomed us, and answers those that have ended.
    fn turn_calls(&mut self, now_ms: u64) {
        if let Phase::Online { link, is_welcome: true, leaving: None, .. } = &mut self.phase {
            self.calls.transmit(&mut link.session);
            link.collect(now_ms);
        }
        self.calls.handle_timeout(now_ms);
        while let Some((reply, result)) = self.calls.poll_result() {
            // The app may have stopped waiting.
            let _ = reply.send(result);
        }
    }

    async fn next_input(&mut self, commands: &mut Vec<Command>) -> Input {
        let deadline = self.deadline();
        let started = self.started;
        let now_ms = move || elapsed_ms(started);
        let (connecting, link) = match &mut self.phase {
            Phase::Stopped | Phase::Waiting { .. } => (None, None),
            Phase::Connecting(task) => (Some(task), None),
            Phase::Online { link, .. } => (None, Some(link)),
        };
        let next_event = &mut self.next_event;
        let retrying = &mut self.retrying;
        tokio::select! {
            count = self.commands.recv_many(commands, COMMANDS_PER_TURN_MAX) => {
                Input::Commands(count)
            }
            result = join(&mut self.writing), if self.writing.is_some() => Input::Written(result),
            result = async { connecting.expect("guarded").await }, if connecting.is_some() => {
                Input::Connected(result.expect("connecting does not panic and is not aborted"))
            }
            result = async { link.expect("guarded").drive(now_ms).await }, if link.is_some() => {
                Input::Link(result)
            }
            result = async { retrying.as_mut().expect("guarded").await }, if retrying.is_some() => {
                *retrying = None;
                Input::Retried(result.expect("connecting does not panic and is not aborted"))
            }
            permit = self.events.reserve(), if next_event.is_some() => match permit {
                Ok(permit) => {
                    permit.send(next_event.take().expect("guarded"));
                    Input::EventGiven
                }
                Err(_) => Input::AppGone,
            },
            () = sleep_until(deadline) => Input::Timer,
        }
    }

    fn handle_timer(&mut self) {
        let now_ms = self.now_ms();
        match &mut self.phase {
            Phase::Waiting { until_ms } if *until_ms <= now_ms => self.connect(),
            &mut Phase::Online { leaving: Some((wait_ms, until_ms)), .. } if until_ms <= now_ms => {
                self.end(End::GoAway { wait_ms });
            }
            Phase::Online { link, .. } => match link.session.handle_timeout(now_ms) {
                Ok(()) => self.retry_quic(now_ms),
                Err(fault) => self.end(End::Lost(fault.to_string())),
            },
            // Else the ledger has something to release, and the next turn does.
            Phase::Stopped | Phase::Waiting { .. } | Phase::Connecting(_) => {}
        }
    }

    /// Takes what came in even when the connection has ended: it may be the reason.
    fn handle_link(&mut self, result: Result<(), LinkFault>) {
        let now_ms = self.now_ms();
        while let Phase::Online { link, is_welcome, leaving, .. } = &mut self.phase {
            let Some(event) = link.session.poll_event() else { break };
            match &event {
                ClientEvent::Welcome(_) => {
                    self.token_refusal_count = 0;
                    *is_welcome = true;
                    self.reconnect.handle_welcome(now_ms);
                    self.paths.handle_welcome(now_ms, link.transport());
                    self.transport.send_replace(Some(link.transport()));
                    tracing::info!(transport = %link.transport(), "connected");
                }
                ClientEvent::GoAway { reason, reconnect_after_ms, other_address } => {
                    tracing::info!(?reason, reconnect_after_ms, "the server asks to leave");
                    *leaving = Some((*reconnect_after_ms, now_ms + GO_AWAY_MS_MAX));
                    self.other_address.clone_from(other_address);
                }
                ClientEvent::Error { code, text, fatal: true, .. } => {
                    let end = match code {
                        ErrorCode::Replaced => End::Replaced,
                        ErrorCode::TokenInvalid | ErrorCode::TokenExpired => {
                            self.token_refusal_count += 1;
                            End::TokenRefused(text.clone())
                        }
                        _ => End::Fault(format!("{code:?}: {text}")),
                    };
                    return self.end(end);
                }
                ClientEvent::Error { code, text, request_id: request_id @ 1.., .. } => {
                    self.calls.handle_error(*request_id, *code, text);
                }
                ClientEvent::Error { code, .. } => tracing::warn!(?code, "the server complains"),
                _ => {}
            }
            if let ClientEvent::Replied { request_id, reply } = event {
                self.calls.handle_reply(request_id, reply);
                continue;
            }
            if let Some(desk) = &mut self.desk {
                desk.handle_event(&mut self.ledger, &event);
            }
            if let Err(flooded) = self.ledger.handle_event(now_ms, event) {
                return self.end(End::Fault(flooded.to_string()));
            }
        }
        if let (Err(fault), Phase::Online { leaving, .. }) = (result, &self.phase) {
            let end = match leaving {
                Some((wait_ms, _)) => End::GoAway { wait_ms: *wait_ms },
                None => End::Lost(fault.to_string()),
            };
            self.end(end);
        }
    }

    fn end(&mut self, end: End) {
        self.ledger.connection_ended();
        self.calls.connection_ended();
        let now_ms = self.now_ms();
        self.stop_retrying();
        self.transport.send_replace(None);
        if let Phase::Online { link, is_welcome: false, .. } = &self.phase {
            let is_lost = matches!(end, End::Lost(_));
            self.paths.handle_unwelcome(now_ms, link.transport(), is_lost);
        }
        let (told_ms, reason) = match end {
            End::Replaced => {
                tracing::warn!("a newer connection of this device took over");
                self.phase = Phase::Stopped;
                return self.ledger.report(Status::Replaced);
            }
            End::TokenRefused(reason) if self.token_refusal_count >= TOKEN_REFUSALS_MAX => {
                tracing::warn!(reason, "the token was refused");
                self.phase = Phase::Stopped;
                return self.ledger.report(Status::TokenRefused { reason });
            }
            End::TokenRefused(reason) => (Some(0), reason),
            End::GoAway { wait_ms } => (Some(wait_ms), "the server asked to leave".into()),
            End::Fault(reason) | End::Lost(reason) => (None, reason),
        };
        let retry_in_ms = self.reconnect.handle_end(now_ms, told_ms);
        tracing::info!(reason, retry_in_ms, "disconnected");
        self.phase = Phase::Waiting { until_ms: now_ms.saturating_add(retry_in_ms) };
        self.ledger.report(Status::Disconnected { retry_in_ms, reason });
    }

    /// Tells the app and ends; what was not written is not answered.
    fn fail(&mut self, fault: &StoreFault) {
        tracing::error!(%fault, "the database failed");
        let reason = fault.to_string();
        // A full channel does not hide it: the stream of events ends behind what is in there.
        let _ = self.events.try_send(Event::Status(Status::StoreFailed { reason }));
    }

    /// Writes what gathered, says Bye.
    async fn close(&mut self) {
        self.stop_retrying();
        if let Phase::Connecting(task) = &self.phase {
            task.abort();
        }
        loop {
            if self.writing.is_some() {
                match join(&mut self.writing).await {
                    Ok(written) => self.ledger.finish_commit(written),
                    Err(fault) => {
                        tracing::error!(%fault, "the database failed");
                        break;
                    }
                }
            }
            self.turn();
            if self.writing.is_none() {
                break;
            }
        }
        let now_ms = self.now_ms();
        if let Phase::Online { link, .. } = &mut self.phase {
            link.session.bye();
            link.collect(now_ms);
            // A peer that does not read gets no Bye.
            let _ = timeout(Duration::from_millis(CLOSE_MS_MAX), link.finish()).await;
        }
    }

    fn deadline(&self) -> Instant {
        let phase_ms = match &self.phase {
            Phase::Stopped | Phase::Connecting(_) => None,
            Phase::Waiting { until_ms } => Some(*until_ms),
            Phase::Online { link, leaving, .. } => {
                let leave_ms = leaving.map_or(u64::MAX, |(_, until_ms)| until_ms);
                Some(link.session.poll_timeout().min(leave_ms))
            }
        };
        // While a batch is written, its end leads to the next look at the ledger.
        let ledger_ms = self.ledger.poll_timeout().filter(|_| self.writing.is_none());
        let due_ms = phase_ms
            .into_iter()
            .chain(ledger_ms)
            .chain(self.retry_at_ms())
            .chain(self.calls.poll_timeout())
            .min();
        self.started + Duration::from_millis(due_ms.unwrap_or(u64::MAX).min(FAR_MS))
    }

    fn now_ms(&self) -> u64 {
        elapsed_ms(self.started)
    }
}

/// Waits for the blocking thread; leaves `None` behind.
async fn join(
    writing: &mut Option<JoinHandle<Result<Written, StoreFault>>>,
) -> Result<Written, StoreFault> {
    let task = writing.as_mut().expect("asked only while a batch is written");
    let result = match task.await {
        // The app ends its runtime, and this task with it.
        Err(error) if error.is_cancelled() => std::future::pending().await,
        result => result.expect("writing does not panic"),
    };
    *writing = None;
    result
}

/// By the phone's clock; ages of keys are counted in it.
pub(crate) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn elapsed_ms(started: Instant) -> u64 {
    u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX)
}

const TOKEN_REFUSALS_MAX: u32 = 2;
/// A deadline that no process lives to see.
const FAR_MS: u64 = 100 * 365 * 24 * 3600 * 1000;

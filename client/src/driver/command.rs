//! What the app asks of the driver, and the answers, which wait until what was done is on disk.

use ringpost_protocol::message::{Call, Mode, Reply};
use tokio::sync::oneshot;

use super::{Driver, Phase, unix_ms};
use crate::calls::CallError;
use crate::event::{EventId, NewSend, SendId};
use crate::ledger::{Ledger, SendFault};
use crate::messenger::desk::Desk;

pub(crate) enum Command {
    Send(NewSend, oneshot::Sender<Result<SendId, SendFault>>),
    Confirm(EventId, oneshot::Sender<()>),
    Call(Call, oneshot::Sender<Result<Reply, CallError>>),
    /// For the messenger; what it gives is run once everything it did is durable.
    Desk(DeskWork),
    Mode(Mode),
    RenewToken(String),
    Reconnect,
    NetworkChanged,
    Close(oneshot::Sender<()>),
}

/// Runs on the desk; gives what tells the one who asked.
pub(crate) type DeskWork = Box<dyn FnOnce(&mut Desk, &mut Ledger, u64) -> Told + Send>;
pub(crate) type Told = Box<dyn FnOnce() + Send>;

pub(crate) enum Waiter {
    Send(SendId, oneshot::Sender<Result<SendId, SendFault>>),
    Confirm(oneshot::Sender<()>),
    Desk(Told),
}

impl Driver {
    /// Gives the reply to a Close.
    pub(super) fn handle_commands(
        &mut self,
        commands: &mut Vec<Command>,
    ) -> Option<oneshot::Sender<()>> {
        let now_ms = self.now_ms();
        for command in commands.drain(..) {
            match command {
                Command::Send(send, reply) => match self.ledger.enqueue(send) {
                    Ok(id) => {
                        self.waiters.push_back((self.ledger.last_batch(), Waiter::Send(id, reply)));
                    }
                    Err(fault) => drop(reply.send(Err(fault))),
                },
                Command::Confirm(id, reply) => {
                    self.ledger.confirm(id);
                    self.waiters.push_back((self.ledger.last_batch(), Waiter::Confirm(reply)));
                }
                Command::Call(call, reply) => self.calls.begin(now_ms, call, reply),
                Command::Desk(work) => {
                    // Without a desk nobody asks, so nobody waits.
                    let Some(desk) = &mut self.desk else { continue };
                    let told = work(desk, &mut self.ledger, unix_ms());
                    desk.turn(unix_ms(), &mut self.ledger);
                    self.waiters.push_back((self.ledger.last_batch(), Waiter::Desk(told)));
                }
                Command::Mode(mode) => {
                    self.mode = mode;
                    if let Phase::Online { link, .. } = &mut self.phase {
                        link.session.set_mode(now_ms, mode);
                    }
                }
                Command::RenewToken(token) => {
                    if let Phase::Online { link, .. } = &mut self.phase {
                        link.session.renew_token(&token);
                    }
                }
                Command::Reconnect => {
                    if matches!(self.phase, Phase::Stopped | Phase::Waiting { .. }) {
                        self.token_refusal_count = 0;
                        self.reconnect.reset();
                        self.connect();
                    }
                }
                Command::NetworkChanged => self.handle_network_change(),
                Command::Close(reply) => return Some(reply),
            }
        }
        None
    }

    /// For [`Client::flushed`](crate::Client::flushed).
    pub(super) fn note_flushed(&self) {
        let is_flushed = self.ledger.outbox_len() == 0
            && self.desk.as_ref().is_none_or(|desk| desk.is_settled());
        self.is_flushed.send_if_modified(|was| std::mem::replace(was, is_flushed) != is_flushed);
    }

    pub(super) fn answer_waiters(&mut self) {
        let written = self.ledger.batches_written();
        while self.waiters.front().is_some_and(|(batch, _)| *batch <= written) {
            let Some((_, waiter)) = self.waiters.pop_front() else { return };
            // The app may have stopped waiting.
            match waiter {
                Waiter::Send(id, reply) => drop(reply.send(Ok(id))),
                Waiter::Confirm(reply) => drop(reply.send(())),
                Waiter::Desk(told) => told(),
            }
        }
    }
}

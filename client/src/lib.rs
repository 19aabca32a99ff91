//! The Ringpost client: what an app links to send and receive messages.
//!
//! [`Client::send`] returns once the message is in the outbox on disk; it goes out when there is a
//! connection, and again after a lost one, until the server has answered. [`Client::next_event`]
//! gives [`News`] and the [`Status`] of the connection. News stay in the database until
//! [`Client::confirm`]: when the app keeps what it was told before it confirms, it sees each
//! message once, in the sender's order, across its own restarts and the server's.
//!
//! ```text
//! app -- send --> outbox -- commit --> session -- link --> server     Accepted --> News::Sent
//! app <-- News -- inbox <-- commit -- session <-- link -- server      then Ack
//! app -- confirm --> inbox (forgotten)
//! ```
//!
//! The link is a QUIC connection, or TLS over TCP where UDP does not pass: both are tried, and on a
//! network where TLS was faster QUIC is tried again later and taken without the app noticing. Tell
//! [`Client::network_changed`] when the phone goes from one network to another: QUIC moves along
//! without a handshake. Nothing is ever sent as early data.
//!
//! Modules from the app inwards: [`event`], what is sent and told; [`e2ee`], what the server cannot
//! read; [`token`], who we are; the
//! driver, a tokio task, with the [`calls`] that are answered at once; [`store`], what is durable, with [`ledger`], all of the delivery logic
//! without network or clock; the link, and its stream over TLS or QUIC; who dials, and the race of
//! the transports; [`path`], which of them to prefer; [`reconnect`], when to try again; [`limits`].
//!
//! Envelopes are opaque to [`Client::send`]. An app that wants people, groups and texts instead, all of
//! it encrypted from end to end, opens a [`messenger::Messenger`].
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;

use ringpost_protocol::id::DeviceId;
use ringpost_protocol::message::{Mode, Recipient, SendBody};
use tokio::sync::{Mutex, Notify, mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::calls::table::Calls;
use crate::dial::Dialler;
use crate::driver::{Command, Driver, Phase};
use crate::e2ee::Fault;
use crate::ledger::{Ledger, LedgerConfig, SendFault};
use crate::limits::{COMMANDS_MAX, EVENTS_MAX};
use crate::messenger::desk::Desk;
use crate::path::Paths;
use crate::reconnect::{Reconnect, ReconnectConfig};
use crate::store::StoreFault;

pub use crate::calls::CallError;
pub use crate::dial::TlsFault;
pub use crate::event::{
    Event, EventId, Gap, Hint, Message, NewSend, News, Receipt, Refused, SendId, SendOptions, Sent,
    Status,
};
pub use crate::path::{PathConfig, Transport, Transports};
pub use crate::store::ledger;
pub use crate::token::{TokenFault, TokenFuture, TokenSource};
pub use ringpost_protocol as protocol;

pub mod event;
pub mod calls;
pub mod e2ee;
pub mod messenger;
pub mod token;
mod driver;
pub mod store;
mod link;
mod stream;
mod dial;
mod race;
pub mod path;
pub mod reconnect;
pub mod limits;

/// How to open a [`Client`].
pub struct ClientConfig {
    /// `host:port`, tried in turn; each for all transports.
    pub addresses: Vec<String>,
    /// In the server's certificate; a DNS name or an IP address.
    pub server_name: String,
    /// Certificate authorities, PEM.
    pub roots_pem: Vec<u8>,
    /// File of the database; made with its directory when it does not exist. One client at a time
    /// may have it open. A copy restored from a backup must not be used: delete it, which makes a
    /// new installation.
    pub database_path: PathBuf,
    pub token_source: Arc<dyn TokenSource>,
    /// Equals the token's claim.
    pub device: DeviceId,
    pub mode: Mode,
    pub path: PathConfig,
    pub reconnect: ReconnectConfig,
    pub ledger: LedgerConfig,
}

/// One user's device. Clones share it; when the last one is dropped the connection closes.
#[derive(Clone)]
pub struct Client {
    commands: mpsc::Sender<Command>,
    events: Arc<Mutex<mpsc::Receiver<Event>>>,
    transport: watch::Receiver<Option<Transport>>,
    is_flushed: watch::Receiver<bool>,
}

/// Why a client did not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenFault {
    #[error("no server address is given")]
    NoAddress,
    #[error(transparent)]
    Tls(#[from] TlsFault),
    #[error(transparent)]
    Store(#[from] StoreFault),
    /// For a messenger: its records do not open with this key, or are another user's or device's.
    #[error(transparent)]
    Seal(#[from] Fault),
}

/// Why a message was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    #[error(transparent)]
    Fault(#[from] SendFault),
    #[error(transparent)]
    Closed(#[from] Closed),
}

/// The client was closed, or its database failed. Whether the last messages were taken is not
/// known; the news of a client opened again tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the client is closed")]
pub struct Closed;

impl Client {
    /// Opens the database and starts to connect. Must be called within a tokio runtime.
    pub async fn open(config: ClientConfig) -> Result<Self, OpenFault> {
        Ok(Self::open_with(config, |_| Ok(None)).await?.0)
    }

    /// The same with a desk, which is opened after the database; gives what tells of its errands.
    pub(crate) async fn open_desk(
        config: ClientConfig,
        open: impl FnOnce(&mut Ledger) -> Result<Box<Desk>, Fault> + Send + 'static,
    ) -> Result<(Self, Arc<Notify>), OpenFault> {
        let (client, errands) = Self::open_with(config, |ledger| open(ledger).map(Some)).await?;
        Ok((client, errands.expect("there is a desk")))
    }

    async fn open_with(
        config: ClientConfig,
        open: impl FnOnce(&mut Ledger) -> Result<Option<Box<Desk>>, Fault> + Send + 'static,
    ) -> Result<(Self, Option<Arc<Notify>>), OpenFault> {
        if config.addresses.is_empty() {
            return Err(OpenFault::NoAddress);
        }
        let dialler = Dialler::new(&config.roots_pem, &config.server_name)?;
        let (path, ledger_config) = (config.database_path, config.ledger);
        let opening = tokio::task::spawn_blocking(move || {
            let database = store::create_database(&path)?;
            let mut ledger = Ledger::open(database, ledger_config, rand::random())?;
            let desk = open(&mut ledger)?;
            Ok::<_, OpenFault>((ledger, desk))
        });
        let (ledger, desk) = opening.await.expect("opening does not panic and is not aborted")?;
        let (commands, commands_in) = mpsc::channel(COMMANDS_MAX);
        let (events_out, events) = mpsc::channel(EVENTS_MAX);
        let (transport_out, transport) = watch::channel(None);
        let (flushed_out, is_flushed) = watch::channel(false);
        let errands = desk.as_ref().map(|desk| desk.errands());
        let driver = Driver {
            ledger,
            desk,
            reconnect: Reconnect::new(config.reconnect, config.addresses.len(), rand::random()),
            paths: Paths::new(config.path, rand::random()),
            transport: transport_out,
            is_flushed: flushed_out,
            addresses: config.addresses,
            dialler,
            token_source: config.token_source,
            device: config.device,
            mode: config.mode,
            commands: commands_in,
            events: events_out,
            started: Instant::now(),
            phase: Phase::Waiting { until_ms: 0 },
            retrying: None,
            calls: Calls::new(),
            waiters: VecDeque::new(),
            writing: None,
            next_event: None,
            other_address: None,
            token_refusal_count: 0,
        };
        tokio::spawn(driver.run());
        let events = Arc::new(Mutex::new(events));
        Ok((Self { commands, events, transport, is_flushed }, errands))
    }

    /// Puts a message into the outbox; returns once it is on disk. [`News::Sent`] or
    /// [`News::Refused`] with this id follows, if need be after a restart. Messages to one
    /// recipient arrive in the order of their ids.
    pub async fn send(
        &self,
        to: Recipient,
        body: SendBody,
        options: SendOptions,
    ) -> Result<SendId, SendError> {
        let (reply, answer) = oneshot::channel();
        let send = NewSend { to, body, options };
        self.command(Command::Send(send, reply)).await?;
        Ok(answer.await.map_err(|_| Closed)??)
    }

    /// The next event; `None` when the client is closed. Cancelling loses nothing. Of several
    /// callers each event reaches one.
    pub async fn next_event(&self) -> Option<Event> {
        self.events.lock().await.recv().await
    }

    /// The app has dealt with this news. Returns once that is on disk: then it is never given
    /// again. Not waiting is fine where that does not matter.
    pub async fn confirm(&self, id: EventId) -> Result<(), Closed> {
        let (reply, answer) = oneshot::channel();
        self.command(Command::Confirm(id, reply)).await?;
        answer.await.map_err(|_| Closed)
    }

    /// The app came to the foreground, or left it.
    pub async fn set_mode(&self, mode: Mode) -> Result<(), Closed> {
        self.command(Command::Mode(mode)).await
    }

    /// Replaces the token of the present connection, before the old one expires.
    pub async fn renew_token(&self, token: String) -> Result<(), Closed> {
        self.command(Command::RenewToken(token)).await
    }

    /// Connects now: after [`Status::Replaced`] or [`Status::TokenRefused`], or because the
    /// network came back. No effect on a connection that stands.
    pub async fn reconnect(&self) -> Result<(), Closed> {
        self.command(Command::Reconnect).await
    }

    /// The device has left one network for another, or has got a new address. A QUIC connection goes
    /// on from there and is asked for a sign of life; without one, and over TLS in any case, the
    /// client connects again at once. What is known of UDP on the old network is forgotten.
    pub async fn network_changed(&self) -> Result<(), Closed> {
        self.command(Command::NetworkChanged).await
    }

    /// What the present connection uses; `None` while there is no welcome one. It changes without a
    /// [`Status`] when QUIC takes over from TLS.
    pub fn transport(&self) -> Option<Transport> {
        *self.transport.borrow()
    }

    /// Returns once the server has answered everything that was sent before: what a phone's system is
    /// to wait for before it puts an app to sleep. It does not end while there is no connection, or
    /// a mailbox stays full. Cancelling is fine: what is left goes out when the client is open again.
    pub async fn flushed(&self) -> Result<(), Closed> {
        let mut is_flushed = self.is_flushed.clone();
        is_flushed.wait_for(|is_flushed| *is_flushed).await.map(drop).map_err(|_| Closed)
    }

    /// Says goodbye to the server and closes the database.
    pub async fn close(&self) {
        let (reply, answer) = oneshot::channel();
        if self.command(Command::Close(reply)).await.is_ok() {
            // An error means that it is closed already.
            let _ = answer.await;
        }
    }

    async fn command(&self, command: Command) -> Result<(), Closed> {
        self.commands.send(command).await.map_err(|_| Closed)
    }
}

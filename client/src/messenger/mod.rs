//! The API of an app: people, groups, texts and ticks, with everything encrypted from end to end.
//!
//! ```text
//! app -- send(user, text) --> waits for keys --> encrypted --> outbox --> server
//! app <-- News::Text -- opened <-- inbox <-- server          then Ack
//! app -- confirm --> forgotten
//! ```
//!
//! A [`Messenger`] does by itself what the app need not know of: it publishes keys and makes new ones,
//! fetches those of others, renews sessions, gives group keys to new devices and takes them from those
//! who left, and copies what was sent to the own other devices. What the app has to decide it is told
//! as [`News`], each of which comes again until it is confirmed, also after a restart.
//!
//! Everything it keeps is in the client's database, sealed under a key that the app keeps elsewhere,
//! such as the keychain of the phone.
//!
//! Modules from the app inwards: [`news`], what the app is told; the errands, which ask the server's
//! directory; the desk, all of the logic without network or waiting: outgoing, what was
//! posted and may have to be again, incoming, the directory and groups; the rows it keeps.

use std::sync::Arc;

use ringpost_protocol::id::{DeviceAddress, DeviceId, UserId};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use zeroize::Zeroizing;

use crate::driver::unix_ms;
use crate::e2ee::identity::Secret;
use crate::e2ee::safety::safety_number;
use crate::e2ee::{Content, Fault};
use crate::event::{Event as Raw, EventId, News as RawNews};
use crate::ledger::Ledger;
use crate::{Client, ClientConfig, Closed, OpenFault};

use desk::{Desk, open_news};

pub mod news;
mod errand;
pub(crate) mod desk;
mod outgoing;
mod posted;
mod incoming;
pub(crate) mod directory;
mod group;
mod devices;
mod verify;
mod typing;
mod row;

#[cfg(test)]
mod tests;

pub use news::{Conversation, Event, Loss, MessageId, News, Text};
pub use outgoing::WriteFault;

/// How to open a [`Messenger`].
pub struct MessengerConfig {
    pub client: ClientConfig,
    /// Equals the token's `sub`.
    pub user: UserId,
    /// Random; seals the database. Not kept in it: without this key nothing in there can be read.
    pub store_key: Zeroizing<[u8; 32]>,
}

/// One user's device. Clones share it; when the last one is dropped the connection closes.
#[derive(Clone)]
pub struct Messenger {
    client: Client,
    key: Arc<Secret>,
    own: UserId,
    _errands: Arc<Task>,
}

/// Ends with its last owner.
struct Task(JoinHandle<()>);

/// Why something was not done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessengerFault {
    #[error(transparent)]
    Write(#[from] WriteFault),
    #[error(transparent)]
    Closed(#[from] Closed),
}

impl Messenger {
    /// Opens the database and starts to connect. Must be called within a tokio runtime. In an empty
    /// database it becomes a new device with a new identity. [`OpenFault::Seal`] when the key is not
    /// the one it was sealed with.
    pub async fn open(config: MessengerConfig) -> Result<Self, OpenFault> {
        let MessengerConfig { client, user, store_key } = config;
        let address = DeviceAddress { user: user.clone(), device: client.device.clone() };
        let key = Arc::new(Secret::from_bytes(*store_key));
        let open_desk = move |ledger: &mut Ledger| {
            Desk::open(*store_key, address, unix_ms(), ledger).map(Box::new)
        };
        let (client, errands) = Client::open_desk(client, open_desk).await?;
        let task = Arc::new(Task(tokio::spawn(errand::run(client.clone(), errands))));
        Ok(Self { client, key, own: user, _errands: task })
    }

    /// Returns once it is on disk, if need be to wait for the recipient's keys. [`News::Sent`] or
    /// [`News::NotSent`] with this id follows, then [`News::Delivered`] and [`News::Read`]. At most
    /// [`TEXT_BYTES_MAX`](crate::limits::TEXT_BYTES_MAX) bytes.
    pub async fn send(&self, user: &UserId, text: &str) -> Result<MessageId, MessengerFault> {
        self.write(Conversation::Direct(user.clone()), Content::Text(text.into())).await
    }

    /// The same to all members of a group.
    pub async fn send_group(
        &self,
        group: &UserId,
        text: &str,
    ) -> Result<MessageId, MessengerFault> {
        self.write(Conversation::Group(group.clone()), Content::Text(text.into())).await
    }

    /// The user has looked at these: tells the others of the conversation. At most
    /// [`MESSAGE_REFERENCES_MAX`](crate::limits::MESSAGE_REFERENCES_MAX) at once.
    pub async fn mark_read(
        &self,
        conversation: Conversation,
        messages: Vec<MessageId>,
    ) -> Result<(), MessengerFault> {
        self.write(conversation, Content::Read(messages)).await.map(drop)
    }

    /// Makes a group, with this user as its administrator. [`News::Group`] follows when it is there,
    /// [`News::GroupRefused`] when the server refuses. The id is 1 to 128 bytes, hard to guess.
    pub async fn create_group(
        &self,
        group: &UserId,
        members: Vec<UserId>,
    ) -> Result<(), MessengerFault> {
        let group = group.clone();
        self.change(move |desk| desk.create_group(&group, members)).await
    }

    /// For the administrator. [`News::Group`] follows.
    pub async fn add_members(
        &self,
        group: &UserId,
        users: Vec<UserId>,
    ) -> Result<(), MessengerFault> {
        let group = group.clone();
        self.change(move |desk| desk.add_members(&group, users)).await
    }

    /// For the administrator. What is written once [`News::Group`] came they cannot read.
    pub async fn remove_members(
        &self,
        group: &UserId,
        users: Vec<UserId>,
    ) -> Result<(), MessengerFault> {
        let group = group.clone();
        self.change(move |desk| desk.remove_members(&group, users)).await
    }

    pub async fn leave_group(&self, group: &UserId) -> Result<(), MessengerFault> {
        let group = group.clone();
        self.change(move |desk| desk.leave_group(&group)).await
    }

    /// As the administrator signed them; `None`: no such group here.
    pub async fn members(&self, group: &UserId) -> Result<Option<Vec<UserId>>, Closed> {
        let group = group.clone();
        self.client.on_desk(move |desk, _, _| desk.members(&group)).await
    }

    /// 60 digits that both users see alike when nobody is between them; to be compared side by side
    /// or by voice. `None` until the other user's device list is here: write to it first.
    pub async fn safety_number(&self, user: &UserId) -> Result<Option<String>, Closed> {
        let other = user.clone();
        let found = self.client.on_desk(move |desk, _, _| desk.identities(&other)).await?;
        // Milliseconds of hashing, which nobody else should wait for.
        Ok(found.map(|(own, other)| safety_number((&self.own, &own), (user, &other))))
    }

    /// The user has heard or read the other one's safety number, in digits with anything between them:
    /// whether it is the one that is seen here. From then on the contact is verified, or not.
    pub async fn compare_safety_number(
        &self,
        user: &UserId,
        heard: &str,
    ) -> Result<bool, MessengerFault> {
        let other = user.clone();
        let identities = self.client.on_desk(move |desk, _, _| desk.identities(&other)).await?;
        let (own, peer) = identities.ok_or(WriteFault::Unacquainted)?;
        let number = safety_number((&self.own, &own), (user, &peer));
        let digits = |text: &str| text.chars().filter(char::is_ascii_digit).collect::<String>();
        let is_same = digits(&number) == digits(heard);
        let user = user.clone();
        self.change(move |desk| {
            desk.note_compared(&user, (own, peer), is_same);
            Ok(())
        })
        .await?;
        Ok(is_same)
    }

    /// Whether the user has made sure, on this device, of the identity that this contact has now.
    pub async fn is_verified(&self, user: &UserId) -> Result<bool, Closed> {
        let user = user.clone();
        self.client.on_desk(move |desk, _, _| desk.is_verified(&user)).await
    }

    /// Asks this contact to compare numbers, or agrees to what it has asked with
    /// [`News::VerificationAsked`]. [`News::Compare`] follows at both when both are there. For a
    /// contact whose devices are known: write to it first.
    pub async fn start_verification(&self, user: &UserId) -> Result<(), MessengerFault> {
        let user = user.clone();
        let work =
            move |desk: &mut Desk, _: &mut Ledger, now_ms| desk.start_verification(now_ms, &user);
        Ok(self.client.on_desk(work).await??)
    }

    /// After [`News::Compare`]: whether the other person sees the same numbers. When both have said
    /// so [`News::Verified`] follows; otherwise the contact is not verified, also if it was.
    pub async fn finish_verification(
        &self,
        user: &UserId,
        is_same: bool,
    ) -> Result<(), MessengerFault> {
        let user = user.clone();
        let work = move |desk: &mut Desk, ledger: &mut Ledger, now_ms| {
            desk.finish_verification(now_ms, ledger, &user, is_same)
        };
        Ok(self.client.on_desk(work).await??)
    }

    /// The user types, or has stopped without sending. Call it at every key: it tells the others of
    /// the conversation at most every [`TYPING_MS_MIN`](crate::limits::TYPING_MS_MIN), and only if one
    /// of them was heard of in the last [`HEARD_MS_MAX`](crate::limits::HEARD_MS_MAX). Gives whether
    /// it did. They see [`News::Typing`], which counts for
    /// [`TYPING_MS_MAX`](crate::limits::TYPING_MS_MAX).
    pub async fn typing(
        &self,
        conversation: Conversation,
        is_typing: bool,
    ) -> Result<bool, MessengerFault> {
        let work = move |desk: &mut Desk, ledger: &mut Ledger, now_ms| {
            desk.tell_typing(now_ms, ledger, conversation, is_typing)
        };
        Ok(self.client.on_desk(work).await??)
    }

    /// After [`News::IdentityChanged`]: the user wants to go on with the new identity. Compare the
    /// [`Self::safety_number`] again.
    pub async fn accept_identity(&self, user: &UserId) -> Result<(), MessengerFault> {
        let user = user.clone();
        self.change(move |desk| Ok(desk.accept_identity(&user)?)).await
    }

    /// On a new device of a user who has others: what one of those is to read, as text or as a QR
    /// code. It holds a secret; show it to nobody else. `None`: this device is linked, or the first.
    /// [`News::Linked`] follows.
    pub async fn link_code(&self) -> Result<Option<String>, Closed> {
        self.client.on_desk(|desk, _, _| desk.link_code()).await
    }

    /// On an old device: takes a new one in, which shows this code. [`News::Devices`] says when the
    /// server has it, and it is in force.
    pub async fn link_device(&self, code: &str) -> Result<(), MessengerFault> {
        let code = code.to_owned();
        Ok(self.client.on_desk(move |desk, _, _| desk.link_device(&code)).await??)
    }

    /// A device of this user that was lost, or is not used any more. It is out when [`News::Devices`]
    /// says so. Those who know that write nothing to it; group keys that it has are replaced. It still
    /// knows the user's identity key, and can sign lists with it until the user has another identity.
    pub async fn remove_device(&self, device: &DeviceId) -> Result<(), MessengerFault> {
        let device = device.clone();
        self.change(move |desk| desk.remove_device(&device)).await
    }

    /// As the user signed them; `None` until the list is here.
    pub async fn devices(&self, user: &UserId) -> Result<Option<Vec<DeviceId>>, Closed> {
        let user = user.clone();
        self.client.on_desk(move |desk, _, _| desk.devices(&user)).await
    }

    /// The next event; `None` when it is closed. Cancelling loses nothing. Of several callers each
    /// event reaches one.
    pub async fn next_event(&self) -> Option<Event> {
        loop {
            match self.client.next_event().await? {
                Raw::Status(status) => return Some(Event::Status(status)),
                // The desk has heard it.
                Raw::Hint(_) => {}
                Raw::News { id, news: RawNews::Sealed(sealed) } => {
                    match open_news(&self.key, &sealed) {
                        Ok(news) => return Some(Event::News { id, news }),
                        Err(fault) => tracing::error!(%fault, "news on disk are damaged"),
                    }
                }
                Raw::News { id, .. } => tracing::error!(id = id.0, "news that nobody has read"),
            }
        }
    }

    /// The app has dealt with this news. Returns once that is on disk: then it is never given again.
    pub async fn confirm(&self, id: EventId) -> Result<(), Closed> {
        self.client.confirm(id).await
    }

    /// For what has nothing to do with messages: mode, tokens, changes of the network.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Returns once the server has answered everything that was written, read or changed before:
    /// texts, what tells others that they were read, changes of groups and of the own devices. It
    /// does not end while one of them cannot go out: without a connection, or for a user who has no
    /// device yet. Cancelling is fine: what is left goes out when the messenger is open again.
    pub async fn flushed(&self) -> Result<(), Closed> {
        self.client.flushed().await
    }

    /// Says goodbye to the server and closes the database.
    pub async fn close(&self) {
        self.client.close().await;
    }

    async fn write(&self, to: Conversation, content: Content) -> Result<MessageId, MessengerFault> {
        let work = move |desk: &mut Desk, _: &mut Ledger, now_ms| desk.write(now_ms, to, content);
        Ok(self.client.on_desk(work).await??)
    }

    async fn change(
        &self,
        work: impl FnOnce(&mut Desk) -> Result<(), WriteFault> + Send + 'static,
    ) -> Result<(), MessengerFault> {
        Ok(self.client.on_desk(move |desk, _, _| work(desk)).await??)
    }
}

impl Client {
    /// Gives the answer once everything the work did is durable.
    pub(crate) async fn on_desk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Desk, &mut Ledger, u64) -> T + Send + 'static,
    ) -> Result<T, Closed> {
        let (reply, answer) = oneshot::channel();
        let work = Box::new(move |desk: &mut Desk, ledger: &mut Ledger, now_ms| {
            let done = work(desk, ledger, now_ms);
            // The app may have stopped waiting.
            Box::new(move || drop(reply.send(done))) as crate::driver::Told
        });
        self.command(crate::driver::Command::Desk(work)).await?;
        answer.await.map_err(|_| Closed)
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl From<Fault> for MessengerFault {
    fn from(fault: Fault) -> Self {
        Self::Write(fault.into())
    }
}

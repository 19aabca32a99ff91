//! What the apps do: whom they write to, how, and how often.

use bytes::Bytes;
use ringpost_client::{NewSend, SendOptions};
use ringpost_protocol::id::{DeviceId, UserId};
use ringpost_protocol::limits::ENVELOPE_BYTES_MAX;
use ringpost_protocol::message::{Mode, Recipient, SendBody};

use super::client::Client;
use super::clock::Stream;
use super::oracle::{MessageIndex, envelope};
use super::shape::Shape;

/// One message before it is sent, and what the oracle must know of it.
#[derive(Debug)]
pub struct Draft {
    pub send: NewSend,
    /// Clients that it is meant for, if they exist by then.
    pub named: Vec<usize>,
    /// Zero: it lives longer than any world.
    pub ttl_ms: u64,
    /// Of a message to a group: the version that it is meant for, 0: whatever it is.
    pub roster_version: u64,
}

/// Draws drafts and modes.
#[derive(Debug)]
pub struct Author {
    random: Stream,
}

impl Author {
    pub fn new(seed: u64) -> Self {
        Self { random: Stream::new(seed, "author") }
    }

    /// A message of `from` to the user of client `to`; `None`: to one that does not exist.
    pub fn draft(
        &mut self,
        shape: &Shape,
        from: usize,
        to: Option<usize>,
        message: MessageIndex,
    ) -> Draft {
        let ttl_ms = if self.random.chance(shape.mortal) {
            [1, 500, 5_000, 20_000, 600_000][self.random.index(5)]
        } else {
            0
        };
        let urgent = self.random.chance(100);
        let options = SendOptions { ttl_ms, urgent, ..SendOptions::default() };
        let Some(to) = to else {
            let user = UserId::new("nobody").expect("a short name");
            let body = SendBody::Shared(self.envelope(shape, message));
            let send = NewSend { to: Recipient::User(user), body, options };
            return Draft { send, named: Vec::new(), ttl_ms, roster_version: 0 };
        };
        let others: Vec<usize> =
            shape.siblings(to).into_iter().filter(|&client| client != from).collect();
        let user = shape.devices[to].user.clone();
        let (body, named) = if !others.is_empty() && self.random.chance(300) {
            self.per_device(shape, &others, message)
        } else {
            (SendBody::Shared(self.envelope(shape, message)), others)
        };
        let send = NewSend { to: Recipient::User(user), body, options };
        Draft { send, named, ttl_ms, roster_version: 0 }
    }

    /// A message to a group.
    pub fn draft_to_group(
        &mut self,
        shape: &Shape,
        (group, roster_version): (UserId, u64),
        message: MessageIndex,
    ) -> Draft {
        let ttl_ms = if self.random.chance(shape.mortal / 4) { 5_000 } else { 0 };
        let body = SendBody::Shared(self.envelope(shape, message));
        let options = SendOptions { ttl_ms, ..SendOptions::default() };
        let send = NewSend { to: Recipient::Group(group), body, options };
        Draft { send, named: Vec::new(), ttl_ms, roster_version }
    }

    /// An envelope for each of some devices, and now and then for one that does not exist.
    fn per_device(
        &mut self,
        shape: &Shape,
        others: &[usize],
        message: MessageIndex,
    ) -> (SendBody, Vec<usize>) {
        let mut named: Vec<usize> =
            others.iter().copied().filter(|_| self.random.chance(700)).collect();
        if named.is_empty() {
            named.push(others[0]);
        }
        let mut parts: Vec<(DeviceId, Bytes)> = Vec::new();
        let mut room = ENVELOPE_BYTES_MAX - 4_096;
        for &client in &named {
            let envelope = self.envelope(shape, message);
            // The frame bounds all of them together.
            let envelope = envelope.slice(..envelope.len().min(room / 2).max(8));
            room -= envelope.len();
            parts.push((shape.devices[client].device.clone(), envelope));
        }
        if self.random.chance(100) {
            let unknown = DeviceId::new("watch").expect("a short name");
            parts.push((unknown, Bytes::from(envelope(message, 8))));
        }
        (SendBody::PerDevice(parts), named)
    }

    fn envelope(&mut self, shape: &Shape, message: MessageIndex) -> Bytes {
        let bytes_max = if self.random.chance(shape.large) { 40_000 } else { 600 };
        Bytes::from(envelope(message, self.random.index(bytes_max)))
    }

    /// One byte more than is allowed.
    pub fn too_large(&self, to: &UserId) -> NewSend {
        NewSend {
            to: Recipient::User(to.clone()),
            body: SendBody::Shared(Bytes::from(vec![0; ENVELOPE_BYTES_MAX + 1])),
            options: SendOptions::default(),
        }
    }

    pub fn mode(&mut self, shape: &Shape) -> Mode {
        if self.random.chance(shape.background) {
            Mode::Background { interval_ms: self.random.between(240_000, 400_000) }
        } else {
            Mode::Foreground
        }
    }
}

/// Decides which messages go to groups instead of users.
#[derive(Debug)]
pub struct GroupWork {
    random: Stream,
}

impl GroupWork {
    pub fn new(seed: u64) -> Self {
        Self { random: Stream::new(seed, "group work") }
    }

    /// The group that all write to now, if to one.
    pub fn burst(&mut self, shape: &Shape) -> Option<usize> {
        let is_one = !shape.groups.is_empty() && self.random.chance(500);
        is_one.then(|| self.random.index(shape.groups.len()))
    }

    /// The group that `client` writes to now, if to one, and the version that it is for. Mostly one of
    /// which the client believes to be a member.
    pub fn group(&mut self, shape: &Shape, client: &Client) -> Option<(UserId, u64)> {
        if shape.groups.is_empty() || !self.random.chance(400) {
            return None;
        }
        let group = &shape.groups[self.random.index(shape.groups.len())];
        let view = client.scribe.views.get(group);
        let view = view.filter(|view| view.members.contains(&client.address().user));
        if view.is_none() && !self.random.chance(200) {
            return None;
        }
        let is_exact = self.random.chance(300);
        let version = view.filter(|_| is_exact).map_or(0, |view| view.version);
        Some((group.clone(), version))
    }
}

//! What an operator with bad intentions can do: be anybody to the gateway, for the tokens are his.
//! The gateway itself is the real one. While he poses as a device its app must be closed.

use bytes::Bytes;
use ringpost_protocol::wire::{self, client_frame::Frame, send, server_frame};

use super::gateway::Gateway;
use super::raw::{Raw, hello_frame};

pub struct Operator<'a> {
    gateway: &'a Gateway,
}

/// Of a device: user and name.
pub type Address<'a> = (&'a str, &'a str);

impl<'a> Operator<'a> {
    pub fn of(gateway: &'a Gateway) -> Self {
        Self { gateway }
    }

    /// A connection of a device that he poses as, as an installation of its own.
    fn pose(&self, (user, device): Address<'_>) -> Raw {
        let mut raw = Raw::connect(self.gateway);
        let hello = hello_frame(&self.gateway.keys.token(user, device), device);
        raw.send(Frame::Hello(wire::Hello { install_id: rand::random(), ..hello }));
        raw.expect_welcome();
        raw
    }

    /// What waits for a device, oldest first.
    pub fn look(&self, at: Address<'_>) -> Vec<Bytes> {
        self.waiting(at).1.into_iter().map(|deliver| deliver.envelope).collect()
    }

    /// The same, and the device never gets it.
    pub fn take(&self, from: Address<'_>) -> Vec<Bytes> {
        let (mut raw, delivers) = self.waiting(from);
        if let Some(last) = delivers.last() {
            raw.send(Frame::Ack(wire::Ack { up_to_seq: last.seq }));
            raw.send(Frame::Ping(wire::Ping {}));
            raw.expect(|frame| matches!(frame, server_frame::Frame::Pong(_)).then_some(()));
        }
        delivers.into_iter().map(|deliver| deliver.envelope).collect()
    }

    fn waiting(&self, at: Address<'_>) -> (Raw, Vec<wire::Deliver>) {
        let mut raw = self.pose(at);
        let mut delivers = Vec::new();
        raw.expect(|frame| match frame {
            server_frame::Frame::Deliver(deliver) => {
                delivers.push(deliver);
                None
            }
            server_frame::Frame::CaughtUp(_) => Some(()),
            _ => None,
        });
        (raw, delivers)
    }

    /// Has these come to a device as if from another one.
    pub fn put(&self, from: Address<'_>, (user, device): Address<'_>, envelopes: &[Bytes]) {
        let bodies = envelopes.iter().map(|envelope| {
            let (device, envelope) = (device.to_owned(), envelope.clone());
            let envelopes = vec![wire::DeviceEnvelope { device, envelope }];
            send::Body::PerDevice(wire::DeviceEnvelopes { envelopes })
        });
        self.send(from, &send::To::User(user.to_owned()), bodies);
    }

    /// Has this come to all members of a group.
    pub fn put_group(&self, from: Address<'_>, group: &str, envelope: &Bytes) {
        let body = send::Body::Shared(envelope.clone());
        self.send(from, &send::To::Group(group.to_owned()), [body].into_iter());
    }

    fn send(&self, from: Address<'_>, to: &send::To, bodies: impl Iterator<Item = send::Body>) {
        let mut raw = self.pose(from);
        for (body, send_seq) in bodies.zip(1..) {
            let (to, body) = (Some(to.clone()), Some(body));
            raw.send(Frame::Send(wire::Send { send_seq, to, body, ..wire::Send::default() }));
            let (number, answer) = raw.expect_answer();
            assert_eq!((number, answer.map(|_| ())), (send_seq, Ok(())));
        }
    }

    pub fn list(&self, user: &str) -> wire::DeviceList {
        let mut raw = self.pose((user, SPY));
        let user = user.to_owned();
        raw.send(Frame::DeviceListGet(wire::DeviceListGet { request_id: 1, user }));
        raw.expect(|frame| match frame {
            server_frame::Frame::DeviceList(list) => Some(list),
            server_frame::Frame::Error(error) => panic!("{error:?}"),
            _ => None,
        })
    }

    /// Puts a list in the place of the newest one.
    pub fn replace_list(&self, user: &str, devices: &[&str], signed_list: Bytes) {
        let version = self.list(user).version + 1;
        let devices = devices.iter().map(|&device| device.to_owned()).collect();
        let put = wire::DeviceListPut { request_id: 1, version, devices, signed_list };
        self.ask((user, SPY), Frame::DeviceListPut(put));
    }

    /// Puts keys in the place of those of a device.
    pub fn replace_keys(&self, of: Address<'_>, keys: wire::KeysPublish) {
        self.ask(of, Frame::KeysPublish(wire::KeysPublish { request_id: 1, ..keys }));
    }

    /// Makes somebody a member of a group whose administrator this user is.
    pub fn add_member(&self, administrator: &str, group: &str, member: &str) {
        let (group, members) = (group.to_owned(), vec![member.to_owned()]);
        let add = wire::GroupAdd { request_id: 1, group, members, ..wire::GroupAdd::default() };
        self.ask((administrator, SPY), Frame::GroupAdd(add));
    }

    /// Has a device write something that cannot be read: who gets it looks up whose it is.
    pub fn have_looked_up(&self, user: &str, by: Address<'_>) {
        self.put((user, SPY), by, &[Bytes::from_static(b"look who I am")]);
    }

    fn ask(&self, poser: Address<'_>, frame: Frame) {
        let mut raw = self.pose(poser);
        raw.send(frame);
        raw.expect(|frame| match frame {
            server_frame::Frame::Done(_) | server_frame::Frame::GroupState(_) => Some(()),
            server_frame::Frame::Error(error) => panic!("{error:?}"),
            _ => None,
        });
    }
}

/// A device that he adds to people.
pub const SPY: &str = "spy";

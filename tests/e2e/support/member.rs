//! A member of groups who may ask for anything, in any order, over a raw connection.

use std::collections::VecDeque;

use bytes::Bytes;
use ringpost_protocol::wire::{
    self, ErrorCode, RejectCode, client_frame::Frame, send, server_frame,
};

use super::gateway::Gateway;
use super::raw::Raw;

pub struct Member {
    raw: Raw,
    last_request: u64,
    last_send: u64,
    /// What came while something else was waited for.
    unread: VecDeque<server_frame::Frame>,
}

/// The answer to a request about a group.
pub type Answer = Result<wire::GroupState, ErrorCode>;

impl Member {
    pub fn open(gateway: &Gateway, user: &str, device: &str) -> Self {
        let raw = Raw::open(gateway, user, device);
        Self { raw, last_request: 0, last_send: 0, unread: VecDeque::new() }
    }

    pub fn create(&mut self, group: &str, members: &[&str]) -> Answer {
        let request_id = self.next_request();
        let (group, members) = (group.to_owned(), texts(members));
        self.ask(request_id, Frame::GroupCreate(wire::GroupCreate { request_id, group, members }))
    }

    pub fn add(&mut self, group: &str, members: &[&str]) -> Answer {
        self.add_as(group, members, false, 0)
    }

    pub fn add_as(
        &mut self,
        group: &str,
        members: &[&str],
        as_admins: bool,
        version: u64,
    ) -> Answer {
        let request_id = self.next_request();
        let (group, members) = (group.to_owned(), texts(members));
        let add = wire::GroupAdd { request_id, group, members, as_admins, version };
        self.ask(request_id, Frame::GroupAdd(add))
    }

    pub fn remove(&mut self, group: &str, members: &[&str]) -> Answer {
        let request_id = self.next_request();
        let (group, members) = (group.to_owned(), texts(members));
        let remove = wire::GroupRemove { request_id, group, members, version: 0 };
        self.ask(request_id, Frame::GroupRemove(remove))
    }

    pub fn show(&mut self, group: &str) -> Answer {
        let request_id = self.next_request();
        let group = group.to_owned();
        self.ask(request_id, Frame::GroupGet(wire::GroupGet { request_id, group }))
    }

    pub fn leave(&mut self, group: &str) -> Result<(), ErrorCode> {
        let request_id = self.next_request();
        let group = group.to_owned();
        self.raw.send(Frame::GroupLeave(wire::GroupLeave { request_id, group }));
        self.wait(|frame| match frame {
            server_frame::Frame::Done(done) if done.request_id == request_id => Some(Ok(())),
            server_frame::Frame::Error(error) if error.request_id == request_id => {
                assert!(!error.fatal);
                Some(Err(error.code()))
            }
            _ => None,
        })
    }

    fn ask(&mut self, request_id: u64, frame: Frame) -> Answer {
        self.raw.send(frame);
        self.wait(|frame| match frame {
            server_frame::Frame::GroupState(state) if state.request_id == request_id => {
                Some(Ok(state.clone()))
            }
            server_frame::Frame::Error(error) if error.request_id == request_id => {
                assert!(!error.fatal);
                Some(Err(error.code()))
            }
            _ => None,
        })
    }

    /// Sends and waits for the answer: the devices that were skipped.
    pub fn send(&mut self, group: &str, text: &str) -> Result<Vec<(String, String)>, RejectCode> {
        self.send_for(group, 0, text)
    }

    /// For one version of the roster.
    pub fn send_for(
        &mut self,
        group: &str,
        roster_version: u64,
        text: &str,
    ) -> Result<Vec<(String, String)>, RejectCode> {
        let send_seq = self.post(group, roster_version, text);
        self.answer(send_seq)
    }

    /// Sends and does not wait. Gives the number.
    pub fn post(&mut self, group: &str, roster_version: u64, text: &str) -> u64 {
        self.last_send += 1;
        self.repeat(self.last_send, group, roster_version, text);
        self.last_send
    }

    pub fn repeat(&mut self, send_seq: u64, group: &str, roster_version: u64, text: &str) {
        self.last_send = send_seq;
        self.raw.send(Frame::Send(wire::Send {
            send_seq,
            roster_version,
            to: Some(send::To::Group(group.to_owned())),
            body: Some(send::Body::Shared(Bytes::copy_from_slice(text.as_bytes()))),
            ..wire::Send::default()
        }));
    }

    pub fn answer(&mut self, number: u64) -> Result<Vec<(String, String)>, RejectCode> {
        self.wait(|frame| match frame {
            server_frame::Frame::Accepted(accepted) if accepted.send_seq == number => {
                let skipped = accepted.skipped_devices.iter();
                Some(Ok(skipped.map(|one| (one.user.clone(), one.device.clone())).collect()))
            }
            server_frame::Frame::Rejected(rejected) if rejected.send_seq == number => {
                Some(Err(rejected.code()))
            }
            _ => None,
        })
    }

    /// The next message, which is acknowledged: group, sender and text.
    pub fn message(&mut self) -> (String, String, String) {
        let deliver = self.wait(|frame| match frame {
            server_frame::Frame::Deliver(deliver) => Some(deliver.clone()),
            _ => None,
        });
        self.ack(deliver.seq);
        let text = String::from_utf8(deliver.envelope.to_vec()).unwrap();
        (deliver.group, deliver.from_user, text)
    }

    pub fn texts(&mut self, count: usize) -> Vec<String> {
        (0..count).map(|_| self.message().2).collect()
    }

    pub fn gap(&mut self) -> wire::Gap {
        let gap = self.wait(|frame| match frame {
            server_frame::Frame::Gap(gap) => Some(gap.clone()),
            _ => None,
        });
        self.ack(gap.seq);
        gap
    }

    /// The next receipt that says so much.
    pub fn receipt(&mut self, from: &str, device: &str, up_to: u64) -> wire::Delivered {
        self.wait(|frame| match frame {
            server_frame::Frame::Delivered(receipt)
                if receipt.peer_user == from
                    && receipt.peer_device == device
                    && receipt.up_to_send_seq >= up_to =>
            {
                Some(receipt.clone())
            }
            _ => None,
        })
    }

    /// The next version that this group is said to have, from `version` on.
    pub fn changed(&mut self, group: &str, version: u64) -> u64 {
        self.wait(|frame| match frame {
            server_frame::Frame::GroupChanged(changed)
                if changed.group == group && changed.version >= version =>
            {
                Some(changed.version)
            }
            _ => None,
        })
    }

    /// Everything that has come by the time a Ping is answered.
    pub fn so_far(&mut self) -> Vec<server_frame::Frame> {
        self.raw.send(Frame::Ping(wire::Ping {}));
        let mut frames: Vec<_> = self.unread.drain(..).collect();
        loop {
            match self.raw.read_frame().expect("the connection lives") {
                server_frame::Frame::Pong(_) => return frames,
                frame => frames.push(frame),
            }
        }
    }

    fn ack(&mut self, up_to_seq: u64) {
        self.raw.send(Frame::Ack(wire::Ack { up_to_seq }));
    }

    /// The first frame that `wanted` takes; the others stay.
    fn wait<T>(&mut self, mut wanted: impl FnMut(&server_frame::Frame) -> Option<T>) -> T {
        let mut unread = self.unread.iter().enumerate();
        let found = unread.find_map(|(index, frame)| Some((index, wanted(frame)?)));
        if let Some((index, found)) = found {
            self.unread.remove(index);
            return found;
        }
        loop {
            let frame = self.raw.read_frame().expect("the connection lives");
            if let Some(found) = wanted(&frame) {
                return found;
            }
            self.unread.push_back(frame);
        }
    }

    fn next_request(&mut self) -> u64 {
        self.last_request += 1;
        self.last_request
    }
}

fn texts(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

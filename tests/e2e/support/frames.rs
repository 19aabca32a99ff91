//! Frames off a stream, whatever carries it, and what tests look for in them.

use bytes::BytesMut;
use prost::Message;
use ringpost_protocol::frame::split_frame;
use ringpost_protocol::limits::FRAME_BYTES_MAX;
use ringpost_protocol::wire::{self, ErrorCode, ServerFrame, server_frame::Frame};

/// What has come and is not a whole frame yet.
#[derive(Default)]
pub struct Inbound(BytesMut);

impl Inbound {
    pub fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// The next frame, if it is there.
    pub fn next(&mut self) -> Option<Frame> {
        let frame = split_frame(&mut self.0, FRAME_BYTES_MAX).unwrap()?;
        Some(ServerFrame::decode(frame).unwrap().frame.expect("a frame that this client knows"))
    }
}

pub fn welcome(frame: Option<Frame>) -> wire::Welcome {
    match frame {
        Some(Frame::Welcome(welcome)) => welcome,
        other => panic!("no Welcome, but {other:?}"),
    }
}

/// What became of a Send.
pub fn answer(frame: Frame) -> Option<(u64, Result<wire::Accepted, wire::Rejected>)> {
    match frame {
        Frame::Accepted(accepted) => Some((accepted.send_seq, Ok(accepted))),
        Frame::Rejected(rejected) => Some((rejected.send_seq, Err(rejected))),
        _ => None,
    }
}

pub fn message(frame: Frame) -> Option<wire::Deliver> {
    match frame {
        Frame::Deliver(deliver) => Some(deliver),
        _ => None,
    }
}

pub fn error(frame: Frame) -> Option<wire::Error> {
    match frame {
        Frame::Error(error) => Some(error),
        _ => None,
    }
}

/// It ends the connection, and says why.
pub fn check_fatal(error: &wire::Error, code: ErrorCode) {
    assert_eq!(error.code(), code, "{error:?}");
    assert!(error.fatal && !error.text.is_empty(), "{error:?}");
}

//! The server's end of a connection, open, for the benches that feed it frames.

use bytes::BytesMut;
use ringpost_protocol::frame::split_frame;
use ringpost_protocol::id::MailboxId;
use ringpost_protocol::limits::FRAME_BYTES_MAX;
use ringpost_protocol::message::{Limits, Request, Welcome};
use ringpost_protocol::session::ServerSession;

use crate::fixture;

/// A session of user 1 that has been welcomed.
pub fn open() -> ServerSession {
    let mut session = ServerSession::new(0);
    let mut out = Vec::new();
    handle(&mut session, &mut BytesMut::from(&fixture::hello_frame()[..]), &mut out);
    let welcome = Welcome {
        mailbox_id: MailboxId(1),
        heartbeat_ms: 30_000,
        server_time_ms: fixture::UNIX_MS,
        limits: Limits::of_protocol(),
        capabilities: 0,
    };
    session.welcome(0, u64::MAX, &welcome, &mut out);
    session
}

/// Takes the next frame off the stream and gives it to the session.
///
/// # Panics
/// When the frame is not whole, or breaks the protocol.
pub fn handle(
    session: &mut ServerSession,
    stream: &mut BytesMut,
    out: &mut Vec<u8>,
) -> Option<Request> {
    let frame = split_frame(stream, FRAME_BYTES_MAX).expect("legal").expect("whole");
    session.handle_frame(1, frame, out).expect("the client keeps the rules")
}

/// Below the window of unanswered Sends, and about what one receive buffer of the ring holds.
pub const FRAMES_PER_BATCH: u64 = 64;

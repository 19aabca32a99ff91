//! What each corpus began with.

use ringpost_protocol::frame::put_length;

use crate::{client_session, e2ee, frame, record, recovery, session, tls};

/// Name and bytes of one input.
pub type Seed = (&'static str, Vec<u8>);

/// One target: its name, what it does with an input, and its seeds.
pub type Target = (&'static str, fn(&[u8]), Vec<Seed>);

/// Every target.
pub fn all() -> Vec<Target> {
    vec![
        ("frame", frame::check, frame()),
        ("session", session::check, session::seeds()),
        ("client_session", client_session::check, client_session::seeds()),
        ("tls", tls::check, tls::seeds()),
        ("record", record::check, record::seeds()),
        ("recovery", recovery::check, recovery::seeds()),
        ("e2ee", e2ee::check, e2ee::seeds()),
    ]
}

fn frame() -> Vec<Seed> {
    let stream = |lengths: &[usize]| {
        let mut stream = vec![0, 50];
        for &length in lengths {
            put_length(&mut stream, length);
            stream.resize(stream.len() + length, 0x85);
        }
        stream
    };
    vec![
        ("short", stream(&[1, 2, 3, 100])),
        ("two-bytes", stream(&[127, 128, 129, 300])),
        ("three-bytes", stream(&[16_384, 5])),
        ("truncated", stream(&[1, 200])[..150].to_vec()),
        ("empty", vec![0, 1, 1, 7, 0]),
        ("not-minimal", vec![0, 1, 0x85, 0]),
        ("endless", [vec![0, 3], vec![0x80; 12]].concat()),
        ("too-long", vec![0, 1, 0x81, 0x80, 0x04]),
        ("longest", vec![0, 1, 0x80, 0x80, 0x04]),
        ("lower-limit", vec![2, 9, 100, 1, 2, 3]),
    ]
}

/// Frames with their lengths, behind the byte that announces a plain stream and what follows it.
pub(crate) fn stream(head: &[u8], frames: &[Vec<u8>]) -> Vec<u8> {
    let mut stream = head.to_vec();
    for frame in frames {
        stream.extend_from_slice(&session::framed(frame));
    }
    stream
}

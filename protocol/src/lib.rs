//! Wire protocol of Ringpost, sans-IO: frames, typed messages, both ends of a session, and the
//! memory that makes retries harmless. Used by the gateway and by clients.
//!
//! It owns what the bytes mean and in which order they may come. It has no socket, clock, thread,
//! file or source of entropy: time comes in as a parameter, bytes go in and out as buffers.
//!
//! ```text
//! stream  = frame*                         one ordered byte stream in each direction
//! frame   = length message                 length: LEB128 varint, shortest form, 1 ..= 65,536
//! message = ClientFrame | ServerFrame      protobuf, package ringpost.v1, exactly one oneof field
//!
//!   client                                        server
//!     Hello {token, device, acked_up_to, ..}  -->
//!                                             <-- Welcome {mailbox_id, heartbeat_ms, limits}
//!                                             <-- Deliver {seq, ..}*  CaughtUp
//!     Ack {up_to_seq}                         -->
//!     Send {send_seq, to, envelope}           -->
//!                                             <-- Accepted {send_seq} | Rejected {send_seq}
//!                                             <-- Delivered {seq, peer, up_to_send_seq}
//!     Ping                                    -->
//!                                             <-- Pong
//! ```
//!
//! `proto/ringpost.proto` is the contract for clients in other languages, `PROTOCOL.md` tells how a
//! connection goes. The ALPN `ringpost/1` names the version: fields and frames may be added to it, an
//! incompatible change takes a new one.
//!
//! Modules in the order in which a message passes them: [`limits`] and [`id`], the vocabulary;
//! [`frame`], bytes to frames; [`wire`], the generated schema; [`message`], frames to typed
//! requests and back; [`window`], numbers and answers of Sends, beyond one connection;
//! [`session`], the order of one connection, both ends; [`fault`], what a peer can do wrong;
//! [`mutant`], deliberate bugs for the tests, and nothing in a production build.
#![forbid(unsafe_code)]

pub mod limits;
pub mod id;
pub mod frame;
pub mod wire;
mod field;
pub mod message;
pub mod window;
pub mod session;
pub mod fault;
pub mod mutant;

#[cfg(test)]
mod seeded;

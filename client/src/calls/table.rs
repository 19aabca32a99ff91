//! Which calls wait for a connection and which for an answer, without network or clock.

use std::collections::{BTreeMap, VecDeque};

use ringpost_protocol::message::{Call, ErrorCode, Reply};
use ringpost_protocol::session::ClientSession;

use super::CallError;
use crate::limits::{CALL_MS_MAX, CALLS_MAX};

/// Calls and who made them.
///
/// Per connection: [`Self::transmit`] once it is welcome, [`Self::handle_reply`] and
/// [`Self::handle_error`], [`Self::connection_ended`]. After any input take
/// [`Self::poll_result`] until it is empty. Come back at [`Self::poll_timeout`].
pub(crate) struct Calls<T> {
    /// Not sent on the present connection.
    waiting: VecDeque<Outstanding<T>>,
    /// By the request_id.
    sent: BTreeMap<u64, Outstanding<T>>,
    results: VecDeque<(T, Result<Reply, CallError>)>,
    /// Never used again, so an answer that comes too late is nobody's.
    next_request_id: u64,
}

struct Outstanding<T> {
    call: Call,
    until_ms: u64,
    caller: T,
}

impl<T> Calls<T> {
    pub(crate) fn new() -> Self {
        Self {
            waiting: VecDeque::new(),
            sent: BTreeMap::new(),
            results: VecDeque::new(),
            next_request_id: 1,
        }
    }

    /// Every call has exactly one result.
    pub(crate) fn begin(&mut self, now_ms: u64, call: Call, caller: T) {
        let fault = if self.waiting.len() + self.sent.len() >= CALLS_MAX {
            Some(CallError::TooMany)
        } else {
            call.check().err().map(|fault| CallError::Invalid(fault.into()))
        };
        match fault {
            Some(fault) => self.results.push_back((caller, Err(fault))),
            None => {
                let until_ms = now_ms.saturating_add(CALL_MS_MAX);
                self.waiting.push_back(Outstanding { call, until_ms, caller });
            }
        }
    }

    /// Hands the session what waits.
    pub(crate) fn transmit(&mut self, session: &mut ClientSession) {
        while let Some(next) = self.waiting.pop_front() {
            let request_id = self.next_request_id;
            match session.call(request_id, &next.call) {
                Ok(()) => {
                    self.next_request_id += 1;
                    self.sent.insert(request_id, next);
                }
                Err(refused) => self.results.push_back((next.caller, Err(refused.into()))),
            }
        }
    }

    pub(crate) fn handle_reply(&mut self, request_id: u64, reply: Reply) {
        let Some(Outstanding { call, caller, .. }) = self.sent.remove(&request_id) else { return };
        let fits = call.is_answered_by(&reply);
        self.results.push_back((caller, if fits { Ok(reply) } else { Err(CallError::WrongReply) }));
    }

    pub(crate) fn handle_error(&mut self, request_id: u64, code: ErrorCode, text: &str) {
        let Some(Outstanding { caller, .. }) = self.sent.remove(&request_id) else { return };
        let error = match code {
            ErrorCode::Unsupported => CallError::Unsupported,
            code => CallError::Refused { code, text: text.to_owned() },
        };
        self.results.push_back((caller, Err(error)));
    }

    /// What changes nothing is asked again on the next connection.
    pub(crate) fn connection_ended(&mut self) {
        let sent = std::mem::take(&mut self.sent);
        for (_, outstanding) in sent.into_iter().rev() {
            if is_repeated(&outstanding.call) {
                self.waiting.push_front(outstanding);
            } else {
                self.results.push_back((outstanding.caller, Err(CallError::ConnectionLost)));
            }
        }
    }

    pub(crate) fn handle_timeout(&mut self, now_ms: u64) {
        let is_late = |outstanding: &Outstanding<T>| outstanding.until_ms <= now_ms;
        while self.waiting.front().is_some_and(is_late) {
            let late = self.waiting.pop_front().expect("looked at above");
            self.results.push_back((late.caller, Err(CallError::TimedOut { was_sent: false })));
        }
        let (late, sent) = std::mem::take(&mut self.sent)
            .into_iter()
            .partition::<BTreeMap<_, _>, _>(|(_, outstanding)| is_late(outstanding));
        self.sent = sent;
        for outstanding in late.into_values() {
            self.results
                .push_back((outstanding.caller, Err(CallError::TimedOut { was_sent: true })));
        }
    }

    /// When [`Self::handle_timeout`] has something to do; `None`: nothing waits.
    pub(crate) fn poll_timeout(&self) -> Option<u64> {
        self.waiting.iter().chain(self.sent.values()).map(|call| call.until_ms).min()
    }

    pub(crate) fn poll_result(&mut self) -> Option<(T, Result<Reply, CallError>)> {
        self.results.pop_front()
    }
}

/// Whether the caller needs not know that it was asked twice.
fn is_repeated(call: &Call) -> bool {
    matches!(call, Call::KeyCount | Call::DeviceListGet { .. } | Call::GroupGet { .. })
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use ringpost_protocol::id::{DeviceId, InstallId, MailboxId, Seq, UserId};
    use ringpost_protocol::message::{Limits, Mode, Welcome, put_welcome};
    use ringpost_protocol::session::{CallRefused, ClientHello};

    use super::*;

    fn session(frame_bytes_max: u32) -> ClientSession {
        let hello = ClientHello {
            token: "t".into(),
            device: DeviceId::new("phone").unwrap(),
            install_id: InstallId(1),
            mailbox_id: MailboxId(0),
            acked_up_to: Seq(0),
            mode: Mode::Foreground,
            capabilities: 0,
        };
        let mut session = ClientSession::new(0, hello);
        let welcome = Welcome {
            mailbox_id: MailboxId(1),
            heartbeat_ms: 30_000,
            server_time_ms: 0,
            limits: Limits::with_frame_bytes_max(frame_bytes_max),
            capabilities: 0,
        };
        let mut out = Vec::new();
        put_welcome(&mut out, &welcome);
        session.handle_data(0, &mut BytesMut::from(&out[..])).unwrap();
        session
    }

    fn get(group: &str) -> Call {
        Call::GroupGet { group: UserId::new(group).unwrap() }
    }

    fn leave() -> Call {
        Call::GroupLeave { group: UserId::new("g").unwrap() }
    }

    fn results(calls: &mut Calls<u32>) -> Vec<(u32, Result<Reply, CallError>)> {
        std::iter::from_fn(|| calls.poll_result()).collect()
    }

    #[test]
    fn replies_find_their_callers_and_strangers_nobody() {
        let (mut calls, mut session) = (Calls::new(), session(65_536));
        for caller in 1..=4 {
            calls.begin(0, if caller < 4 { Call::KeyCount } else { leave() }, caller);
        }
        calls.transmit(&mut session);
        let low = Reply::KeysLow { remaining_count: 7 };
        calls.handle_reply(2, low.clone());
        calls.handle_reply(9, low.clone());
        calls.handle_reply(2, low.clone());
        calls.handle_error(1, ErrorCode::Unsupported, "");
        calls.handle_error(3, ErrorCode::Conflict, "old");
        calls.handle_reply(4, low.clone());
        let refused = CallError::Refused { code: ErrorCode::Conflict, text: "old".into() };
        let expected = [
            (2, Ok(low)),
            (1, Err(CallError::Unsupported)),
            (3, Err(refused)),
            (4, Err(CallError::WrongReply)),
        ];
        assert_eq!(results(&mut calls), expected);
        assert_eq!(calls.poll_timeout(), None);
    }

    #[test]
    fn a_lost_connection_ends_what_may_have_been_done_and_repeats_what_reads() {
        let (mut calls, mut lost) = (Calls::new(), session(65_536));
        for (caller, call) in [(1, get("a")), (2, leave()), (3, Call::KeyCount)] {
            calls.begin(0, call, caller);
        }
        calls.transmit(&mut lost);
        calls.begin(5, get("b"), 4);
        calls.connection_ended();
        assert_eq!(results(&mut calls), [(2, Err(CallError::ConnectionLost))]);
        let waiting: Vec<u32> = calls.waiting.iter().map(|call| call.caller).collect();
        assert_eq!(waiting, [1, 3, 4], "in the order in which they were made");
        calls.transmit(&mut session(65_536));
        // The answer of the lost connection has an id of its own.
        calls.handle_reply(3, Reply::KeysLow { remaining_count: 1 });
        assert_eq!(results(&mut calls), []);
        calls.handle_reply(5, Reply::KeysLow { remaining_count: 2 });
        assert_eq!(results(&mut calls), [(3, Ok(Reply::KeysLow { remaining_count: 2 }))]);
    }

    #[test]
    fn every_call_ends_in_time() {
        let mut calls = Calls::new();
        calls.begin(0, leave(), 1);
        calls.transmit(&mut session(65_536));
        calls.begin(10, leave(), 2);
        assert_eq!(calls.poll_timeout(), Some(CALL_MS_MAX));
        calls.handle_timeout(CALL_MS_MAX - 1);
        assert_eq!(results(&mut calls), []);
        calls.handle_timeout(CALL_MS_MAX);
        assert_eq!(results(&mut calls), [(1, Err(CallError::TimedOut { was_sent: true }))]);
        calls.handle_timeout(CALL_MS_MAX + 10);
        assert_eq!(results(&mut calls), [(2, Err(CallError::TimedOut { was_sent: false }))]);
    }

    #[test]
    fn no_more_than_allowed_wait_and_nothing_is_sent_that_would_end_the_connection() {
        let (mut calls, mut session) = (Calls::new(), session(4096));
        let no_members = Call::GroupAdd {
            group: UserId::new("g").unwrap(),
            members: vec![],
            as_admins: false,
            version: 0,
        };
        calls.begin(0, no_members, 900);
        assert!(matches!(results(&mut calls)[..], [(900, Err(CallError::Invalid(_)))]));
        let members = (0..99).map(|index| UserId::new(&format!("{index:0>100}")).unwrap());
        let large =
            Call::GroupCreate { group: UserId::new("g").unwrap(), members: members.collect() };
        calls.begin(0, large, 901);
        calls.transmit(&mut session);
        let found = results(&mut calls);
        let [(901, Err(CallError::Invalid(CallRefused::TooLarge { bytes_max: 4096, .. })))] =
            found[..]
        else {
            panic!("{found:?}")
        };
        for caller in 0..=u32::try_from(CALLS_MAX).unwrap() {
            calls.begin(0, Call::KeyCount, caller);
            if caller % 2 == 0 {
                calls.transmit(&mut session);
            }
        }
        let last = u32::try_from(CALLS_MAX).unwrap();
        assert_eq!(results(&mut calls), [(last, Err(CallError::TooMany))]);
    }
}

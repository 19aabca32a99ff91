//! What a member asks of a group's home: to make the group, to change its roster, to show it.
//!
//! A change is answered when the directory has it on disk and this shard serves by it. Then the
//! devices of all whom it concerns are told that there is a new version: once, and only those that
//! are connected; whoever misses it learns of it when a Send is refused, or asks.

use std::sync::Arc;

use ringpost_protocol::id::UserId;
use ringpost_protocol::message::{self, Call, ErrorCode, GroupState, Reply};
use ringpost_protocol::mutant::{Mutant, is_active};
use ringpost_ring::Ring;

use super::Shard;
use super::conn::ConnKey;
use super::directory::TOO_FAST;
use super::group::{GroupRequest, Known, State};
use super::message::{DeviceIndex, MeshMessage};
use super::roster::{Change, Roster, RosterRefusal, by_home};
use crate::directory::Answer;
use crate::limits::{CONNECTION_REQUESTS_MAX, GROUP_CALLS_MAX, OUTBOUND_BYTES_MAX};
use crate::metrics::Bound;

/// A request on its way to the home of its group.
pub struct GroupCall {
    /// Who waits for the answer.
    pub shard: u16,
    pub conn: ConnKey,
    pub request_id: u64,
    pub by: UserId,
    pub group: UserId,
    pub wish: GroupWish,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupWish {
    Show,
    Change(Change),
}

impl GroupWish {
    /// `Err`: it is about something else.
    pub(super) fn of(call: Call) -> Result<(UserId, Self), Box<Call>> {
        let (group, change) = match call {
            Call::GroupGet { group } => return Ok((group, Self::Show)),
            Call::GroupCreate { group, members } => (group, Change::Create { members }),
            Call::GroupAdd { group, members, as_admins, version } => {
                (group, Change::Add { members, as_admins, version })
            }
            Call::GroupRemove { group, members, version } => {
                (group, Change::Remove { members, version })
            }
            Call::GroupLeave { group } => (group, Change::Leave),
            other => return Err(Box::new(other)),
        };
        Ok((group, Self::Change(change)))
    }
}

/// The answer, on its way back.
pub struct GroupAnswer {
    pub conn: ConnKey,
    pub request_id: u64,
    pub result: Result<Reply, CallRefusal>,
}

/// Why a request is refused.
pub type CallRefusal = (ErrorCode, &'static str);

/// A group has a new version: for users who live at the receiver.
pub struct GroupNews {
    pub group: UserId,
    pub version: u64,
    pub users: Arc<[UserId]>,
}

impl<R: Ring> Shard<R> {
    /// Takes a request from its connection. It is refused when there is no room, as nothing depends
    /// on its order.
    pub(super) fn handle_group_call(
        &mut self,
        key: ConnKey,
        device: DeviceIndex,
        request_id: u64,
        group: UserId,
        wish: GroupWish,
    ) {
        if !self.inquiries.has_port() {
            let refusal = (ErrorCode::Unsupported, "not served");
            return self.put_group_answer(key, request_id, Err(refusal));
        }
        let conn = self.conns.get(key).expect("its frame is being handled");
        if conn.inquiries >= CONNECTION_REQUESTS_MAX {
            self.metrics.bound_hits.add(Bound::DirectoryRequests);
            return self.put_group_answer(key, request_id, Err(BUSY));
        }
        if self.take_send(key, device).is_err() {
            return self.put_group_answer(
                key,
                request_id,
                Err((ErrorCode::LimitReached, TOO_FAST)),
            );
        }
        let to_shard = self.home_of(&group);
        if !self.has_room_for_group(to_shard, GROUP_CALLS_MAX) {
            self.metrics.bound_hits.add(Bound::GroupRequests);
            return self.put_group_answer(key, request_id, Err(BUSY));
        }
        let home = self.home.as_ref().expect("an open connection is at home");
        let by = home.device(device).address.user.clone();
        let call = GroupCall { shard: self.id, conn: key, request_id, by, group, wish };
        self.begin_inquiry(key); // it may be answered in the same call
        self.push_group(to_shard, GroupRequest::Call(Box::new(call)));
    }

    /// The answer has reached the connection's shard.
    pub(super) fn handle_group_answer(&mut self, from: u16, answer: GroupAnswer) {
        self.group_answered(from);
        self.end_inquiry(answer.conn);
        self.put_group_answer(answer.conn, answer.request_id, answer.result);
    }

    fn put_group_answer(
        &mut self,
        key: ConnKey,
        request_id: u64,
        result: Result<Reply, CallRefusal>,
    ) {
        match result {
            Ok(reply) => self.put_reply(key, request_id, &reply),
            Err((code, text)) => self.refuse_call(key, code, text, request_id),
        }
    }

    /// A request whose turn it is.
    pub(super) fn serve_call(&mut self, call: Box<GroupCall>, known: Option<Arc<Known>>) {
        let roster = known.as_deref().map(|known| &known.roster);
        let change = match &call.wish {
            GroupWish::Show => {
                let shown = show(&call, roster);
                return self.answer_call(&call, shown);
            }
            GroupWish::Change(change) => change,
        };
        match Roster::changed(roster, &call.by, change) {
            Ok(Some(next)) => {
                let next = Arc::new(self.known(next));
                self.write_roster(call, known, next);
            }
            Ok(None) => {
                let reply = reply_of(&call, roster.expect("what is so already exists"));
                self.answer_call(&call, Ok(reply));
            }
            Err(refusal) => self.answer_call(&call, Err(refusal.into())),
        }
    }

    /// The directory has answered. Where it has another version than this shard thought, or failed
    /// and nobody knows what it has, it is asked what it has.
    pub(super) fn roster_written(&mut self, group: &UserId, answer: &Answer) {
        if is_active(Mutant::RosterBeforeDurable) {
            return; // it was answered when it was written
        }
        let home = self.home.as_mut().expect("groups live at home shards");
        let State::Writing { call, before, next } = home.groups.set(group, State::Unread) else {
            unreachable!("only what is being written can have been")
        };
        match answer {
            Answer::Stored { .. } => {
                let installed = self.installed(before.as_ref(), &next);
                let home = self.home.as_mut().expect("groups live at home shards");
                home.groups.set(group, State::Known(Some(installed)));
                self.metrics.group_changes += 1;
                let reply = reply_of(&call, &next.roster);
                self.answer_call(&call, Ok(reply));
                self.announce(&call.group, before.as_deref(), &next);
            }
            Answer::Conflict { .. } => self.answer_call(&call, Err(RosterRefusal::Conflict.into())),
            Answer::Failed => self.answer_call(&call, Err(BUSY)),
            other => unreachable!("no answer of a request to store a roster: {other:?}"),
        }
        self.drive_group(group);
    }

    pub(super) fn answer_call(&mut self, call: &GroupCall, result: Result<Reply, CallRefusal>) {
        let GroupCall { shard, conn, request_id, .. } = *call;
        let answer = GroupAnswer { conn, request_id, result };
        if shard == self.id {
            self.handle_group_answer(shard, answer);
        } else {
            self.push_mesh(shard, MeshMessage::GroupAnswer(Box::new(answer)));
        }
    }

    /// Tells the homes of all who were members before or are now.
    fn announce(&mut self, group: &UserId, before: Option<&Known>, now: &Known) {
        let gone = before.map_or(&[][..], |before| &before.roster.members).iter();
        let gone = gone.filter(|member| now.roster.member(&member.user).is_none());
        let users = now.roster.members.iter().chain(gone).map(|member| &member.user);
        let version = now.roster.version;
        for (shard, users) in by_home(users, |user| self.home_of(user)) {
            let news = GroupNews { group: group.clone(), version, users };
            if shard == self.id {
                self.tell_group_news(&news);
            } else if self.mesh.reserve(shard).is_ok() {
                self.push_mesh(shard, MeshMessage::GroupNews(Box::new(news)));
            } else {
                self.metrics.bound_hits.add(Bound::MeshCredits);
            }
        }
    }

    pub(super) fn handle_group_news(&mut self, from: u16, news: &GroupNews) {
        self.tell_group_news(news);
        self.push_mesh(from, MeshMessage::GroupNewsTaken);
    }

    fn tell_group_news(&mut self, news: &GroupNews) {
        let home = self.home.as_ref().expect("users live at home shards");
        let devices = news.users.iter().filter_map(|user| home.users.get(user)).flatten();
        let attached = devices.filter_map(|&index| home.device(index).attached.as_ref());
        let keys: Vec<ConnKey> = attached.map(|attached| attached.conn).collect();
        for key in keys {
            if self.conns.get(key).is_some_and(|conn| conn.out.len() < OUTBOUND_BYTES_MAX) {
                let (group, version) = (news.group.as_str(), news.version);
                self.put(key, |out| message::put_group_changed(out, group, version));
            }
        }
    }
}

/// The roster is shown to members.
fn show(call: &GroupCall, roster: Option<&Roster>) -> Result<Reply, CallRefusal> {
    let roster = roster.ok_or(RosterRefusal::NotFound)?;
    roster.member(&call.by).ok_or(RosterRefusal::NotAllowed)?;
    Ok(reply_of(call, roster))
}

pub(super) fn reply_of(call: &GroupCall, roster: &Roster) -> Reply {
    if call.wish == GroupWish::Change(Change::Leave) {
        return Reply::Done;
    }
    let admins = roster.members.iter().filter(|member| member.is_admin);
    Reply::GroupState(GroupState {
        group: call.group.clone(),
        version: roster.version,
        members: roster.members.iter().map(|member| member.user.clone()).collect(),
        admins: admins.map(|member| member.user.clone()).collect(),
    })
}

impl From<RosterRefusal> for CallRefusal {
    fn from(refusal: RosterRefusal) -> Self {
        match refusal {
            RosterRefusal::NotFound => (ErrorCode::NotFound, "no such group"),
            RosterRefusal::NotAllowed => {
                (ErrorCode::NotAllowed, "not a member, or no administrator")
            }
            RosterRefusal::Conflict => (ErrorCode::Conflict, "the group has another version"),
            RosterRefusal::Full => (ErrorCode::LimitReached, "a group has at most 100 members"),
        }
    }
}

pub(super) const BUSY: CallRefusal = (ErrorCode::LimitReached, "too many requests are under way");

//! Four users on two shards who keep sending numbers to each other, and what must hold afterwards:
//! nothing accepted is lost, nothing reaches the app twice, the order of each sender is kept, and
//! clients come back by themselves.

use std::time::Duration;

use ringpost_client::{Client, PathConfig, SendError, SendOptions, Status, Transports};
use ringpost_protocol::id::UserId;
use ringpost_protocol::message::{Recipient, SendBody};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::PATIENCE;
use super::gateway::Gateway;
use super::keys::user_at;
use super::peer::{Peer, Place, Seen, Stop, Way};

pub struct Load {
    peers: Vec<Peer>,
    flows: Vec<Flow>,
    stop: Stop,
    _place: Place,
}

/// One sender to one recipient.
struct Flow {
    from: String,
    to: String,
    /// Gives how many numbers were sent, or why no more could be.
    sending: JoinHandle<Result<usize, String>>,
}

/// The flows that have ended.
struct Sent {
    from: String,
    to: String,
    count: usize,
}

impl Load {
    /// For a gateway of two shards, over TLS.
    pub async fn start(gateway: &Gateway) -> Self {
        Self::start_over(Transports::TlsOnly, gateway).await
    }

    pub async fn start_over(transports: Transports, gateway: &Gateway) -> Self {
        let place = Place::new();
        let mut peers = Vec::new();
        for (shard, name) in [(0, "alice"), (0, "bob"), (1, "carol"), (1, "dave")] {
            let user = user_at(shard, 2, name);
            let way = Way {
                address: gateway.address(),
                path: PathConfig { transports, ..PathConfig::default() },
                stable_ms: 1_000,
            };
            let peer = Peer::open_by(way, gateway, &user, "phone", &place.file(name)).await;
            peer.wait("connected", |seen| seen.count(&Status::Connected) > 0).await;
            peers.push(peer);
        }
        let stop = Stop::default();
        let mut flows = Vec::new();
        for from in &peers {
            for to in peers.iter().filter(|to| to.user != from.user) {
                let (from_user, to_user) = (from.user.clone(), to.user.clone());
                let sending = keep_sending(
                    from.client.clone(),
                    from_user.clone(),
                    to_user.clone(),
                    to.watcher(),
                    stop.clone(),
                );
                let sending = tokio::spawn(sending);
                flows.push(Flow { from: from_user, to: to_user, sending });
            }
        }
        Self { peers, flows, stop, _place: place }
    }

    /// Waits until every recipient has got `more` messages than now, so that there is load.
    pub async fn wait_for_progress(&self, more: usize) {
        for peer in &self.peers {
            peer.wait_messages(peer.seen().messages.len() + more).await;
        }
    }

    /// How often a client has connected again.
    pub fn reconnects(&self) -> usize {
        let again = |peer: &Peer| peer.seen().count(&Status::Connected) - 1;
        self.peers.iter().map(again).sum()
    }

    /// Ends the load, waits for everything sent and checks it. Gives the number of messages, or what
    /// is wrong. What has not come `patience` after everything was answered is lost.
    pub async fn finish(self, patience: Duration) -> Result<usize, String> {
        self.stop.set();
        let mut flows = Vec::new();
        for Flow { from, to, sending } in self.flows {
            flows.push(Sent { from, to, count: sending.await.unwrap()? });
        }
        for peer in &self.peers {
            let count = total(&flows, |flow| flow.from == peer.user);
            let what = format!("{count} answers");
            // A refusal is an answer too: it is reported, not waited for.
            let seen = peer.wait(&what, |seen| seen.sent.len() + seen.refused.len() >= count).await;
            if !seen.refused.is_empty() {
                return Err(format!("{}: refused {:?}", peer.user, seen.refused));
            }
        }
        for peer in &self.peers {
            let expected = total(&flows, |flow| flow.to == peer.user);
            let mut seen = peer.watcher();
            let all = seen.wait_for(|seen| seen.messages.len() >= expected);
            if timeout(patience, all).await.is_err() {
                let got = peer.seen().messages.len();
                return Err(format!("{}: {got} of {expected} accepted messages", peer.user));
            }
        }
        for peer in self.peers {
            let user = peer.user.clone();
            check(&flows, &user, &peer.close().await)?;
        }
        Ok(total(&flows, |_| true))
    }
}

fn total(flows: &[Sent], is_counted: impl Fn(&Sent) -> bool) -> usize {
    flows.iter().filter(|flow| is_counted(flow)).map(|flow| flow.count).sum()
}

fn check(flows: &[Sent], user: &str, seen: &Seen) -> Result<(), String> {
    for Sent { from, count, .. } in flows.iter().filter(|flow| flow.to == user) {
        assert!(*count > 0, "no load");
        let got = seen.texts_from(from);
        let expected = (0..*count).map(|number| number.to_string());
        let wrong = got.iter().zip(expected).position(|(got, expected)| *got != expected);
        if let Some(index) = wrong {
            let around = &got[index.saturating_sub(5)..got.len().min(index + 5)];
            return Err(format!("{from} to {user}: wrong at {index}: {around:?}"));
        }
        if got.len() != *count {
            return Err(format!("{from} to {user}: {} of {count}", got.len()));
        }
    }
    let sent = total(flows, |flow| flow.from == user);
    if seen.sent.len() != sent {
        return Err(format!("{user}: {} answers to {sent} messages", seen.sent.len()));
    }
    if !seen.gaps.is_empty() {
        return Err(format!("{user}: gaps {:?}", seen.gaps));
    }
    Ok(())
}

/// Numbers to one recipient until told to stop; gives how many, or that the recipient does not get
/// them. Waits for the recipient only when it is far ahead: a sender's share of a mailbox shall fill
/// up.
async fn keep_sending(
    client: Client,
    from: String,
    to: String,
    mut watcher: watch::Receiver<Seen>,
    stop: Stop,
) -> Result<usize, String> {
    let to = Recipient::User(UserId::new(&to).unwrap());
    let mut count: usize = 0;
    while !stop.is_set() {
        if count.is_multiple_of(AHEAD_MAX / 2) {
            let reached =
                |seen: &Seen| stop.is_set() || seen.count_from(&from) + AHEAD_MAX / 2 >= count;
            let result = timeout(PATIENCE, watcher.wait_for(reached)).await;
            let Ok(result) = result else {
                return Err(format!("{from}: the recipient of {count} numbers does not follow"));
            };
            drop(result.expect("the recipient is there"));
        }
        let body = SendBody::Shared(count.to_string().into());
        match client.send(to.clone(), body, SendOptions::default()).await {
            Ok(_) => count += 1,
            // Full while the gateway is down.
            Err(SendError::Fault(_)) => tokio::time::sleep(Duration::from_millis(10)).await,
            Err(SendError::Closed(closed)) => panic!("{closed}"),
        }
    }
    Ok(count)
}

/// Messages of one sender that its recipient has not seen.
const AHEAD_MAX: usize = 800;

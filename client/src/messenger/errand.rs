//! The task that asks the server's directory for what the desk wants, one thing at a time.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ringpost_protocol::message::{DeviceListPut, ErrorCode, KeyBundle, KeysPublish, PublicKey};
use tokio::sync::Notify;

use super::directory::{Answer, Errand};
use super::row::Step;
use crate::Client;
use crate::calls::CallError;
use crate::driver::unix_ms;
use crate::e2ee::bundle::{OneTimePreKey, SignedPreKey};
use crate::e2ee::prekey::Pending;
use crate::e2ee::{Bundle, Fault, PublicIdentity};

/// Runs until the client is closed.
pub(super) async fn run(client: Client, errands: Arc<Notify>) {
    loop {
        let next = client.on_desk(|desk, _, now_ms| {
            (desk.next_errand(now_ms), desk.errand_at_ms().map(|at_ms| at_ms.max(now_ms + 1)))
        });
        match next.await {
            Err(_) => return,
            Ok((Some((wish, errand)), _)) => {
                let answer = carry_out(&client, &errand).await;
                let told = client.on_desk(move |desk, ledger, now_ms| {
                    desk.handle_answer(now_ms, ledger, &wish, &errand, answer);
                });
                if told.await.is_err() {
                    return;
                }
            }
            Ok((None, at_ms)) => wait(&errands, at_ms).await,
        }
    }
}

async fn wait(errands: &Notify, at_ms: Option<u64>) {
    let Some(at_ms) = at_ms else { return errands.notified().await };
    let wait = Duration::from_millis(at_ms.saturating_sub(unix_ms()));
    tokio::select! {
        () = errands.notified() => {}
        () = tokio::time::sleep(wait) => {}
    }
}

async fn carry_out(client: &Client, errand: &Errand) -> Answer {
    let answered = match errand.clone() {
        Errand::CountKeys => client.key_count().await.map(Answer::KeyCount),
        Errand::PublishKeys { identity, keys } => {
            client.publish_keys(published(&identity, &keys)).await.map(|()| Answer::Done)
        }
        Errand::PutList { version, devices, signed } => {
            let list = DeviceListPut { version, devices, signed_list: signed.into() };
            client.put_device_list(list).await.map(|()| Answer::Done)
        }
        Errand::GetList(user) => client.device_list(user).await.map(|list| {
            let is_there = list.version > 0 && !list.signed_list.is_empty();
            Answer::List(is_there.then(|| list.signed_list.to_vec()))
        }),
        Errand::FetchKeys(user, devices) => client.fetch_keys(user, devices).await.map(|bundles| {
            let checked = bundles.into_iter().map(|keys| (keys.device.clone(), bundle(&keys)));
            Answer::Bundles(checked.collect())
        }),
        Errand::GetRoster(group) => client
            .group_get(group)
            .await
            .map(|state| Answer::Roster(state.version, state.members.into_iter().collect())),
        Errand::Group(group, step) => match step {
            Step::Create(members) => client.group_create(group, members).await.map(drop),
            Step::Add(users) => client.group_add(group, users, false, 0).await.map(drop),
            Step::Remove(users) => client.group_remove(group, users, 0).await.map(drop),
            Step::Leave => left(client.group_leave(group).await),
        }
        .map(|()| Answer::Done),
    };
    answered.unwrap_or_else(|fault| unanswered(errand, &fault))
}

/// What a call that failed tells the desk.
pub(super) fn unanswered(errand: &Errand, fault: &CallError) -> Answer {
    match fault {
        CallError::Refused { code: ErrorCode::NotFound, .. }
            if matches!(errand, Errand::GetList(_)) =>
        {
            Answer::List(None)
        }
        fault if fault.may_pass() || *fault == CallError::Closed => Answer::Failed,
        // The same call fails the same way each time.
        fault => Answer::Refused(fault.to_string()),
    }
}

/// Who is out of the group has left it, maybe before the answer to the first try got lost.
fn left(outcome: Result<(), CallError>) -> Result<(), CallError> {
    match outcome {
        Err(CallError::Refused { code: ErrorCode::NotFound | ErrorCode::NotAllowed, .. }) => Ok(()),
        outcome => outcome,
    }
}

fn published(identity: &PublicIdentity, keys: &Pending) -> KeysPublish {
    let one_time = keys.one_time.iter().map(|key| PublicKey {
        key_id: key.id,
        key: Bytes::copy_from_slice(&key.key),
        signature: Bytes::new(),
    });
    KeysPublish {
        identity_key: Some(Bytes::copy_from_slice(identity.as_bytes())),
        signed_prekey: keys.signed.map(|signed| PublicKey {
            key_id: signed.id,
            key: Bytes::copy_from_slice(&signed.key),
            signature: Bytes::copy_from_slice(&signed.signature),
        }),
        one_time_keys: one_time.collect(),
    }
}

fn bundle(keys: &KeyBundle) -> Result<Bundle, Fault> {
    let malformed = |_| Fault::Malformed("set of keys of the other device");
    let key = |key: &Bytes| <[u8; 32]>::try_from(&key[..]).map_err(malformed);
    let identity = PublicIdentity::try_from(key(&keys.identity_key)?)?;
    let signed = &keys.signed_prekey;
    let signature = <[u8; 64]>::try_from(&signed.signature[..]).map_err(malformed)?;
    let signed = SignedPreKey { id: signed.key_id, key: key(&signed.key)?, signature };
    let one_time = match &keys.one_time_key {
        Some(one_time) => Some(OneTimePreKey { id: one_time.key_id, key: key(&one_time.key)? }),
        None => None,
    };
    Bundle::new(identity, signed, one_time)
}

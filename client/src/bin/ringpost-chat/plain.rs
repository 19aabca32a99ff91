//! Messages as plain UTF-8: to look at a gateway with, not to talk with.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use anyhow::bail;
use bytes::Bytes;
use ringpost_client::protocol::id::{SendSeq, UserId};
use ringpost_client::protocol::message::{GapReason, Recipient, SendBody};
use ringpost_client::{Client, Event, News, Receipt, SendError, SendId, SendOptions};
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::{ANSWERS_AFTER_INPUT, printable, say, show_status};

/// What the loop knows.
pub(crate) struct Chat {
    client: Client,
    to: Option<UserId>,
    /// Sent in this run and not answered.
    unanswered_count: usize,
    /// Accepted in this run and not yet reported as delivered.
    undelivered: BTreeMap<SendSeq, (SendId, UserId)>,
}

impl Chat {
    pub(crate) fn new(client: Client, to: Option<UserId>) -> Self {
        Self { client, to, unanswered_count: 0, undelivered: BTreeMap::new() }
    }

    pub(crate) async fn run(&mut self) -> anyhow::Result<()> {
        let mut lines = BufReader::new(tokio::io::stdin()).lines();
        let mut is_input_open = true;
        let give_up = tokio::time::sleep(Duration::MAX);
        tokio::pin!(give_up);
        self.prompt();
        while is_input_open || self.unanswered_count > 0 {
            tokio::select! {
                line = lines.next_line(), if is_input_open => match line? {
                    Some(line) if line.trim() == "/quit" => return Ok(()),
                    Some(line) => self.handle_line(line.trim_end()).await?,
                    None => {
                        is_input_open = false;
                        give_up.set(tokio::time::sleep(ANSWERS_AFTER_INPUT));
                    }
                },
                event = self.client.next_event() => match event {
                    Some(event) => self.handle_event(event).await?,
                    None => bail!("the client has closed"),
                },
                () = &mut give_up, if !is_input_open => {
                    say("-- not everything was accepted; it is kept and sent next time");
                    return Ok(());
                }
            }
            self.prompt();
        }
        Ok(())
    }

    async fn handle_line(&mut self, line: &str) -> anyhow::Result<()> {
        if line.is_empty() {
            return Ok(());
        }
        if let Some(command) = line.strip_prefix('/') {
            match command.split_once(' ').unwrap_or((command, "")) {
                ("help", _) => say(HELP),
                ("to", "") => self.to = None,
                ("to", name) => match UserId::new(name.trim()) {
                    Ok(user) => self.to = Some(user),
                    Err(fault) => say(&format!("-- {fault}")),
                },
                ("reconnect", _) => self.client.reconnect().await?,
                ("network", _) => self.client.network_changed().await?,
                ("how", _) => say(&match self.client.transport() {
                    Some(transport) => format!("-- over {transport}"),
                    None => "-- not connected".into(),
                }),
                _ => say("-- unknown command; /help"),
            }
            return Ok(());
        }
        let (user, text) = match (&self.to, line.split_once(':')) {
            (Some(user), _) => (user.clone(), line),
            (None, Some((name, text))) => match UserId::new(name.trim()) {
                Ok(user) => (user, text.trim_start()),
                Err(fault) => {
                    say(&format!("-- {fault}"));
                    return Ok(());
                }
            },
            (None, None) => {
                say("-- to whom? type `bob: hello`, or first `/to bob`");
                return Ok(());
            }
        };
        let body = SendBody::Shared(Bytes::copy_from_slice(text.as_bytes()));
        match self.client.send(Recipient::User(user), body, SendOptions::default()).await {
            Ok(_) => self.unanswered_count += 1,
            Err(SendError::Fault(fault)) => say(&format!("-- not sent: {fault}")),
            Err(SendError::Closed(closed)) => return Err(closed.into()),
        }
        Ok(())
    }

    async fn handle_event(&mut self, event: Event) -> anyhow::Result<()> {
        match event {
            Event::News { id, news } => {
                self.show_news(news);
                // Shown first: a crash in between shows it twice rather than never.
                self.client.confirm(id).await?;
            }
            Event::Status(status) => show_status(&status),
            Event::Hint(_) => {}
        }
        Ok(())
    }

    fn show_news(&mut self, news: News) {
        match news {
            News::Message(message) => {
                let text = printable(&String::from_utf8_lossy(&message.envelope));
                say(&format!("{}: {text}", printable(message.from.user.as_str())));
            }
            News::Sent(sent) => {
                self.unanswered_count = self.unanswered_count.saturating_sub(1);
                say(&format!("-- sent #{}", sent.id.0));
                for (user, device, reason) in &sent.skipped {
                    let (user, device) = (printable(user.as_str()), printable(device.as_str()));
                    say(&format!("-- #{} not for {user}/{device}: {reason:?}", sent.id.0));
                }
                if let Recipient::User(user) = sent.to {
                    self.undelivered.insert(sent.send_seq, (sent.id, user));
                }
            }
            News::Refused(refused) => {
                self.unanswered_count = self.unanswered_count.saturating_sub(1);
                say(&format!("-- refused #{}: {:?}", refused.id.0, refused.code));
            }
            News::Delivered(receipt) => self.show_receipt(&receipt),
            News::Gap(gap) => {
                say(&format!("-- messages to you are missing: {}", cause(gap.reason)))
            }
            News::Sealed(_) => {}
        }
    }

    fn show_receipt(&mut self, receipt: &Receipt) {
        let peer = printable(receipt.peer.user.as_str());
        let covered: Vec<SendSeq> = self
            .undelivered
            .range(..=receipt.up_to_send_seq)
            .filter(|(_, (_, user))| *user == receipt.peer.user)
            .map(|(send_seq, _)| *send_seq)
            .collect();
        for send_seq in &covered {
            if let Some((id, _)) = self.undelivered.remove(send_seq) {
                say(&format!("-- delivered #{} to {peer}", id.0));
            }
        }
        if covered.is_empty() {
            say(&format!("-- {peer} has what you sent earlier"));
        }
    }

    fn prompt(&self) {
        if io::stdin().is_terminal() && io::stdout().is_terminal() {
            let to = self.to.as_ref().map_or("", UserId::as_str);
            print!("{to}> ");
            // Nothing can be done for a terminal that has gone.
            let _ = io::stdout().flush();
        }
    }
}

/// Why the server does not deliver something.
fn cause(reason: GapReason) -> &'static str {
    match reason {
        GapReason::Full => "your mailbox was full",
        GapReason::Expired => "they waited too long",
        GapReason::Damaged => "the server's disk has lost them",
        GapReason::Unspecified => "the server does not say why",
    }
}

const HELP: &str = "\
  bob: hello     send \"hello\" to bob
  /to bob        send every following line to bob; /to alone ends that
  /reconnect     connect now
  /network       the network has changed: QUIC moves along, TLS connects again
  /how           which transport the connection uses
  /quit          leave at once; what is not sent yet is kept and sent next time
At the end of piped input the tool waits for the answers, 10 s at most, then leaves.";

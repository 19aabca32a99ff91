//! Talks with everything encrypted from end to end: people, groups, ticks, safety numbers.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use anyhow::{Context, bail};
use ringpost_client::messenger::{
    Conversation, Event, MessageId, Messenger, MessengerFault, News, Text,
};
use ringpost_client::protocol::id::UserId;
use tokio::time::Instant;

use crate::input::Input;
use crate::names::Names;
use crate::{ANSWERS_AFTER_INPUT, printable, say, show_status};

mod trust;

pub(crate) struct Talk {
    messenger: Messenger,
    own: UserId,
    names: Names,
    to: Option<Conversation>,
    /// Written in this run, by the number that they are shown with.
    written: BTreeMap<MessageId, u64>,
    /// Of those, without an answer of the server.
    unanswered: BTreeSet<MessageId>,
    /// What a script waits for, and until when.
    expected: Option<(String, Instant)>,
    /// Shown since the last `expect` was met; the oldest go.
    shown: VecDeque<String>,
}

impl Talk {
    pub(crate) fn new(messenger: Messenger, own: UserId, names: Names, to: Option<UserId>) -> Self {
        Self {
            messenger,
            own,
            names,
            to: to.map(Conversation::Direct),
            written: BTreeMap::new(),
            unanswered: BTreeSet::new(),
            expected: None,
            shown: VecDeque::new(),
        }
    }

    pub(crate) async fn run(&mut self, mut input: Input) -> anyhow::Result<()> {
        let mut is_open = true;
        let mut give_up = None;
        loop {
            let deadline = self.expected.as_ref().map(|(_, until)| *until).or(give_up);
            tokio::select! {
                line = input.next(), if is_open && self.expected.is_none() => match line? {
                    Some(line) if line.trim() == "/quit" => break,
                    Some(line) => self.handle_line(line.trim()).await?,
                    None => {
                        is_open = false;
                        give_up = Some(Instant::now() + ANSWERS_AFTER_INPUT);
                    }
                },
                event = self.messenger.next_event() => {
                    self.handle_event(event.context("the client has closed")?).await?;
                }
                // What came of the texts is to be shown, too.
                done = self.messenger.flushed(), if !is_open && self.unanswered.is_empty() => {
                    done?;
                    break;
                }
                () = tokio::time::sleep_until(deadline.unwrap_or_else(Instant::now)),
                    if deadline.is_some() =>
                {
                    if let Some((line, _)) = &self.expected {
                        bail!("expected {line:?}, which did not come");
                    }
                    self.say("-- not everything was accepted; it is kept and sent next time");
                    break;
                }
            }
        }
        Ok(())
    }

    pub(crate) async fn close(&self) {
        self.messenger.close().await;
    }

    async fn handle_line(&mut self, line: &str) -> anyhow::Result<()> {
        if let Some(wanted) = line.strip_prefix("expect ") {
            self.expected = Some((wanted.to_owned(), Instant::now() + EXPECTED_WITHIN));
            self.look_for_expected();
            return Ok(());
        }
        if line.is_empty() || line.starts_with('#') {
            return Ok(());
        }
        let done = match line.strip_prefix('/') {
            Some(command) => self.command(command).await,
            None => self.write(line).await,
        };
        if let Err(fault) = done {
            if matches!(fault.downcast_ref(), Some(MessengerFault::Closed(_))) {
                return Err(fault);
            }
            self.say(&format!("-- {fault}"));
        }
        Ok(())
    }

    async fn command(&mut self, line: &str) -> anyhow::Result<()> {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["help"] => self.say(HELP),
            ["to"] => self.to = None,
            ["to", name] => self.to = Some(self.names.find(name)?),
            ["contact", name, user] => {
                self.names.set(name, Conversation::Direct(UserId::new(user)?))?;
                self.say(&format!("-- {name} is {user}"));
            }
            ["name", old, new] => {
                let conversation = self.names.find(old)?;
                self.names.set(new, conversation)?;
                self.say(&format!("-- {old} is called {new}"));
            }
            ["group", name, ref members @ ..] => {
                let members = self.users(members)?;
                // Its name stays here: the server knows the group by a random id.
                let group = UserId::new(&format!("{:032x}", rand::random::<u128>()))?;
                self.names.set(name, Conversation::Group(group.clone()))?;
                self.messenger.create_group(&group, members).await?;
            }
            ["add", group, ref members @ ..] => {
                let (group, members) = (self.names.group(group)?, self.users(members)?);
                self.messenger.add_members(&group, members).await?;
            }
            ["remove", group, ref members @ ..] => {
                let (group, members) = (self.names.group(group)?, self.users(members)?);
                self.messenger.remove_members(&group, members).await?;
            }
            ["leave", group] => self.messenger.leave_group(&self.names.group(group)?).await?,
            ["members", group] => {
                let members = self.messenger.members(&self.names.group(group)?).await?;
                self.show_members(group, &members.unwrap_or_default());
            }
            ["typing", name] => {
                self.messenger.typing(self.names.find(name)?, true).await?;
            }
            ["reconnect"] => self.messenger.client().reconnect().await?,
            ["network"] => self.messenger.client().network_changed().await?,
            ["how"] => {
                let transport = self.messenger.client().transport();
                match transport {
                    Some(way) => self.say(&format!("-- over {way}")),
                    None => self.say("-- not connected"),
                }
            }
            ref words if self.trust_command(words).await? => {}
            _ => self.say("-- unknown command; /help"),
        }
        Ok(())
    }

    async fn write(&mut self, line: &str) -> anyhow::Result<()> {
        let (to, text) = match (&self.to, line.split_once(':')) {
            (Some(to), _) => (to.clone(), line),
            (None, Some((name, text))) => (self.names.find(name.trim())?, text.trim_start()),
            (None, None) => bail!("to whom? type `bob: hello`, or first `/to bob`"),
        };
        let id = match &to {
            Conversation::Direct(user) => self.messenger.send(user, text).await?,
            Conversation::Group(group) => self.messenger.send_group(group, text).await?,
        };
        let number = self.written.len() as u64 + 1;
        self.written.insert(id, number);
        self.unanswered.insert(id);
        Ok(())
    }

    fn users(&self, names: &[&str]) -> anyhow::Result<Vec<UserId>> {
        names.iter().map(|name| self.names.user(name)).collect()
    }

    async fn handle_event(&mut self, event: Event) -> anyhow::Result<()> {
        match event {
            Event::News { id, news } => {
                let read = self.show_news(news)?;
                if let Some((conversation, message)) = read {
                    // Shown is read. It is not worth failing for.
                    let _ = self.messenger.mark_read(conversation, vec![message]).await;
                }
                // Shown first: a crash in between shows it twice rather than never.
                self.messenger.confirm(id).await?;
            }
            Event::Status(status) => {
                show_status(&status);
                if let ringpost_client::Status::Connected = status {
                    self.note("-- connected");
                }
            }
        }
        Ok(())
    }

    /// Gives what the user has read by it.
    fn show_news(&mut self, news: News) -> anyhow::Result<Option<(Conversation, MessageId)>> {
        match news {
            News::Text(text) => return Ok(self.show_text(text)),
            News::Sent { message } => {
                self.unanswered.remove(&message);
                self.tick("sent", &[message], "");
            }
            News::NotSent { message, reason } => {
                self.unanswered.remove(&message);
                self.tick("not sent", &[message], &format!(": {reason}"));
            }
            News::Delivered { messages, by, .. } => {
                let by = format!(" to {}", printable(&self.names.of_user(&by)));
                self.tick("delivered", &messages, &by);
            }
            News::Read { messages, by, .. } => {
                let by = format!(" by {}", printable(&self.names.of_user(&by)));
                self.tick("read", &messages, &by);
            }
            News::Group { group, members, is_member } => {
                let conversation = Conversation::Group(group);
                if !self.names.knows(&conversation) {
                    self.names.set(&self.names.free_group_name(), conversation.clone())?;
                }
                let name = self.names.of(&conversation);
                match is_member {
                    true => self.show_members(&name, &members),
                    false => self.say(&format!("-- you are no longer in {name}")),
                }
            }
            News::GroupRefused { group, reason } => {
                let name = self.names.of(&Conversation::Group(group));
                self.say(&format!("-- {}: {reason}", printable(&name)));
            }
            News::IdentityChanged { user, reason } | News::Refused { user, reason } => {
                let name = printable(&self.names.of_user(&user));
                self.say(&format!("-- {name}: {reason}"));
            }
            News::Undecryptable { from, reason, .. } => {
                let name = printable(&self.names.of_user(&from.user));
                self.say(&format!("-- a message of {name} cannot be shown: {reason}"));
            }
            News::Missing { reason, .. } => {
                self.say(&format!("-- messages to you are missing: {reason:?}"));
            }
            News::Typing { conversation, by, is_typing: true } => {
                let by = printable(&self.names.of_user(&by));
                match conversation {
                    Conversation::Direct(_) => self.say(&format!("-- {by} is typing")),
                    group @ Conversation::Group(_) => {
                        let group = printable(&self.names.of(&group));
                        self.say(&format!("-- {by} is typing in {group}"));
                    }
                }
            }
            news => self.show_trust(&news),
        }
        Ok(None)
    }

    fn show_text(&mut self, text: Text) -> Option<(Conversation, MessageId)> {
        let from = printable(&self.names.of_user(&text.from));
        let body = printable(&text.text);
        match &text.conversation {
            // Written on another device of ours.
            Conversation::Direct(to) if text.from == self.own => {
                let to = printable(&self.names.of_user(to));
                self.say(&format!("{from} to {to}: {body}"));
            }
            Conversation::Direct(_) => self.say(&format!("{from}: {body}")),
            group @ Conversation::Group(_) => {
                let group = printable(&self.names.of(group));
                self.say(&format!("{from} in {group}: {body}"));
            }
        }
        (text.from != self.own).then_some((text.conversation, text.id))
    }

    fn show_members(&mut self, group: &str, members: &[UserId]) {
        let mut names: Vec<String> =
            members.iter().map(|user| printable(&self.names.of_user(user))).collect();
        names.sort_unstable();
        self.say(&format!("-- {group}: {}", names.join(", ")));
    }

    /// Receipts for what was written in an earlier run are not shown: it has no number any more.
    fn tick(&mut self, what: &str, messages: &[MessageId], rest: &str) {
        let mut numbers: Vec<u64> =
            messages.iter().filter_map(|id| self.written.get(id).copied()).collect();
        numbers.sort_unstable();
        for number in numbers {
            self.say(&format!("-- {what} #{number}{rest}"));
        }
    }

    fn say(&mut self, line: &str) {
        say(line);
        self.note(line);
    }

    fn note(&mut self, line: &str) {
        self.shown.push_back(line.to_owned());
        if self.shown.len() > SHOWN_MAX {
            self.shown.pop_front();
        }
        self.look_for_expected();
    }

    /// Lines are expected in any order; each counts once.
    fn look_for_expected(&mut self) {
        if let Some((wanted, _)) = &self.expected
            && let Some(at) = self.shown.iter().position(|line| line == wanted)
        {
            self.shown.remove(at);
            self.expected = None;
        }
    }
}

const EXPECTED_WITHIN: Duration = Duration::from_secs(30);
const SHOWN_MAX: usize = 1_000;
pub(crate) const HELP: &str = "\
  bob: hello           send \"hello\" to bob
  /to bob              send every following line to bob; /to alone ends that
  /contact NAME USER   call a user by a name of your own
  /group NAME USER..   make a group; the name stays with you
  /name OLD NEW        call someone, or a group, otherwise
  /add GROUP USER..    take in members; /remove and /leave GROUP are the opposite
  /members GROUP       who is in it
  /verify NAME         the safety number: both of you must see the same
  /verify NAME DIGITS  compare it with what the other one reads to you
  /verify NAME short   compare three short numbers, when the other one does so, too;
                       then /same NAME or /differ NAME
  /accept NAME         go on after the identity of someone has changed
  /devices             your devices; /devices NAME those of someone
  /link                what to type on a device that you have, to make this one yours
  /link CODE           takes in the new device that shows this
  /unlink DEVICE       a device that you have no more
  /typing NAME         tell NAME, or a group, that you are typing
  /reconnect           connect now
  /network             the network has changed: QUIC moves along, TLS connects again
  /how                 which transport the connection uses
  /quit                leave at once; what is not sent yet is kept and sent next time
At the end of piped input the tool waits for the answers, 10 s at most, then leaves.
With --script FILE the lines come from a file, where also counts
  # ...                nothing
  expect LINE          wait until LINE was shown, in this run and not expected before; after
                       30 s without it the tool leaves with an error";

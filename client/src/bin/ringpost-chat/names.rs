//! What the user calls people and groups: names of their own, which nobody else sees.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, bail};
use ringpost_client::messenger::Conversation;
use ringpost_client::protocol::id::UserId;

/// One line for each, in a file: kind, id in hexadecimal, name.
pub(crate) struct Names {
    path: PathBuf,
    by_name: BTreeMap<String, Conversation>,
}

impl Names {
    pub(crate) fn load(path: PathBuf) -> anyhow::Result<Self> {
        let mut by_name = BTreeMap::new();
        let text = if path.exists() { fs::read_to_string(&path)? } else { String::new() };
        for line in text.lines() {
            let words: Vec<&str> = line.splitn(3, ' ').collect();
            let [kind, id, name] = words[..] else { bail!("{}: not a name", path.display()) };
            let id = UserId::new(&of_hex(id)?)?;
            let conversation = match kind {
                "group" => Conversation::Group(id),
                _ => Conversation::Direct(id),
            };
            by_name.insert(name.to_owned(), conversation);
        }
        Ok(Self { path, by_name })
    }

    /// A name is one word without a colon; a newer one replaces the older.
    pub(crate) fn set(&mut self, name: &str, conversation: Conversation) -> anyhow::Result<()> {
        if name.is_empty() || name.contains([' ', ':', '/']) || name.contains(char::is_control) {
            bail!("a name is one word, without : and /");
        }
        self.by_name.retain(|_, known| *known != conversation);
        self.by_name.insert(name.to_owned(), conversation);
        let lines = self.by_name.iter().map(|(name, conversation)| {
            let (kind, id) = match conversation {
                Conversation::Direct(id) => ("user", id),
                Conversation::Group(id) => ("group", id),
            };
            format!("{kind} {} {name}\n", hex(id.as_str()))
        });
        let text: String = lines.collect();
        fs::write(&self.path, text).with_context(|| format!("cannot write {}", self.path.display()))
    }

    /// Who has this name; without one it is the id of a user.
    pub(crate) fn find(&self, name: &str) -> anyhow::Result<Conversation> {
        match self.by_name.get(name) {
            Some(conversation) => Ok(conversation.clone()),
            None => Ok(Conversation::Direct(UserId::new(name)?)),
        }
    }

    pub(crate) fn user(&self, name: &str) -> anyhow::Result<UserId> {
        match self.find(name)? {
            Conversation::Direct(user) => Ok(user),
            Conversation::Group(_) => bail!("{name} is a group"),
        }
    }

    pub(crate) fn group(&self, name: &str) -> anyhow::Result<UserId> {
        match self.by_name.get(name) {
            Some(Conversation::Group(group)) => Ok(group.clone()),
            _ => bail!("there is no group {name}"),
        }
    }

    /// The name, or the id of a user without one.
    pub(crate) fn of(&self, conversation: &Conversation) -> String {
        let known = self.by_name.iter().find(|(_, known)| *known == conversation);
        match (known, conversation) {
            (Some((name, _)), _) => name.clone(),
            (None, Conversation::Direct(id) | Conversation::Group(id)) => id.as_str().to_owned(),
        }
    }

    pub(crate) fn of_user(&self, user: &UserId) -> String {
        self.of(&Conversation::Direct(user.clone()))
    }

    /// A name for a group that others have made.
    pub(crate) fn free_group_name(&self) -> String {
        let taken = |name: &String| self.by_name.contains_key(name);
        let mut names = (1..).map(|number| format!("group{number}"));
        names.find(|name| !taken(name)).expect("numbers do not end")
    }

    pub(crate) fn knows(&self, conversation: &Conversation) -> bool {
        self.by_name.values().any(|known| known == conversation)
    }
}

fn hex(text: &str) -> String {
    text.bytes().map(|byte| format!("{byte:02x}")).collect()
}

fn of_hex(text: &str) -> anyhow::Result<String> {
    if !text.is_ascii() || !text.len().is_multiple_of(2) {
        bail!("not hexadecimal");
    }
    let byte = |at: usize| u8::from_str_radix(&text[at..at + 2], 16);
    let bytes: Result<Vec<u8>, _> = (0..text.len()).step_by(2).map(byte).collect();
    Ok(String::from_utf8(bytes?)?)
}

//! What is inside an envelope, for a [pair](super::pair) or a [group](super::group).
//!
//! ```text
//! payload  1 | protobuf message Payload, below | 0x80 | zeroes up to a padded length
//! ```
//!
//! Unknown fields and kinds of a later version are skipped: [`Content::Unknown`]. The padded length
//! is that of Padme (Nikitin et al., "Reducing Metadata Leakage from Encrypted Files and
//! Communication with PURBs", 4.1): it tells O(log log n) bits of the length and adds at most 12 %,
//! but never below [`PAYLOAD_BYTES_MIN`].

use prost::Message as _;
use ringpost_protocol::id::UserId;
use serde::{Deserialize, Serialize};

use super::clock::{MessageId, Stamp};
use super::fault::Fault;
use crate::limits::{MESSAGE_REFERENCES_MAX, PAYLOAD_BYTES_MIN, TEXT_BYTES_MAX};

/// One decrypted message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payload {
    /// What the writer meant it for. Compare it with where it came from: a group of which the
    /// envelope was, or the two users of a pair. The server may have delivered it elsewhere.
    pub conversation: Conversation,
    pub stamp: Stamp,
    /// The writer's clock, Unix milliseconds; not to be relied on.
    pub written_ms: u64,
    pub content: Content,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Conversation {
    /// With the writer; between own devices the user it went to.
    Direct(UserId),
    Group(UserId),
}

#[derive(Clone, PartialEq, Eq)]
pub enum Content {
    /// At most [`TEXT_BYTES_MAX`].
    Text(String),
    /// These messages were read; at most [`MESSAGE_REFERENCES_MAX`].
    Read(Vec<MessageId>),
    Typing(bool),
    /// A [distribution](super::group::GroupSender::distribution).
    GroupKey(Vec<u8>),
    /// A step of a [verification](super::sas).
    Verification(Vec<u8>),
    /// A signed [roster](super::roster) of the group.
    Roster(Vec<u8>),
    /// The writer leaves the group; an administrator signs the next roster.
    Left,
    /// Says nothing: the session it came on is a new one.
    Renewed,
    /// To a new device of the own user: the secret of its code, and the user's identity.
    Link(Vec<u8>),
    /// To own other devices: signed [device lists](super::device_list). To others: the own one.
    Lists(Vec<Vec<u8>>),
    /// Of a later version of the app; keep it until that is here.
    Unknown,
}

impl Payload {
    /// What [`Self::decode`] would refuse is refused: [`Fault::Malformed`], [`Fault::TooLong`].
    pub fn encode(&self) -> Result<Vec<u8>, Fault> {
        let read_count = match &self.content {
            Content::Read(ids) => ids.len(),
            Content::Lists(lists) => lists.len().min(1),
            _ => 1,
        };
        if self.stamp.after.len() > MESSAGE_REFERENCES_MAX
            || !(1..=MESSAGE_REFERENCES_MAX).contains(&read_count)
        {
            return Err(Fault::Malformed(WHAT));
        }
        let (user, group) = match &self.conversation {
            Conversation::Direct(user) => (user.as_str(), ""),
            Conversation::Group(group) => ("", group.as_str()),
        };
        let mut message = Wire {
            user: user.into(),
            group: group.into(),
            id: self.stamp.id.to_vec(),
            time: self.stamp.time,
            after: self.stamp.after.iter().map(|id| id.to_vec()).collect(),
            written_ms: self.written_ms,
            ..Wire::default()
        };
        match &self.content {
            Content::Text(text) if text.len() > TEXT_BYTES_MAX => {
                let (bytes, bytes_max) = (text.len(), TEXT_BYTES_MAX);
                return Err(Fault::TooLong { bytes, bytes_max });
            }
            Content::Text(text) => message.text = Some(text.clone()),
            Content::Read(ids) => message.read = ids.iter().map(|id| id.to_vec()).collect(),
            Content::Typing(is_typing) => message.typing = Some(*is_typing),
            Content::GroupKey(key) => message.group_key = Some(key.clone()),
            Content::Verification(step) => message.verification = Some(step.clone()),
            Content::Roster(signed) => message.roster = Some(signed.clone()),
            Content::Left => message.left = Some(true),
            Content::Renewed => message.renewed = Some(true),
            Content::Link(link) => message.link = Some(link.clone()),
            Content::Lists(lists) => message.lists.clone_from(lists),
            Content::Unknown => return Err(Fault::Malformed(WHAT)),
        }
        let mut out = vec![VERSION];
        message.encode(&mut out).expect("a Vec grows");
        out.push(END);
        out.resize(padded_bytes(out.len()), 0);
        Ok(out)
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, Fault> {
        let malformed = || Fault::Malformed(WHAT);
        let end = bytes.iter().rposition(|&byte| byte != 0).ok_or_else(malformed)?;
        let (&version, message) = bytes[..end].split_first().ok_or_else(malformed)?;
        if bytes[end] != END || version != VERSION {
            return Err(malformed());
        }
        let wire = Wire::decode(message).map_err(|_| malformed())?;
        let user = |id: &str| UserId::new(id).map_err(|_| malformed());
        let conversation = match (wire.user.as_str(), wire.group.as_str()) {
            (id, "") => Conversation::Direct(user(id)?),
            ("", id) => Conversation::Group(user(id)?),
            _ => return Err(malformed()),
        };
        if wire.text.as_ref().is_some_and(|text| text.len() > TEXT_BYTES_MAX) {
            return Err(malformed());
        }
        let read = if wire.read.is_empty() { None } else { Some(ids(&wire.read)?) };
        let kinds = [
            wire.text.map(Content::Text),
            read.map(Content::Read),
            wire.typing.map(Content::Typing),
            wire.group_key.map(Content::GroupKey),
            wire.verification.map(Content::Verification),
            wire.roster.map(Content::Roster),
            wire.left.map(|_| Content::Left),
            wire.renewed.map(|_| Content::Renewed),
            wire.link.map(Content::Link),
            (!wire.lists.is_empty()).then_some(Content::Lists(wire.lists)),
        ];
        let mut kinds = kinds.into_iter().flatten();
        let content = kinds.next().unwrap_or(Content::Unknown);
        if kinds.next().is_some() {
            return Err(malformed());
        }
        let stamp = Stamp { id: id(&wire.id)?, time: wire.time, after: ids(&wire.after)? };
        Ok(Self { conversation, stamp, written_ms: wire.written_ms, content })
    }
}

impl std::fmt::Debug for Content {
    /// Never shows what was written.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Text(_) => "Text(..)",
            Self::Read(_) => "Read(..)",
            Self::Typing(_) => "Typing(..)",
            Self::GroupKey(_) => "GroupKey(..)",
            Self::Verification(_) => "Verification(..)",
            Self::Roster(_) => "Roster(..)",
            Self::Left => "Left",
            Self::Renewed => "Renewed",
            Self::Link(_) => "Link(..)",
            Self::Lists(_) => "Lists(..)",
            Self::Unknown => "Unknown",
        })
    }
}

/// Padme: as many zero bits at the end of the length as its exponent leaves.
fn padded_bytes(bytes: usize) -> usize {
    let bytes = bytes.max(PAYLOAD_BYTES_MIN);
    let exponent = bytes.ilog2();
    let kept_bits = exponent.ilog2() + 1;
    let mask = (1 << (exponent - kept_bits)) - 1;
    (bytes + mask) & !mask
}

fn id(bytes: &[u8]) -> Result<MessageId, Fault> {
    bytes.try_into().map_err(|_| Fault::Malformed(WHAT))
}

fn ids(list: &[Vec<u8>]) -> Result<Vec<MessageId>, Fault> {
    if list.len() > MESSAGE_REFERENCES_MAX {
        return Err(Fault::Malformed(WHAT));
    }
    list.iter().map(|bytes| id(bytes)).collect()
}

/// The protobuf message. Of fields 7 to 16 exactly one is set.
#[derive(Clone, PartialEq, prost::Message)]
struct Wire {
    /// User id, when it is not for a group.
    #[prost(string, tag = "1")]
    user: String,
    /// Group id.
    #[prost(string, tag = "2")]
    group: String,
    /// 16 random bytes.
    #[prost(bytes = "vec", tag = "3")]
    id: Vec<u8>,
    /// Logical time.
    #[prost(uint64, tag = "4")]
    time: u64,
    /// 16 bytes each, at most 32.
    #[prost(bytes = "vec", repeated, tag = "5")]
    after: Vec<Vec<u8>>,
    /// Unix milliseconds.
    #[prost(uint64, tag = "6")]
    written_ms: u64,
    #[prost(string, optional, tag = "7")]
    text: Option<String>,
    /// 16 bytes each, 1 to 32.
    #[prost(bytes = "vec", repeated, tag = "8")]
    read: Vec<Vec<u8>>,
    #[prost(bool, optional, tag = "9")]
    typing: Option<bool>,
    #[prost(bytes = "vec", optional, tag = "10")]
    group_key: Option<Vec<u8>>,
    #[prost(bytes = "vec", optional, tag = "11")]
    verification: Option<Vec<u8>>,
    #[prost(bytes = "vec", optional, tag = "12")]
    roster: Option<Vec<u8>>,
    #[prost(bool, optional, tag = "13")]
    left: Option<bool>,
    #[prost(bool, optional, tag = "14")]
    renewed: Option<bool>,
    #[prost(bytes = "vec", optional, tag = "15")]
    link: Option<Vec<u8>>,
    #[prost(bytes = "vec", repeated, tag = "16")]
    lists: Vec<Vec<u8>>,
}

const WHAT: &str = "content of the message";
const VERSION: u8 = 1;
/// Ends what is padded; ISO/IEC 7816-4.
const END: u8 = 0x80;

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(content: Content) -> Payload {
        let stamp = Stamp { id: [7; 16], time: 3, after: vec![[1; 16], [2; 16]] };
        let conversation = Conversation::Direct(UserId::new("bob").unwrap());
        Payload { conversation, stamp, written_ms: 1_700_000_000_000, content }
    }

    #[test]
    fn every_kind_survives_its_encoding() {
        let kinds = [
            Content::Text("hello".into()),
            Content::Text(String::new()),
            Content::Read(vec![[9; 16]]),
            Content::Typing(true),
            Content::Typing(false),
            Content::GroupKey(vec![0; 10]),
            Content::Verification(vec![1]),
            Content::Roster(vec![1]),
            Content::Left,
            Content::Renewed,
            Content::Link(vec![1]),
            Content::Lists(vec![vec![1], vec![2]]),
        ];
        for content in kinds {
            let sent = payload(content);
            assert_eq!(Payload::decode(&sent.encode().unwrap()), Ok(sent));
        }
        let group = Conversation::Group(UserId::new("group").unwrap());
        let sent = Payload { conversation: group, ..payload(Content::Typing(true)) };
        assert_eq!(Payload::decode(&sent.encode().unwrap()), Ok(sent));
    }

    #[test]
    fn kinds_and_fields_of_later_versions_are_skipped() {
        let mut bytes = payload(Content::Typing(true)).encode().unwrap();
        bytes.truncate(bytes.iter().rposition(|&byte| byte != 0).unwrap() - 2); // its field
        bytes.extend([0xA2, 0x06, 1, b'x', END]); // field 100, one byte
        let read = Payload::decode(&bytes).unwrap();
        assert_eq!(read.content, Content::Unknown);
        assert_eq!(read.stamp.time, 3);
    }

    #[test]
    fn lengths_are_hidden_and_grow_by_an_eighth_at_most() {
        let length = |text: usize| payload(Content::Text("x".repeat(text))).encode().unwrap().len();
        assert_eq!(length(1), length(8));
        let mut lengths: Vec<_> = (0..4_000).map(length).collect();
        for (text, padded) in lengths.iter().enumerate() {
            assert!(*padded * 8 <= (text + 100) * 9, "{text} {padded}");
        }
        lengths.dedup();
        assert!(lengths.len() < 100, "{}", lengths.len());
    }

    #[test]
    fn too_much_is_refused() {
        let long = Content::Text("x".repeat(TEXT_BYTES_MAX + 1));
        let (bytes, bytes_max) = (TEXT_BYTES_MAX + 1, TEXT_BYTES_MAX);
        assert_eq!(payload(long).encode(), Err(Fault::TooLong { bytes, bytes_max }));
        for count in [0, MESSAGE_REFERENCES_MAX + 1] {
            assert!(payload(Content::Read(vec![[1; 16]; count])).encode().is_err(), "{count}");
        }
        let mut stamped = payload(Content::Typing(true));
        stamped.stamp.after = vec![[1; 16]; MESSAGE_REFERENCES_MAX + 1];
        assert!(stamped.encode().is_err());
        let mut two = payload(Content::Text("x".into())).encode().unwrap();
        two.truncate(two.iter().rposition(|&byte| byte != 0).unwrap());
        two.extend([&[0x42, 16][..], &[9; 16], &[END]].concat()); // read, besides the text
        assert!(Payload::decode(&two).is_err());
        for bytes in [&[][..], &[0], &[END], &[VERSION, END], &[2, END, 0]] {
            assert!(Payload::decode(bytes).is_err(), "{bytes:?}");
        }
    }
}

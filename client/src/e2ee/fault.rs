//! Everything that end-to-end encryption can refuse, in words an app may show as they are.

/// Why a key, a message or a list was refused. Whatever was refused has changed nothing: no session
/// moved on and no secret was deleted. The text of each is a sentence for a person.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("The {0} cannot be read: it is damaged, or made by a newer version of the app.")]
    Malformed(&'static str),
    #[error("This is too long: it has {bytes} bytes and at most {bytes_max} are possible.")]
    TooLong { bytes: usize, bytes_max: usize },
    #[error("The {0} contains a key that would make the encryption guessable. It was not used.")]
    WeakKey(&'static str),

    // Devices and people.
    #[error(
        "The key offered for this device was not signed by the device. Somebody may be trying to \
         read along; nothing was sent."
    )]
    ForgedPreKey,
    #[error(
        "This contact's identity is not the one known before. It may be a new phone, or somebody \
         else: compare the safety number before you go on."
    )]
    IdentityChanged,
    #[error(
        "The list of this contact's devices was not signed by the contact. Somebody may be trying \
         to add a device that reads along; the list was not used."
    )]
    ForgedDeviceList,
    #[error(
        "An old list of this contact's devices was offered (version {got}, known is {known}). It \
         was not used: it may name a device that was removed."
    )]
    DeviceListRolledBack { known: u64, got: u64 },
    #[error(
        "Two different lists of this contact's devices carry the same version {version}. Neither \
         the server nor the contact should do that; the new one was not used."
    )]
    DeviceListConflict { version: u64 },
    #[error("This device is not in the contact's signed list of devices.")]
    UnknownDevice,

    // Messages between two devices.
    #[error("There is no secure session with this device yet.")]
    NoSession,
    #[error(
        "This message was changed on its way, was not meant for this device, or came far too late."
    )]
    Altered,
    #[error("This is a copy of a first message that was received before. It was not shown again.")]
    ReplayedFirstMessage,
    #[error("This message uses a key that this device has deleted. The sender has to write again.")]
    PreKeyGone,
    #[error(
        "Too many people have started conversations since the keys of this device were renewed. \
         The sender has to try again later."
    )]
    FirstMessagesExhausted,
    #[error(
        "This device has started too many conversations anew. The message was not opened; its owner \
         has to write again in some days."
    )]
    TooManySessions,
    #[error("This message was read before, or came so late that its key is gone.")]
    MessageKeyGone,
    #[error("Too many messages before this one were lost ({count}); the session must be renewed.")]
    GapTooBig { count: u64 },
    #[error("Too much was sent to this device without an answer; the session must be renewed.")]
    SessionStale,

    // Groups.
    #[error("The list of the group's members was not signed by one of its administrators.")]
    ForgedRoster,
    #[error(
        "An old list of the group's members was offered (version {got}, known is {known}). It was \
         not used: it may name somebody who was removed."
    )]
    RosterRolledBack { known: u64, got: u64 },
    #[error(
        "The list of the group's members does not follow from the one known before. A list \
         between them is missing, or somebody keeps a second one."
    )]
    RosterForked,
    #[error(
        "A member of the group sees another list of members (version {theirs}) than this device \
         (version {ours}). Somebody may have added a member in secret; the message was not opened."
    )]
    RosterDiffers { theirs: u64, ours: u64 },
    #[error(
        "A newer list of the group's members (version {theirs}, known is {ours}) has to be fetched \
         first."
    )]
    RosterBehind { theirs: u64, ours: u64 },
    #[error("This person is not a member of the group.")]
    NotMember,
    #[error("You are in as many groups as this device keeps. Leave some to be added to others.")]
    TooManyGroups,
    #[error("The key for this member's messages to the group has not arrived.")]
    NoSenderKey,
    #[error("The key of the group is used up or out of date and must be renewed before sending.")]
    SenderKeyExpired,
    #[error("This is a copy of a group message that was received before. It was not shown again.")]
    ReplayedGroupMessage,

    // Verification.
    #[error(
        "The other device changed its key during the comparison. Somebody may be between the two \
         devices; start again, and do not trust this result."
    )]
    CommitmentBroken,
    #[error(
        "The other device confirmed a different identity. Somebody may be between the two devices."
    )]
    VerificationFailed,

    // This device.
    #[error(
        "A record of this device cannot be opened: it is damaged, was moved, or the key of the app \
         is another one."
    )]
    SealBroken,
}

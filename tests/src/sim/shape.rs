//! What a world is made of: its shards, devices, bounds and times, all from the seed.

use ringpost_engine::limits::{LimitSet, PerHour, Rate};
use ringpost_protocol::id::{DeviceAddress, DeviceId, UserId};

use super::clock::Stream;
use super::world::Options;

/// The parts of a world that do not go wrong.
#[derive(Clone, Debug)]
pub struct Shape {
    pub shards: u16,
    /// The first so many shards own the slots.
    pub storage_shards: u16,
    /// A start changes their number, per mille.
    pub reshard: u64,
    /// Who the clients are: some users with one device, some with several.
    pub devices: Vec<DeviceAddress>,
    /// Groups that they may make.
    pub groups: Vec<UserId>,
    /// Every other world is about messages between users alone: keys and groups take the place of much
    /// else.
    pub has_directory: bool,
    /// Senders name the device lists that they know, and lists leave devices out.
    pub names_lists: bool,
    /// Time in which messages are sent and things go wrong.
    pub busy_ms: u64,
    /// A client's app does something after up to this time.
    pub pause_ms_max: u64,
    /// For so long most messages go to one user, then to the next; zero: to all alike. Who is left
    /// alone acknowledges nothing, while the log goes on.
    pub focus_ms: u64,
    /// Of users with several devices only the first stays: the others leave as soon as they are known,
    /// and come back when nothing goes wrong any more. What the first acknowledged stays stored for
    /// them, and outlives the acknowledgement in the log.
    pub hermits: bool,
    /// Messages of many kilobytes, per mille.
    pub large: u64,
    /// Messages that live for a short time only, per mille.
    pub mortal: u64,
    /// Some clients connect for the first time only after a while.
    pub late: bool,
    /// Connections in background mode, per mille.
    pub background: u64,
    pub mailbox_records_max: u32,
    /// Where it is low, a small message may have room where a large one before it had none.
    pub mailbox_bytes_max: u32,
    /// Rates and shares of a turn: as usual, or so low that all of them are reached.
    pub limits: LimitSet,
    pub cache_bytes: usize,
    pub batch_bytes_max: u32,
    pub checkpoint_log_bytes: u64,
    pub expiry_scan_ms: u64,
    /// A client's disk needs up to this for a commit.
    pub client_disk_ns: u64,
}

impl Shape {
    pub fn of(seed: u64, options: Options) -> Self {
        let mut random = Stream::new(seed, "shape");
        let shards = pick(&mut random, [1, 2, 2, 2, 3, 4]);
        let storage_shards = u16::try_from(random.between(1, u64::from(shards))).expect("few");
        let tight = random.chance(250);
        let has_directory = options.small || seed.is_multiple_of(2);
        let mut shape = Self {
            shards,
            storage_shards,
            reshard: pick(&mut random, [0, 0, 400]),
            devices: devices(&mut random),
            groups: match has_directory {
                true => groups(&mut Stream::new(seed, "groups")),
                false => Vec::new(),
            },
            has_directory,
            names_lists: has_directory && Stream::new(seed, "names lists").chance(500),
            busy_ms: random.between(8_000, 30_000),
            pause_ms_max: pick(&mut random, [800, 3_000, 6_000]),
            focus_ms: pick(&mut Stream::new(seed, "focus"), [0, 2_000, 8_000]),
            hermits: Stream::new(seed, "hermits").chance(300),
            large: pick(&mut random, [0, 30, 30, 200]),
            late: random.chance(500),
            mortal: pick(&mut random, [0, 100, 400]),
            background: pick(&mut random, [0, 0, 300]),
            mailbox_records_max: if tight { TIGHT_RECORDS } else { 100_000 },
            mailbox_bytes_max: AMPLE_BYTES,
            limits: LimitSet {
                user_key_reads: per_hour(&mut Stream::new(seed, "key reads"), 10),
                device_one_time_keys: per_hour(&mut Stream::new(seed, "one-time keys"), 5),
                ..limits(&mut Stream::new(seed, "limits"))
            },
            cache_bytes: pick(&mut random, [4 << 10, 64 << 10, 256 << 10]),
            batch_bytes_max: pick(&mut random, [8 << 10, 32 << 10, 64 << 10]),
            checkpoint_log_bytes: pick(&mut random, [64, 256, 4_096]) << 10,
            expiry_scan_ms: pick(&mut random, [500, 5_000, 3_600_000]),
            client_disk_ns: pick(&mut random, [1, 5, 100]) * 1_000_000,
        };
        if options.tight_mailboxes {
            shape.mailbox_records_max = TIGHT_RECORDS;
        }
        if shape.is_tight() && Stream::new(seed, "narrow").chance(500) {
            (shape.mailbox_bytes_max, shape.large) = (NARROW_BYTES, 300);
        }
        if options.small {
            shape.devices.truncate(2);
            shape.groups.truncate(1);
            (shape.shards, shape.storage_shards) = (2, 2);
            shape.late = false;
            shape.limits = LimitSet::default();
            (shape.busy_ms, shape.pause_ms_max) = (1_500, 400);
        }
        shape
    }

    pub fn is_narrow(&self) -> bool {
        self.mailbox_bytes_max == NARROW_BYTES
    }

    pub fn is_tight(&self) -> bool {
        self.mailbox_records_max == TIGHT_RECORDS
    }

    /// Each once.
    pub fn users(&self) -> Vec<UserId> {
        let mut users: Vec<UserId> =
            self.devices.iter().map(|device| device.user.clone()).collect();
        users.dedup(); // devices of a user stand together
        users
    }

    /// Clients that are devices of this client's user, itself included.
    pub fn siblings(&self, client: usize) -> Vec<usize> {
        let user = &self.devices[client].user;
        (0..self.devices.len()).filter(|&other| self.devices[other].user == *user).collect()
    }

    /// Whether this client leaves early and comes back late.
    pub fn is_hermit(&self, client: usize) -> bool {
        self.hermits && self.siblings(client)[0] != client
    }

    /// The shard that stores what is sent to this client.
    pub fn home(&self, client: usize) -> u16 {
        self.devices[client].user.slot().shard(self.storage_shards)
    }
}

fn limits(random: &mut Stream) -> LimitSet {
    if random.chance(600) {
        return LimitSet::default();
    }
    let mut rate = |per_second, burst| Rate {
        per_second: random.between(per_second, 4 * per_second).try_into().expect("low"),
        burst: random.between(burst, 4 * burst).try_into().expect("low"),
    };
    LimitSet {
        connection_frames: rate(20, 10),
        connection_bytes: rate(8_000, 20_000),
        user_sends: rate(8, 4),
        address_accepts: rate(1, 3),
        address_connections_max: random.between(3, 8).try_into().expect("low"),
        handshakes_pending_max: random.index(6) + 1,
        handshake_steps_per_turn: random.index(2) + 1,
        send_stall_ms_max: random.between(10_000, 30_000),
        receive_bytes_per_turn: random.between(1, 6_000).try_into().expect("low"),
        receive_frames_per_turn: random.between(1, 6).try_into().expect("low"),
        ..LimitSet::default()
    }
}

/// Mostly without a limit, so that many keys are handed out; else one that is reached.
fn per_hour(random: &mut Stream, low: u64) -> PerHour {
    let limit = random.between(low, 4 * low).try_into().expect("low");
    if random.chance(750) { PerHour::UNLIMITED } else { PerHour(limit) }
}

/// None, one or two, with names that decide where they are at home.
fn groups(random: &mut Stream) -> Vec<UserId> {
    let count = pick(random, [0, 1, 1, 2]);
    let names = (0..count).map(|_| format!("group-{}", random.below(1_000_000)));
    names.map(|name| UserId::new(&name).expect("a short name")).collect()
}

/// Three to eight devices of users with up to three.
fn devices(random: &mut Stream) -> Vec<DeviceAddress> {
    let count = random.index(6) + 3;
    let mut devices = Vec::new();
    // The names decide the slots, and so the shards.
    let first = random.below(1_000_000);
    for number in first.. {
        let user = UserId::new(&format!("user-{number}")).expect("a short name");
        let owned = if random.chance(600) { 1 } else { random.index(2) + 2 };
        for name in DEVICE_NAMES.iter().take(owned) {
            let device = DeviceId::new(name).expect("a short name");
            devices.push(DeviceAddress { user: user.clone(), device });
            if devices.len() == count {
                return devices;
            }
        }
    }
    unreachable!("there are more users than devices")
}

fn pick<T: Copy, const N: usize>(random: &mut Stream, choices: [T; N]) -> T {
    choices[random.index(N)]
}

const DEVICE_NAMES: [&str; 3] = ["phone", "laptop", "tablet"];
/// Mailboxes of so many messages fill up.
const TIGHT_RECORDS: u32 = 24;
/// Of which one sender's quarter holds one of the largest messages.
const NARROW_BYTES: u32 = 192 << 10;
const AMPLE_BYTES: u32 = 1 << 30;

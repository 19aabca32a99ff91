//! A group of many people with several devices each, all on the real messenger: members come and go
//! while the others write.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use ringpost_client::messenger::{Event, MessageId, Messenger, News};
use ringpost_loadgen::sample::process_cpu_seconds;
use ringpost_protocol::id::UserId;
use ringpost_protocol::limits::GROUP_MEMBERS_MAX;
use tempfile::TempDir;
use tokio::task::JoinSet;

use crate::support::app::open_messenger;
use crate::support::gateway::{Gateway, Settings};

/// How many of everything.
#[derive(Clone, Copy)]
struct Size {
    members: usize,
    devices: usize,
    messages: usize,
    /// One member is removed, and another user added, so often.
    changes: usize,
}

/// One device of a user.
struct App {
    messenger: Messenger,
    user: UserId,
    log: Arc<Mutex<Log>>,
}

/// What an app was told.
#[derive(Default)]
struct Log {
    /// Texts of others, and those of the user's other devices: id, logical time, text; as they came.
    texts: Vec<(MessageId, u64, String)>,
    /// Own ones that the server has.
    sent: BTreeMap<MessageId, Instant>,
    not_sent: BTreeSet<MessageId>,
    /// Members, as the news of the group said.
    rosters: Vec<(Instant, BTreeSet<UserId>)>,
    is_linked: bool,
    /// What nobody wants to see.
    faults: Vec<News>,
}

/// One text of the test.
struct Written {
    text: String,
    id: MessageId,
    app: usize,
    /// Whom the writer's app knew as members, and the texts it had got.
    known: BTreeSet<UserId>,
    seen: usize,
    at: Instant,
}

/// Somebody is removed, or added.
struct Change {
    user: usize,
    asked: Instant,
}

struct Crowd {
    size: Size,
    gateway: Gateway,
    _place: TempDir,
    /// Devices of a user follow each other.
    apps: Vec<App>,
    group: UserId,
    listeners: JoinSet<()>,
}

fn id(name: &str) -> UserId {
    UserId::new(name).unwrap()
}

fn lock(log: &Mutex<Log>) -> MutexGuard<'_, Log> {
    log.lock().unwrap()
}

/// Waits until it is so; `left` says what is missing.
async fn until(what: &str, mut left: impl FnMut() -> usize) {
    let (mut last, mut moved) = (usize::MAX, Instant::now());
    loop {
        let now = left();
        if now == 0 {
            return;
        }
        if now != last {
            (last, moved) = (now, Instant::now());
        }
        assert!(moved.elapsed() < STALL_MAX, "{what}: {now} left, and nothing moves");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

impl App {
    async fn open(gateway: &Gateway, user: &str, device: &str, directory: &Path) -> Self {
        let database = directory.join(format!("{user}-{device}"));
        let messenger = open_messenger(gateway, user, device, &database).await;
        Self { messenger, user: id(user), log: Arc::default() }
    }

    /// Its keys are at the server, and its user's list is.
    async fn wait_published(&self) {
        let client = self.messenger.client();
        let mut looks = 0;
        loop {
            let list = client.device_list(self.user.clone()).await;
            let count = client.key_count().await;
            if list.is_ok_and(|list| list.version > 0) && count.is_ok_and(|count| count > 0) {
                return;
            }
            looks += 1;
            assert!(looks < 3_000, "{} has published nothing", self.user.as_str());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Takes the news of one app until it is closed.
async fn listen(messenger: Messenger, log: Arc<Mutex<Log>>) {
    while let Some(event) = messenger.next_event().await {
        let Event::News { id, news } = event else { continue };
        lock(&log).take(news);
        if messenger.confirm(id).await.is_err() {
            return;
        }
    }
}

impl Log {
    /// Empty before this device has heard of the group.
    fn members(&self) -> BTreeSet<UserId> {
        self.rosters.last().map(|(_, members)| members.clone()).unwrap_or_default()
    }

    fn take(&mut self, news: News) {
        match news {
            News::Text(text) => self.texts.push((text.id, text.time, text.text)),
            News::Sent { message } => drop(self.sent.insert(message, Instant::now())),
            News::NotSent { message, .. } => drop(self.not_sent.insert(message)),
            News::Group { members, .. } => {
                self.rosters.push((Instant::now(), members.into_iter().collect()));
            }
            // Before, it was told that nobody believes it.
            News::Linked => (self.is_linked, self.faults) = (true, Vec::new()),
            News::Delivered { .. }
            | News::Read { .. }
            | News::Typing { .. }
            | News::Devices { .. } => {}
            fault => self.faults.push(fault),
        }
    }
}

impl Crowd {
    /// All users with all their devices; nobody has a group.
    async fn gather(size: Size) -> Self {
        let limits = "user_key_reads_per_hour = 0, device_one_time_keys_per_hour = 0";
        let gateway =
            Gateway::start(Settings { limits, mailbox_records_max: 1_000, ..Settings::default() });
        let memory = Path::new("/dev/shm");
        let place =
            if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        let place = place.unwrap();
        let (mut apps, mut listeners) = (Vec::new(), JoinSet::new());
        // The last ones are added later.
        for user in 0..size.members + size.changes {
            for device in 0..size.devices {
                let (user, device) = (format!("user {user}"), format!("device-{device}"));
                let app = App::open(&gateway, &user, &device, place.path()).await;
                listeners.spawn(listen(app.messenger.clone(), Arc::clone(&app.log)));
                if device == "device-0" {
                    app.wait_published().await;
                }
                apps.push(app);
            }
        }
        let crowd = Self { size, gateway, _place: place, apps, group: id("crowd"), listeners };
        for user in crowd.apps.chunks(size.devices) {
            for device in &user[1..] {
                crowd.link(&user[0], device).await;
            }
        }
        crowd
    }

    async fn link(&self, old: &App, new: &App) {
        let mut looks = 0;
        let code = loop {
            if let Some(code) = new.messenger.link_code().await.unwrap() {
                break code;
            }
            looks += 1;
            assert!(looks < 3_000, "{} has no code", new.user.as_str());
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        old.messenger.link_device(&code).await.unwrap();
        until("a device is linked", || usize::from(!lock(&new.log).is_linked)).await;
        new.wait_published().await;
    }

    /// Texts that the server has.
    fn sent(&self) -> usize {
        self.apps.iter().map(|app| lock(&app.log).sent.len()).sum()
    }

    fn devices_of(&self, user: usize) -> &[App] {
        &self.apps[user * self.size.devices..(user + 1) * self.size.devices]
    }

    /// Waits until all devices of all members know who is one.
    async fn wait_members(&self, wanted: &BTreeSet<UserId>) {
        let is_behind =
            |app: &&App| wanted.contains(&app.user) && lock(&app.log).members() != *wanted;
        until("members know each other", || self.apps.iter().filter(is_behind).count()).await;
    }
}

/// What was written and changed, and what it cost.
struct Course {
    written: Vec<Written>,
    removed: Vec<Change>,
    added: Vec<Change>,
    seconds: f64,
    cpu_seconds: f64,
    disk_bytes: f64,
}

impl Crowd {
    async fn talk(&self) -> Course {
        let Size { members, changes, messages, devices } = self.size;
        let mut random = StdRng::seed_from_u64(7);
        let names = |users: &[usize]| users.iter().map(|&user| self.user(user)).collect();
        let mut inside: Vec<usize> = (0..members).collect();
        let others = (1..members).map(|user| self.user(user)).collect();
        self.admin().create_group(&self.group, others).await.unwrap();
        self.wait_members(&names(&inside)).await;
        println!("{members} users are members");
        let before = (Instant::now(), self.cpu_seconds(), self.disk_bytes());
        let (mut written, mut removed, mut added) = (Vec::new(), Vec::new(), Vec::new());
        while written.len() < messages {
            let made = added.len();
            if made < changes && written.len() >= messages * (made + 1) / (changes + 1) {
                // Not the administrator, nor who was added.
                let places: Vec<usize> = (0..inside.len())
                    .filter(|&place| (1..members).contains(&inside[place]))
                    .collect();
                let gone = inside.swap_remove(places[random.random_range(0..places.len())]);
                self.wait_heard(&written, gone, &inside).await;
                removed.push(Change { user: gone, asked: Instant::now() });
                self.admin().remove_members(&self.group, vec![self.user(gone)]).await.unwrap();
                if members == GROUP_MEMBERS_MAX {
                    let gone = self.user(gone);
                    let is_member = || lock(&self.apps[0].log).members().contains(&gone);
                    until("there is room for another member", || is_member().into()).await;
                }
                added.push(Change { user: members + made, asked: Instant::now() });
                let new = vec![self.user(members + made)];
                self.admin().add_members(&self.group, new).await.unwrap();
                inside.push(members + made);
            }
            let user = inside[random.random_range(0..inside.len())];
            let app = user * devices + random.random_range(0..devices);
            written.extend(self.write(written.len(), app).await);
            self.wait_sent(&written, WINDOW).await;
        }
        self.wait_members(&names(&inside)).await;
        self.wait_sent(&written, 0).await;
        println!("all is sent");
        self.wait_read(&written, &removed, &added).await;
        Course {
            written,
            removed,
            added,
            seconds: before.0.elapsed().as_secs_f64(),
            cpu_seconds: self.cpu_seconds() - before.1,
            disk_bytes: self.disk_bytes() - before.2,
        }
    }

    fn user(&self, user: usize) -> UserId {
        self.devices_of(user)[0].user.clone()
    }

    fn admin(&self) -> &Messenger {
        &self.apps[0].messenger
    }

    /// `None`: who was added lately has not heard of it yet.
    async fn write(&self, number: usize, app: usize) -> Option<Written> {
        let writer = &self.apps[app];
        let text = format!("text {number}");
        let (known, seen) = {
            let log = lock(&writer.log);
            (log.members(), log.texts.len())
        };
        let at = Instant::now();
        let sent = match known.is_empty() {
            true => return self.pause().await,
            false => writer.messenger.send_group(&self.group, &text).await,
        };
        Some(Written { text, id: sent.unwrap(), app, known, seen, at })
    }

    async fn pause(&self) -> Option<Written> {
        tokio::time::sleep(Duration::from_millis(1)).await;
        None
    }

    /// At most so many are on their way.
    async fn wait_sent(&self, written: &[Written], window: usize) {
        let recent = &written[written.len().saturating_sub(8 * WINDOW)..];
        let recent = if window == 0 { written } else { recent };
        let is_unsent = |written: &&Written| {
            let log = lock(&self.apps[written.app].log);
            !log.sent.contains_key(&written.id) && !log.not_sent.contains(&written.id)
        };
        until("texts are sent", || recent.iter().filter(is_unsent).count().saturating_sub(window))
            .await;
    }

    /// Waits until all `inside` from the beginning have read what `gone` has written. Whoever heard of
    /// a removal first would take the rest for something written after it, and say so.
    async fn wait_heard(&self, written: &[Written], gone: usize, inside: &[usize]) {
        let of_gone: Vec<&Written> =
            written.iter().filter(|it| it.app / self.size.devices == gone).collect();
        let readers: Vec<&App> = inside
            .iter()
            .filter(|&&user| user < self.size.members)
            .flat_map(|&user| self.devices_of(user))
            .collect();
        until("who is to go is heard", || {
            let lacks = |app: &App, it: &Written| {
                let is_lost = lock(&self.apps[it.app].log).not_sent.contains(&it.id);
                !is_lost && lock(&app.log).texts.iter().all(|(id, ..)| *id != it.id)
            };
            let lacking = |it: &&Written| readers.iter().filter(|app| lacks(app, it)).count();
            of_gone.iter().map(lacking).sum()
        })
        .await;
    }

    /// When the administrator's app told that it is so.
    fn told(&self, change: &Change, is_member: bool) -> Instant {
        let user = self.user(change.user);
        let log = lock(&self.apps[0].log);
        let is_told = |(_, members): &&(Instant, BTreeSet<UserId>)| {
            members.contains(&user) == is_member && !members.is_empty()
        };
        log.rosters.iter().filter(|(at, _)| *at > change.asked).find(is_told).expect("told").0
    }

    /// Whether all devices of a user must have this text: `None` when it was on its way while the
    /// user's membership changed.
    fn is_for(&self, written: &Written, user: usize, course: &Times) -> Option<bool> {
        let sent = lock(&self.apps[written.app].log).sent.get(&written.id).copied();
        let Some(sent) = sent else { return Some(false) };
        if let Some((asked, _)) = course.removed.get(&user) {
            let is_known = written.known.contains(&self.user(user));
            return if !is_known { Some(false) } else { (sent < *asked).then_some(true) };
        }
        if let Some((asked, told)) = course.added.get(&user) {
            let is_known = written.known.contains(&self.user(user));
            let is_writer_removed = course.removed.contains_key(&(written.app / self.size.devices));
            return match is_known && written.at > *told {
                true => (!is_writer_removed).then_some(true),
                false => (sent < *asked).then_some(false),
            };
        }
        Some(true)
    }

    fn times(&self, removed: &[Change], added: &[Change]) -> Times {
        let times = |changes: &[Change], is_member: bool| {
            let time = |change: &Change| (change.asked, self.told(change, is_member));
            changes.iter().map(|change| (change.user, time(change))).collect()
        };
        Times { removed: times(removed, false), added: times(added, true) }
    }

    /// Waits until everybody has what is meant for them.
    async fn wait_read(&self, written: &[Written], removed: &[Change], added: &[Change]) {
        let times = self.times(removed, added);
        let users = 0..self.size.members + self.size.changes;
        let mut wanted: Vec<BTreeSet<MessageId>> = users
            .flat_map(|user| vec![user; self.size.devices])
            .enumerate()
            .map(|(app, user)| {
                let is_wanted =
                    |it: &&Written| it.app != app && self.is_for(it, user, &times) == Some(true);
                written.iter().filter(is_wanted).map(|it| it.id).collect()
            })
            .collect();
        until("texts are read", || {
            for (wanted, app) in wanted.iter_mut().zip(&self.apps) {
                let log = lock(&app.log);
                wanted.retain(|wanted| log.texts.iter().all(|(id, ..)| id != wanted));
            }
            wanted.iter().map(BTreeSet::len).sum()
        })
        .await;
        tokio::time::sleep(LINGER).await;
    }

    /// User and system time of the gateway.
    fn cpu_seconds(&self) -> f64 {
        process_cpu_seconds(self.gateway.process()).expect("the gateway runs")
    }

    fn disk_bytes(&self) -> f64 {
        self.gateway.metric("ringpost_store_written_bytes_total")
    }
}

/// Of each user whose membership changed: when it was asked for, and when it was told.
struct Times {
    removed: BTreeMap<usize, (Instant, Instant)>,
    added: BTreeMap<usize, (Instant, Instant)>,
}

impl Crowd {
    /// Who should read a text can, nobody else does, and all see one order. Gives the deliveries.
    fn check(&self, course: &Course) -> usize {
        let times = self.times(&course.removed, &course.added);
        let mut deliveries = 0;
        let mut order = BTreeMap::<MessageId, u64>::new();
        for (number, app) in self.apps.iter().enumerate() {
            // Not held: who wrote a text is asked below.
            let (texts, faults) = {
                let log = lock(&app.log);
                (log.texts.clone(), log.faults.clone())
            };
            // Who comes or goes may be heard before the administrator tells of it, or after.
            let changed: Vec<&UserId> = times
                .removed
                .keys()
                .chain(times.added.keys())
                .map(|&user| &self.devices_of(user)[0].user)
                .collect();
            let is_fault = |news: &&News| !matches!(news, News::Refused { user, .. } if changed.contains(&user));
            let faults: Vec<&News> = faults.iter().filter(is_fault).collect();
            assert!(faults.is_empty(), "{}: {faults:?}", app.user.as_str());
            let got: BTreeMap<MessageId, &(MessageId, u64, String)> =
                texts.iter().map(|text| (text.0, text)).collect();
            assert_eq!(got.len(), texts.len(), "{} has a text twice", app.user.as_str());
            deliveries += got.len();
            for written in &course.written {
                let found = got.get(&written.id);
                if let Some((_, time, text)) = found {
                    assert_eq!(*text, written.text);
                    assert_eq!(*order.entry(written.id).or_insert(*time), *time, "{text}");
                }
                let is_for_it = self.is_for(written, number / self.size.devices, &times);
                if written.app != number
                    && is_for_it.is_some_and(|wanted| wanted != found.is_some())
                {
                    panic!("{} has {}: {}", app.user.as_str(), written.text, found.is_some());
                }
            }
        }
        self.check_causes(course, &order);
        deliveries
    }

    /// No text stands before one that its writer had read.
    fn check_causes(&self, course: &Course, order: &BTreeMap<MessageId, u64>) {
        for written in &course.written {
            let log = lock(&self.apps[written.app].log);
            let Some(time) = order.get(&written.id) else { continue };
            let seen = log.texts[..written.seen].iter().map(|(_, time, _)| *time).max();
            assert!(seen.is_none_or(|seen| seen < *time), "{} stands too early", written.text);
        }
    }

    async fn close(mut self) {
        let mut closing = JoinSet::new();
        for app in self.apps.drain(..) {
            closing.spawn(async move { app.messenger.close().await });
        }
        closing.join_all().await;
        self.listeners.shutdown().await;
    }
}

async fn run(size: Size) {
    let started = Instant::now();
    let crowd = Crowd::gather(size).await;
    println!("{} devices after {:.1} s", crowd.apps.len(), started.elapsed().as_secs_f64());
    let course = crowd.talk().await;
    let deliveries = crowd.check(&course);
    let (per, unsent) = (deliveries as f64, course.written.len() - crowd.sent());
    println!(
        "{} members x {} devices, {} changes: {} texts, {unsent} not sent, {deliveries} read in {:.1} s; \
         gateway CPU {:.1} us and {:.0} bytes on disk per text read, keys of the group included",
        size.members,
        size.devices,
        2 * size.changes,
        course.written.len(),
        course.seconds,
        course.cpu_seconds * 1e6 / per,
        course.disk_bytes / per,
    );
    assert!(unsent <= course.removed.len() * WINDOW, "only who was removed is refused");
    crowd.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_come_and_go_while_others_write() {
    run(Size { members: 8, devices: 2, messages: 80, changes: 2 }).await;
}

/// RINGPOST_CROWD=MEMBERS,MESSAGES makes it another: 100,1000 is the largest group there is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "half a minute; run by .ci/run"]
async fn many_members_come_and_go_while_others_write() {
    let size = std::env::var("RINGPOST_CROWD").unwrap_or_else(|_| "20,200".into());
    let (members, messages) = size.split_once(',').unwrap();
    let (members, messages) = (members.parse().unwrap(), messages.parse().unwrap());
    run(Size { members, devices: 2, messages, changes: 3 }).await;
}

/// Texts that are on their way at once.
const WINDOW: usize = 32;
/// Without any progress for so long the test has failed.
const STALL_MAX: Duration = Duration::from_secs(60);
/// For what should not come.
const LINGER: Duration = Duration::from_secs(1);

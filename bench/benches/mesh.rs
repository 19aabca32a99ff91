//! A request to another shard and its reply, as a Send for a user who lives there makes them.

use std::hint::black_box;
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use bytes::Bytes;
use criterion::Criterion;
use ringpost_bench::fixture;
use ringpost_engine::mesh::{Mesh, Queues, Source};
use ringpost_engine::shard::message::{
    ControlRequest, DeviceIndex, MeshMessage, Origin, StoreReply, StoreRequest,
};
use ringpost_protocol::id::{DeviceAddress, SendSeq, UserId};
use ringpost_protocol::message::{Outcome, Recipient, SendBody};
use ringpost_ring::host::{pin_to_core, usable_cores};
use ringpost_ring::{Group, Op, Ring, Uring, UringConfig};

fn main() {
    let mut criterion = ringpost_bench::criterion("mesh");
    hop(&mut criterion);
    ping_pong(&mut criterion);
    criterion.final_summary();
}

/// Both ends on one thread: queues, credits and the check for a sleeper, no contention.
fn hop(criterion: &mut Criterion) {
    let queues = Queues::new(Group::new(2).expect("two eventfds"));
    let (mut near, far) = (Mesh::new(0, queues.clone()), Mesh::new(1, queues));
    let template = Template::new();
    criterion.bench_function("mesh/request_reply/threads=1", |bencher| {
        bencher.iter(|| {
            near.reserve(1).expect("one request at a time");
            assert!(!near.push(1, template.request()), "nobody sleeps");
            let request = far.pop().expect("it was pushed");
            assert!(!far.push(0, reply_to(black_box(request.message))), "nobody sleeps");
            let reply = near.pop().expect("it was pushed");
            near.replied(1);
            reply.message
        });
    });
}

/// Each shard on its own pinned thread and ring, one request under way: both sleep in the kernel
/// between messages, so each direction costs a wake.
fn ping_pong(criterion: &mut Criterion) {
    let group = Group::new(2).expect("two eventfds");
    let queues = Queues::new(group.clone());
    let cores = usable_cores().expect("the kernel tells");
    let (ready, is_ready) = mpsc::channel();
    let far = {
        let (group, queues) = (group.clone(), queues.clone());
        let core = cores[cores.len() - 1];
        thread::spawn(move || {
            pin_to_core(core).expect("it is usable");
            let mut shard = Shard::new(&group, queues, 1);
            ready.send(()).expect("the main thread waits");
            shard.serve();
        })
    };
    is_ready.recv().expect("the other shard starts");
    pin_to_core(cores[0]).expect("it is usable");
    let mut near = Shard::new(&group, queues.clone(), 0);
    let template = Template::new();
    let name = format!("mesh/ping_pong/threads=2,cores={}", cores.len().min(2));
    criterion.bench_function(&name, |bencher| {
        bencher.iter_custom(|iterations| {
            let started = Instant::now();
            for _ in 0..iterations {
                near.mesh.reserve(1).expect("one request at a time");
                near.push(1, template.request());
                near.wait();
                near.mesh.replied(1);
            }
            started.elapsed()
        });
    });
    assert!(queues.push_control(1, ControlRequest::Stop), "the queue is empty");
    far.join().expect("the other shard ends");
}

/// What of a shard the mesh touches: turns of its loop, without sockets and timers.
struct Shard {
    mesh: Mesh,
    ring: Uring,
    completions: Vec<ringpost_ring::Completion>,
}

impl Shard {
    fn new(group: &Group, queues: Queues, shard: u16) -> Self {
        let ring = Uring::new(group, shard, UringConfig::default())
            .expect("io_uring works here: see `ringpost-tuning doctor`");
        Self { mesh: Mesh::new(shard, queues), ring, completions: Vec::new() }
    }

    fn push(&mut self, to: u16, message: MeshMessage) {
        if self.mesh.push(to, message) {
            self.ring.submit(0, Op::Wake { shard: to });
        }
    }

    /// Turns of the loop until a message comes: submits, and sleeps if there is nothing to drain.
    fn wait(&mut self) -> (Source, MeshMessage) {
        loop {
            let sleeps = self.mesh.arm_sleep();
            self.ring.enter(if sleeps { u64::MAX } else { 0 }, &mut self.completions);
            self.completions.clear();
            if sleeps {
                self.mesh.disarm_sleep();
            }
            if let Some(inbound) = self.mesh.pop() {
                return (inbound.from, inbound.message);
            }
        }
    }

    /// Answers requests until control says stop.
    fn serve(&mut self) {
        loop {
            match self.wait() {
                (Source::Shard(from), message) => self.push(from, reply_to(message)),
                (Source::Control, _) => return,
                (Source::Directory, _) => unreachable!("nobody asked it anything"),
            }
        }
    }
}

/// A Send of 200 bytes; making a request of it allocates what the gateway allocates.
struct Template {
    from: DeviceAddress,
    to: UserId,
    envelope: Bytes,
}

impl Template {
    fn new() -> Self {
        let envelope = fixture::envelope(200).into();
        Self { from: fixture::device(1), to: fixture::user(2), envelope }
    }

    fn request(&self) -> MeshMessage {
        MeshMessage::Store(Box::new(StoreRequest {
            origin: Origin {
                shard: 0,
                device: DeviceIndex(1),
                install_id: fixture::INSTALL,
                send_seq: SendSeq(1),
            },
            from: self.from.clone(),
            to: self.to.clone(),
            message_number: ringpost_protocol::id::MessageNumber(1),
            device_list_version: 0,
            body: SendBody::Shared(self.envelope.clone()),
            ttl_ms: 1,
            urgent: false,
            after_reject: false,
        }))
    }
}

fn reply_to(request: MeshMessage) -> MeshMessage {
    let MeshMessage::Store(request) = request else { unreachable!("only requests are made") };
    let StoreRequest { origin, to, .. } = *request;
    let outcome = Outcome::Accepted { server_time_ms: fixture::UNIX_MS, skipped: Vec::new() };
    let reply = StoreReply { origin, to: Recipient::User(to), outcome, list: None };
    MeshMessage::Stored(Box::new(reply))
}

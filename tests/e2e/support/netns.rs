//! A phone with two networks: two network namespaces with two links between them. Needs root and `ip`.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd;
use std::process::Command;
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// The gateway's address, behind both links.
pub const GATEWAY: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 1));
/// In the order in which the phone prefers them.
pub const LINKS: [&str; 2] = ["wifi", "cell"];

pub struct Networks {
    gateway: String,
    phone: String,
}

impl Networks {
    /// Both links are up.
    pub fn new() -> Self {
        let id = std::process::id();
        let networks = Self {
            gateway: format!("ringpost-{id}-gateway"),
            phone: format!("ringpost-{id}-phone"),
        };
        let (gateway, phone) = (&networks.gateway, &networks.phone);
        for name in [gateway, phone] {
            ip(&format!("netns add {name}"));
            ip(&format!("-n {name} link set lo up"));
        }
        ip(&format!("-n {gateway} address add {GATEWAY}/32 dev lo"));
        for (number, link) in LINKS.iter().enumerate() {
            ip(&format!(
                "link add name {link} netns {gateway} type veth peer name {link} netns {phone}"
            ));
            for (end, name) in [(1, gateway), (2, phone)] {
                ip(&format!("-n {name} address add 10.77.{}.{end}/24 dev {link}", number + 1));
                ip(&format!("-n {name} link set {link} up"));
            }
            networks.add_route(number);
        }
        networks
    }

    /// Runs `work` on a thread of the gateway's namespace; what it starts is there as well.
    pub fn at_gateway<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        within(&self.gateway, work)
    }

    /// Runs `work` on a thread of the phone's namespace.
    pub fn at_phone<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        within(&self.phone, work)
    }

    /// The phone loses a link, and the addresses and routes on it.
    pub fn cut(&self, link: usize) {
        ip(&format!("-n {} link set {} down", self.phone, LINKS[link]));
    }

    pub fn restore(&self, link: usize) {
        ip(&format!("-n {} link set {} up", self.phone, LINKS[link]));
        self.add_route(link);
    }

    fn add_route(&self, link: usize) {
        let (phone, number, name) = (&self.phone, link + 1, LINKS[link]);
        ip(&format!(
            "-n {phone} route replace {GATEWAY} via 10.77.{number}.1 dev {name} metric {number}"
        ));
    }
}

impl Drop for Networks {
    fn drop(&mut self) {
        for name in [&self.gateway, &self.phone] {
            // With it go its ends of the links, and so the others.
            let _ = Command::new("ip").args(["netns", "delete", name]).status();
        }
    }
}

fn within<T: Send>(name: &str, work: impl FnOnce() -> T + Send) -> T {
    let namespace = File::open(format!("/run/netns/{name}")).unwrap();
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let kind = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(namespace.as_fd(), kind).unwrap();
            work()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {text}");
}

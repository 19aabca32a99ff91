//! Whether this host can run a ring, asked of the kernel by opcode and flag, never by version; and
//! if it cannot, what is missing and the fix.

use std::fs;
use std::io;

use io_uring::{IoUring, Probe, opcode};

use crate::Errno;

/// Why there is no ring. [`Self::fix`] says what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingFault {
    #[error("io_uring is switched off on this host (kernel.io_uring_disabled={value})")]
    Disabled { value: u32 },
    #[error(
        "io_uring is blocked for this process ({errno}), as the default seccomp profiles of Docker \
         and containerd do"
    )]
    Blocked { errno: Errno },
    #[error("this kernel has no io_uring, or a sandbox hides it")]
    NoKernelSupport,
    #[error("not enough locked memory for a ring of about {ring_bytes} bytes (limit {memlock})")]
    LockedMemory { ring_bytes: u64, memlock: String },
    #[error("no descriptor left for a ring")]
    OpenFiles,
    #[error("the kernel refuses this ring")]
    KernelTooOld,
    #[error("the kernel lacks {feature}, which {needed_by} needs")]
    Missing { feature: &'static str, needed_by: &'static str, since: &'static str },
    #[error("cannot set up a ring: {errno}")]
    Other { errno: Errno },
}

impl RingFault {
    /// What to do about it.
    pub fn fix(&self) -> String {
        match self {
            Self::Disabled { .. } => {
                "run `sysctl -w kernel.io_uring_disabled=0`, or with 1 add this user's group to \
                 kernel.io_uring_group"
            }
            Self::Blocked { .. } => {
                "run with tuning/seccomp.json (--security-opt seccomp=...), which allows \
                 io_uring_setup, io_uring_enter and io_uring_register"
            }
            Self::NoKernelSupport => {
                "use Linux 6.1 or later with CONFIG_IO_URING=y; under gVisor use another runtime"
            }
            Self::LockedMemory { .. } => {
                "set LimitMEMLOCK=infinity in the service, or `ulimit -l unlimited`, or use smaller \
                 rings; with an unlimited limit the memory cgroup is full"
            }
            Self::OpenFiles => "raise the open file limit (LimitNOFILE=, ulimit -n, fs.file-max)",
            Self::KernelTooOld => {
                "use Linux 6.1 or later: SINGLE_ISSUER, DEFER_TASKRUN and provided-buffer rings are \
                 needed"
            }
            Self::Missing { since, .. } => return format!("use Linux {since} or later"),
            Self::Other { .. } => "run `ringpost-tuning doctor`, which tries each part of it",
        }
        .to_owned()
    }
}

/// Something that a kernel has or has not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feature {
    pub name: &'static str,
    pub needed_by: &'static str,
    /// The first kernel that has it; only said, never tested.
    pub since: &'static str,
    pub required: bool,
    pub present: bool,
}

/// The features of this host, or why there is not even a ring.
pub fn probe() -> Result<Vec<Feature>, RingFault> {
    let ring = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_submit_all()
        .build(8)
        .map_err(|error| setup_fault(&error, 4096))?;
    // A sandbox may allow to set up a ring and not to use it.
    ring.submitter().submit().map_err(|error| setup_fault(&error, 4096))?;
    features_of(&ring)
}

/// Fails with the first required feature that is absent.
pub fn require(features: &[Feature]) -> Result<(), RingFault> {
    match features.iter().find(|feature| feature.required && !feature.present) {
        None => Ok(()),
        Some(&Feature { name: feature, needed_by, since, .. }) => {
            Err(RingFault::Missing { feature, needed_by, since })
        }
    }
}

pub(crate) fn features_of(ring: &IoUring) -> Result<Vec<Feature>, RingFault> {
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe).map_err(|error| setup_fault(&error, 4096))?;
    let params = ring.params();
    let opcodes = OPCODES.iter().map(|&(code, name, needed_by, since)| Feature {
        name,
        needed_by,
        since,
        required: true,
        present: probe.is_supported(code),
    });
    let flag = |name, needed_by, since, required, present| Feature {
        name,
        needed_by,
        since,
        required,
        present,
    };
    let flags = [
        flag("NODROP", "completions under load", "5.5", true, params.is_feature_nodrop()),
        flag("EXT_ARG", "the timeout of a turn", "5.11", true, params.is_feature_ext_arg()),
        flag("CQE_SKIP", "wake-ups", "5.17", true, params.is_feature_skip_cqe_on_success()),
        // Newer than every multishot operation in use, so its presence stands for them.
        flag("SINGLE_ISSUER", "the shard loop", "6.0", true, params.is_setup_single_issuer()),
        flag("NO_IOWAIT", "honest iowait figures", "6.15", false, params.is_feature_no_iowait()),
    ];
    Ok(opcodes.chain(flags).collect())
}

/// Explains a failed set-up on this host.
pub(crate) fn setup_fault(error: &io::Error, ring_bytes: u64) -> RingFault {
    let disabled = fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok();
    let disabled = disabled.and_then(|text| text.trim().parse().ok()).unwrap_or(0);
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    explain(Errno::of(error), disabled, memlock_of(&limits), ring_bytes)
}

/// `disabled` is kernel.io_uring_disabled, 0 where there is none.
fn explain(errno: Errno, disabled: u32, memlock: String, ring_bytes: u64) -> RingFault {
    match errno.0 {
        libc::EPERM | libc::EACCES if disabled > 0 => RingFault::Disabled { value: disabled },
        libc::EPERM | libc::EACCES => RingFault::Blocked { errno },
        libc::ENOSYS => RingFault::NoKernelSupport,
        libc::ENOMEM => RingFault::LockedMemory { ring_bytes, memlock },
        libc::EMFILE | libc::ENFILE => RingFault::OpenFiles,
        libc::EINVAL => RingFault::KernelTooOld,
        _ => RingFault::Other { errno },
    }
}

fn memlock_of(limits: &str) -> String {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"));
    match line.and_then(|values| values.split_whitespace().next()) {
        None => "unknown".to_owned(),
        Some("unlimited") => "unlimited".to_owned(),
        Some(bytes) => format!("{bytes} bytes"),
    }
}

/// What the ring submits; a kernel that lacks one is refused.
const OPCODES: [(u8, &str, &str, &str); 15] = [
    (opcode::AcceptMulti::CODE, "OP_ACCEPT", "the listeners", "5.19"),
    (opcode::Recv::CODE, "OP_RECV", "receiving", "6.0"),
    (opcode::Send::CODE, "OP_SEND", "sending", "5.6"),
    (opcode::SendMsg::CODE, "OP_SENDMSG", "vectored sends", "5.3"),
    (opcode::RecvMsgMulti::CODE, "OP_RECVMSG", "datagrams", "6.0"),
    (opcode::AsyncCancel::CODE, "OP_ASYNC_CANCEL", "parking and closing", "5.5"),
    (opcode::Shutdown::CODE, "OP_SHUTDOWN", "closing", "5.11"),
    (opcode::Close::CODE, "OP_CLOSE", "closing", "5.6"),
    (opcode::Connect::CODE, "OP_CONNECT", "the load generator", "5.5"),
    (opcode::OpenAt::CODE, "OP_OPENAT", "the store", "5.6"),
    (opcode::Read::CODE, "OP_READ", "the store", "5.6"),
    (opcode::Write::CODE, "OP_WRITE", "the store", "5.6"),
    (opcode::Fsync::CODE, "OP_FSYNC", "the store", "5.1"),
    (opcode::UnlinkAt::CODE, "OP_UNLINKAT", "the store", "5.11"),
    (opcode::MsgRingData::CODE, "OP_MSG_RING", "wake-ups between shards", "5.18"),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn text(errno: i32, disabled: u32) -> String {
        let fault = explain(Errno(errno), disabled, "8388608 bytes".to_owned(), 300_000);
        format!("{fault}: {}", fault.fix())
    }

    #[test]
    fn a_refused_ring_says_the_fix() {
        assert!(text(libc::EPERM, 0).contains("tuning/seccomp.json"));
        assert!(text(libc::EPERM, 2).contains("kernel.io_uring_disabled=2"));
        assert!(text(libc::ENOSYS, 0).contains("CONFIG_IO_URING"));
        assert!(text(libc::EINVAL, 0).contains("Linux 6.1"));
        assert!(text(libc::EMFILE, 0).contains("LimitNOFILE"));
        let memory = text(libc::ENOMEM, 0);
        assert!(memory.contains("300000 bytes (limit 8388608 bytes)"), "{memory}");
        assert!(memory.contains("LimitMEMLOCK"), "{memory}");
    }

    /// Makes io_uring_setup fail with EPERM for the calling thread, as a container does.
    fn block_io_uring() {
        let statement = |code: u32, jt, jf, k| libc::sock_filter {
            code: u16::try_from(code).unwrap(),
            jt,
            jf,
            k,
        };
        let setup = u32::try_from(libc::SYS_io_uring_setup).unwrap();
        let refuse = libc::SECCOMP_RET_ERRNO | libc::EPERM.cast_unsigned();
        let mut filter = [
            // The number of the system call is the first word of the data.
            statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
            statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, setup),
            statement(libc::BPF_RET | libc::BPF_K, 0, 0, refuse),
            statement(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
        ];
        let program = libc::sock_fprog { len: 4, filter: filter.as_mut_ptr() };
        // SAFETY: `program` describes `filter`; both live through the call, which copies them.
        unsafe {
            assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
            let mode = libc::SECCOMP_MODE_FILTER;
            assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program), 0);
        }
    }

    #[test]
    fn a_blocked_ring_is_told_from_a_missing_one() {
        let fault = std::thread::spawn(|| {
            block_io_uring();
            probe().unwrap_err()
        });
        let fault = fault.join().unwrap();
        assert_eq!(fault, RingFault::Blocked { errno: Errno::PERM });
    }

    #[test]
    fn a_missing_opcode_is_named() {
        let mut features = probe().unwrap();
        assert_eq!(require(&features), Ok(()));
        features.iter_mut().find(|f| f.name == "OP_MSG_RING").unwrap().present = false;
        let text = require(&features).unwrap_err().to_string();
        assert!(text.contains("lacks OP_MSG_RING, which wake-ups between shards needs"), "{text}");
    }

    #[test]
    fn the_limit_is_read_from_proc() {
        let limits = "Max locked memory         8388608              8388608              bytes";
        assert_eq!(memlock_of(limits), "8388608 bytes");
        assert_eq!(memlock_of(""), "unknown");
    }
}

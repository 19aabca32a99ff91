//! What a shard thread asks of the host besides its ring: clocks, a core of its own, descriptors.

use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Monotonic time in nanoseconds; the same clock for all threads and processes of the host.
#[must_use]
pub fn monotonic_ns() -> u64 {
    let now = clock(libc::CLOCK_MONOTONIC);
    now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned()
}

/// Wall-clock time in Unix milliseconds.
#[must_use]
pub fn unix_ms() -> u64 {
    let now = clock(libc::CLOCK_REALTIME);
    now.tv_sec.cast_unsigned() * 1000 + now.tv_nsec.cast_unsigned() / 1_000_000
}

/// Cores that this process may run on, in order. Smaller than the machine in a container.
pub fn usable_cores() -> io::Result<Vec<usize>> {
    let mut set = MaybeUninit::<libc::cpu_set_t>::zeroed();
    // SAFETY: the pointer and the size are those of `set`; all zeroes is an empty set.
    let result = unsafe { libc::sched_getaffinity(0, size_of_val(&set), set.as_mut_ptr()) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: zeroed, and then filled by the kernel; every bit pattern is a valid set.
    let set = unsafe { set.assume_init() };
    // SAFETY: core < CPU_SETSIZE, so the bit lies in the set.
    let usable = |core: &usize| unsafe { libc::CPU_ISSET(*core, &set) };
    Ok((0..CORES_MAX).filter(usable).collect())
}

/// Keeps the calling thread on one core.
pub fn pin_to_core(core: usize) -> io::Result<()> {
    if core >= CORES_MAX {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: all zeroes is an empty set.
    let mut set = unsafe { MaybeUninit::<libc::cpu_set_t>::zeroed().assume_init() };
    // SAFETY: core < CPU_SETSIZE, so the bit lies in the set.
    unsafe { libc::CPU_SET(core, &mut set) };
    // SAFETY: the pointer and the size are those of `set`, which the kernel only reads.
    match unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Raises the limit of open descriptors as far as the host allows and gives the limit now in force.
pub fn raise_open_files() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to `limit`.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: the pointer is to `limit`, which the kernel only reads.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(limit.rlim_cur)
}

/// Bytes that an unprivileged process may still write on the file system of `path`.
pub fn free_bytes(path: &Path) -> io::Result<u64> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut figures = MaybeUninit::<libc::statvfs>::zeroed();
    // SAFETY: the path ends with a NUL byte and the figures have the length that the call fills.
    if unsafe { libc::statvfs(path.as_ptr(), figures.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: all bytes are initialised, by the zeros or by the call.
    let figures = unsafe { figures.assume_init() };
    Ok(figures.f_bavail.saturating_mul(figures.f_frsize))
}

fn clock(id: libc::clockid_t) -> libc::timespec {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to `now`.
    let result = unsafe { libc::clock_gettime(id, &raw mut now) };
    assert_eq!(result, 0, "both clocks exist on every kernel");
    now
}

const CORES_MAX: usize = libc::CPU_SETSIZE as usize;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_moves_to_a_usable_core() {
        let cores = usable_cores().unwrap();
        let last = *cores.last().unwrap();
        std::thread::spawn(move || {
            pin_to_core(last).unwrap();
            assert_eq!(usable_cores().unwrap(), [last]);
        })
        .join()
        .unwrap();
        assert!(pin_to_core(CORES_MAX).is_err());
    }

    #[test]
    fn clocks_move_forward() {
        let before = monotonic_ns();
        assert!(monotonic_ns() >= before);
        assert!(unix_ms() > 1_700_000_000_000);
    }

    #[test]
    fn the_open_file_limit_is_raised() {
        assert!(raise_open_files().unwrap() >= 256);
    }
}

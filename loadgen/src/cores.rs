//! Which cores the gateway and the load generator run on: apart from each other, so that neither
//! takes time from the one that is measured.

use std::fmt;
use std::io;
use std::str::FromStr;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Numbers of cores, rising, at least one. Written `0`, `0,2` or `4-7`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CoreList(Vec<usize>);

/// Why a text is no list of cores.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a list of cores such as 0 or 0,2 or 4-7, each below {max}", max = CpuSet::MAX_CPU)]
pub struct CoreListFault(String);

impl CoreList {
    pub fn as_slice(&self) -> &[usize] {
        &self.0
    }

    /// Never 0.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The core for the thread of this number; threads are dealt round.
    pub fn of_thread(&self, thread: usize) -> Self {
        Self(vec![self.0[thread % self.0.len()]])
    }

    /// Keeps the calling thread, and what it starts from now on, on these cores.
    pub fn pin_thread(&self) -> io::Result<()> {
        let mut set = CpuSet::new();
        self.0.iter().for_each(|&core| set.set(core));
        Ok(sched_setaffinity(None, &set)?)
    }

    /// Those of the list that the calling thread may not use.
    pub fn unusable(&self) -> io::Result<Vec<usize>> {
        let usable = sched_getaffinity(None)?;
        Ok(self.0.iter().copied().filter(|&core| !usable.is_set(core)).collect())
    }
}

impl FromStr for CoreList {
    type Err = CoreListFault;

    fn from_str(text: &str) -> Result<Self, CoreListFault> {
        let fault = || CoreListFault(text.to_owned());
        let number =
            |text: &str| text.trim().parse::<usize>().ok().filter(|&core| core < CpuSet::MAX_CPU);
        let mut cores = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = number(first).zip(number(last)).ok_or_else(fault)?;
            if first > last {
                return Err(fault());
            }
            cores.extend(first..=last);
        }
        cores.sort_unstable();
        cores.dedup();
        Ok(Self(cores))
    }
}

impl fmt::Display for CoreList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cores: Vec<String> = self.0.iter().map(usize::to_string).collect();
        f.write_str(&cores.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read() {
        let of = |text: &str| text.parse::<CoreList>().map(|list| list.0);
        assert_eq!(of("0"), Ok(vec![0]));
        assert_eq!(of("3,1"), Ok(vec![1, 3]));
        assert_eq!(of("4-6,5"), Ok(vec![4, 5, 6]));
        for wrong in ["", "a", "2-1", "1,", "99999", "-1", "1-"] {
            assert!(of(wrong).is_err(), "{wrong}");
        }
        assert_eq!("2-3,7".parse::<CoreList>().unwrap().to_string(), "2,3,7");
    }

    #[test]
    fn a_pinned_thread_runs_where_it_should() {
        let usable: Vec<usize> = {
            let set = sched_getaffinity(None).unwrap();
            (0..CpuSet::MAX_CPU).filter(|&core| set.is_set(core)).collect()
        };
        let last = CoreList(vec![*usable.last().unwrap()]);
        std::thread::spawn(move || {
            assert!(last.unusable().unwrap().is_empty());
            last.pin_thread().unwrap();
            let set = sched_getaffinity(None).unwrap();
            assert!(set.count() == 1 && set.is_set(last.0[0]));
            let absent = CoreList(vec![CpuSet::MAX_CPU - 1]);
            assert_eq!(absent.unusable().unwrap(), [CpuSet::MAX_CPU - 1]);
        })
        .join()
        .unwrap();
    }
}

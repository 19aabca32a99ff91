//! The queue under an inbox: crossbeam's, or a model of it that loom can run.

#[cfg(not(loom))]
pub(crate) use crossbeam_queue::ArrayQueue as Queue;

#[cfg(loom)]
pub(crate) use model::Queue;

/// Promises less than crossbeam's queue, so that what holds here holds there. An item that is being
/// put in counts before it can be taken, and the count is read and changed without any ordering: the
/// inbox must get all of that from the group's fences.
#[cfg(loom)]
mod model {
    use std::collections::VecDeque;

    use loom::sync::Mutex;
    use loom::sync::atomic::{AtomicUsize, Ordering};

    pub(crate) struct Queue<T> {
        items: Mutex<VecDeque<T>>,
        count: AtomicUsize,
        capacity: usize,
    }

    impl<T> Queue<T> {
        pub(crate) fn new(capacity: usize) -> Self {
            Self { items: Mutex::new(VecDeque::new()), count: AtomicUsize::new(0), capacity }
        }

        pub(crate) fn push(&self, item: T) -> Result<(), T> {
            if self.count.fetch_add(1, Ordering::Relaxed) >= self.capacity {
                self.count.fetch_sub(1, Ordering::Relaxed);
                return Err(item);
            }
            self.items.lock().expect("no thread panics with the lock").push_back(item);
            Ok(())
        }

        pub(crate) fn pop(&self) -> Option<T> {
            let item = self.items.lock().expect("no thread panics with the lock").pop_front()?;
            self.count.fetch_sub(1, Ordering::Relaxed);
            Some(item)
        }

        pub(crate) fn len(&self) -> usize {
            self.count.load(Ordering::Relaxed)
        }
    }
}

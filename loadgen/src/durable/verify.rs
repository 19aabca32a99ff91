//! From the journals of all users: what was lost, doubled, swapped or invented.

use std::collections::BTreeSet;

use anyhow::Result;
use serde::Serialize;

use super::DurablePlan;
use super::journal::{self, Entry};

/// Messages between apps that were killed. The sums over all users.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DurableCounts {
    /// Taken by the client library, which promises to deliver them.
    pub taken: u64,
    /// Given to the receiving app.
    pub delivered: u64,
    /// Refused by the server, and told.
    pub refused: u64,
    pub lost: u64,
    pub duplicated: u64,
    pub reordered: u64,
    /// Given to an app though nobody sent them.
    pub invented: u64,
    /// Gaps told to apps.
    pub gaps: u64,
}

impl DurableCounts {
    /// Every message was delivered once and in order, or told to be refused.
    pub fn is_kept(&self) -> bool {
        self.lost == 0
            && self.duplicated == 0
            && self.reordered == 0
            && self.invented == 0
            && self.gaps == 0
    }

    fn add(&mut self, other: &Self) {
        self.taken += other.taken;
        self.delivered += other.delivered;
        self.refused += other.refused;
        self.lost += other.lost;
        self.duplicated += other.duplicated;
        self.reordered += other.reordered;
        self.invented += other.invented;
        self.gaps += other.gaps;
    }
}

/// Reads all journals.
pub fn verify(plan: &DurablePlan) -> Result<DurableCounts> {
    let mut counts = DurableCounts::default();
    for user in 0..plan.users() {
        let sender = journal::read(&plan.user_directory(user).join(SENT))?;
        let sender_news = journal::read(&plan.user_directory(user).join(RECEIVED))?;
        let receiver = journal::read(&plan.user_directory(plan.peer(user)).join(RECEIVED))?;
        counts.add(&verify_stream(&sender, &sender_news, &receiver));
    }
    Ok(counts)
}

/// One direction between two users. A message that was being sent when its app died may or may not
/// have been taken: it need not arrive, but once at most.
pub fn verify_stream(sender: &[Entry], sender_news: &[Entry], receiver: &[Entry]) -> DurableCounts {
    let mut counts = DurableCounts::default();
    let sending: BTreeSet<u64> = sender
        .iter()
        .filter_map(|entry| match entry {
            Entry::Sending(number) => Some(*number),
            _ => None,
        })
        .collect();
    let refused: BTreeSet<u64> = sender_news
        .iter()
        .filter_map(|entry| match entry {
            Entry::Refused { send_id } => Some(*send_id),
            _ => None,
        })
        .collect();
    let mut seen = BTreeSet::new();
    for entry in receiver {
        match entry {
            Entry::News { number: Some(number), .. } => {
                if !sending.contains(number) {
                    counts.invented += 1;
                } else if seen.contains(number) {
                    counts.duplicated += 1;
                } else {
                    counts.reordered += u64::from(seen.last() > Some(number));
                    counts.delivered += 1;
                    seen.insert(*number);
                }
            }
            Entry::Gap { .. } => counts.gaps += 1,
            _ => {}
        }
    }
    for entry in sender {
        if let Entry::Taken { number, send_id } = entry {
            counts.taken += 1;
            if refused.contains(send_id) {
                counts.refused += 1;
                counts.duplicated += u64::from(seen.contains(number));
            } else {
                counts.lost += u64::from(!seen.contains(number));
            }
        }
    }
    counts
}

/// Names of the journals in a user's directory.
pub const SENT: &str = "sent";
pub const RECEIVED: &str = "received";

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(numbers: &[u64]) -> Vec<Entry> {
        numbers
            .iter()
            .flat_map(|&number| {
                [Entry::Sending(number), Entry::Taken { number, send_id: number + 100 }]
            })
            .collect()
    }

    fn received(numbers: &[u64]) -> Vec<Entry> {
        (1..)
            .zip(numbers)
            .map(|(event_id, &number)| Entry::News { event_id, number: Some(number) })
            .collect()
    }

    #[test]
    fn what_arrives_once_and_in_order_is_kept() {
        let counts = verify_stream(&sent(&[1, 2, 3]), &[], &received(&[1, 2, 3]));
        assert_eq!((counts.taken, counts.delivered), (3, 3));
        assert!(counts.is_kept());
    }

    #[test]
    fn loss_doubling_reordering_and_invention_are_found() {
        let lost = verify_stream(&sent(&[1, 2, 3]), &[], &received(&[1, 3]));
        assert_eq!((lost.lost, lost.is_kept()), (1, false));
        let doubled = verify_stream(&sent(&[1, 2]), &[], &received(&[1, 2, 1]));
        assert_eq!((doubled.duplicated, doubled.reordered, doubled.is_kept()), (1, 0, false));
        let swapped = verify_stream(&sent(&[1, 2, 3]), &[], &received(&[1, 3, 2]));
        assert_eq!((swapped.reordered, swapped.lost, swapped.is_kept()), (1, 0, false));
        let invented = verify_stream(&sent(&[1]), &[], &received(&[1, 9]));
        assert_eq!((invented.invented, invented.is_kept()), (1, false));
        let gap = verify_stream(&[], &[], &[Entry::Gap { event_id: 1 }]);
        assert!(!gap.is_kept());
    }

    #[test]
    fn what_was_being_sent_at_a_death_may_arrive_once_or_not() {
        let mut sender = sent(&[1]);
        sender.push(Entry::Sending(2));
        sender.extend(sent(&[3]));
        assert!(verify_stream(&sender, &[], &received(&[1, 3])).is_kept());
        assert!(verify_stream(&sender, &[], &received(&[1, 2, 3])).is_kept());
        assert!(!verify_stream(&sender, &[], &received(&[1, 2, 2, 3])).is_kept());
    }

    #[test]
    fn what_was_refused_is_not_lost_and_must_not_arrive() {
        let refusal = [Entry::Refused { send_id: 102 }];
        let counts = verify_stream(&sent(&[1, 2, 3]), &refusal, &received(&[1, 3]));
        assert_eq!((counts.refused, counts.lost), (1, 0));
        assert!(counts.is_kept());
        assert!(!verify_stream(&sent(&[1, 2, 3]), &refusal, &received(&[1, 2, 3])).is_kept());
    }
}

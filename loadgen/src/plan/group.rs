//! One group, and who says how much in it.

use anyhow::{Result, ensure};
use ringpost_protocol::limits::{DEVICES_PER_USER_MAX, ENVELOPE_BYTES_MAX, GROUP_MEMBERS_MAX};

use crate::plan::mix;

/// Members of one group who all talk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupPlan {
    pub members: u32,
    pub devices_per_member: u32,
    pub messages: u64,
    pub payload_bytes: usize,
    /// Of the roster, while members talk: one is taken out, or comes back.
    pub changes: u32,
    pub seed: u64,
}

impl GroupPlan {
    pub fn check(&self) -> Result<()> {
        let members_max = u32::try_from(GROUP_MEMBERS_MAX).expect("a small constant");
        ensure!(
            (2..=members_max).contains(&self.members),
            "--members must be 2 to {members_max}: a group has no more"
        );
        let devices_max = u32::try_from(DEVICES_PER_USER_MAX).expect("a small constant");
        ensure!(
            (1..=devices_max).contains(&self.devices_per_member),
            "--devices-per-member must be 1 to {devices_max}: a user has no more"
        );
        ensure!(self.messages >= 1, "--messages must be at least 1");
        ensure!(
            (GROUP_PAYLOAD_BYTES_MIN..=ENVELOPE_BYTES_MAX).contains(&self.payload_bytes),
            "--payload must be {GROUP_PAYLOAD_BYTES_MIN} to {ENVELOPE_BYTES_MAX} bytes: it carries \
             the message's number, the version of the roster and the time at which it left"
        );
        ensure!(
            u64::from(self.changes) <= self.messages,
            "--changes must be at most --messages: they are spread over these"
        );
        Ok(())
    }

    /// Devices of all members.
    pub fn devices(&self) -> u32 {
        self.members * self.devices_per_member
    }

    /// The device that sends the message with this number: the first one of a random member.
    pub fn sender(&self, number: u64) -> u32 {
        let member = mix(self.seed ^ mix(number)) % u64::from(self.members);
        u32::try_from(member).expect("below a u32") * self.devices_per_member
    }

    /// The numbers of what a device sends, rising.
    pub fn messages_of(&self, device: u32) -> Vec<u64> {
        (0..self.messages).filter(|&number| self.sender(number) == device).collect()
    }
}

/// Number, version and time.
pub const GROUP_PAYLOAD_BYTES_MIN: usize = 24;

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(members: u32, devices_per_member: u32) -> GroupPlan {
        GroupPlan {
            members,
            devices_per_member,
            messages: 1_000,
            payload_bytes: 200,
            changes: 20,
            seed: 7,
        }
    }

    #[test]
    fn every_message_has_one_sender_and_most_members_send() {
        let plan = plan(10, 2);
        let shares: Vec<usize> =
            (0..plan.devices()).map(|device| plan.messages_of(device).len()).collect();
        assert_eq!(shares.iter().sum::<usize>(), 1_000);
        assert!(shares.iter().step_by(2).all(|&share| share > 50), "{shares:?}");
        assert!(shares.iter().skip(1).step_by(2).all(|&share| share == 0), "{shares:?}");
    }

    #[test]
    fn what_a_group_cannot_have_is_refused() {
        assert!(plan(100, 16).check().is_ok() && plan(2, 1).check().is_ok());
        for wrong in [plan(101, 1), plan(1, 1), plan(2, 17), plan(2, 0)] {
            assert!(wrong.check().is_err(), "{wrong:?}");
        }
        assert!(GroupPlan { payload_bytes: 23, ..plan(2, 1) }.check().is_err());
        assert!(GroupPlan { messages: 0, ..plan(2, 1) }.check().is_err());
        assert!(GroupPlan { changes: 1_001, ..plan(2, 1) }.check().is_err());
    }
}

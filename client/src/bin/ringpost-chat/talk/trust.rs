//! Who is who: safety numbers, the comparison of short ones, and one's own devices.

use anyhow::Context;
use ringpost_client::messenger::News;
use ringpost_client::protocol::id::{DeviceId, UserId};

use super::Talk;
use crate::printable;

impl Talk {
    /// What of a command is left to be done here; false: it is none of these.
    pub(super) async fn trust_command(&mut self, words: &[&str]) -> anyhow::Result<bool> {
        match *words {
            ["verify", name, "short"] => {
                self.messenger.start_verification(&self.names.user(name)?).await?;
                self.say(&format!("-- the numbers come when {name} wants to compare, too"));
            }
            ["same", name] => {
                self.messenger.finish_verification(&self.names.user(name)?, true).await?;
            }
            ["differ", name] => {
                self.messenger.finish_verification(&self.names.user(name)?, false).await?;
                self.warn(name);
            }
            ["verify", name, ref heard @ ..] => self.verify(name, &heard.concat()).await?,
            ["accept", name] => {
                self.messenger.accept_identity(&self.names.user(name)?).await?;
                self.say(&format!("-- {name} is trusted again; compare with /verify {name}"));
            }
            ["devices"] => self.show_devices(self.own.clone()).await?,
            ["devices", name] => self.show_devices(self.names.user(name)?).await?,
            ["link"] => match self.messenger.link_code().await? {
                Some(code) => self.say(&format!("-- type on a device that you have: /link {code}")),
                None => self.say("-- this device is one of yours already"),
            },
            ["link", code] => {
                self.messenger.link_device(code).await?;
                self.say("-- the new device is being linked");
            }
            ["unlink", device] => {
                self.messenger.remove_device(&DeviceId::new(device)?).await?;
                self.say(&format!("-- {device} is being removed"));
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    async fn show_devices(&mut self, user: UserId) -> anyhow::Result<()> {
        let name = printable(&self.names.of_user(&user));
        let devices = self.messenger.devices(&user).await?;
        let devices = devices.with_context(|| format!("write to {name} first"))?;
        let devices: Vec<&str> = devices.iter().map(DeviceId::as_str).collect();
        self.say(&format!("-- devices of {name}: {}", devices.join(", ")));
        Ok(())
    }

    /// Shows the safety number, or compares it with what the other one has read out.
    async fn verify(&mut self, name: &str, heard: &str) -> anyhow::Result<()> {
        let user = self.names.user(name)?;
        if !heard.is_empty() {
            match self.messenger.compare_safety_number(&user, heard).await? {
                true => self
                    .say(&format!("-- the numbers are the same: nobody is between you and {name}")),
                false => self.warn(name),
            }
            return Ok(());
        }
        let number = self.messenger.safety_number(&user).await?;
        let number = number.with_context(|| format!("write to {name} first"))?;
        let digits: String = number.chars().filter(char::is_ascii_digit).collect();
        let groups: Vec<&str> = (0..digits.len())
            .step_by(GROUP_DIGITS)
            .map(|at| &digits[at..digits.len().min(at + GROUP_DIGITS)])
            .collect();
        self.say(&format!("-- safety number with {name}: {}", groups.join(" ")));
        if self.messenger.is_verified(&user).await? {
            self.say(&format!("-- {name} is verified"));
        }
        Ok(())
    }

    fn warn(&mut self, name: &str) {
        self.say(&format!("-- THE NUMBERS DIFFER: somebody may read what you and {name} write"));
    }

    /// News of these things; others are left alone.
    pub(super) fn show_trust(&mut self, news: &News) {
        let name = |talk: &Self, user: &UserId| printable(&talk.names.of_user(user));
        match news {
            News::Linked => self.say("-- this device is one of yours now"),
            News::Devices { devices } => {
                let devices: Vec<&str> = devices.iter().map(DeviceId::as_str).collect();
                self.say(&format!("-- your devices are now: {}", devices.join(", ")));
            }
            News::VerificationAsked { user } => {
                let name = name(self, user);
                self.say(&format!("-- {name} wants to compare numbers: /verify {name} short"));
            }
            News::Compare { user, numbers } => {
                let (name, [first, second, third]) = (name(self, user), numbers);
                self.say(&format!("-- numbers of you and {name}: {first} {second} {third}"));
                self.say(&format!("-- does {name} see them, too? /same {name} or /differ {name}"));
            }
            News::Verified { user } => {
                let name = name(self, user);
                self.say(&format!("-- {name} is verified"));
            }
            News::VerificationFailed { user, reason } => {
                let name = name(self, user);
                self.say(&format!("-- {name}: {reason}"));
            }
            _ => {}
        }
    }
}

/// How the number is read out.
const GROUP_DIGITS: usize = 5;

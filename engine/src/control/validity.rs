//! How long a certificate is valid: the one thing that rustls does not tell of its own.
//!
//! A walk over the DER (X.690) of an X.509 certificate (RFC 5280, section 4.1) down to its Validity.

use std::time::{SystemTime, UNIX_EPOCH};

/// The time in which a certificate is valid, both ends included; seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    pub not_before_unix_s: u64,
    pub not_after_unix_s: u64,
}

/// Where a moment stands to a [`Validity`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    NotYet,
    /// Whole days that are left.
    Valid {
        days: u64,
    },
    Expired {
        days_ago: u64,
    },
}

impl Validity {
    /// `None`: this is no X.509 certificate.
    pub fn of(certificate: &[u8]) -> Option<Self> {
        let mut to_be_signed = Der(Der(certificate).read(SEQUENCE)?).read(SEQUENCE).map(Der)?;
        if to_be_signed.0.first() == Some(&VERSION) {
            to_be_signed.read(VERSION)?;
        }
        to_be_signed.read(INTEGER)?; // serial number
        to_be_signed.read(SEQUENCE)?; // signature algorithm
        to_be_signed.read(SEQUENCE)?; // issuer
        let mut validity = to_be_signed.read(SEQUENCE).map(Der)?;
        let (not_before_unix_s, not_after_unix_s) = (validity.read_time()?, validity.read_time()?);
        Some(Self { not_before_unix_s, not_after_unix_s })
    }

    pub fn at(&self, unix_s: u64) -> Standing {
        if unix_s < self.not_before_unix_s {
            Standing::NotYet
        } else if unix_s > self.not_after_unix_s {
            Standing::Expired { days_ago: (unix_s - self.not_after_unix_s) / DAY_S }
        } else {
            Standing::Valid { days: (self.not_after_unix_s - unix_s) / DAY_S }
        }
    }

    pub fn now(&self) -> Standing {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.at(since_epoch.as_secs())
    }
}

/// Encoded values, one behind the other.
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    /// The content of the next value, which must have this tag.
    fn read(&mut self, tag: u8) -> Option<&'a [u8]> {
        let (&found, rest) = self.0.split_first()?;
        let (&first, mut rest) = rest.split_first()?;
        let mut length = usize::from(first);
        if first >= 0x80 {
            let (digits, behind) = rest.split_at_checked(usize::from(first & 0x7f))?;
            if digits.is_empty() || digits.len() > LENGTH_DIGITS_MAX {
                return None;
            }
            length = digits.iter().fold(0, |sum, &digit| sum << 8 | usize::from(digit));
            rest = behind;
        }
        let (content, behind) = rest.split_at_checked(length)?;
        self.0 = behind;
        (found == tag).then_some(content)
    }

    /// YYMMDDHHMMSSZ or YYYYMMDDHHMMSSZ (RFC 5280, section 4.1.2.5).
    fn read_time(&mut self) -> Option<u64> {
        let general = *self.0.first()? == GENERALIZED_TIME;
        let text = self.read(if general { GENERALIZED_TIME } else { UTC_TIME })?;
        let digits = text.strip_suffix(b"Z")?;
        if digits.len() != if general { 14 } else { 12 } || !digits.iter().all(u8::is_ascii_digit) {
            return None;
        }
        let number = |part: &[u8]| part.iter().fold(0, |sum, &d| sum * 10 + u64::from(d - b'0'));
        let (year, rest) = digits.split_at(if general { 4 } else { 2 });
        let year = match (general, number(year)) {
            (true, year) => year,
            (false, year @ 50..) => 1900 + year,
            (false, year) => 2000 + year,
        };
        let part = |index: usize| number(&rest[2 * index..2 * index + 2]);
        let days = days_since_epoch(year, part(0), part(1))?;
        Some(days * DAY_S + part(2) * 3600 + part(3) * 60 + part(4))
    }
}

fn days_since_epoch(year: u64, month: u64, day: u64) -> Option<u64> {
    let leaps = |year: u64| year / 4 - year / 100 + year / 400;
    let is_leap = leaps(year) > leaps(year.checked_sub(1)?);
    let before = *DAYS_BEFORE_MONTH.get(usize::try_from(month).ok()?.checked_sub(1)?)?;
    let leap_day = u64::from(is_leap && month > 2);
    let years = year.checked_sub(1970)?;
    let leap_days = leaps(year - 1) - leaps(1969);
    Some(years * 365 + leap_days + before + leap_day + day.checked_sub(1)?)
}

const DAYS_BEFORE_MONTH: [u64; 12] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
const DAY_S: u64 = 86_400;
/// Certificates are far below 4 GiB.
const LENGTH_DIGITS_MAX: usize = 4;

const INTEGER: u8 = 0x02;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
/// Explicit tag 0.
const VERSION: u8 = 0xa0;

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;

    fn certificate(from: (i32, u8, u8), to: (i32, u8, u8)) -> Vec<u8> {
        let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        params.not_before = date_time_ymd(from.0, from.1, from.2);
        params.not_after = date_time_ymd(to.0, to.1, to.2);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    #[test]
    fn both_ends_are_read_in_both_forms_of_time() {
        for (from, to, seconds) in [
            ((1975, 1, 1), (2024, 2, 29), [157_766_400, 1_709_164_800]),
            ((2000, 3, 1), (2049, 12, 31), [951_868_800, 2_524_521_600]),
            ((2026, 11, 22), (2100, 3, 1), [1_795_305_600, 4_107_542_400]),
            ((1970, 1, 1), (4096, 1, 1), [0, 67_090_118_400]),
        ] {
            let validity = Validity::of(&certificate(from, to)).unwrap();
            assert_eq!([validity.not_before_unix_s, validity.not_after_unix_s], seconds);
        }
    }

    #[test]
    fn a_moment_stands_before_within_or_after() {
        let validity = Validity { not_before_unix_s: 1_000, not_after_unix_s: 1_000 + 3 * DAY_S };
        assert_eq!(validity.at(999), Standing::NotYet);
        assert_eq!(validity.at(1_000), Standing::Valid { days: 3 });
        assert_eq!(validity.at(1_001), Standing::Valid { days: 2 });
        assert_eq!(validity.at(1_001 + 3 * DAY_S), Standing::Expired { days_ago: 0 });
        assert_eq!(validity.at(1_000 + 5 * DAY_S), Standing::Expired { days_ago: 2 });
    }

    #[test]
    fn damage_is_no_certificate_and_no_panic() {
        let whole = certificate((2020, 1, 1), (2030, 1, 1));
        for length in 0..whole.len() {
            assert_eq!(Validity::of(&whole[..length]), None, "{length}");
        }
        for index in 0..120 {
            for bit in 0..8 {
                let mut damaged = whole.clone();
                damaged[index] ^= 1 << bit;
                let _ = Validity::of(&damaged);
            }
        }
    }
}

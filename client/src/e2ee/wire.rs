//! The binary encoding of what is signed or hashed: fixed fields, big-endian numbers, text behind
//! its length. There is exactly one encoding of each value, so a signature covers one meaning.

use ringpost_protocol::id::{DeviceAddress, DeviceId, UserId};

use super::fault::Fault;

/// Takes fields off the front. Nothing is allocated before its length is known to be there.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
    /// Names the input in faults.
    what: &'static str,
}

impl<'a> Reader<'a> {
    pub(super) fn new(what: &'static str, bytes: &'a [u8]) -> Self {
        Self { rest: bytes, what }
    }

    pub(super) fn fault(&self) -> Fault {
        Fault::Malformed(self.what)
    }

    pub(super) fn slice(&mut self, bytes: usize) -> Result<&'a [u8], Fault> {
        let (taken, rest) = self.rest.split_at_checked(bytes).ok_or_else(|| self.fault())?;
        self.rest = rest;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        Ok(self.slice(N)?.try_into().expect("slice gives N bytes"))
    }

    pub(super) fn u8(&mut self) -> Result<u8, Fault> {
        Ok(self.array::<1>()?[0])
    }

    pub(super) fn u32(&mut self) -> Result<u32, Fault> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, Fault> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    /// 0 or 1; anything else would be a second encoding.
    pub(super) fn flag(&mut self) -> Result<bool, Fault> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(self.fault()),
        }
    }

    /// The byte that begins every encoding.
    pub(super) fn version(&mut self, expected: u8) -> Result<(), Fault> {
        if self.u8()? == expected { Ok(()) } else { Err(self.fault()) }
    }

    pub(super) fn user(&mut self) -> Result<UserId, Fault> {
        UserId::new(self.text()?).map_err(|_| self.fault())
    }

    pub(super) fn device(&mut self) -> Result<DeviceId, Fault> {
        DeviceId::new(self.text()?).map_err(|_| self.fault())
    }

    pub(super) fn rest(self) -> &'a [u8] {
        self.rest
    }

    pub(super) fn finish(self) -> Result<(), Fault> {
        if self.rest.is_empty() { Ok(()) } else { Err(self.fault()) }
    }

    fn text(&mut self) -> Result<&'a str, Fault> {
        let bytes = self.u8()?;
        std::str::from_utf8(self.slice(bytes.into())?).map_err(|_| self.fault())
    }
}

pub(super) fn put_user(out: &mut Vec<u8>, user: &UserId) {
    put_text(out, user.as_str());
}

pub(super) fn put_device(out: &mut Vec<u8>, device: &DeviceId) {
    put_text(out, device.as_str());
}

pub(super) fn put_address(out: &mut Vec<u8>, address: &DeviceAddress) {
    put_user(out, &address.user);
    put_device(out, &address.device);
}

/// For what must be text: keys of JSON's maps, and the strings that vodozemac hashes.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Undoes [`hex`], and takes nothing else but capital digits.
pub(crate) fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16).and_then(|digit| digit.try_into().ok());
    let digits: Vec<u8> = text.as_bytes().iter().map(digit).collect::<Option<_>>()?;
    let (pairs, rest) = digits.as_chunks::<2>();
    rest.is_empty().then(|| pairs.iter().map(|[high, low]| high << 4 | low).collect())
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.push(u8::try_from(text.len()).expect("an id has at most 128 bytes"));
    out.extend_from_slice(text.as_bytes());
}

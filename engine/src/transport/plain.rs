//! Bytes as they are, for the simulator.

use bytes::BytesMut;

use super::{Peer, TransportFault};

pub struct Plain;

impl Plain {
    // A Result like its encrypted sibling's, so that both stand in one match.
    #[allow(clippy::unnecessary_wraps, clippy::unused_self)]
    pub(super) fn handle_ciphertext(
        &mut self,
        data: &[u8],
        plaintext: &mut BytesMut,
    ) -> Result<Peer, TransportFault> {
        plaintext.extend_from_slice(data);
        Ok(Peer::Open)
    }

    #[allow(clippy::unused_self)]
    pub(super) fn seal(&mut self, plaintext: &[u8], ciphertext: &mut Vec<u8>) {
        ciphertext.extend_from_slice(plaintext);
    }
}

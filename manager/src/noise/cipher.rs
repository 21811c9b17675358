//! One direction of a connection after the handshake: ChaCha20-Poly1305, in place.

use std::io;

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

/// What the cipher adds to each message.
pub(super) const TAG: usize = 16;

/// A key and the number of its next message (Noise, section 5.1).
pub(super) struct Cipher {
    key: LessSafeKey,
    next: u64,
}

impl Cipher {
    pub(super) fn new(key: &[u8; 32]) -> io::Result<Self> {
        let key = UnboundKey::new(&CHACHA20_POLY1305, key)
            .map_err(|_| io::Error::other("the key has the wrong length"))?;
        Ok(Self {
            key: LessSafeKey::new(key),
            next: 0,
        })
    }

    /// No number comes twice; the last one is reserved.
    fn nonce(&mut self) -> io::Result<Nonce> {
        if self.next == u64::MAX {
            return Err(io::Error::other("the Noise key is used up"));
        }
        // Four bytes of zeros, then the number in little endian (Noise, section 12.3).
        let nonce = u128::from(self.next) << 32;
        self.next += 1;
        let mut bytes = [0; NONCE_LEN];
        for (to, from) in bytes.iter_mut().zip(nonce.to_le_bytes()) {
            *to = from;
        }
        Ok(Nonce::assume_unique_for_key(bytes))
    }

    /// Encrypts in place; what is returned comes behind it.
    pub(super) fn seal(&mut self, message: &mut [u8]) -> io::Result<[u8; TAG]> {
        let nonce = self.nonce()?;
        let tag = self
            .key
            .seal_in_place_separate_tag(nonce, Aad::empty(), message)
            .map_err(|_| io::Error::other("the message is too long to encrypt"))?;
        tag.as_ref()
            .try_into()
            .map_err(|_| io::Error::other("the cipher's tag has another length"))
    }

    /// Decrypts in place; so many bytes at its beginning are the plaintext.
    pub(super) fn open(&mut self, message: &mut [u8]) -> io::Result<usize> {
        let nonce = self.nonce()?;
        let plain = self
            .key
            .open_in_place(nonce, Aad::empty(), message)
            .map_err(|_| {
                io::Error::new(
                    io::ErrorKind::InvalidData,
                    "a Noise message was changed on its way",
                )
            })?;
        Ok(plain.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_in_little_endian_behind_four_zeros() {
        let mut cipher = Cipher::new(&[1; 32]).unwrap();
        cipher.next = 0x0102_0304_0506_0708;
        let nonce = cipher.nonce().unwrap();
        assert_eq!(nonce.as_ref(), &[0, 0, 0, 0, 8, 7, 6, 5, 4, 3, 2, 1]);
        assert_eq!(cipher.next, 0x0102_0304_0506_0709);
    }

    #[test]
    fn the_last_number_is_reserved() {
        let mut cipher = Cipher::new(&[1; 32]).unwrap();
        cipher.next = u64::MAX - 1;
        assert!(cipher.seal(&mut [7; 5]).is_ok());
        assert!(cipher.seal(&mut [7; 5]).is_err());
        assert!(cipher.open(&mut [7; 25]).is_err());
        assert_eq!(cipher.next, u64::MAX);
    }
}

//! What snow computes with: ring, but for X25519, whose secrets are wiped when they are dropped. Those of snow's own implementation stay in freed memory.

use snow::{
    params::{CipherChoice, DHChoice, HashChoice},
    resolvers::{CryptoResolver, RingResolver},
    types::{Cipher, Dh, Hash, Random},
};
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

/// Bytes of a key, secret or public.
const KEY: usize = 32;

pub(super) struct Resolver;

impl CryptoResolver for Resolver {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        RingResolver.resolve_rng()
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        match choice {
            DHChoice::Curve25519 => Some(Box::new(X25519::from(StaticSecret::from([0; KEY])))),
            _ => None,
        }
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        RingResolver.resolve_hash(choice)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        RingResolver.resolve_cipher(choice)
    }
}

struct X25519 {
    secret: StaticSecret,
    public: PublicKey,
}

impl From<StaticSecret> for X25519 {
    fn from(secret: StaticSecret) -> Self {
        let public = PublicKey::from(&secret);
        Self { secret, public }
    }
}

impl Dh for X25519 {
    fn name(&self) -> &'static str {
        "25519"
    }

    fn pub_len(&self) -> usize {
        KEY
    }

    fn priv_len(&self) -> usize {
        KEY
    }

    fn set(&mut self, secret: &[u8]) {
        let mut bytes = Zeroizing::new([0; KEY]);
        for (to, from) in bytes.iter_mut().zip(secret) {
            *to = *from;
        }
        *self = StaticSecret::from(*bytes).into();
    }

    fn generate(&mut self, rng: &mut dyn Random) -> Result<(), snow::Error> {
        let mut bytes = Zeroizing::new([0; KEY]);
        rng.try_fill_bytes(&mut *bytes)?;
        *self = StaticSecret::from(*bytes).into();
        Ok(())
    }

    fn pubkey(&self) -> &[u8] {
        self.public.as_bytes()
    }

    fn privkey(&self) -> &[u8] {
        self.secret.as_bytes()
    }

    fn dh(&self, public: &[u8], out: &mut [u8]) -> Result<(), snow::Error> {
        // snow hands over buffers that may be longer than a key.
        let public = public.first_chunk::<KEY>().ok_or(snow::Error::Dh)?;
        let out = out.first_chunk_mut::<KEY>().ok_or(snow::Error::Dh)?;
        *out = *self
            .secret
            .diffie_hellman(&PublicKey::from(*public))
            .as_bytes();
        Ok(())
    }
}

//! Who the peer is: a Noise handshake on the first data channel, which the server begins
//! ([specification](https://github.com/libp2p/specs/blob/master/webrtc/webrtc-direct.md#connection-security)).

use std::future::poll_fn;

use futures::future::{Either, select};
use libp2p::{
    PeerId,
    core::{
        UpgradeInfo as _,
        upgrade::{InboundConnectionUpgrade as _, OutboundConnectionUpgrade as _},
    },
    identity::Keypair,
    noise,
};

use super::{
    Error,
    core::{Fingerprint, Fingerprints},
    driver::Driver,
    muxer::{Muxer, Stream},
};

/// Which end we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Client,
    Server,
}

/// Drives a connection from its first datagram to the peer's identity.
pub(super) async fn upgrade(
    mut driver: Driver,
    role: Role,
    keypair: Keypair,
) -> Result<(PeerId, Muxer), Error> {
    let (fingerprints, stream) = poll_fn(|context| driver.poll_secured(context)).await?;
    let handshake = Box::pin(authenticate(stream, role, &keypair, fingerprints));
    let driving = poll_fn(|context| driver.poll(context));
    let peer = match select(handshake, driving).await {
        Either::Left((peer, _)) => peer?,
        Either::Right((reason, _)) => return Err(reason.into()),
    };
    driver.on_authenticated();
    Ok((peer, Muxer::new(driver)))
}

async fn authenticate(
    stream: Stream,
    role: Role,
    keypair: &Keypair,
    fingerprints: Fingerprints,
) -> Result<PeerId, noise::Error> {
    let noise = noise::Config::new(keypair)?.with_prologue(prologue(fingerprints));
    let name = noise.protocol_info().next().unwrap_or_default();
    // The server may send first, so it is the initiator.
    let (peer, _) = match role {
        Role::Server => noise.upgrade_outbound(stream, name).await?,
        Role::Client => noise.upgrade_inbound(stream, name).await?,
    };
    Ok(peer)
}

/// Binds the certificates to the identities: `libp2p-webrtc-noise:<client><server>`, as multihashes.
fn prologue(fingerprints: Fingerprints) -> Vec<u8> {
    let multihash = |fingerprint: Fingerprint| [&[0x12, 32], &fingerprint.0[..]].concat();
    [
        b"libp2p-webrtc-noise:".to_vec(),
        multihash(fingerprints.client),
        multihash(fingerprints.server),
    ]
    .concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prologue_is_that_of_the_specification() {
        let fingerprint = |text: &str| {
            let bytes: Vec<u8> = hex::decode(text).unwrap();
            Fingerprint(bytes.try_into().unwrap())
        };
        let (client, server) = (
            "3e79af40d6059617a0d83b83a52ce73b0c1f37a72c6043ad2969e2351bdca870",
            "30fc9f469c207419dfdd0aab5f27a86c973c94e40548db9375cca2e915973b99",
        );
        let prologue = prologue(Fingerprints {
            client: fingerprint(client),
            server: fingerprint(server),
        });
        let expected = format!("6c69627032702d7765627274632d6e6f6973653a1220{client}1220{server}");
        assert_eq!(hex::encode(prologue), expected);
    }
}

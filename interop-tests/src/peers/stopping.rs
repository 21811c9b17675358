//! A bare QUIC peer that ends the other direction of a stream before its own.

#![expect(
    clippy::disallowed_methods,
    reason = "a peer for tests, which run on tokio"
)]

use super::{Error, Transport};
use libp2p::identity::Keypair;
use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId, StreamProtocol, tls};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{
    ClientConfig, Connection, Endpoint, ReadError, ReadExactError, RecvStream, SendStream,
    ServerConfig,
};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// Why what py-libp2p is answered over QUIC is lost at times, and always where [`Stopping`] answers.
pub const PY_STOPS: &str = "py-libp2p takes STOP_SENDING on a stream that it opened for the end of both directions (`handle_stop_sending` in `transport/quic/stream.py` sets CLOSED, and `read` raises); it asks for the end of one (RFC 9000, sections 2.4 and 3.5), and whoever is done with a stream once the answer is written sends it";

/// What no step takes on a busy machine unless something is broken.
const PATIENCE: Duration = Duration::from_secs(20);

const MULTISTREAM: &str = "/multistream/1.0.0";
const PING: &str = "/ipfs/ping/1.0.0";
const PING_BYTES: usize = 32;

/// A peer handles what comes in one connection in its order, so that what it was sent before a ping is through with it once the ping is back.
/// Several, as it may read ahead.
const PINGS: usize = 4;

/// Speaks one protocol over QUIC: answers whoever asks in it, always the same.
///
/// It sends STOP_SENDING as soon as it knows what is asked, and answers then: a stream's directions end each for itself (RFC 9000, section 2.4).
/// Who drops a stream once the answer is written does it in any order, as packets go; here the order is always the same.
#[derive(Debug)]
pub struct Stopping {
    endpoint: Endpoint,
    client: ClientConfig,
    id: PeerId,
    answer: Answer,
}

#[derive(Debug, Clone)]
struct Answer {
    protocol: StreamProtocol,
    stops: bool,
    message: Arc<[u8]>,
    arrived: Arc<Semaphore>,
}

impl Stopping {
    /// Listens on loopback. Without `stops`, it does not send STOP_SENDING, and all else as it does with it.
    ///
    /// # Errors
    ///
    /// It cannot listen.
    pub fn start(
        key: &Keypair,
        protocol: StreamProtocol,
        message: impl Into<Arc<[u8]>>,
        stops: bool,
    ) -> Result<Self, Error> {
        let server = tls::make_server_config(key).map_err(other)?;
        let server = QuicServerConfig::try_from(server).map_err(other)?;
        let client = tls::make_client_config(key, None).map_err(other)?;
        let client = QuicClientConfig::try_from(client).map_err(other)?;
        let endpoint = Endpoint::server(
            ServerConfig::with_crypto(Arc::new(server)),
            SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        )?;
        let answer = Answer {
            protocol,
            stops,
            message: message.into(),
            arrived: Arc::new(Semaphore::new(0)),
        };
        let (incoming, answers) = (endpoint.clone(), answer.clone());
        tokio::spawn(async move {
            while let Some(incoming) = incoming.accept().await {
                if let Ok(connection) = incoming.await {
                    tokio::spawn(serve(connection, answers.clone()));
                }
            }
        });
        Ok(Self {
            endpoint,
            client: ClientConfig::new(Arc::new(client)),
            id: key.public().to_peer_id(),
            answer,
        })
    }

    /// Its name.
    #[must_use]
    pub fn id(&self) -> PeerId {
        self.id
    }

    /// Where it listens, ending in its name.
    ///
    /// # Errors
    ///
    /// The socket is gone.
    pub fn address(&self) -> Result<Multiaddr, Error> {
        let port = self.endpoint.local_addr()?.port();
        let address = Transport::Quic.at(Ipv4Addr::LOCALHOST, port);
        Ok(address.with(Protocol::P2p(self.id)))
    }

    /// Dials an address of loopback and serves there, too.
    ///
    /// # Errors
    ///
    /// The dial failed.
    pub async fn dial(&self, address: &Multiaddr) -> Result<(), Error> {
        let connection = self.connect(address).await?;
        tokio::spawn(serve(connection, self.answer.clone()));
        Ok(())
    }

    /// Dials an address of loopback and tells in its protocol what it answers else; returns once that is acknowledged to the last byte.
    ///
    /// # Errors
    ///
    /// The dial failed, or the stream did.
    pub async fn tell(&self, address: &Multiaddr) -> Result<(), Error> {
        let connection = self.connect(address).await?;
        tokio::spawn(serve(connection.clone(), self.answer.clone()));
        let (mut writer, mut reader) = connection.open_bi().await.map_err(other)?;
        if self.answer.stops {
            reader.stop(0_u32.into()).map_err(other)?;
            settle(&connection).await?;
        }
        say(&mut writer, MULTISTREAM).await?;
        say(&mut writer, self.answer.protocol.as_ref()).await?;
        writer
            .write_all(&self.answer.message)
            .await
            .map_err(other)?;
        writer.finish().map_err(other)?;
        if let Some(code) = writer.stopped().await.map_err(other)? {
            return Err(Error::Wrong(format!("they sent STOP_SENDING: {code}")));
        }
        settle(&connection).await
    }

    /// Dials an address of loopback, asks in its protocol what it answers else, and looks for the answer when it must have come. With `finishes`,
    /// its own direction ends with the request. Returns whether there is an answer; else they reset the stream.
    ///
    /// # Errors
    ///
    /// The dial failed, or the stream did in another way.
    pub async fn ask(&self, address: &Multiaddr, finishes: bool) -> Result<bool, Error> {
        let connection = self.connect(address).await?;
        tokio::spawn(serve(connection.clone(), self.answer.clone()));
        let (mut writer, mut reader) = connection.open_bi().await.map_err(other)?;
        say(&mut writer, MULTISTREAM).await?;
        say(&mut writer, self.answer.protocol.as_ref()).await?;
        hear(&mut reader, MULTISTREAM).await?;
        hear(&mut reader, self.answer.protocol.as_ref()).await?;
        writer
            .write_all(&self.answer.message)
            .await
            .map_err(other)?;
        if finishes {
            writer.finish().map_err(other)?;
        }
        settle(&connection).await?;
        match reader.read_exact(&mut [0]).await {
            Ok(()) => Ok(true),
            Err(ReadExactError::ReadError(ReadError::Reset(_))) => Ok(false),
            Err(error) => Err(other(error)),
        }
    }

    async fn connect(&self, address: &Multiaddr) -> Result<Connection, Error> {
        let port = address.iter().find_map(|part| match part {
            Protocol::Udp(port) => Some(port),
            _ => None,
        });
        let port = port.ok_or_else(|| Error::Wrong(format!("{address} has no UDP port")))?;
        let at = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let dialled = self.endpoint.connect_with(self.client.clone(), at, "l");
        dialled.map_err(other)?.await.map_err(other)
    }

    /// Waits until the other side's QUIC has acknowledged another answer to its last byte.
    ///
    /// # Errors
    ///
    /// It does not.
    pub async fn arrived(&self) -> Result<(), Error> {
        let arrived = timeout(PATIENCE, self.answer.arrived.acquire()).await;
        match arrived {
            Ok(Ok(one)) => one.forget(),
            Ok(Err(closed)) => return Err(other(closed)),
            Err(_) => {
                return Err(Error::Timeout {
                    what: "acknowledged answer".to_owned(),
                    within: PATIENCE,
                });
            }
        }
        Ok(())
    }
}

async fn serve(connection: Connection, answer: Answer) {
    while let Ok((writer, reader)) = connection.accept_bi().await {
        let (connection, answer) = (connection.clone(), answer.clone());
        tokio::spawn(async move {
            // What the other side makes of it is seen there; in other protocols it is told that there is none.
            let _ = serve_one(&connection, &answer, writer, reader).await;
        });
    }
}

async fn serve_one(
    connection: &Connection,
    answer: &Answer,
    mut writer: SendStream,
    mut reader: RecvStream,
) -> Result<(), Error> {
    say(&mut writer, MULTISTREAM).await?;
    hear(&mut reader, MULTISTREAM).await?;
    loop {
        let asked = line(&mut reader).await?;
        if asked == answer.protocol.as_ref() {
            break;
        }
        say(&mut writer, "na").await?;
    }
    if answer.stops {
        reader.stop(0_u32.into()).map_err(other)?;
        settle(connection).await?;
    }
    say(&mut writer, answer.protocol.as_ref()).await?;
    settle(connection).await?;
    writer.write_all(&answer.message).await.map_err(other)?;
    writer.finish().map_err(other)?;
    if writer.stopped().await.map_err(other)?.is_none() {
        answer.arrived.add_permits(1);
    }
    Ok(())
}

/// Returns when the other side has handled what it was sent.
async fn settle(connection: &Connection) -> Result<(), Error> {
    let (mut writer, mut reader) = connection.open_bi().await.map_err(other)?;
    say(&mut writer, MULTISTREAM).await?;
    say(&mut writer, PING).await?;
    hear(&mut reader, MULTISTREAM).await?;
    hear(&mut reader, PING).await?;
    for _ in 0..PINGS {
        let sent: [u8; PING_BYTES] = rand::random();
        writer.write_all(&sent).await.map_err(other)?;
        let mut received = [0; PING_BYTES];
        reader.read_exact(&mut received).await.map_err(other)?;
        if received != sent {
            return Err(Error::Wrong("another ping came back".to_owned()));
        }
    }
    writer.finish().map_err(other)?;
    Ok(())
}

/// A line of multistream-select; all of ours are shorter than 128 bytes, so that one byte has their length.
async fn say(writer: &mut SendStream, line: &str) -> Result<(), Error> {
    let length = u8::try_from(line.len() + 1).map_err(other)?;
    let bytes = [&[length], line.as_bytes(), b"\n"].concat();
    writer.write_all(&bytes).await.map_err(other)
}

async fn line(reader: &mut RecvStream) -> Result<String, Error> {
    let mut length = [0];
    reader.read_exact(&mut length).await.map_err(other)?;
    let [length] = length;
    let mut line = vec![0; length.into()];
    reader.read_exact(&mut line).await.map_err(other)?;
    Ok(String::from_utf8(line)?.trim_end().to_owned())
}

async fn hear(reader: &mut RecvStream, expected: &str) -> Result<(), Error> {
    match line(reader).await? {
        said if said == expected => Ok(()),
        said => Err(Error::Wrong(format!("{said}, not {expected}"))),
    }
}

fn other(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Other(error.into())
}

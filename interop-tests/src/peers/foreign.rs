//! The foreign peers: which there are, and what they can be told to do.

mod universal;

use super::process::Process;
use super::{Error, directory};
use crate::lab::Host;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use cid::Cid;
use libp2p::{Multiaddr, PeerId};
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::process::Command;
use tokio::runtime::Handle;

/// What a command takes at most; a peer that needs longer has failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// What takes several intervals of the other side.
const LONG_PATIENCE: Duration = Duration::from_secs(60);

/// What moving hundreds of megabytes takes at most.
const BULK_PATIENCE: Duration = Duration::from_secs(110);

/// Starting an interpreter and loading hundreds of modules on a busy machine.
const START: Duration = Duration::from_secs(60);

/// Who wrote the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Implementation {
    /// go-libp2p and boxo.
    Go,
    /// js-libp2p and Helia on Node.
    Js,
    /// js-libp2p and Helia in a page, in Chromium.
    Browser,
    /// py-libp2p.
    Py,
}

impl Implementation {
    /// The column's name in the matrix.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Go => "go",
            Self::Js => "js",
            Self::Browser => "browser",
            Self::Py => "py",
        }
    }

    fn command(self) -> Command {
        let peers = directory();
        match self {
            Self::Go => Command::new(peers.join("go-peer")),
            Self::Js | Self::Browser => {
                let mut node = Command::new(peers.join("js/node_modules/node/bin/node"));
                node.arg(peers.join(self.name()).join("main.js"));
                node
            }
            Self::Py => {
                let mut python = Command::new(peers.join("python/venv/bin/python"));
                python.arg(peers.join("python/main.py"));
                python
            }
        }
    }
}

/// What a peer is started with.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Settings {
    /// Where it listens.
    pub listen: Vec<Multiaddr>,
    /// It relays for others, with these limits.
    pub relay: Option<RelayLimits>,
    /// `client` or `server`; without, it is in no DHT.
    pub dht: Option<&'static str>,
    /// The bitswap protocols that it speaks, best first; empty: all that it knows.
    pub bitswap: Vec<&'static str>,
    /// Announces itself over gossipsub (pubsub-peer-discovery).
    pub discovery: bool,
    /// Stands behind a NAT and punches holes (go, js, py).
    pub punch: bool,
    /// The text of the key file of its private network.
    pub swarm_key: Option<String>,
    /// Serves AutoNAT, and asks by it (go and js: version 2; py: version 1).
    pub autonat: bool,
    /// Finds others by mDNS, and is found.
    pub mdns: bool,
    /// Addresses that it announces beside those where it listens (js, browser).
    pub announce: Vec<Multiaddr>,
    /// A peer of libp2p's universal-connectivity app: its topics, its protocols, its message ids (js, go, browser).
    pub universal: bool,
}

/// Limits of a peer's relay.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct RelayLimits {
    /// Reservations at a time.
    pub max_reservations: u32,
    /// Life of a circuit; 0: any, if it may carry any number of bytes (go).
    pub seconds: u32,
    /// Bytes of a circuit in each direction; 0: any number, if it may last any time (go).
    pub bytes: u64,
}

impl RelayLimits {
    /// None that a measurement reaches (go).
    pub const NONE: Self = Self {
        max_reservations: 1 << 16,
        seconds: 0,
        bytes: 0,
    };
}

impl Default for RelayLimits {
    /// Those of the specification's reference relays.
    fn default() -> Self {
        Self {
            max_reservations: 128,
            seconds: 120,
            bytes: 128 << 10,
        }
    }
}

/// A connection as the peer sees it.
#[derive(Debug, Deserialize)]
pub struct Connection {
    /// The other end.
    pub address: Multiaddr,
    /// Whether a relay limits it.
    pub limited: bool,
}

/// What identify told the peer.
#[derive(Debug, Deserialize)]
pub struct Identity {
    /// Name and version of the program.
    pub agent: String,
    /// Protocols that it serves.
    pub protocols: Vec<String>,
    /// Where it can be reached.
    pub addresses: Vec<String>,
}

/// A reservation that the peer got.
#[derive(Debug, Deserialize)]
pub struct Reservation {
    /// Where the relay says that it is; may be empty where the implementation does not tell.
    pub addresses: Vec<Multiaddr>,
    /// How long it lasts.
    pub expires_seconds: u64,
    /// Life of a circuit; 0: any.
    pub limit_seconds: u64,
    /// Bytes of a circuit; 0: any number.
    pub limit_bytes: u64,
    /// The relay's signed word, where the implementation checks it.
    pub voucher: Option<Voucher>,
}

/// Whom the relay vouches for.
#[derive(Debug, Deserialize)]
pub struct Voucher {
    /// The relay.
    #[serde(deserialize_with = "name")]
    pub relay: PeerId,
    /// The peer that reserved.
    #[serde(deserialize_with = "name")]
    pub peer: PeerId,
}

/// A message that the peer heard on a topic.
#[derive(Debug)]
pub struct Message {
    /// Who signed it.
    pub from: String,
    /// What it says.
    pub data: Bytes,
}

/// What `fetch` brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Fetched {
    /// Bytes of all blocks.
    pub bytes: u64,
    /// From the first want to the last block, by the peer's clock.
    pub nanoseconds: u64,
}

/// What came of a dial by an AutoNAT v2 server.
#[derive(Debug, Clone, Copy)]
pub struct Tried {
    /// Whether it was there.
    pub got_through: bool,
    /// How long it tried (js).
    pub took: Option<Duration>,
}

/// A running foreign peer. Dropping it kills the process.
#[derive(Debug)]
pub struct Peer {
    process: Process,
    id: PeerId,
    listen: Vec<Multiaddr>,
}

#[derive(Deserialize)]
struct Started {
    #[serde(deserialize_with = "name")]
    peer: PeerId,
    listen: Vec<Multiaddr>,
}

#[derive(Deserialize)]
struct Named {
    #[serde(deserialize_with = "name")]
    peer: PeerId,
}

#[derive(Deserialize)]
struct Names {
    peers: Vec<String>,
}

impl Names {
    fn parse(self) -> Result<Vec<PeerId>, Error> {
        let wrong = |name: &str| Error::Wrong(format!("{name} is no peer id"));
        self.peers
            .iter()
            .map(|name| name.parse().map_err(|_| wrong(name)))
            .collect()
    }
}

/// A peer id as text.
fn name<'de, D: Deserializer<'de>>(source: D) -> Result<PeerId, D::Error> {
    String::deserialize(source)?
        .parse()
        .map_err(D::Error::custom)
}

#[derive(Deserialize)]
struct Data {
    data: String,
}

impl Data {
    fn decode(&self) -> Result<Bytes, Error> {
        Ok(BASE64.decode(&self.data)?.into())
    }
}

#[derive(Deserialize)]
struct Reachable {
    reachable: bool,
}

#[derive(Deserialize)]
struct FoundValue {
    value: String,
}

#[derive(Deserialize)]
struct Added {
    cid: String,
}

/// Command without a result.
#[derive(Deserialize)]
struct Done {}

impl Peer {
    /// Starts one.
    ///
    /// # Errors
    ///
    /// It is not installed, or does not come up.
    pub async fn start(implementation: Implementation, settings: &Settings) -> Result<Self, Error> {
        Self::started(
            Process::start(implementation.command(), Command::spawn)?,
            settings,
        )
        .await
    }

    /// As [`start`](Self::start), on a host of the lab.
    ///
    /// # Errors
    ///
    /// It is not installed, or does not come up.
    pub async fn start_on(
        host: &Host,
        implementation: Implementation,
        settings: &Settings,
    ) -> Result<Self, Error> {
        let runtime = Handle::current();
        let process = Process::start(implementation.command(), |command| {
            host.enter(|| {
                let _guard = runtime.enter();
                command.spawn()
            })
            .map_err(std::io::Error::other)?
        })?;
        Self::started(process, settings).await
    }

    async fn started(mut process: Process, settings: &Settings) -> Result<Self, Error> {
        let started = process
            .call("start", json!({ "config": settings }), START)
            .await?;
        let started: Started = serde_json::from_value(started)?;
        Ok(Self {
            process,
            id: started.peer,
            listen: started.listen,
        })
    }

    /// Its name.
    #[must_use]
    pub fn id(&self) -> PeerId {
        self.id
    }

    /// Where it listens first, ending in its name.
    ///
    /// # Errors
    ///
    /// It listens nowhere.
    pub fn address(&self) -> Result<Multiaddr, Error> {
        let none = || Error::Wrong("the peer listens nowhere".to_owned());
        self.listen.first().cloned().ok_or_else(none)
    }

    /// Ends it as it wants to end, so that it leaves nothing behind.
    ///
    /// # Errors
    ///
    /// It does not end.
    pub async fn stop(self) -> Result<(), Error> {
        self.process.stop(PATIENCE).await
    }

    async fn call<T: DeserializeOwned>(
        &mut self,
        command: &str,
        fields: Value,
    ) -> Result<T, Error> {
        let answer = self.process.call(command, fields, PATIENCE).await?;
        Ok(serde_json::from_value(answer)?)
    }

    /// Dials an address that ends in a name, relayed ones too.
    ///
    /// # Errors
    ///
    /// The peer's, as of all commands.
    pub async fn dial(&mut self, address: &Multiaddr) -> Result<PeerId, Error> {
        let dialled: Named = self.call("dial", json!({ "address": address })).await?;
        Ok(dialled.peer)
    }

    /// Its connections to a peer.
    ///
    /// # Errors
    ///
    /// The peer's.
    pub async fn connections(&mut self, peer: PeerId) -> Result<Vec<Connection>, Error> {
        #[derive(Deserialize)]
        struct Connections {
            connections: Vec<Connection>,
        }
        let found: Connections = self
            .call("connections", json!({ "peer": peer.to_string() }))
            .await?;
        Ok(found.connections)
    }

    /// What identify told it about a connected peer.
    ///
    /// # Errors
    ///
    /// The peer's.
    pub async fn identify(&mut self, peer: PeerId) -> Result<Identity, Error> {
        self.call("identify", json!({ "peer": peer.to_string() }))
            .await
    }

    /// Pings a connected peer.
    ///
    /// # Errors
    ///
    /// The peer's.
    pub async fn ping(&mut self, peer: PeerId) -> Result<Duration, Error> {
        #[derive(Deserialize)]
        struct Pong {
            microseconds: u64,
        }
        let pong: Pong = self
            .call("ping", json!({ "peer": peer.to_string() }))
            .await?;
        Ok(Duration::from_micros(pong.microseconds))
    }

    /// Sends bytes to a connected peer and waits until they came back.
    ///
    /// # Errors
    ///
    /// The peer's; the stream was reset, or other bytes came.
    pub async fn echo(&mut self, peer: PeerId, bytes: u64) -> Result<(), Error> {
        #[derive(Deserialize)]
        struct Echoed {
            bytes: u64,
        }
        let echoed: Echoed = self
            .call("echo", json!({ "peer": peer.to_string(), "bytes": bytes }))
            .await?;
        if echoed.bytes == bytes {
            Ok(())
        } else {
            Err(Error::Wrong(format!("{} of {bytes} bytes", echoed.bytes)))
        }
    }

    /// Reserves at a relay.
    ///
    /// # Errors
    ///
    /// The peer's: `refused: <status>` if the relay did not want.
    pub async fn reserve(&mut self, relay: &Multiaddr) -> Result<Reservation, Error> {
        self.call("reserve", json!({ "address": relay })).await
    }

    /// Waits until it takes part in hole punches: it has to know under which public address it is seen (go, py).
    ///
    /// # Errors
    ///
    /// The peer's.
    pub async fn punchable(&mut self) -> Result<(), Error> {
        let Done {} = self.call("punchable", json!({})).await?;
        Ok(())
    }

    /// Asks the only AutoNAT v2 server that it knows whether it is reached at an address; waits until it knows it
    /// (go; js needs to have identified it).
    ///
    /// # Errors
    ///
    /// The peer's: the server did not answer the question.
    pub async fn reachable(&mut self, address: &Multiaddr) -> Result<bool, Error> {
        let told: Reachable = self
            .call("reachable", json!({ "address": address }))
            .await?;
        Ok(told.reachable)
    }

    /// Waits until its AutoNAT v2 server has tried an address for somebody (go, js).
    ///
    /// # Errors
    ///
    /// Nobody asked, or it refused.
    pub async fn tried(&mut self, address: &Multiaddr) -> Result<Tried, Error> {
        let name = address.to_string();
        let (dial, took) = self
            .process
            .event("question to its AutoNAT server", LONG_PATIENCE, |event| {
                let text = |key: &str| event.get(key)?.as_str();
                let wanted = text("event")? == "autonat" && text("address")? == name;
                let took = event.get("milliseconds").and_then(Value::as_u64);
                wanted.then(|| text("dial").map(|dial| (dial.to_owned(), took)))?
            })
            .await?;
        let got_through = match dial.as_str() {
            "OK" => true,
            "E_DIAL_ERROR" => false,
            _ => return Err(Error::Wrong(format!("the server says {dial}"))),
        };
        Ok(Tried {
            got_through,
            took: took.map(Duration::from_millis),
        })
    }

    /// Asks a connected AutoNAT v1 server whether it is reached at any of its addresses (go, js, py).
    ///
    /// # Errors
    ///
    /// The peer's: the server refused.
    pub async fn dial_back(&mut self, server: PeerId) -> Result<bool, Error> {
        let told: Reachable = self
            .call("dial_back", json!({ "peer": server.to_string() }))
            .await?;
        Ok(told.reachable)
    }

    /// Waits for a connection to a peer, over a relay or directly, of those that were not waited for yet; started with `punch`.
    /// Returns when it was made, by the peer's clock, since 1970.
    ///
    /// # Errors
    ///
    /// There was none.
    pub async fn connected(&mut self, peer: PeerId, relayed: bool) -> Result<Duration, Error> {
        let name = peer.to_string();
        let what = if relayed {
            "relayed connection"
        } else {
            "direct connection"
        };
        let microseconds = self
            .process
            .event(what, PATIENCE, |event| {
                let text = |key: &str| event.get(key)?.as_str();
                let wanted = text("event")? == "connected"
                    && text("peer")? == name
                    && text("address")?.contains("/p2p-circuit") == relayed;
                wanted.then(|| event.get("microseconds")?.as_u64())?
            })
            .await?;
        Ok(Duration::from_micros(microseconds))
    }

    /// The steps of hole punches with a peer that it has told of until its last answer, in its own words.
    pub fn punches(&mut self, peer: PeerId) -> Vec<String> {
        let name = peer.to_string();
        self.process.events_until_now(|event| {
            let text = |key: &str| event.get(key)?.as_str();
            let wanted = text("event")? == "punch" && text("peer")? == name;
            wanted.then(|| Some(format!("{} {}", text("what")?, event.get("details")?)))?
        })
    }

    /// Subscribes to a topic.
    ///
    /// # Errors
    ///
    /// The peer's.
    pub async fn subscribe(&mut self, topic: &str) -> Result<(), Error> {
        let Done {} = self.call("subscribe", json!({ "topic": topic })).await?;
        Ok(())
    }

    /// Who it knows to be subscribed to a topic.
    ///
    /// # Errors
    ///
    /// The peer's.
    pub async fn subscribers(&mut self, topic: &str) -> Result<Vec<PeerId>, Error> {
        let found: Names = self.call("subscribers", json!({ "topic": topic })).await?;
        found.parse()
    }

    /// Publishes on a topic.
    ///
    /// # Errors
    ///
    /// The peer's.
    pub async fn publish(&mut self, topic: &str, data: &[u8]) -> Result<(), Error> {
        let Done {} = self
            .call(
                "publish",
                json!({ "topic": topic, "data": BASE64.encode(data) }),
            )
            .await?;
        Ok(())
    }

    /// The next message on a topic.
    ///
    /// # Errors
    ///
    /// None came.
    pub async fn message(&mut self, topic: &str) -> Result<Message, Error> {
        let (from, data) = self
            .process
            .event("message", PATIENCE, |event| {
                let text = |key: &str| event.get(key)?.as_str();
                (text("event")? == "message" && text("topic")? == topic)
                    .then(|| Some((text("from")?.to_owned(), text("data")?.to_owned())))?
            })
            .await?;
        let data = BASE64.decode(data)?.into();
        Ok(Message { from, data })
    }

    /// Waits until its discovery has found a peer; returns the addresses.
    ///
    /// # Errors
    ///
    /// It did not.
    pub async fn discovered(&mut self, peer: PeerId) -> Result<Vec<Multiaddr>, Error> {
        let name = peer.to_string();
        let found = self
            .process
            .event("discovery", PATIENCE, |event| {
                let text = |key: &str| event.get(key)?.as_str();
                (text("event")? == "discovered" && text("peer")? == name)
                    .then(|| event.get("addresses").cloned())?
            })
            .await?;
        Ok(serde_json::from_value(found)?)
    }

    /// Provides a block in the DHT.
    ///
    /// # Errors
    ///
    /// The peer's.
    pub async fn provide(&mut self, cid: &Cid) -> Result<(), Error> {
        let Done {} = self
            .call("provide", json!({ "cid": cid.to_string() }))
            .await?;
        Ok(())
    }

    /// Who provides a block, as the DHT says.
    ///
    /// # Errors
    ///
    /// The peer's.
    pub async fn find(&mut self, cid: &Cid) -> Result<Vec<PeerId>, Error> {
        let found: Names = self.call("find", json!({ "cid": cid.to_string() })).await?;
        found.parse()
    }

    /// Puts a value into the DHT.
    ///
    /// # Errors
    ///
    /// The peer's.
    pub async fn put_value(&mut self, key: &[u8], value: &[u8]) -> Result<(), Error> {
        let arguments = json!({ "key": BASE64.encode(key), "value": BASE64.encode(value) });
        let Done {} = self.call("put_value", arguments).await?;
        Ok(())
    }

    /// The best value of a key in the DHT.
    ///
    /// # Errors
    ///
    /// The peer's: it may not find one.
    pub async fn get_value(&mut self, key: &[u8]) -> Result<Vec<u8>, Error> {
        let key = BASE64.encode(key);
        let found: FoundValue = self.call("get_value", json!({ "key": key })).await?;
        let value = BASE64.decode(found.value);
        value.map_err(|error| Error::Wrong(error.to_string()))
    }

    /// Adds a block; the peer computes the identifier.
    ///
    /// # Errors
    ///
    /// The peer's: it may not know the hash function.
    pub async fn add(&mut self, like: &Cid, data: &[u8]) -> Result<Cid, Error> {
        let added: Added = self
            .call(
                "add",
                json!({
                    "version": u64::from(like.version()),
                    "codec": like.codec(),
                    "hash": like.hash().code(),
                    "data": BASE64.encode(data),
                }),
            )
            .await?;
        Ok(added.cid.parse()?)
    }

    /// Gets a block over bitswap.
    ///
    /// # Errors
    ///
    /// The peer's.
    pub async fn get(&mut self, cid: &Cid) -> Result<Bytes, Error> {
        let found: Data = self.call("get", json!({ "cid": cid.to_string() })).await?;
        found.decode()
    }

    /// Puts the blocks `0..count` that `compare`'s endpoints make for themselves (go, js).
    ///
    /// # Errors
    ///
    /// The peer's.
    pub async fn generate(&mut self, count: u64, block_bytes: usize) -> Result<(), Error> {
        let fields = json!({ "count": count, "bytes": block_bytes });
        let Done {} = self.bulk("generate", fields).await?;
        Ok(())
    }

    /// Gets many blocks over bitswap from whom it is connected with; the peer's library verifies them (go, js).
    ///
    /// # Errors
    ///
    /// The peer's: not all came.
    pub async fn fetch(&mut self, cids: &[Cid]) -> Result<Fetched, Error> {
        let names: Vec<String> = cids.iter().map(Cid::to_string).collect();
        self.bulk("fetch", json!({ "cids": names })).await
    }

    async fn bulk<T: DeserializeOwned>(
        &mut self,
        command: &str,
        fields: Value,
    ) -> Result<T, Error> {
        let answer = self.process.call(command, fields, BULK_PATIENCE).await?;
        Ok(serde_json::from_value(answer)?)
    }

    /// CPU seconds, user and system, that its process has used so far.
    ///
    /// # Errors
    ///
    /// It has ended, or this is not Linux.
    pub fn cpu_seconds(&self) -> Result<f64, Error> {
        let ended = || Error::Ended("it has no process".to_owned());
        let id = self.process.id().ok_or_else(ended)?;
        Ok(crate::compare::endpoint::cpu_seconds(id)?)
    }

    /// Adds a file as UnixFS, in its own shape (browser).
    ///
    /// # Errors
    ///
    /// The peer's.
    pub async fn add_file(&mut self, data: &[u8]) -> Result<Cid, Error> {
        let fields = json!({ "data": BASE64.encode(data) });
        let added: Added = self.call("add_file", fields).await?;
        Ok(added.cid.parse()?)
    }

    /// Gets a UnixFS file over bitswap (browser).
    ///
    /// # Errors
    ///
    /// The peer's.
    pub async fn get_file(&mut self, cid: &Cid) -> Result<Bytes, Error> {
        let fields = json!({ "cid": cid.to_string() });
        let found: Data = self.call("get_file", fields).await?;
        found.decode()
    }
}

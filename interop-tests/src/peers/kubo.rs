//! A kubo daemon with a repository of its own, that knows nobody.

use super::daemon::Daemon;
use super::{Error, Transport, directory};
use crate::lab::Host;
use libp2p::{Multiaddr, PeerId};
use serde_json::{Value, json};
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// How long it may take to reserve at its relay and to learn under which address it is seen.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a kubo is started with.
#[derive(Debug, Clone, Copy, Default)]
pub struct KuboSettings<'a> {
    /// The text of the key file of its private network.
    pub swarm_key: Option<&'a str>,
    /// Its profile, for example `unixfs-v1-2025`.
    pub profile: Option<&'a str>,
    /// Where in the lab it is, behind a NAT, and the relay at which it can be reached.
    pub behind_nat: Option<(&'a Host, &'a Multiaddr)>,
}

/// A running kubo. Dropping it kills the daemon.
#[derive(Debug)]
pub struct Kubo {
    daemon: Daemon,
    id: PeerId,
    address: Multiaddr,
}

impl Kubo {
    /// Starts one on loopback: no bootstrap, no routing, nothing of the internet.
    ///
    /// # Errors
    ///
    /// It is not installed, or does not come up.
    pub async fn start(transport: Transport) -> Result<Self, Error> {
        Self::start_with(transport, KuboSettings::default()).await
    }

    /// As [`start`](Self::start), with settings.
    ///
    /// # Errors
    ///
    /// It is not installed, or does not come up.
    pub async fn start_with(
        transport: Transport,
        KuboSettings {
            swarm_key,
            profile,
            behind_nat,
        }: KuboSettings<'_>,
    ) -> Result<Self, Error> {
        let mut daemon = Daemon::new(directory().join("ipfs"))?;
        let repository = daemon.home.path().join("repository");
        daemon.variables = vec![
            ("IPFS_PATH".to_owned(), repository.display().to_string()),
            ("IPFS_TELEMETRY".to_owned(), "off".to_owned()),
        ];
        let profiles = ["test"].into_iter().chain(profile);
        let profiles = profiles.collect::<Vec<_>>().join(",");
        daemon.run(&[], &["init", "--profile", &profiles]).await?;
        if let Some(key) = swarm_key {
            std::fs::write(repository.join("swarm.key"), key)?;
            // It refuses to run without the key then.
            daemon
                .variables
                .push(("LIBP2P_FORCE_PNET".to_owned(), "1".to_owned()));
        }
        let mut settings = settings(transport).to_vec();
        if let Some((host, relay)) = behind_nat {
            daemon.host = Some(host.clone());
            settings.extend(settings_behind_nat(transport, relay));
        }
        for (key, value) in settings {
            daemon
                .run(&[], &["config", "--json", key, &value.to_string()])
                .await?;
        }
        daemon
            .start(&["daemon"], |output| {
                output.contains("Daemon is ready").then_some(())
            })
            .await?;
        let told: Value = serde_json::from_str(&daemon.run(&[], &["id"]).await?)?;
        let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
        let (id, address) = text(told.get("ID"))
            .zip(text(told.pointer("/Addresses/0")))
            .ok_or_else(|| Error::Wrong(format!("no id and address in {told}")))?;
        let wrong = |error: &dyn std::error::Error| Error::Wrong(error.to_string());
        Ok(Self {
            daemon,
            id: id.parse().map_err(|error| wrong(&error))?,
            address: address.parse().map_err(|error| wrong(&error))?,
        })
    }

    /// Its name.
    #[must_use]
    pub fn id(&self) -> PeerId {
        self.id
    }

    /// Where it listens, ending in its name.
    #[must_use]
    pub fn address(&self) -> &Multiaddr {
        &self.address
    }

    /// Waits until it can be reached at its relay and takes part in hole punches: it does once it knows under which address it is seen.
    ///
    /// # Errors
    ///
    /// It does not within half a minute.
    pub async fn punchable(&self) -> Result<(), Error> {
        let began = Instant::now();
        loop {
            let told = self.run(&["id"]).await?;
            if told.contains("/p2p-circuit") && told.contains("/libp2p/dcutr") {
                return Ok(());
            }
            if began.elapsed() > PATIENCE {
                return Err(Error::Timeout {
                    what: format!("reservation and observed address in {told}"),
                    within: PATIENCE,
                });
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// Runs `ipfs` with these arguments and returns what it printed.
    ///
    /// # Errors
    ///
    /// The command's.
    pub async fn run(&self, arguments: &[&str]) -> Result<String, Error> {
        self.daemon.run(&[], arguments).await
    }

    /// A directory that lives as long as the daemon.
    #[must_use]
    pub fn scratch(&self) -> &Path {
        self.daemon.home.path()
    }
}

fn settings_behind_nat(transport: Transport, relay: &Multiaddr) -> [(&'static str, Value); 4] {
    [
        (
            "Addresses.Swarm",
            json!([transport.at(Ipv4Addr::UNSPECIFIED, 4001)]),
        ),
        (
            "Swarm.RelayClient",
            json!({ "Enabled": true, "StaticRelays": [relay] }),
        ),
        ("Swarm.EnableHolePunching", json!(true)),
        // Nobody is there whom it could ask.
        ("Internal.Libp2pForceReachability", json!("private")),
    ]
}

fn settings(transport: Transport) -> [(&'static str, Value); 8] {
    [
        ("Addresses.Swarm", json!([transport.loopback()])),
        ("Bootstrap", json!([])),
        ("Routing.Type", json!("none")),
        ("Provide.Enabled", json!(false)),
        ("AutoConf.Enabled", json!(false)),
        ("AutoTLS.Enabled", json!(false)),
        ("Swarm.DisableNatPortMap", json!(true)),
        ("Swarm.RelayClient.Enabled", json!(false)),
    ]
}

//! The command line.

use std::path::PathBuf;

use anypath::{config, libp2p::Multiaddr};
use cid::Cid;
use clap::{Args, Parser, Subcommand, ValueEnum};

/// A libp2p node that reaches any peer by any path and moves content-addressed files.
#[derive(Debug, Parser)]
#[command(name = "anypath", version, about)]
pub(crate) struct Arguments {
    /// Where the node keeps its identity and blocks [default: the platform's place for application data]
    #[arg(long, global = true, value_name = "DIR", env = "ANYPATH_DATA_DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Configuration file [default: config.toml in the data directory]
    #[arg(long, global = true, value_name = "FILE", env = "ANYPATH_CONFIG")]
    pub(crate) config: Option<PathBuf>,
    /// Port of the HTTP API; another one than 9000 means another instance with a data directory of its own
    #[arg(long, global = true, value_name = "PORT")]
    pub(crate) port: Option<u16>,
    /// Print JSON, one object a line
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a node until Ctrl-C, SIGTERM or `anypath shutdown`
    Start(StartFlags),
    /// Run a relay for others on a host that the internet reaches: `start` with --relay-server and --no-mdns
    Relay(StartFlags),
    /// Print this node's peer id
    Id,
    /// Print a new key for a private network; kept as swarm.key in each node's data directory
    SwarmKey,
    /// Add a file or directory and print its CID
    Add(AddFlags),
    /// Get a file or directory by its CID
    Get(GetFlags),
    /// List the connected peers
    Peers,
    /// Connect to a peer
    Connect {
        /// Its address, as in /ip4/192.0.2.1/udp/9100/quic-v1/p2p/12D3Koo…
        #[arg(value_name = "MULTIADDR", value_parser = multiaddr)]
        address: Multiaddr,
    },
    /// Publish a message on a topic, to all who are subscribed to it
    #[command(visible_alias = "pub")]
    Publish {
        /// The topic, any name that those who listen have agreed on
        topic: String,
        /// The message, JSON or any other text; - for standard input
        message: String,
    },
    /// Print the messages that others publish on a topic, until Ctrl-C
    #[command(visible_alias = "sub")]
    Subscribe {
        /// The topic
        topic: String,
        /// End after so many messages
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
        count: Option<u64>,
    },
    /// Show what the running node is doing
    Status,
    /// Stop the running node
    Shutdown,
}

#[derive(Debug, Args)]
pub(crate) struct StartFlags {
    #[command(flatten)]
    pub(crate) node: NodeFlags,
    /// Stay in the foreground (the only way there is; service managers take it from here)
    #[arg(long)]
    foreground: bool,
}

impl StartFlags {
    /// The preset of `anypath relay`.
    pub(crate) fn relaying(mut self) -> Self {
        self.node.relay_server = true;
        self.node.no_mdns = true;
        self
    }
}

#[derive(Debug, Args)]
pub(crate) struct AddFlags {
    /// The file or directory; - for standard input
    pub(crate) file: PathBuf,
    /// Of a directory, add files and directories whose names begin with a dot, too
    #[arg(long)]
    pub(crate) hidden: bool,
    /// How the file is cut, and so which CID it has
    #[arg(long, value_enum, default_value_t = ProfileName::Kubo)]
    pub(crate) profile: ProfileName,
}

/// Names of [`anypath::files::Profile`]s.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum ProfileName {
    /// 256 KiB chunks, 174 links: `ipfs add --cid-version=1`
    Kubo,
    /// 1 MiB chunks, 1,024 links: kubo's profile of that name
    #[value(name = "unixfs-v1-2025")]
    UnixfsV12025,
}

impl ProfileName {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Kubo => "kubo",
            Self::UnixfsV12025 => "unixfs-v1-2025",
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct GetFlags {
    /// The CID of the file or directory, as `anypath add` prints it
    #[arg(value_parser = cid)]
    pub(crate) cid: Cid,
    /// Where to write it [default: the CID, in this directory]
    #[arg(short, long, value_name = "PATH")]
    pub(crate) output: Option<PathBuf>,
    /// A peer that probably has it; may be given several times
    #[arg(long, value_name = "MULTIADDR", value_parser = multiaddr)]
    pub(crate) peer: Vec<Multiaddr>,
    /// Replace the output if it exists; a directory replaces nothing
    #[arg(long)]
    pub(crate) force: bool,
    #[command(
        flatten,
        next_help_heading = "For a node of its own (without effect when one is running here)"
    )]
    pub(crate) node: NodeFlags,
}

fn multiaddr(text: &str) -> Result<Multiaddr, String> {
    text.parse().map_err(|error| {
        format!("{error}; expected one as in /ip4/192.0.2.1/tcp/9100/p2p/12D3Koo…, which the other side's `anypath status` shows")
    })
}

fn cid(text: &str) -> Result<Cid, String> {
    text.parse().map_err(|error| {
        format!("not a CID ({error}); expected one as in bafybei…, which `anypath add` prints")
    })
}

/// What the configuration says too; a flag beats the file and the environment.
#[derive(Debug, Default, Args)]
pub(crate) struct NodeFlags {
    /// Stay away from the public IPFS network
    #[arg(long)]
    private: bool,
    /// Hold a reservation on this relay; may be given several times
    #[arg(long, value_name = "MULTIADDR")]
    relay: Vec<String>,
    /// Relay for others
    #[arg(long)]
    relay_server: bool,
    /// An address under which this node is reachable from outside; may be given several times
    #[arg(long, value_name = "MULTIADDR")]
    external_address: Vec<String>,
    /// Listen here instead of on all interfaces; may be given several times
    #[arg(long, value_name = "MULTIADDR")]
    listen: Vec<String>,
    /// Do not look for peers on the local network
    #[arg(long)]
    no_mdns: bool,
    /// Do not ask the router for a port of its public address (PCP, NAT-PMP, UPnP)
    #[arg(long)]
    no_port_mapping: bool,
    /// Connect to this peer at start; may be given several times
    #[arg(long, value_name = "MULTIADDR")]
    bootstrap: Vec<String>,
    /// P2P port for TCP and UDP [default: 9100, or the next free one]
    #[arg(long, value_name = "PORT")]
    p2p_port: Option<u16>,
    /// Listen for WebSocket on this port too, for browsers
    #[arg(long, value_name = "PORT")]
    ws_port: Option<u16>,
    /// Listen for WebRTC-direct on this UDP port too, for browsers
    #[arg(long, value_name = "PORT")]
    webrtc_port: Option<u16>,
    /// Key of the private network that this node is one of [default: swarm.key in the data directory, if it is there]
    #[arg(long, value_name = "FILE")]
    swarm_key_file: Option<String>,
}

impl NodeFlags {
    /// As values for [`config::load`].
    pub(crate) fn settings(&self) -> Vec<config::Flag> {
        let mut settings = Vec::new();
        let mut set = |flag, key, value: String| settings.push(config::Flag { flag, key, value });
        for (flag, key, given, value) in [
            ("--private", "private", self.private, "true"),
            (
                "--relay-server",
                "enable_relay_server",
                self.relay_server,
                "true",
            ),
            ("--no-mdns", "enable_mdns", self.no_mdns, "false"),
            (
                "--no-port-mapping",
                "enable_port_mapping",
                self.no_port_mapping,
                "false",
            ),
        ] {
            if given {
                set(flag, key, value.to_owned());
            }
        }
        for (flag, key, addresses) in [
            ("--relay", "relays", &self.relay),
            (
                "--external-address",
                "external_addrs",
                &self.external_address,
            ),
            ("--listen", "listen_addrs", &self.listen),
            ("--bootstrap", "bootstrap_peers", &self.bootstrap),
        ] {
            if !addresses.is_empty() {
                set(flag, key, addresses.join(","));
            }
        }
        for (flag, key, port) in [
            ("--p2p-port", "p2p_port", self.p2p_port),
            ("--ws-port", "ws_port", self.ws_port),
            ("--webrtc-port", "webrtc_port", self.webrtc_port),
        ] {
            if let Some(port) = port {
                set(flag, key, port.to_string());
            }
        }
        if let Some(file) = &self.swarm_key_file {
            set("--swarm-key-file", "swarm_key_file", file.clone());
        }
        settings
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, Parser as _};

    #[test]
    fn the_command_line_is_consistent() {
        super::Arguments::command().debug_assert();
    }

    #[test]
    fn relay_is_start_with_a_preset() {
        let arguments = [
            "anypath",
            "relay",
            "--no-port-mapping",
            "--listen",
            "/ip4/0.0.0.0/tcp/4001",
        ];
        let arguments = super::Arguments::try_parse_from(arguments).unwrap();
        let super::Command::Relay(flags) = arguments.command else {
            panic!("another command");
        };
        let settings = flags.relaying().node.settings();
        let value = |key| {
            settings
                .iter()
                .find(|flag| flag.key == key)
                .map(|flag| &*flag.value)
        };
        assert_eq!(value("enable_relay_server"), Some("true"));
        assert_eq!(value("enable_mdns"), Some("false"));
        assert_eq!(value("enable_port_mapping"), Some("false"));
        assert_eq!(value("listen_addrs"), Some("/ip4/0.0.0.0/tcp/4001"));
    }
}

//! What all commands share: the data directory, the configuration, the way to a node.

use std::path::PathBuf;

use anypath::{
    Config, Node,
    config::{self, DEFAULT_API_PORT, Sources},
    data_dir::DataDir,
    files, identity, tiered_store,
};
use tiered_store::{OpenError, Store};

use crate::{
    Error,
    args::{Arguments, NodeFlags},
    client::Client,
    output::Output,
};

/// The surroundings of a command.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) data: DataDir,
    pub(crate) output: Output,
    /// Given with `--port`.
    pub(crate) port: Option<u16>,
    /// Whether the data directory was named, by flag or environment.
    is_data_dir_given: bool,
    config_file: Option<PathBuf>,
}

impl Context {
    pub(crate) fn new(arguments: &Arguments, output: Output) -> Result<Self, Error> {
        let port = arguments.port;
        let path = DataDir::locate(arguments.data_dir.clone(), port.unwrap_or(DEFAULT_API_PORT))?;
        let data = DataDir::open(path)?;
        Ok(Self {
            data,
            output,
            port,
            is_data_dir_given: arguments.data_dir.is_some(),
            config_file: arguments.config.clone(),
        })
    }

    /// The configuration: file, environment, flags.
    pub(crate) fn config(&self, flags: &NodeFlags) -> Result<Config, Error> {
        let mut flags = flags.settings();
        if let Some(port) = self.port {
            flags.push(config::Flag {
                flag: "--port",
                key: "api_port",
                value: port.to_string(),
            });
        }
        let mut sources = Sources {
            file: Some(
                self.config_file
                    .clone()
                    .unwrap_or_else(|| self.data.config_file()),
            ),
            file_required: self.config_file.is_some(),
            environment: std::env::vars().collect(),
            flags,
        };
        let config = config::load(&sources)?;
        let swarm_key = self.data.swarm_key_file();
        if !config.has_swarm_key() && swarm_key.exists() {
            sources.flags.push(config::Flag {
                flag: "swarm.key in the data directory",
                key: "swarm_key_file",
                value: utf8(swarm_key)?,
            });
        }
        if config.listens_over_webrtc() && config.webrtc_certificate_file().is_none() {
            sources.flags.push(config::Flag {
                flag: "webrtc.pem in the data directory",
                key: "webrtc_certificate_file",
                value: utf8(self.data.webrtc_certificate_file())?,
            });
        }
        Ok(config::load(&sources)?)
    }

    /// A client of the node that runs on this data directory, if one does.
    pub(crate) async fn client(&self) -> Result<Option<Client>, Error> {
        match self.data.read_api()? {
            Some(api) => Ok(Client::connect(api).await),
            None => Ok(None),
        }
    }

    /// The same, where the command makes no sense without.
    pub(crate) async fn running(&self) -> Result<Client, Error> {
        self.client().await?.ok_or_else(|| {
            let port = self
                .port
                .map(|port| format!(" --port {port}"))
                .unwrap_or_default();
            let path = self.data.path().display();
            let same = match self.is_data_dir_given {
                true => " and the same --data-dir",
                false => "",
            };
            format!("no node is running on {path}; start one with `anypath{port} start`{same}")
                .into()
        })
    }

    /// Opens the store of this data directory.
    pub(crate) async fn store(&self, config: &Config) -> Result<Store, Error> {
        let disk = match config.disk_capacity() {
            Some(bytes) => bytes,
            None => self.data.default_disk_capacity()?,
        };
        let mut builder = tiered_store::Config::builder()
            .path(self.data.store())
            .memory_capacity(config.memory_capacity())
            .disk_capacity(disk);
        if let Some(directory) = config.cold_dir() {
            let mut cold = tiered_store::ColdConfig::directory(directory);
            if let Some(bytes) = config.cold_capacity() {
                cold = cold.capacity(bytes);
            }
            builder = builder.cold(cold);
        }
        let store = match Store::open(builder.build()?).await {
            Ok(store) => store,
            Err(OpenError::Locked { pid, .. }) => return Err(self.in_use(pid)),
            Err(error) => return Err(error.into()),
        };
        files::clean_up(&store).await?;
        Ok(store)
    }

    /// A node on this data directory.
    pub(crate) async fn start_node(&self, config: &Config, store: Store) -> Result<Node, Error> {
        let keypair = identity::load_or_create(&self.data.identity_file())?;
        if !config.private() {
            // Before anything is sent there.
            self.output.note(
                "This node joins the public IPFS network: anyone with a CID can fetch what is added here; --private \
                 stays out.",
            );
        }
        Ok(Node::start(config.clone(), keypair, store, spawn).await?)
    }

    fn in_use(&self, pid: Option<u32>) -> Error {
        let process = pid
            .map(|pid| format!(" (process {pid})"))
            .unwrap_or_default();
        format!(
            "another node uses the data directory {}{process}; stop it with `anypath shutdown`, or start a second \
             instance with --port N or --data-dir DIR",
            self.data.path().display()
        )
        .into()
    }
}

fn utf8(path: PathBuf) -> Result<String, Error> {
    path.into_os_string().into_string().map_err(|path| {
        let path = path.display();
        format!("{path}: only a path in UTF-8 can be in the configuration; choose another data directory").into()
    })
}

#[expect(clippy::disallowed_methods, reason = "the binary chooses the executor")]
pub(crate) fn spawn(task: std::pin::Pin<Box<dyn Future<Output = ()> + Send>>) {
    drop(tokio::spawn(task));
}

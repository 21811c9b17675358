//! A leg between two devices, carried by this process: kernels may lack `netem`.
//!
//! With `/dev/net/tun` each end is a TUN device; without it, each end is a veth pair whose other half
//! this process reads and writes through a packet socket.

use super::leg::{Leg, Line};
use super::netns::Namespace;
use super::{LabError, now};
use pnet_datalink::{Channel, Config, DataLinkReceiver, DataLinkSender};
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use tun_rs::{DeviceBuilder, SyncDevice};

/// Room for an Ethernet frame with an MTU of 1500.
const FRAME: usize = 2048;
/// Packets under way in one direction: 100 MB/s at 100 ms.
const UNDER_WAY: usize = 8192;
/// How soon a wire notices that it is to end.
const NOTICE: Duration = Duration::from_millis(100);

/// How the ends of legs are made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Links {
    /// TUN where `/dev/net/tun` opens, else packet sockets.
    #[default]
    Auto,
    /// TUN devices.
    Tun,
    /// veth pairs and packet sockets.
    Packet,
}

impl Links {
    /// What `Auto` means here. `ANYPATH_LAB_LINKS=packet` asks for packet sockets.
    pub(crate) fn resolve(self) -> Self {
        if self != Self::Auto {
            return self;
        }
        let asked = std::env::var("ANYPATH_LAB_LINKS").is_ok_and(|links| links == "packet");
        let opens = std::fs::File::options()
            .read(true)
            .write(true)
            .open("/dev/net/tun")
            .is_ok();
        if asked || !opens {
            Self::Packet
        } else {
            Self::Tun
        }
    }
}

/// One end of a wire: a device of this name in this namespace.
pub(crate) struct End<'a> {
    pub(crate) namespace: &'a Namespace,
    pub(crate) device: &'a str,
    pub(crate) mac: &'a str,
}

/// What a wire has carried.
#[derive(Debug, Default)]
pub struct Traffic {
    /// Bytes delivered towards the core and towards the site.
    bytes: [AtomicU64; 2],
    /// Packets dropped by loss, rate or a full wire.
    dropped: AtomicU64,
}

impl Traffic {
    /// Bytes delivered from the site to the core.
    pub fn upstream(&self) -> u64 {
        self.bytes[0].load(Ordering::Relaxed)
    }

    /// Bytes delivered from the core to the site.
    pub fn downstream(&self) -> u64 {
        self.bytes[1].load(Ordering::Relaxed)
    }

    /// Packets dropped in both directions.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

/// A running wire; it ends when dropped.
#[derive(Debug)]
pub(crate) struct Wire {
    end: Arc<AtomicBool>,
    /// Nothing that enters now arrives.
    cut: Arc<AtomicBool>,
    traffic: Arc<Traffic>,
    threads: Vec<JoinHandle<()>>,
}

impl Wire {
    /// Makes both devices and starts carrying. `site` is upstream's source, `core` its target.
    pub(crate) fn lay(
        site: &End<'_>,
        core: &End<'_>,
        leg: Leg,
        links: Links,
    ) -> Result<Self, LabError> {
        let (site_port, core_port) = match links.resolve() {
            Links::Packet => (packet_port(site)?, packet_port(core)?),
            Links::Tun | Links::Auto => (tun_port(site)?, tun_port(core)?),
        };
        let mut wire = Self {
            end: Arc::default(),
            cut: Arc::default(),
            traffic: Arc::default(),
            threads: Vec::new(),
        };
        wire.carry(leg, 0, site_port.0, core_port.1);
        wire.carry(leg, 1, core_port.0, site_port.1);
        Ok(wire)
    }

    pub(crate) fn traffic(&self) -> &Traffic {
        &self.traffic
    }

    /// Cuts the wire, or mends it: neither end is told.
    pub(crate) fn set_cut(&self, cut: bool) {
        self.cut.store(cut, Ordering::Relaxed);
    }

    fn carry(&mut self, leg: Leg, direction: usize, mut source: Source, mut sink: Sink) {
        let (queue, arrivals) = sync_channel::<(Instant, Vec<u8>)>(UNDER_WAY);
        let (end, cut) = (self.end.clone(), self.cut.clone());
        let traffic = self.traffic.clone();
        self.threads.push(thread::spawn(move || {
            let line = Line::new(leg, direction as u64, now());
            admit_packets(&mut source, line, &queue, (&end, &cut), &traffic);
        }));
        let traffic = self.traffic.clone();
        self.threads.push(thread::spawn(move || {
            deliver_packets(&mut sink, &arrivals, traffic.bytes.get(direction));
        }));
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().ok();
        }
    }
}

fn admit_packets(
    source: &mut Source,
    mut line: Line,
    queue: &SyncSender<(Instant, Vec<u8>)>,
    (end, cut): (&AtomicBool, &AtomicBool),
    traffic: &Traffic,
) {
    while !end.load(Ordering::Relaxed) {
        let packet = match source.receive() {
            Ok(Some(packet)) => packet,
            Ok(None) => continue,
            // A device that is not up yet, or for a moment, says so; one that is gone stays silent.
            Err(_) => {
                thread::sleep(Duration::from_millis(1));
                continue;
            }
        };
        let arrival = line.admit(packet.len(), now());
        let Some(arrival) = arrival.filter(|_| !cut.load(Ordering::Relaxed)) else {
            traffic.dropped.fetch_add(1, Ordering::Relaxed);
            continue;
        };
        match queue.try_send((arrival, packet.to_vec())) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => {
                traffic.dropped.fetch_add(1, Ordering::Relaxed);
            }
            Err(TrySendError::Disconnected(_)) => return,
        }
    }
}

fn deliver_packets(
    sink: &mut Sink,
    arrivals: &Receiver<(Instant, Vec<u8>)>,
    delivered: Option<&AtomicU64>,
) {
    while let Ok((arrival, packet)) = arrivals.recv() {
        let wait = arrival.saturating_duration_since(now());
        if !wait.is_zero() {
            thread::sleep(wait);
        }
        if sink.send(&packet).is_ok()
            && let Some(delivered) = delivered
        {
            delivered.fetch_add(packet.len() as u64, Ordering::Relaxed);
        }
    }
}

enum Source {
    Tun {
        device: Arc<SyncDevice>,
        buffer: Box<[u8; FRAME]>,
    },
    Packet(Box<dyn DataLinkReceiver>),
}

impl Source {
    /// The next packet; `None` when none came for a while.
    fn receive(&mut self) -> io::Result<Option<&[u8]>> {
        match self {
            Self::Tun { device, buffer } => loop {
                match device.recv(&mut buffer[..]) {
                    Ok(length) => return Ok(buffer.get(..length)),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        if !readable(device)? {
                            return Ok(None);
                        }
                    }
                    Err(error) => return Err(error),
                }
            },
            Self::Packet(receiver) => match receiver.next() {
                Ok(packet) => Ok(Some(packet)),
                Err(error) if error.kind() == ErrorKind::TimedOut => Ok(None),
                Err(error) => Err(error),
            },
        }
    }
}

fn readable(device: &SyncDevice) -> io::Result<bool> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let timeout = Timespec {
        tv_sec: 0,
        tv_nsec: NOTICE.as_nanos() as _,
    };
    let mut ready = [PollFd::new(device, PollFlags::IN)];
    Ok(poll(&mut ready, Some(&timeout))? > 0)
}

enum Sink {
    Tun(Arc<SyncDevice>),
    Packet(Box<dyn DataLinkSender>),
}

impl Sink {
    fn send(&mut self, packet: &[u8]) -> io::Result<()> {
        match self {
            Self::Tun(device) => device.send(packet).map(drop),
            Self::Packet(sender) => sender
                .send_to(packet, None)
                .unwrap_or_else(|| Err(io::Error::other("the frame exceeds the buffer"))),
        }
    }
}

fn tun_port(end: &End<'_>) -> Result<(Source, Sink), LabError> {
    let what = || format!("making TUN {} in {}", end.device, end.namespace.name());
    let device = end
        .namespace
        .enter(|| DeviceBuilder::new().name(end.device).mtu(1500).build_sync())?
        .map_err(LabError::io(what()))?;
    rustix::fs::fcntl_setfl(&device, rustix::fs::OFlags::NONBLOCK)
        .map_err(io::Error::from)
        .map_err(LabError::io(what()))?;
    // What waits in a TUN's queue waits for this process, not for the leg. (The ioctl that sets the
    // length asks for root of the whole machine, netlink does not.)
    end.namespace
        .ip(&format!("link set {} txqueuelen 4096 up\n", end.device))?;
    let device = Arc::new(device);
    let source = Source::Tun {
        device: device.clone(),
        buffer: Box::new([0; FRAME]),
    };
    Ok((source, Sink::Tun(device)))
}

/// A veth pair whose far half lies in the sandbox's own namespace, with every offload off: a packet
/// socket must see packets as they would be on a wire.
fn packet_port(end: &End<'_>) -> Result<(Source, Sink), LabError> {
    let far = format!("{}.{}", end.namespace.name(), end.device);
    super::sandbox::run(
        "ip",
        [
            "link",
            "add",
            &far,
            "type",
            "veth",
            "peer",
            "name",
            end.device,
            "address",
            end.mac,
            "netns",
            end.namespace.name(),
        ],
    )?;
    let offloads = [
        "tx", "off", "rx", "off", "sg", "off", "tso", "off", "gso", "off", "gro", "off",
    ];
    super::sandbox::run("ethtool", ["-K", &far].into_iter().chain(offloads))?;
    end.namespace.enter(|| {
        super::sandbox::run("ethtool", ["-K", end.device].into_iter().chain(offloads))
    })??;
    // Neighbour discovery of the wire's own half would be noise on the leg.
    let quiet = format!("/proc/sys/net/ipv6/conf/{far}/disable_ipv6");
    if std::path::Path::new(&quiet).exists() {
        std::fs::write(&quiet, "1").map_err(LabError::file(&quiet))?;
    }
    super::sandbox::run("ip", ["link", "set", &far, "up"])?;
    end.namespace.ip(&format!("link set {} up\n", end.device))?;
    let interface = pnet_datalink::interfaces()
        .into_iter()
        .find(|interface| interface.name == far)
        .ok_or_else(|| LabError::Plan(format!("device {far} is missing")))?;
    let config = Config {
        write_buffer_size: FRAME,
        read_buffer_size: FRAME,
        read_timeout: Some(NOTICE),
        ..Config::default()
    };
    match pnet_datalink::channel(&interface, config) {
        Ok(Channel::Ethernet(sender, receiver)) => {
            Ok((Source::Packet(receiver), Sink::Packet(sender)))
        }
        Ok(_) => Err(LabError::Plan(
            "the packet socket is no Ethernet channel".into(),
        )),
        Err(source) => Err(LabError::Io {
            what: format!("opening {far}"),
            source,
        }),
    }
}

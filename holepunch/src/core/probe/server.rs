//! Whom a server dials back, and whom it asks for help. It must be of no use for attacking others:
//!
//! - Who asks is dialled where it is seen, so nobody else can be named.
//! - Who asks for another one pays with more bytes than the dial costs, and is bound by rates.
//! - Addresses of private networks are never dialled.

use std::{
    collections::{BTreeMap, VecDeque},
    net::IpAddr,
    time::Duration,
};

use libp2p_core::Multiaddr;
use libp2p_identity::PeerId;
use libp2p_swarm::ConnectionId;
use web_time::Instant;

use super::Outcome;
use crate::{
    Config,
    address::is_beyond_nats,
    core::nat::{Endpoint, Prefix},
};

/// What a request for help must weigh at least. A QUIC client sends its Initial packet of 1200 bytes
/// at 0 and 1 s within [`PATIENCE`], and a TCP client a few hundred bytes.
pub(crate) const MIN_PADDING: usize = 4096;
/// How long a dial-back may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);
/// How much longer the server that asked for help waits for its word.
const HELP_EXTRA: Duration = Duration::from_millis(500);
/// The span that rates are counted over.
const MINUTE: Duration = Duration::from_secs(60);
/// Prefixes whose rates are remembered; those that ask longest ago are forgotten.
const MAX_PREFIXES: usize = 1024;

/// One request that waits for its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Ticket(pub(crate) u64);

/// What is known of who asks.
#[derive(Debug, Clone)]
pub(crate) struct Asker {
    pub(crate) peer: PeerId,
    /// Where it is seen.
    pub(crate) remote: Multiaddr,
    /// Whether it dialled us.
    pub(crate) inbound: bool,
}

/// A server that may help.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Helper {
    pub(crate) peer: PeerId,
    pub(crate) connection: ConnectionId,
    pub(crate) ip: IpAddr,
}

/// The answer to a probe, or to a request for help.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Answer {
    pub(crate) refused: bool,
    pub(crate) from_other_port: Outcome,
    pub(crate) from_other_address: Outcome,
    pub(crate) helper: Option<IpAddr>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Output {
    /// Dial from a port that is not the listen port.
    Dial {
        ticket: Ticket,
        peer: PeerId,
        address: Multiaddr,
    },
    /// Ask this server to dial.
    AskHelp {
        ticket: Ticket,
        helper: ConnectionId,
        peer: PeerId,
        address: Multiaddr,
    },
    Answer {
        ticket: Ticket,
        answer: Answer,
    },
}

#[derive(Debug)]
pub(crate) struct Server {
    config: Config,
    running: BTreeMap<Ticket, Running>,
    next: u64,
    rates: BTreeMap<Prefix, VecDeque<Instant>>,
    all: VecDeque<Instant>,
    outputs: VecDeque<Output>,
}

#[derive(Debug)]
struct Running {
    answer: Answer,
    dialling: bool,
    asking: bool,
    /// A request for help, not a probe of one's own.
    is_help: bool,
    deadline: Instant,
}

impl Server {
    pub(crate) fn new(config: Config) -> Self {
        Self {
            config,
            running: BTreeMap::new(),
            next: 0,
            rates: BTreeMap::new(),
            all: VecDeque::new(),
            outputs: VecDeque::new(),
        }
    }

    /// Somebody wants to be dialled back. `helpers`: servers connected to this one, in the order
    /// in which they may be asked; `known`: addresses that the asker has sent to.
    pub(crate) fn on_probe(
        &mut self,
        asker: &Asker,
        known: &[IpAddr],
        helpers: &[Helper],
        now: Instant,
    ) -> Ticket {
        let ticket = self.ticket();
        let target = Endpoint::of(&asker.remote).filter(|_| asker.inbound);
        let Some(target) = target.filter(|at| self.may_dial(*at) && self.admit(at.ip(), now))
        else {
            return self.refuse(ticket);
        };
        let helper = helpers.iter().find(|helper| {
            helper.peer != asker.peer
                && helper.ip != target.ip()
                && helper.ip.is_ipv4() == target.socket.is_ipv4()
                && !known.contains(&helper.ip)
                && is_beyond_nats(helper.ip, self.config.allow_loopback())
        });
        let address = crate::address::without_peer(&asker.remote);
        self.outputs.push_back(Output::Dial {
            ticket,
            peer: asker.peer,
            address: address.clone(),
        });
        if let Some(helper) = helper {
            self.outputs.push_back(Output::AskHelp {
                ticket,
                helper: helper.connection,
                peer: asker.peer,
                address,
            });
        }
        let patience = if helper.is_some() {
            HELP_EXTRA
        } else {
            Duration::ZERO
        };
        self.running.insert(
            ticket,
            Running {
                answer: Answer {
                    helper: helper.map(|helper| helper.ip),
                    ..Answer::default()
                },
                dialling: true,
                asking: helper.is_some(),
                is_help: false,
                deadline: now + PATIENCE + patience,
            },
        );
        ticket
    }

    /// Another server wants `peer` to be dialled. `connected`: whether this node has a connection
    /// to it already, or is about to: then it is no stranger.
    pub(crate) fn on_help(
        &mut self,
        asker: &Asker,
        peer: PeerId,
        address: &Multiaddr,
        padding: usize,
        connected: bool,
        now: Instant,
    ) -> Ticket {
        let ticket = self.ticket();
        let pays = padding >= MIN_PADDING && !connected && peer != asker.peer;
        let from = Endpoint::of(&asker.remote)
            .map(|at| at.ip())
            .filter(|_| pays);
        let target = Endpoint::of(address).filter(|at| self.may_dial(*at));
        let (Some(from), Some(_)) = (from, target) else {
            return self.refuse(ticket);
        };
        if !self.admit(from, now) {
            return self.refuse(ticket);
        }
        self.outputs.push_back(Output::Dial {
            ticket,
            peer,
            address: crate::address::without_peer(address),
        });
        self.running.insert(
            ticket,
            Running {
                answer: Answer::default(),
                dialling: true,
                asking: false,
                is_help: true,
                deadline: now + PATIENCE,
            },
        );
        ticket
    }

    /// The dial got through, or failed.
    pub(crate) fn on_dialled(&mut self, ticket: Ticket, reached: bool) {
        if let Some(running) = self.running.get_mut(&ticket) {
            running.dialling = false;
            running.set_dialled(if reached {
                Outcome::Reached
            } else {
                Outcome::Unreached
            });
            self.finish(ticket);
        }
    }

    /// What the other server found.
    pub(crate) fn on_helped(&mut self, ticket: Ticket, outcome: Outcome) {
        if let Some(running) = self.running.get_mut(&ticket) {
            running.asking = false;
            running.answer.from_other_address = outcome;
            self.finish(ticket);
        }
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        let due: Vec<Ticket> = self
            .running
            .iter()
            .filter(|(_, running)| running.deadline <= now)
            .map(|(ticket, _)| *ticket)
            .collect();
        for ticket in due {
            if let Some(running) = self.running.get_mut(&ticket) {
                if running.dialling {
                    running.set_dialled(Outcome::Unreached);
                }
                (running.dialling, running.asking) = (false, false);
            }
            self.finish(ticket);
        }
    }

    pub(crate) fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.running.values().map(|running| running.deadline).min()
    }

    fn ticket(&mut self) -> Ticket {
        self.next += 1;
        Ticket(self.next)
    }

    fn refuse(&mut self, ticket: Ticket) -> Ticket {
        let answer = Answer {
            refused: true,
            ..Answer::default()
        };
        self.outputs.push_back(Output::Answer { ticket, answer });
        ticket
    }

    fn finish(&mut self, ticket: Ticket) {
        let done = |running: &Running| !running.dialling && !running.asking;
        if self.running.get(&ticket).is_some_and(done)
            && let Some(Running { answer, .. }) = self.running.remove(&ticket)
        {
            self.outputs.push_back(Output::Answer { ticket, answer });
        }
    }

    fn may_dial(&self, at: Endpoint) -> bool {
        is_beyond_nats(at.ip(), self.config.allow_loopback()) && at.socket.port() != 0
    }

    /// Whether rates and numbers allow one more for somebody of this address.
    fn admit(&mut self, from: IpAddr, now: Instant) -> bool {
        let recent = |at: &Instant| now.saturating_duration_since(*at) < MINUTE;
        self.all.retain(recent);
        if self.running.len() >= self.config.max_probes()
            || self.all.len() >= self.config.probes_per_minute()
        {
            return false;
        }
        let prefix = Prefix::of(from, self.config.prefix_v4(), self.config.prefix_v6());
        if !self.rates.contains_key(&prefix) && self.rates.len() >= MAX_PREFIXES {
            self.rates.retain(|_, times| times.iter().any(recent));
            // All of the last minute: there are not more of them than `probes_per_minute`.
        }
        let times = self.rates.entry(prefix).or_default();
        times.retain(recent);
        if times.len() >= self.config.probes_per_prefix() {
            return false;
        }
        times.push_back(now);
        self.all.push_back(now);
        true
    }
}

impl Running {
    fn set_dialled(&mut self, outcome: Outcome) {
        if self.is_help {
            self.answer.from_other_address = outcome;
        } else {
            self.answer.from_other_port = outcome;
        }
    }
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;

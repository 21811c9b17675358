use std::{
    collections::VecDeque,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use cid::Cid;
use futures::FutureExt as _;
use futures_timer::Delay;
use libp2p_core::{Endpoint, Multiaddr, transport::PortUse};
use libp2p_gossipsub::{
    self as gossipsub, IdentTopic, MessageAcceptance, MessageAuthenticity, TopicHash,
    ValidationMode,
};
use libp2p_identity::{Keypair, PeerId};
use libp2p_swarm::{
    CloseConnection, ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler,
    THandlerInEvent, THandlerOutEvent, ToSwarm,
    dial_opts::{DialOpts, PeerCondition},
};
use web_time::{Instant, SystemTime};

use crate::{
    AnnounceError, Config, Content, Event, Role, StartError, TopicError,
    core::{Core, Origin, Output, Received, Verdict},
    scoring,
};

/// How often the neighbours' scores are looked at.
const SCORES: Duration = Duration::from_secs(2);

type Action = ToSwarm<Event, THandlerInEvent<gossipsub::Behaviour>>;

/// Announces this node on gossipsub topics and learns about others there.
///
/// It carries the node's one gossipsub: use [`gossipsub_mut`](Self::gossipsub_mut) to subscribe and
/// publish on topics of your own, and find their messages in [`Event::Gossipsub`]. A node must not have a
/// second gossipsub beside it.
pub struct Behaviour {
    gossipsub: gossipsub::Behaviour,
    /// Whether gossipsub waits for our verdict before it passes a message on.
    validates: bool,
    core: Core,
    timer: Option<(Instant, Delay)>,
    /// When the scores are looked at next, if they are.
    scores: Option<Instant>,
    outbox: VecDeque<Action>,
    #[cfg(feature = "metrics")]
    metrics: Option<crate::metrics::Metrics>,
}

impl Behaviour {
    /// Starts with a gossipsub that meets libp2p's universal-connectivity app: messages are signed by
    /// `keypair` and only signed ones are accepted (js, go and rust peers all sign), a mesh of one peer is
    /// enough (`mesh_n_low` 1, `mesh_outbound_min` 1), and our own messages go to all subscribers
    /// (`flood_publish`). Messages are told apart by author and sequence number, and neighbours are scored, see
    /// [`scoring`].
    ///
    /// # Errors
    /// When gossipsub refuses its configuration or a topic; neither happens with a [`Config`] of today's
    /// gossipsub.
    pub fn new(keypair: Keypair, config: Config) -> Result<Self, StartError> {
        let gossipsub_config = gossipsub::ConfigBuilder::default()
            // Not `Permissive`: that mode believes a message without signature whatever author it names.
            .validation_mode(ValidationMode::Strict)
            .validate_messages()
            .mesh_n_low(1)
            .mesh_outbound_min(1)
            .flood_publish(true)
            .build()
            .map_err(|error| StartError::Gossipsub(error.to_string()))?;
        let public_key = keypair.public();
        let gossipsub =
            gossipsub::Behaviour::new(MessageAuthenticity::Signed(keypair), gossipsub_config)
                .map_err(|error| StartError::Gossipsub(error.to_owned()))?;
        let mut behaviour = Self::with(gossipsub, true, public_key, config.clone())?;
        let params = scoring::peer_score_params(behaviour.core.topics());
        behaviour
            .gossipsub
            .with_peer_score(params, scoring::peer_score_thresholds())
            .map_err(StartError::Gossipsub)?;
        if config.disconnect_graylisted() {
            behaviour.scores = Some(now() + SCORES);
        }
        Ok(behaviour)
    }

    /// Starts with a gossipsub of your own making. It must sign with the node's key and accept only signed
    /// messages ([`ValidationMode::Strict`]): else anybody can announce anything in anybody's name. If it was
    /// built with `validate_messages`, announcements too wait for the caller, who has to report on
    /// them. [`scoring`] has parameters for its peer score.
    ///
    /// # Errors
    /// When gossipsub refuses a topic.
    pub fn with_gossipsub(
        gossipsub: gossipsub::Behaviour,
        public_key: libp2p_identity::PublicKey,
        config: Config,
    ) -> Result<Self, StartError> {
        Self::with(gossipsub, false, public_key, config)
    }

    fn with(
        mut gossipsub: gossipsub::Behaviour,
        validates: bool,
        public_key: libp2p_identity::PublicKey,
        config: Config,
    ) -> Result<Self, StartError> {
        let core = Core::new(public_key, config, rand::random(), now(), since_1970());
        for topic in core.topics() {
            subscribe(&mut gossipsub, topic)?;
        }
        Ok(Self {
            gossipsub,
            validates,
            core,
            timer: None,
            scores: None,
            outbox: VecDeque::new(),
            #[cfg(feature = "metrics")]
            metrics: None,
        })
    }

    /// What this node knows of others.
    pub fn core(&self) -> &Core {
        &self.core
    }

    /// The node's gossipsub.
    pub fn gossipsub(&self) -> &gossipsub::Behaviour {
        &self.gossipsub
    }

    /// The node's gossipsub, to subscribe to topics and to publish on them. Leave the discovery topics to
    /// [`add_topic`](Self::add_topic) and [`remove_topic`](Self::remove_topic).
    pub fn gossipsub_mut(&mut self) -> &mut gossipsub::Behaviour {
        &mut self.gossipsub
    }

    /// The discovery topics and those of services.
    pub fn topics(&self) -> impl Iterator<Item = &str> {
        self.core.topics()
    }

    /// Announces and listens on one more topic; returns whether it is new.
    ///
    /// # Errors
    /// When the name is no good, there are 100 topics, or gossipsub does not allow it.
    pub fn add_topic(&mut self, topic: &str) -> Result<bool, TopicError> {
        if !self.core.add_topic(topic)? {
            return Ok(false);
        }
        if let Err(error) = subscribe(&mut self.gossipsub, topic) {
            self.core.remove_topic(topic);
            return Err(error);
        }
        if self.validates {
            let params = scoring::topic_score_params();
            if let Err(error) = self
                .gossipsub
                .set_topic_params(IdentTopic::new(topic), params)
            {
                tracing::debug!(%topic, error, "the topic is not scored");
            }
        }
        let hash = TopicHash::from_raw(topic);
        let subscribers: Vec<_> = self
            .gossipsub
            .all_peers()
            .filter(|(_, topics)| topics.contains(&&hash))
            .map(|(peer, _)| *peer)
            .collect();
        for peer in subscribers {
            self.core.on_subscribed(topic, peer, now());
        }
        Ok(true)
    }

    /// Leaves a discovery topic; returns whether it was one. Peers found there stay until they expire.
    pub fn remove_topic(&mut self, topic: &str) -> bool {
        let removed = self.core.remove_topic(topic);
        if removed {
            self.gossipsub.unsubscribe(&IdentTopic::new(topic));
        }
        removed
    }

    /// The peers that are known now, in order of their ids.
    pub fn peers(&self) -> impl Iterator<Item = &PeerId> {
        self.core.peers()
    }

    /// The announced addresses of `peer`, each ending in `/p2p/<peer>`; empty for an unknown peer.
    pub fn addresses(&self, peer: &PeerId) -> &[Multiaddr] {
        self.core.addresses(peer)
    }

    /// See [`Core::announce_content`].
    ///
    /// # Errors
    /// When content is not announced, or its name is too long.
    pub fn announce_content(&mut self, content: Content) -> Result<(), AnnounceError> {
        self.core.announce_content(content, now())
    }

    /// See [`Core::withdraw_content`].
    pub fn withdraw_content(&mut self, cid: &Cid) -> bool {
        self.core.withdraw_content(cid, now())
    }

    /// See [`Core::set_relay`].
    ///
    /// # Errors
    /// When relays are not announced, or the announcement is too long.
    pub fn set_relay(&mut self, relay: Option<Bytes>) -> Result<(), AnnounceError> {
        let result = self.core.set_relay(relay, now());
        self.drain_core();
        result
    }

    /// See [`Core::set_role`].
    ///
    /// # Errors
    /// When roles are not announced, or the role's name is too long.
    pub fn set_role(&mut self, role: Option<Role>) -> Result<(), AnnounceError> {
        self.core.set_role(role, now())
    }

    /// Says goodbye on all topics and announces nothing from now on. The swarm has to run a little longer, until
    /// the messages are sent: see `examples/meet.rs`.
    pub fn shutdown(&mut self) {
        self.core.shutdown(now());
        self.drain_core();
    }

    /// Registers the metrics of this behaviour, with the prefix `discovery_pubsub_`.
    #[cfg(feature = "metrics")]
    pub fn register_metrics(&mut self, registry: &mut prometheus_client::registry::Registry) {
        self.metrics = Some(crate::metrics::Metrics::register(registry));
    }

    fn on_gossipsub_event(&mut self, event: gossipsub::Event) {
        match &event {
            gossipsub::Event::Message {
                propagation_source,
                message_id,
                message,
            } => {
                let topic = message.topic.as_str();
                let ours = self.core.has_topic(topic);
                let received = Received {
                    topic,
                    source: *propagation_source,
                    author: message.source,
                    sequence: message.sequence_number,
                    data: &message.data,
                };
                let verdict = self.core.on_message(&received, now());
                #[cfg(feature = "metrics")]
                if ours && let Some(metrics) = &self.metrics {
                    metrics.on_verdict(verdict);
                }
                if self.validates {
                    self.gossipsub.report_message_validation_result(
                        message_id,
                        propagation_source,
                        acceptance(verdict),
                    );
                }
                if ours {
                    return;
                }
            }
            gossipsub::Event::Subscribed { peer_id, topic } => {
                self.core.on_subscribed(topic.as_str(), *peer_id, now());
            }
            gossipsub::Event::Unsubscribed { peer_id, topic } => {
                self.core.on_unsubscribed(topic.as_str(), peer_id);
            }
            gossipsub::Event::GossipsubNotSupported { .. } | gossipsub::Event::SlowPeer { .. } => {}
        }
        self.outbox
            .push_back(ToSwarm::GenerateEvent(Event::Gossipsub(event)));
    }

    fn drain_core(&mut self) {
        while let Some(output) = self.core.poll_output() {
            #[cfg(feature = "metrics")]
            if let Some(metrics) = &self.metrics {
                metrics.on_output(&output, &self.core);
            }
            let event = match output {
                Output::Publish { topic, data } => {
                    if let Err(error) = self.gossipsub.publish(TopicHash::from_raw(&topic), data) {
                        tracing::debug!(%topic, %error, "announcement not published");
                    }
                    continue;
                }
                Output::Discovered {
                    peer,
                    addresses,
                    topic,
                } => {
                    tracing::debug!(%peer, ?addresses, %topic, "discovered by pubsub");
                    let known = addresses.iter().cloned();
                    self.outbox
                        .extend(known.map(|address| ToSwarm::NewExternalAddrOfPeer {
                            peer_id: peer,
                            address,
                        }));
                    Event::Discovered {
                        peer,
                        addresses,
                        topic,
                    }
                }
                Output::Dial { peer, addresses } => {
                    tracing::debug!(%peer, ?addresses, "dialling a peer found by pubsub");
                    let opts = DialOpts::peer_id(peer)
                        .condition(PeerCondition::DisconnectedAndNotDialing)
                        .addresses(addresses)
                        .build();
                    self.outbox.push_back(ToSwarm::Dial { opts });
                    continue;
                }
                Output::Expired { peer } => Event::Expired { peer },
                Output::Content { peer, items } => Event::Content { peer, items },
                Output::ContentWithdrawn { peer, cids } => Event::ContentWithdrawn { peer, cids },
                Output::Relay { peer, announcement } => Event::Relay { peer, announcement },
                Output::RelayAddresses { peer, addresses } => {
                    Event::RelayAddresses { peer, addresses }
                }
                Output::Role { peer, role } => Event::Role { peer, role },
                Output::OfferExpired { peer, service } => Event::OfferExpired { peer, service },
                Output::ProtocolViolation {
                    peer,
                    source,
                    violation,
                } => {
                    tracing::debug!(%peer, %source, %violation, "bad announcement");
                    Event::ProtocolViolation {
                        peer,
                        source,
                        violation,
                    }
                }
            };
            self.outbox.push_back(ToSwarm::GenerateEvent(event));
        }
    }

    /// Closes the connections of those whom gossipsub would not listen to anyway.
    fn close_graylisted(&mut self, now: Instant) {
        if self.scores.is_none_or(|at| now < at) {
            return;
        }
        self.scores = Some(now + SCORES);
        let peers = self.gossipsub.all_peers().map(|(peer, _)| *peer);
        let graylisted: Vec<_> = peers
            .filter(|peer| {
                let score = self.gossipsub.peer_score(peer);
                score.is_some_and(scoring::is_graylisted)
            })
            .collect();
        for peer_id in graylisted {
            tracing::info!(peer = %peer_id, "disconnecting: its messages are forged");
            #[cfg(feature = "metrics")]
            if let Some(metrics) = &self.metrics {
                metrics.on_graylisted();
            }
            self.outbox.push_back(ToSwarm::CloseConnection {
                peer_id,
                connection: CloseConnection::All,
            });
        }
    }

    /// When the timer has to fire.
    fn deadline(&self) -> Option<Instant> {
        let times = [self.core.poll_timeout(), self.scores];
        times.into_iter().flatten().min()
    }

    fn timer_at(&self) -> Option<Instant> {
        self.timer.as_ref().map(|(at, _)| *at)
    }

    /// Returns whether the timer fired.
    fn poll_timer(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(at) = self.deadline() else {
            self.timer = None;
            return false;
        };
        if self.timer.as_ref().is_none_or(|(armed, _)| *armed != at) {
            self.timer = Some((at, Delay::new(at.saturating_duration_since(now()))));
        }
        let fired = self
            .timer
            .as_mut()
            .is_some_and(|(_, delay)| delay.poll_unpin(cx).is_ready());
        if fired {
            self.timer = None;
        }
        fired
    }
}

fn subscribe(gossipsub: &mut gossipsub::Behaviour, topic: &str) -> Result<(), TopicError> {
    gossipsub
        .subscribe(&IdentTopic::new(topic))
        .map(drop)
        .map_err(|error| TopicError::Refused {
            topic: topic.to_owned(),
            reason: error.to_string(),
        })
}

#[expect(
    clippy::disallowed_methods,
    reason = "the adapter's clock; the core is given it"
)]
fn since_1970() -> Duration {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
}

fn acceptance(verdict: Verdict) -> MessageAcceptance {
    match verdict {
        Verdict::Accept => MessageAcceptance::Accept,
        Verdict::Ignore => MessageAcceptance::Ignore,
        Verdict::Reject => MessageAcceptance::Reject,
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the adapter's clock; the core is given it"
)]
fn now() -> Instant {
    Instant::now()
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = <gossipsub::Behaviour as NetworkBehaviour>::ConnectionHandler;
    type ToSwarm = Event;

    fn handle_pending_inbound_connection(
        &mut self,
        connection: ConnectionId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        self.gossipsub
            .handle_pending_inbound_connection(connection, local, remote)
    }

    fn handle_established_inbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.gossipsub
            .handle_established_inbound_connection(connection, peer, local, remote)
    }

    fn handle_pending_outbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: Option<PeerId>,
        addresses: &[Multiaddr],
        role: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        let mut known = self
            .gossipsub
            .handle_pending_outbound_connection(connection, peer, addresses, role)?;
        known.extend(
            peer.iter()
                .flat_map(|peer| self.core.addresses(peer))
                .cloned(),
        );
        Ok(known)
    }

    fn handle_established_outbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        address: &Multiaddr,
        role_override: Endpoint,
        port_use: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.gossipsub.handle_established_outbound_connection(
            connection,
            peer,
            address,
            role_override,
            port_use,
        )
    }

    fn on_connection_handler_event(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        self.gossipsub
            .on_connection_handler_event(peer, connection, event);
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        let now = now();
        match &event {
            FromSwarm::NewListenAddr(new) => {
                self.core.on_address(Origin::Listen, new.addr.clone(), now);
            }
            FromSwarm::ExpiredListenAddr(gone) => {
                self.core
                    .on_address_gone(Origin::Listen, gone.addr.clone(), now);
            }
            FromSwarm::ExternalAddrConfirmed(new) => {
                self.core
                    .on_address(Origin::External, new.addr.clone(), now);
            }
            FromSwarm::ExternalAddrExpired(gone) => {
                self.core
                    .on_address_gone(Origin::External, gone.addr.clone(), now);
            }
            FromSwarm::ConnectionEstablished(new) => {
                let remote = new.endpoint.get_remote_address();
                self.core.on_connected(new.peer_id, remote, now);
            }
            FromSwarm::ConnectionClosed(closed) if closed.remaining_established == 0 => {
                self.core.on_disconnected(&closed.peer_id, now);
            }
            FromSwarm::DialFailure(failure) => {
                if let Some(peer) = failure.peer_id {
                    self.core.on_dial_failed(peer, now);
                }
            }
            _ => {}
        }
        self.gossipsub.on_swarm_event(event);
        self.drain_core();
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        loop {
            if let Some(action) = self.outbox.pop_front() {
                return Poll::Ready(action);
            }
            if self.poll_timer(cx) {
                let now = now();
                self.core.handle_timeout(now);
                self.drain_core();
                self.close_graylisted(now);
                continue;
            }
            match self.gossipsub.poll(cx) {
                Poll::Ready(ToSwarm::GenerateEvent(event)) => {
                    self.on_gossipsub_event(event);
                    self.drain_core();
                }
                Poll::Ready(action) => {
                    return Poll::Ready(action.map_out(|_| unreachable!("matched above")));
                }
                // A new subscriber may have brought the timer forward.
                Poll::Pending if self.deadline() == self.timer_at() => {
                    return Poll::Pending;
                }
                Poll::Pending => {}
            }
        }
    }
}

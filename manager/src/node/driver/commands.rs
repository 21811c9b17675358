//! What the handles ask for, and the fetch sessions they open.

use std::sync::Arc;

use anypath_dht as dht;
use anypath_discovery_pubsub as pubsub;
use libp2p::PeerId;

use super::{Driver, dials::Unknown, wiring::DhtWaiter};
use crate::{
    bootstrap::with_peer,
    error::DhtError,
    fetch::{Reply, Shared},
    node::{Command, now},
    strategy::Purpose,
    unrelayed::Unrelayed,
};

impl Driver {
    pub(super) fn on_command(&mut self, command: Command) {
        let now = now();
        match command {
            Command::Status(reply) => drop(reply.send(self.status())),
            Command::Peers(reply) => drop(reply.send(self.peer_statuses())),
            Command::Metrics(reply) => {
                self.metrics.observe(self.swarm.behaviour());
                drop(reply.send(self.metrics.text()));
            }
            Command::Connect { address, reply } => self.connect(address, reply),
            Command::Provide { cid, reply } => {
                // To those who listen, unless they were told more; the DHT is for the rest.
                let told = |pubsub: &mut pubsub::Behaviour| pubsub.core().announces(&cid);
                if !self.pubsub().is_some_and(told)
                    && let Err(error) = self.announce(pubsub::Content::new(cid))
                {
                    tracing::debug!(%cid, %error, "not announced over gossipsub");
                }
                match self.dht() {
                    Some(dht) => {
                        let ticket = dht.provide(cid);
                        self.dht_waiters.insert(ticket, DhtWaiter::Provide(reply));
                    }
                    None => drop(reply.send(Err(DhtError::Disabled))),
                }
            }
            Command::Announce { content, reply } => drop(reply.send(self.announce(content))),
            Command::Discover { rendezvous, reply } => {
                drop(reply.send(self.discover(&rendezvous)));
            }
            Command::Publish { topic, data, reply } => {
                drop(reply.send(self.publish(&topic, data)));
            }
            Command::Subscribe { topic, reply } => drop(reply.send(self.subscribe(&topic))),
            Command::StopProviding { cid } => {
                if let Some(pubsub) = self.pubsub() {
                    pubsub.withdraw_content(&cid);
                }
                if let Some(dht) = self.dht() {
                    dht.stop_providing(&cid);
                }
            }
            Command::FindProviders { cid, reply } => match self.dht() {
                Some(dht) => {
                    let ticket = dht.find_providers(cid);
                    self.dht_waiters
                        .insert(ticket, DhtWaiter::Find(Vec::new(), reply));
                }
                None => drop(reply.send(Err(DhtError::Disabled))),
            },
            Command::PutValue { key, value, reply } => match self.dht() {
                Some(dht) => {
                    let ticket = dht.put_value(key, value);
                    self.dht_waiters.insert(ticket, DhtWaiter::Put(reply));
                }
                None => drop(reply.send(Err(DhtError::Disabled))),
            },
            Command::RemoveValue { key } => {
                if let Some(dht) = self.dht() {
                    dht.remove_value(&key);
                }
            }
            Command::GetValue { key, reply } => match self.dht() {
                Some(dht) => {
                    let ticket = dht.get_value(key);
                    self.dht_waiters.insert(ticket, DhtWaiter::Get(reply));
                }
                None => drop(reply.send(Err(DhtError::Disabled))),
            },
            Command::OpenStream(request) => {
                let peer = request.peer;
                self.swarm.behaviour_mut().streams.open(request);
                if !self.swarm.is_connected(&peer)
                    && !self.strategy.want(peer, [], Purpose::Once, now)
                {
                    self.swarm.behaviour_mut().streams.fail_waiting(peer);
                }
            }
            Command::Register { protocol, reply } => {
                drop(reply.send(self.swarm.behaviour_mut().streams.register(protocol)));
            }
            Command::NewSession(shared) => self.open_session(&shared),
            Command::Want {
                session,
                cid,
                reply,
            } => {
                self.open_session(&session);
                // It may have come while the want was on its way.
                if self.store.has(&cid) {
                    drop(reply.send(Reply::Stored));
                    return;
                }
                let bitswap = &mut self.swarm.behaviour_mut().bitswap;
                self.fetches.want(session.id, cid, reply, bitswap, now);
            }
            Command::EndSession(session) => self.close_session(session),
            Command::NotifyBlocks(cids) => {
                self.swarm.behaviour_mut().bitswap.notify_new_blocks(&cids);
            }
            Command::Wantlist(reply) => {
                drop(reply.send(self.swarm.behaviour().bitswap.wantlist()));
            }
            Command::MostWanted { limit, reply } => {
                drop(reply.send(self.swarm.behaviour().bitswap.most_wanted(limit)));
            }
            Command::Assign { cids, reply } => {
                let accepted = self.swarm.behaviour_mut().bitswap.assign(&cids);
                // Nobody may wait for the answer any more.
                let _: Result<(), usize> = reply.send(accepted);
            }
            Command::Unassign(cids) => self.swarm.behaviour_mut().bitswap.unassign(&cids),
            Command::Shutdown(reply) => self.shutdown.push(reply),
        }
    }

    pub(super) fn dht(&mut self) -> Option<&mut dht::Behaviour> {
        self.swarm
            .behaviour_mut()
            .dht
            .as_mut()
            .map(Unrelayed::inner_mut)
    }

    fn open_session(&mut self, shared: &Arc<Shared>) {
        let bitswap = &mut self.swarm.behaviour_mut().bitswap;
        for address in self.fetches.open(shared, bitswap, now()) {
            match with_peer(&address) {
                Some((peer, address)) => {
                    let best = self.strategy.best(&peer);
                    let bitswap = &mut self.swarm.behaviour_mut().bitswap;
                    self.fetches.add_peer(shared.id, peer, best, bitswap);
                    self.strategy.want(peer, [address], Purpose::Session, now());
                    self.protect(peer);
                }
                None => self.dial_unknown(address, Some(Unknown::Session(shared.id))),
            }
        }
    }

    pub(super) fn close_session(&mut self, session: u64) {
        let bitswap = &mut self.swarm.behaviour_mut().bitswap;
        for peer in self.fetches.close(session, bitswap) {
            self.strategy.release(peer, Purpose::Session);
            self.protect(peer);
        }
    }

    pub(super) fn protect(&mut self, peer: PeerId) {
        let protected = self.strategy.is_protected(&peer);
        self.swarm
            .behaviour_mut()
            .streams
            .set_keep_alive(peer, protected);
    }
}

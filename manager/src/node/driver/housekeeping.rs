//! What time brings: the tick, the file registry, saved peers, finished jobs, the end.

use std::{collections::BTreeSet, io, pin::Pin, time::Duration};

use anypath_bitswap as bitswap;
use anypath_tiered_store::Store;
use cid::Cid;
use futures::{
    FutureExt as _, Stream as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered,
};
use libp2p::swarm::SwarmEvent;

use super::Driver;
use crate::{
    bootstrap::{Found, Registry, known},
    event::Discovery,
    node::now,
};

/// How often waiting things are looked at.
pub(super) const TICK: Duration = Duration::from_millis(500);
/// How often the file registry is read, in the first minute and later.
const REGISTRY_INTERVALS: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(10));
/// How often the peers that worked are written down.
pub(super) const SAVE_INTERVAL: Duration = Duration::from_secs(60);
/// How long a shutdown waits for the other ends.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a shutdown waits for circuits that others have through this node.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);
/// How long the gateway may take to forget the ports that it mapped: holepunch gives up a bit earlier.
const UNMAP_TIMEOUT: Duration = Duration::from_millis(2500);

/// What was done off the driver.
pub(super) enum Done {
    Stored(bitswap::Ticket, Cid, usize),
    Kept(bitswap::Ticket, Cid, usize),
    Registry(Registry, io::Result<Vec<Found>>),
    Saved,
}

impl Driver {
    pub(super) fn on_timer(&mut self) {
        let now = now();
        for connection in self.strategy.contested() {
            let behaviour = self.swarm.behaviour();
            let busy = behaviour.streams.streams_on(connection) > 0
                || !behaviour.bitswap.transfers_on(connection).is_idle();
            self.strategy.on_activity(connection, busy, now);
        }
        self.strategy.handle_timeout(now);
        if now < self.next_tick {
            return;
        }
        self.next_tick = now + TICK;
        self.announce_relay();
        self.leave_topics();
        let bitswap = &mut self.swarm.behaviour_mut().bitswap;
        for session in self.fetches.sweep(bitswap, now) {
            self.close_session(session);
        }
        if now >= self.next_registry
            && let Some(mut registry) = self.registry.take()
        {
            let (first, later) = REGISTRY_INTERVALS;
            let young = now.saturating_duration_since(self.started) < Duration::from_secs(60);
            self.next_registry = now + if young { first } else { later };
            let addresses = self.own_addresses();
            self.jobs.push(
                blocking::unblock(move || {
                    let found = registry.sync(&addresses, since_1970());
                    Done::Registry(registry, found)
                })
                .boxed(),
            );
        }
        if now >= self.next_save {
            self.next_save = now + SAVE_INTERVAL;
            if let Some(bytes) = self.known.encode_if_changed() {
                let store = self.store.clone();
                self.jobs
                    .push(save(store, bytes).map(|()| Done::Saved).boxed());
            }
        }
    }

    pub(super) fn on_done(&mut self, done: Done) {
        match done {
            Done::Stored(ticket, cid, bytes) => {
                self.fetches.stored(&cid);
                self.swarm.behaviour_mut().bitswap.taken(ticket, bytes);
            }
            Done::Kept(ticket, cid, bytes) => {
                let bitswap = &mut self.swarm.behaviour_mut().bitswap;
                if self.store.has(&cid) {
                    bitswap.notify_new_blocks(&[cid]);
                }
                bitswap.taken(ticket, bytes);
            }
            Done::Registry(registry, found) => {
                self.registry = Some(registry);
                match found {
                    Ok(found) => {
                        for Found { peer, addresses } in found {
                            if !self.swarm.is_connected(&peer) {
                                self.auto_connect(peer, addresses, Discovery::FileRegistry);
                            }
                        }
                    }
                    Err(error) => tracing::debug!(%error, "the file registry cannot be used"),
                }
            }
            Done::Saved => {}
        }
    }

    pub(super) async fn stop(mut self) {
        self.drain_relay().await;
        self.unmap_ports().await;
        self.say_goodbye().await;
        let mut closing: BTreeSet<_> = self.swarm.connected_peers().copied().collect();
        for peer in &closing {
            let _ = self.swarm.disconnect_peer_id(*peer);
        }
        let mut timeout = futures_timer::Delay::new(CLOSE_TIMEOUT).fuse();
        while !closing.is_empty() {
            futures::select! {
                event = self.swarm.select_next_some() => {
                    if let SwarmEvent::ConnectionClosed { peer_id, num_established: 0, .. } = event {
                        closing.remove(&peer_id);
                    }
                }
                () = timeout => break,
            }
        }
        // Blocks that were delivered are stored before the store is written out.
        while let Some(done) = self.jobs.next().await {
            if let Done::Registry(registry, _) = done {
                self.registry = Some(registry);
            }
        }
        if let Some(mut registry) = self.registry.take() {
            let removed = blocking::unblock(move || registry.deregister()).await;
            if let Err(error) = removed {
                tracing::debug!(%error, "the file registry keeps an entry of this node");
            }
        }
        if let Some(bytes) = self.known.encode_if_changed() {
            save(self.store.clone(), bytes).await;
        }
        if let Err(error) = self.store.flush().await {
            tracing::error!(%error, "the store could not be written out");
        }
        let replies = std::mem::take(&mut self.shutdown);
        // Sockets are closed when the caller hears that the node has stopped.
        drop(self);
        for reply in replies {
            let _ = reply.send(());
        }
    }
}

impl Driver {
    /// The gateway sends nothing to this host any more that nobody listens for.
    async fn unmap_ports(&mut self) {
        self.swarm.behaviour_mut().holepunch.unmap_ports();
        let mut end = futures_timer::Delay::new(UNMAP_TIMEOUT).fuse();
        while !self.swarm.behaviour().holepunch.port_mappings().is_empty() {
            futures::select! {
                _ = self.swarm.select_next_some() => {}
                () = end => {
                    tracing::info!("the gateway has not said that it forgot the mapped ports");
                    return;
                }
            }
        }
    }

    /// Relays nothing new, so that clients look for other relays, and lets open circuits end for a moment.
    async fn drain_relay(&mut self) {
        let relay = &mut self.swarm.behaviour_mut().relay_server;
        if !relay.is_enabled() {
            return;
        }
        relay.drain(DRAIN_TIMEOUT);
        let mut end = futures_timer::Delay::new(DRAIN_TIMEOUT).fuse();
        while self.swarm.behaviour().relay_server.circuits() > 0 {
            futures::select! {
                _ = self.swarm.select_next_some() => {}
                () = end => return,
            }
        }
    }
}

/// The next job that is done; never, while there is none.
pub(super) async fn next_job(jobs: &mut FuturesUnordered<BoxFuture<'static, Done>>) -> Done {
    std::future::poll_fn(|cx| match Pin::new(&mut *jobs).poll_next(cx) {
        std::task::Poll::Ready(Some(done)) => std::task::Poll::Ready(done),
        _ => std::task::Poll::Pending,
    })
    .await
}

async fn save(store: Store, bytes: Vec<u8>) {
    if let Err(error) = store.put_value(known::KEY, bytes.into(), None).await {
        tracing::warn!(%error, "the peers of this run cannot be written down");
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the file registry's entries carry wall-clock time"
)]
fn since_1970() -> Duration {
    web_time::SystemTime::now()
        .duration_since(web_time::UNIX_EPOCH)
        .unwrap_or_default()
}

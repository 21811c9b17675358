"""The node: py-libp2p with nothing that reaches out by itself."""

from contextlib import AsyncExitStack

from libp2p import new_host
from libp2p.bitswap.client import BitswapClient
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.host.autonat import AutoNATService
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.network.config import ConnectionConfig
from libp2p.pubsub.gossipsub import PROTOCOL_ID, PROTOCOL_ID_V11, PROTOCOL_ID_V12, GossipSub
from libp2p.pubsub.pubsub import Pubsub
from libp2p.records.validator import Validator
from libp2p.relay.circuit_v2.config import RelayConfig, RelayRole
from libp2p.relay.circuit_v2.dcutr import DCUtRProtocol
from libp2p.relay.circuit_v2.protocol import CircuitV2Protocol
from libp2p.relay.circuit_v2.resources import RelayLimits
from libp2p.relay.circuit_v2.transport import CircuitV2Transport
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE, Transport as Noise
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX, Yamux
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr
import trio

# Of a mesh; the specification's.
DEGREE = {"degree": 6, "degree_low": 4, "degree_high": 12}


# Of values that are no IPNS records.
NAMESPACE = "anypath-interop"


class Greatest(Validator):
    """Any value is valid; the greatest one is the best."""

    def validate(self, key, value):
        pass

    def select(self, key, values):
        return values.index(max(values))


class Node:
    def __init__(self, config):
        key = create_new_key_pair()
        noise = Noise(key, noise_privkey=create_noise_key_pair().private_key)
        self.host = new_host(
            key_pair=key,
            # Without this it would speak plain text, too.
            sec_opt={NOISE: noise},
            muxer_opt={YAMUX: Yamux},
            enable_tcp=True,
            enable_quic=config["swarm_key"] is None,
            enable_websocket=True,
            enable_mDNS=config["mdns"],
            psk=config["swarm_key"] and config["swarm_key"].split()[-1],
            connection_config=ConnectionConfig(min_connections=0, low_watermark=0),
        )
        # A dial that failed has failed.
        self.host.get_network().retry_config.max_retries = 0
        self.listen = [Multiaddr(address) for address in config["listen"]]
        self.router = GossipSub(
            [PROTOCOL_ID_V12, PROTOCOL_ID_V11, PROTOCOL_ID], **DEGREE, heartbeat_interval=1
        )
        self.pubsub = Pubsub(self.host, self.router)
        self.dht = config["dht"] and KadDHT(self.host, DHTMode[config["dht"].upper()])
        if self.dht is not None:
            self.dht.register_validator(NAMESPACE, Greatest())
        self.autonat = config["autonat"] and AutoNATService(self.host)
        self.bitswap = BitswapClient(self.host)
        relay = config["relay"]
        limits = relay and RelayLimits(
            duration=relay["seconds"],
            data=relay["bytes"],
            max_circuit_conns=16,
            max_reservations=relay["max_reservations"],
        )
        self.circuits = CircuitV2Protocol(self.host, limits, allow_hop=relay is not None)
        # As a client it would reserve at every relay that it calls over; it is told when.
        self.relays = CircuitV2Transport(self.host, self.circuits, RelayConfig(roles=RelayRole.STOP))
        self.punch = config["punch"] and DCUtRProtocol(self.host)

    def services(self):
        """What runs beside the host, in order."""
        services = [self.router, self.pubsub, self.circuits, self.dht, self.punch]
        return [service for service in services if service]

    async def run(self, nursery, started):
        """Until it is cancelled."""
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.host.run(self.listen))
            for service in self.services():
                await stack.enter_async_context(background_trio_service(service))
            self.bitswap.set_nursery(nursery)
            await self.bitswap.start()
            await self.pubsub.wait_until_ready()
            await self.circuits.event_started.wait()
            started.set()
            await trio.sleep_forever()

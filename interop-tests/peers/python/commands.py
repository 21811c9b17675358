"""What the peer can be told to do; the protocol is in ../README.md."""

from base64 import b64decode, b64encode
import secrets
import time

from cid import CIDv0, CIDv1
from libp2p.abc import INotifee
from libp2p.bitswap.cid import cid_to_text, parse_cid
from libp2p.discovery.events.peerDiscovery import peerDiscovery
from libp2p.host.autonat.pb.autonat_pb2 import Message
from libp2p.host.ping import PingService
from libp2p.identity.identify.identify import ID as IDENTIFY, parse_identify_response
from libp2p.identity.update import update_peerstore_from_identify
from libp2p.network.stream.exceptions import StreamEOF
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.relay.circuit_v2.exceptions import RelayConnectionError
from libp2p.relay.circuit_v2.protocol import PROTOCOL_ID as HOP
from libp2p.utils.varint import read_length_prefixed_protobuf
from multiaddr import Multiaddr
from multicodec import Code
import multihash
import trio

from node import Node

# Bytes come back as they went; what a circuit lets through shows here.
ECHO = "/anypath-interop/echo/1.0.0"
CHUNK = 16384


class Commands:
    def __init__(self, nursery, write):
        self.nursery = nursery
        self.write = write
        self.node = None
        self.connected = trio.Event()
        names = (
            "start dial disconnect connections identify ping echo reserve punchable subscribe subscribers"
            " publish provide find put_value get_value add get dial_back"
        )
        self.table = {name: getattr(self, name) for name in names.split()}

    async def start(self, config):
        token = trio.lowlevel.current_trio_token()

        def discovered(found):
            line = {
                "event": "discovered",
                "peer": str(found.peer_id),
                "addresses": [str(address) for address in found.addrs],
            }
            # From a thread of the discovery's.
            trio.from_thread.run_sync(self.write, line, trio_token=token)

        peerDiscovery.register_peer_discovered_handler(discovered)
        self.node = Node(config)
        self.node.host.set_stream_handler(ECHO, echo_handler)
        self.node.host.get_network().register_notifee(Connected(self))
        self.pings = PingService(self.node.host)
        started = trio.Event()
        self.nursery.start_soon(self.node.run, self.nursery, started)
        await started.wait()
        return {
            "peer": str(self.node.host.get_id()),
            "listen": [str(address) for address in self.node.host.get_addrs()],
        }

    def stop(self):
        """Says goodbye where that is done before the end."""
        if self.node is not None and self.node.host.mDNS is not None:
            self.node.host.mDNS.stop()
            self.node.host.mDNS = None

    async def dial(self, address):
        if "/p2p-circuit" in address:
            await self.node.relays.dial(Multiaddr(address))
            return {"peer": address.rsplit("/", 1)[1]}
        info = info_from_p2p_addr(Multiaddr(address))
        await self.node.host.connect(info)
        await self.route(info.peer_id)
        return {"peer": str(info.peer_id)}

    async def route(self, peer):
        """Into the routing table if it is a server: py-libp2p leaves that to its user."""
        if self.node.dht is not None:
            await self.ask_identify(peer)
            await self.node.dht.add_peer(peer)

    async def disconnect(self, peer):
        await self.node.host.disconnect(ID.from_string(peer))
        return {}

    async def connections(self, peer):
        found = []
        for connection in self.node.host.get_network().get_connections(ID.from_string(peer)):
            for address in connection.get_transport_addresses()[:1]:
                address = str(address)
                found.append({"address": address, "limited": "/p2p-circuit" in address})
        return {"connections": found}

    async def stream(self, peer, protocol):
        """To a connected peer: what others dialled is waited for."""
        await self.wait_for(peer)
        return await self.node.host.new_stream(peer, [protocol])

    async def wait_for(self, peer):
        while not self.node.host.get_network().get_connections(peer):
            await self.connected.wait()

    async def ask_identify(self, peer):
        """What it answers, which goes into the peerstore."""
        stream = await self.stream(peer, IDENTIFY)
        try:
            answer = await read_length_prefixed_protobuf(stream, use_varint_format=True)
        finally:
            await stream.close()
        identity = parse_identify_response(answer)
        await update_peerstore_from_identify(self.node.host.get_peerstore(), peer, identity)
        return identity

    async def identify(self, peer):
        identity = await self.ask_identify(ID.from_string(peer))
        return {
            "agent": identity.agent_version,
            "protocols": list(identity.protocols),
            "addresses": [str(Multiaddr(address)) for address in identity.listen_addrs],
        }

    async def ping(self, peer):
        peer = ID.from_string(peer)
        await self.wait_for(peer)
        began = time.monotonic()
        await self.pings.ping(peer)
        return {"microseconds": int((time.monotonic() - began) * 1e6)}

    async def echo(self, peer, bytes):
        stream = await self.stream(ID.from_string(peer), ECHO)
        sent = secrets.token_bytes(bytes)
        received = bytearray()

        async def read():
            async for chunk in chunks(stream):
                received.extend(chunk)
                if len(received) >= bytes:
                    return

        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                for at in range(0, bytes, CHUNK):
                    await stream.write(sent[at : at + CHUNK])
            # Not before: over QUIC, py-libp2p loses what comes when its own direction is closed.
            await stream.close_write()
        except BaseException:
            with trio.CancelScope(shield=True):
                await stream.reset()
            raise
        await stream.close()
        if received != sent:
            raise ValueError(f"{bytes} bytes went, {len(received)} came back, or others")
        return {"bytes": bytes}

    async def reserve(self, address):
        info = info_from_p2p_addr(Multiaddr(address))
        await self.node.host.connect(info)
        stream = await self.node.host.new_stream(info.peer_id, [HOP])
        reserved = await self.node.relays.reserve(stream, info.peer_id, self.nursery)
        await stream.close()
        if not reserved:
            raise ConnectionError("refused, and py-libp2p does not tell why")
        return {
            "addresses": [],
            "expires_seconds": self.node.relays._reservations[info.peer_id] - int(time.time()),
            "limit_seconds": 0,
            "limit_bytes": 0,
        }

    async def punchable(self):
        """Until somebody has told it under which address it is seen; there is no event for that."""
        while not self.node.host._observed_addr_manager.addrs(min_observers=1):
            await trio.sleep(0.05)
        return {}

    async def subscribe(self, topic):
        subscription = await self.node.pubsub.subscribe(topic)
        self.nursery.start_soon(self.listen, topic, subscription)
        return {}

    async def listen(self, topic, subscription):
        async for message in subscription:
            author = ID(message.from_id)
            # py-libp2p hears itself.
            if author != self.node.host.get_id():
                data = b64encode(message.data).decode()
                self.write({"event": "message", "topic": topic, "from": str(author), "data": data})

    async def subscribers(self, topic):
        return {"peers": [str(peer) for peer in self.node.pubsub.peer_topics.get(topic, ())]}

    async def publish(self, topic, data):
        await self.node.pubsub.publish(topic, b64decode(data))
        return {}

    async def provide(self, cid):
        if not await self.node.dht.provide(cid):
            raise ConnectionError("no peer took the record")
        return {}

    async def find(self, cid):
        found = {str(provider.peer_id) for provider in await self.node.dht.find_providers(cid)}
        return {"peers": list(found)}

    async def put_value(self, key, value):
        # py-libp2p's keys are texts, so that it cannot name what has bytes in it, as IPNS has.
        await self.node.dht.put_value(b64decode(key).decode(), b64decode(value))
        return {}

    async def get_value(self, key):
        value = await self.node.dht.get_value(b64decode(key).decode())
        if value is None:
            raise KeyError("not found")
        return {"value": b64encode(value).decode()}

    async def dial_back(self, peer):
        """Asks a server to dial back, at any address."""
        status, _ = await self.node.autonat.query_server(ID.from_string(peer))
        if status not in (Message.OK, Message.E_DIAL_ERROR):
            raise ConnectionError(f"refused: {Message.ResponseStatus.Name(status)}")
        return {"reachable": status == Message.OK}

    async def add(self, version, codec, hash, data):
        data = b64decode(data)
        digest = multihash.sum(data, multihash.coerce_code(hash)).encode()
        cid = CIDv0(digest) if version == 0 else CIDv1(str(Code(codec)), digest)
        await self.node.bitswap.add_block(cid, data)
        return {"cid": cid_to_text(cid)}

    async def get(self, cid):
        session = self.node.bitswap.new_session()
        return {"data": b64encode(await session.get_block(parse_cid(cid))).decode()}


class Connected(INotifee):
    """Wakes those who wait for a connection, and routes to servers that connect."""

    def __init__(self, commands):
        self.commands = commands

    async def connected(self, network, connection):
        self.commands.connected.set()
        self.commands.connected = trio.Event()
        self.commands.nursery.start_soon(self.route, connection.muxed_conn.peer_id)

    async def route(self, peer):
        try:
            await self.commands.route(peer)
        except Exception as error:
            print("not routed:", reason(error))

    async def disconnected(self, network, connection):
        pass

    async def opened_stream(self, network, stream):
        pass

    async def closed_stream(self, network, stream):
        pass

    async def listen(self, network, address):
        pass

    async def listen_close(self, network, address):
        pass


async def chunks(stream):
    """What comes, to the end of the stream."""
    told = False
    while True:
        try:
            chunk = await stream.read(CHUNK)
        except StreamEOF:
            # Twice: over QUIC, py-libp2p may tell of the end while the last bytes are still there to be read.
            if told:
                return
            told = True
            continue
        if not chunk:
            return
        yield chunk


async def echo_handler(stream):
    try:
        async for chunk in chunks(stream):
            await stream.write(chunk)
        await stream.close()
    except Exception:
        await stream.reset()


def reason(error):
    """What stands in an error of several is in its parts."""
    parts = [f"{type(error).__name__}: {error}"]
    if isinstance(error, RelayConnectionError):
        parts.append(error.status_code.name)
    parts += [reason(part) for part in getattr(error, "exceptions", ())]
    cause = error.__cause__ or error.__context__
    if cause is not None:
        parts.append(reason(cause))
    return "; ".join(parts)

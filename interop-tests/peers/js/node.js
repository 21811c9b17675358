// The node: js-libp2p and Helia with nothing that reaches out by itself.

import { quic } from '@chainsafe/libp2p-quic'
import { withBitswap } from '@helia/bitswap'
import { withLibp2pLight } from '@helia/libp2p'
import { circuitRelayServer, circuitRelayTransport } from '@libp2p/circuit-relay-v2'
import { gossipsub } from '@libp2p/gossipsub'
import { dcutr } from '@libp2p/dcutr'
import { identify, identifyPush } from '@libp2p/identify'
import { kadDHT, passthroughMapper } from '@libp2p/kad-dht'
import { mdns } from '@libp2p/mdns'
import { noise } from '@libp2p/noise'
import { ping } from '@libp2p/ping'
import { preSharedKey } from '@libp2p/pnet'
import { pubsubPeerDiscovery } from '@libp2p/pubsub-peer-discovery'
import { tcp } from '@libp2p/tcp'
import { webRTCDirect } from '@libp2p/webrtc'
import { webSockets } from '@libp2p/websockets'
import { yamux } from '@libp2p/yamux'
import { blake2b } from '@noble/hashes/blake2.js'
import { blake3 } from '@noble/hashes/blake3.js'
import { sha3_256 } from '@noble/hashes/sha3.js'
import * as dagCbor from '@ipld/dag-cbor'
import { createHeliaLight } from 'helia'
import { ipnsSelector } from 'ipns/selector'
import { ipnsValidator } from 'ipns/validator'
import { from } from 'multiformats/hashes/hasher'
import { sha256, sha512 } from 'multiformats/hashes/sha2'
import { fromString } from 'uint8arrays'

const strangers = [
  from({ name: 'blake2b-256', code: 0xb220, encode: (bytes) => blake2b(bytes, { dkLen: 32 }) }),
  from({ name: 'blake3', code: 0x1e, encode: (bytes) => blake3(bytes) }),
  from({ name: 'sha3-256', code: 0x16, encode: (bytes) => sha3_256(bytes) })
]

// Those that Helia has, and those that an application gives it.
export const hashers = [sha256, sha512, ...strangers]

export async function start (config, discovered, autonat) {
  const services = {
    identify: identify({ runOnLimitedConnection: true }),
    push: identifyPush(),
    ping: ping({ runOnLimitedConnection: true }),
    pubsub: gossipsub({ emitSelf: false, allowPublishToZeroTopicPeers: true, msgIdFn: config.messageId })
  }
  if (config.relay != null) {
    services.relay = circuitRelayServer({
      reservations: {
        maxReservations: config.relay.max_reservations,
        defaultDurationLimit: config.relay.seconds * 1000,
        defaultDataLimit: BigInt(config.relay.bytes)
      }
    })
  }
  if (config.punch) {
    services.dcutr = dcutr()
  }
  if (config.autonat) {
    services.autonat = autonat
  }
  if (config.dht != null) {
    services.dht = kadDHT({
      protocol: '/ipfs/kad/1.0.0',
      clientMode: config.dht !== 'server',
      // Addresses of loopback are as good as any.
      peerInfoMapper: passthroughMapper,
      validators: { ipns: ipnsValidator },
      selectors: { ipns: ipnsSelector }
    })
  }
  const helia = withBitswap(withLibp2pLight(createHeliaLight({ hashers: [sha512, ...strangers], codecs: [dagCbor] }), {
    addresses: { listen: config.listen, appendAnnounce: config.announce },
    // QUIC and WebRTC cannot carry the key of a private network.
    transports: [
      tcp(),
      ...(config.swarm_key == null ? [quic(), webRTCDirect({ rtcConfiguration: { iceServers: [] } })] : []),
      webSockets(),
      circuitRelayTransport()
    ],
    connectionProtector: config.swarm_key == null ? undefined : preSharedKey({ psk: fromString(config.swarm_key) }),
    connectionEncrypters: [noise()],
    streamMuxers: [yamux()],
    connectionGater: { denyDialMultiaddr: () => false },
    // It refuses a host's sixth connection in a second, and all that dial it are on one.
    connectionManager: { inboundConnectionThreshold: 1000 },
    peerDiscovery: [
      ...(config.discovery ? [telling(pubsubPeerDiscovery({ interval: 1000, topics: config.topics }), discovered)] : []),
      ...(config.mdns ? [telling(mdns({ interval: 1000 }), discovered)] : [])
    ],
    services
  }))
  await helia.start()
  return helia
}

// Tells of what a discovery finds; libp2p's own event tells of every peer that it meets.
function telling (discovery, discovered) {
  return (components) => {
    const found = discovery(components)
    found.addEventListener('peer', ({ detail }) => {
      discovered(detail.id.toString(), detail.multiaddrs.map(String))
    })
    return found
  }
}

// The node in the page: js-libp2p and Helia with nothing that reaches out by itself.

import { withBitswap } from '@helia/bitswap'
import { withLibp2pLight } from '@helia/libp2p'
import { circuitRelayTransport } from '@libp2p/circuit-relay-v2'
import { gossipsub } from '@libp2p/gossipsub'
import { identify, identifyPush } from '@libp2p/identify'
import { noise } from '@libp2p/noise'
import { ping } from '@libp2p/ping'
import { pubsubPeerDiscovery } from '@libp2p/pubsub-peer-discovery'
import { webRTC, webRTCDirect } from '@libp2p/webrtc'
import { webSockets } from '@libp2p/websockets'
import { yamux } from '@libp2p/yamux'
import { createHeliaLight } from 'helia'
import { sha256 } from 'multiformats/hashes/sha2'

export const hashers = [sha256]

// No STUN server: whoever needs one names it.
const rtcConfiguration = { iceServers: [] }

export async function start ({ listen, announce, topics, messageId }, discovered) {
  const helia = withBitswap(withLibp2pLight(createHeliaLight({}), {
    addresses: { listen, appendAnnounce: announce },
    transports: [
      webSockets(),
      webRTC({ rtcConfiguration }),
      webRTCDirect({ rtcConfiguration }),
      circuitRelayTransport()
    ],
    connectionEncrypters: [noise()],
    streamMuxers: [yamux()],
    // In a browser js-libp2p dials neither `ws` without TLS nor private addresses otherwise.
    connectionGater: { denyDialMultiaddr: () => false },
    peerDiscovery: [discovery(topics, discovered)],
    services: {
      identify: identify({ runOnLimitedConnection: true }),
      push: identifyPush(),
      ping: ping({ runOnLimitedConnection: true }),
      pubsub: gossipsub({ emitSelf: false, allowPublishToZeroTopicPeers: true, msgIdFn: messageId })
    }
  }))
  await helia.start()
  return helia
}

// Tells of what this discovery finds; libp2p's own event tells of every peer that it meets.
function discovery (topics, discovered) {
  return (components) => {
    const found = pubsubPeerDiscovery({ interval: 1000, topics })(components)
    found.addEventListener('peer', ({ detail }) => {
      discovered(detail.id.toString(), detail.multiaddrs.map(String))
    })
    return found
  }
}

export async function collect (chunks) {
  const parts = []
  for await (const part of chunks) {
    parts.push(part)
  }
  return parts
}

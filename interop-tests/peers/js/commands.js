// What a peer can be told to do, in Node and in a page; the protocol is in ../README.md.

import { multiaddr } from '@multiformats/multiaddr'
import { peerIdFromString } from '@libp2p/peer-id'
import { CID } from 'multiformats/cid'
import { concat, equals, fromString, toString } from 'uint8arrays'

// Bytes come back as they went; what a circuit lets through shows here.
const ECHO = '/anypath-interop/echo/1.0.0'

export const decode = (text) => fromString(text, 'base64pad')
export const encode = (bytes) => toString(bytes, 'base64pad')

// Takes commands. `start` makes the node, `write` takes answers and events, `more` are commands beyond these, made for the node.
export function peer ({ start, hashers, write, more }) {
  let helia
  let commands

  const common = {
    async start ({ config }) {
      helia = await start(config, (peer, addresses) => write({ event: 'discovered', peer, addresses }))
      const libp2p = helia.libp2p
      await libp2p.handle(ECHO, echo, { runOnLimitedConnection: true })
      libp2p.services.pubsub.addEventListener('message', ({ detail }) => {
        write({ event: 'message', topic: detail.topic, from: detail.from?.toString(), data: encode(detail.data) })
      })
      commands = await more?.(helia, config)
      return { peer: libp2p.peerId.toString(), listen: libp2p.getMultiaddrs().map(String) }
    },

    async dial ({ address }, signal) {
      const connection = await helia.libp2p.dial(multiaddr(address), { signal })
      return { peer: connection.remotePeer.toString() }
    },

    async disconnect ({ peer }, signal) {
      await helia.libp2p.hangUp(peerIdFromString(peer), { signal })
      return {}
    },

    async connections ({ peer }) {
      const connections = helia.libp2p.getConnections(peerIdFromString(peer))
      return {
        connections: connections.map(({ remoteAddr, limits }) => ({ address: remoteAddr.toString(), limited: limits != null }))
      }
    },

    // What identify said about a connected peer; waits until it has.
    async identify ({ peer }, signal) {
      const id = peerIdFromString(peer)
      const known = async () => {
        const stored = await helia.libp2p.peerStore.get(id).catch(() => undefined)
        const agent = stored?.metadata.get('AgentVersion')
        return agent == null || stored.protocols.length === 0
          ? undefined
          : {
              agent: toString(agent),
              protocols: stored.protocols,
              addresses: stored.addresses.map(({ multiaddr }) => multiaddr.toString())
            }
      }
      return await new Promise((resolve, reject) => {
        const look = () => { known().then((found) => { if (found != null) { resolve(found) } }, reject) }
        helia.libp2p.addEventListener('peer:identify', look, { signal })
        signal.addEventListener('abort', () => { reject(signal.reason) })
        look()
      })
    },

    async ping ({ peer }, signal) {
      const milliseconds = await helia.libp2p.services.ping.ping(peerIdFromString(peer), { signal })
      return { microseconds: milliseconds * 1000 }
    },

    // Sends random bytes and expects them back.
    async echo ({ peer, bytes }, signal) {
      const stream = await helia.libp2p.dialProtocol(peerIdFromString(peer), ECHO, { signal, runOnLimitedConnection: true })
      signal.addEventListener('abort', () => { stream.abort(signal.reason) })
      const sent = new Uint8Array(bytes)
      for (let at = 0; at < bytes; at += 65536) {
        crypto.getRandomValues(sent.subarray(at, Math.min(at + 65536, bytes)))
      }
      const received = []
      const reading = (async () => {
        for await (const chunk of stream) {
          received.push(chunk.subarray().slice())
        }
      })()
      const writing = (async () => {
        for (let at = 0; at < bytes; at += 16384) {
          if (!stream.send(sent.subarray(at, at + 16384))) {
            await stream.onDrain({ signal })
          }
        }
        await stream.close({ signal })
      })()
      await Promise.all([reading, writing])
      const back = concat(received)
      if (!equals(sent, back)) {
        throw new Error(`${bytes} bytes went, ${back.length} came back, or others`)
      }
      return { bytes }
    },

    async reserve ({ address }, signal) {
      const relay = multiaddr(address)
      const { remotePeer } = await helia.libp2p.dial(relay, { signal })
      const transports = helia.libp2p.components.transportManager
      await transports.listen([relay.encapsulate('/p2p-circuit')])
      const circuit = transports.getTransports().find((transport) => transport.reservationStore != null)
      const reservation = circuit.reservationStore.getReservation(remotePeer)
      return {
        addresses: reservation.addrs.map((bytes) => multiaddr(bytes).toString()),
        expires_seconds: Number(reservation.expire) - Math.floor(Date.now() / 1000),
        limit_seconds: Number(reservation.limit?.duration ?? 0),
        limit_bytes: Number(reservation.limit?.data ?? 0)
      }
    },

    async subscribe ({ topic }) {
      helia.libp2p.services.pubsub.subscribe(topic)
      return {}
    },

    async subscribers ({ topic }) {
      return { peers: helia.libp2p.services.pubsub.getSubscribers(topic).map(String) }
    },

    async publish ({ topic, data }) {
      await helia.libp2p.services.pubsub.publish(topic, decode(data))
      return {}
    },

    async provide ({ cid }, signal) {
      await helia.libp2p.contentRouting.provide(CID.parse(cid), { signal })
      return {}
    },

    async find ({ cid }, signal) {
      const found = new Set()
      for await (const provider of helia.libp2p.contentRouting.findProviders(CID.parse(cid), { signal })) {
        found.add(provider.id.toString())
      }
      return { peers: [...found] }
    },

    async put_value ({ key, value }, signal) {
      await helia.libp2p.contentRouting.put(decode(key), decode(value), { signal })
      return {}
    },

    async get_value ({ key }, signal) {
      return { value: encode(await helia.libp2p.contentRouting.get(decode(key), { signal })) }
    },

    async add ({ version, codec, hash, data }) {
      const bytes = decode(data)
      const hasher = hashers.find(({ code }) => code === hash)
      if (hasher == null) {
        throw new Error(`no hash function 0x${hash.toString(16)}`)
      }
      const cid = CID.create(version, codec, await hasher.digest(bytes))
      await helia.blockstore.put(cid, bytes)
      return { cid: cid.toString() }
    },

    async get ({ cid }, signal) {
      const chunks = []
      for await (const chunk of helia.blockstore.get(CID.parse(cid), { signal })) {
        chunks.push(chunk)
      }
      return { data: encode(concat(chunks)) }
    }
  }

  return async function run ({ id, command, seconds, ...fields }) {
    const known = common[command] ?? commands?.[command]
    try {
      if (known == null) {
        throw new Error(`no command ${command}`)
      }
      write({ id, ok: await known(fields, AbortSignal.timeout(seconds * 1000)) })
    } catch (error) {
      write({ id, error: reason(error) })
    }
  }
}

async function echo (stream) {
  try {
    for await (const chunk of stream) {
      if (!stream.send(chunk)) {
        await stream.onDrain()
      }
    }
    await stream.close()
  } catch (error) {
    stream.abort(error)
  }
}

// What stands in an error of several is in its parts.
function reason (error) {
  const parts = (error.errors ?? []).map(reason)
  if (error.cause != null) {
    parts.push(reason(error.cause))
  }
  return [`${error.name}: ${error.message}`, ...parts].join('; ')
}

// A peer of libp2p's universal-connectivity app: the app's two stream protocols, spoken with the libraries that js-peer speaks them with.

import { peerIdFromString } from '@libp2p/peer-id'
import { byteStream, lpStream, pbStream } from '@libp2p/utils'
import { sha256 } from 'multiformats/hashes/sha2'
import { decodeMessage, encodeMessage, message } from 'protons-runtime'
import { concat, fromString } from 'uint8arrays'
import { decode, encode } from './commands.js'

const DISCOVERY_TOPIC = 'universal-connectivity-browser-peer-discovery'
const CHAT_TOPIC = 'universal-connectivity'
const FILE_TOPIC = 'universal-connectivity-file'
const FILE_PROTOCOL = '/universal-connectivity-file/1'
const DIRECT_PROTOCOL = '/universal-connectivity/dm/1.0.0'

const OK = 200

// What the node of such a peer is started with.
export function configured (config) {
  return config.universal ? { ...config, topics: [DISCOVERY_TOPIC], messageId } : config
}

// How the app names messages of gossipsub: as nobody else does.
async function messageId ({ sequenceNumber }) {
  return await sha256.encode(fromString(sequenceNumber.toString()))
}

// Enters the room, if the node is for that, and returns what can be done in it.
export async function universal ({ libp2p }, config, write) {
  if (!config.universal) {
    return {}
  }
  const { pubsub } = libp2p.services
  // What is answered to whom asks for a file, by the bytes of its id in base64: a body, or bytes as they are.
  const files = new Map()

  await libp2p.handle(FILE_PROTOCOL, async (stream) => {
    const framed = lpStream(stream)
    try {
      const id = await framed.read()
      const file = files.get(encode(id.subarray()))
      if (file == null) {
        throw new Error('no such file')
      }
      if (file.body != null) {
        await framed.write(file.body)
      } else {
        await byteStream(framed.unwrap()).write(file.raw)
      }
      await stream.close()
    } catch (error) {
      stream.abort(error)
    }
  })

  await libp2p.handle(DIRECT_PROTOCOL, async (stream, connection) => {
    const messages = pbStream(stream)
    try {
      const signal = AbortSignal.timeout(5000)
      const { content, type } = await messages.read(request, { signal })
      await messages.write({ metadata: metadata(), status: OK }, response, { signal })
      write({ event: 'direct', from: connection.remotePeer.toString(), text: content, type })
      await stream.close({ signal })
    } catch (error) {
      stream.abort(error)
    }
  })

  pubsub.subscribe(CHAT_TOPIC)
  pubsub.subscribe(FILE_TOPIC)

  return {
    // Serves a file and tells the room of it.
    async offer ({ data }) {
      const file = crypto.randomUUID()
      files.set(encode(fromString(file)), { body: decode(data) })
      await pubsub.publish(FILE_TOPIC, fromString(file))
      return { file }
    },

    // Asks one peer for a file.
    async take ({ peer, file }, signal) {
      const stream = await libp2p.dialProtocol(peerIdFromString(peer), FILE_PROTOCOL, { signal })
      const framed = lpStream(stream)
      await framed.write(fromString(file), { signal })
      await stream.close({ signal })
      const body = await framed.read({ signal })
      return { data: encode(body.subarray()) }
    },

    // Sends a direct message and waits until the other end has taken it.
    async direct ({ peer, text }, signal) {
      const stream = await libp2p.dialProtocol(peerIdFromString(peer), DIRECT_PROTOCOL, { signal, negotiateFully: false })
      const messages = pbStream(stream)
      await messages.write({ metadata: metadata(), content: text, type: 'text/plain' }, request, { signal })
      const answer = await messages.read(response, { signal })
      if (answer.metadata == null || answer.status !== OK) {
        throw new Error(`no metadata, or status ${answer.status}`)
      }
      await stream.close({ signal })
      return {}
    },

    // For what no honest peer does: bytes as they are, for whom asks for a file.
    async answer_raw ({ file, data }) {
      files.set(file, { raw: decode(data) })
      return {}
    },

    // Likewise to one peer; returns what comes back until it hangs up.
    async send_raw ({ peer, protocol, data }, signal) {
      const stream = await libp2p.dialProtocol(peerIdFromString(peer), protocol, { signal })
      signal.addEventListener('abort', () => { stream.abort(signal.reason) })
      const received = []
      try {
        stream.send(decode(data))
        for await (const chunk of stream) {
          received.push(chunk.subarray().slice())
        }
      } catch (error) {
        if (error.name !== 'StreamResetError') {
          throw error
        }
      }
      return { data: encode(concat(received)) }
    }
  }
}

function metadata () {
  return { clientVersion: '0.0.1', timestamp: BigInt(Date.now()) }
}

// The codecs, as protons would make them of the app's direct-message.proto. A codec takes fields by their number.
function codec (fields) {
  return message((object, writer, { lengthDelimited } = {}) => {
    if (lengthDelimited !== false) {
      writer.fork()
    }
    for (const [number, [name, type]] of Object.entries(fields)) {
      if (object[name] != null) {
        writer.uint32(number << 3 | (type.startsWith?.('int') ? 0 : 2))
        typeof type === 'string' ? writer[type](object[name]) : type.encode(object[name], writer)
      }
    }
    if (lengthDelimited !== false) {
      writer.ldelim()
    }
  }, (reader, length) => {
    const object = {}
    const end = length == null ? reader.len : reader.pos + length
    while (reader.pos < end) {
      const tag = reader.uint32()
      const [name, type] = fields[tag >>> 3] ?? []
      if (type == null) {
        reader.skipType(tag & 7)
      } else {
        object[name] = typeof type === 'string' ? reader[type]() : type.decode(reader, reader.uint32())
      }
    }
    return object
  })
}

const outer = (coded) => ({
  encode: (object) => encodeMessage(object, coded),
  decode: (bytes) => decodeMessage(bytes, coded)
})

const METADATA = codec({ 1: ['clientVersion', 'string'], 2: ['timestamp', 'int64'] })
const request = outer(codec({ 1: ['metadata', METADATA], 2: ['content', 'string'], 3: ['type', 'string'] }))
const response = outer(codec({ 1: ['metadata', METADATA], 2: ['status', 'int32'], 3: ['statusText', 'string'] }))

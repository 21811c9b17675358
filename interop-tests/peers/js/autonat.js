// AutoNAT: version 2 serves and asks from the start, version 1 asks when it is told to.

import { autoNAT } from '@libp2p/autonat'
import { autoNATv2 } from '@libp2p/autonat-v2'
import { multiaddr } from '@multiformats/multiaddr'
import { peerIdFromString } from '@libp2p/peer-id'
import { AsyncLocalStorage } from 'node:async_hooks'
import { setTimeout } from 'node:timers/promises'

const DIAL_REQUEST = '/libp2p/autonat/2/dial-request'

// Version 2 of a node to be; tells what its server was asked to dial, and whether it got through.
export function autonat (write) {
  let client
  return {
    service: (components) => {
      const service = autoNATv2()(components)
      tell(service.server, write)
      client = watched(service.client)
      return service
    },

    commands: ({ libp2p }) => ({
      // Asks the one server that it is connected to whether an address can be reached (version 2).
      async reachable ({ address }, signal) {
        if (client == null) {
          throw new Error('started without AutoNAT')
        }
        const { addressManager, peerStore } = libp2p.components
        const known = addressManager.getAddressesWithMetadata().map(({ multiaddr }) => multiaddr.toString())
        if (!known.includes(address)) {
          // As if identify had told it, which takes no address of TCP.
          addressManager.addObservedAddr(multiaddr(address))
        }
        const serves = async ({ remotePeer }) => (await peerStore.get(remotePeer)).protocols.includes(DIAL_REQUEST)
        for (const connection of libp2p.getConnections()) {
          if (await serves(connection)) {
            return await client.ask(address, connection, signal)
          }
        }
        throw new Error('connected to no server')
      },

      // Asks a server to dial back, at the first address that it does not know to be reachable (version 1).
      async dial_back ({ peer }, signal) {
        const service = autoNAT()(libp2p.components)
        const client = watched(service)
        await service.start()
        try {
          return await client.ask(undefined, libp2p.getConnections(peerIdFromString(peer))[0], signal)
        } finally {
          await service.stop()
        }
      }
    })
  }
}

// Once the answer is read, for the test may end this peer then: who has read it ends the stream, too.
function tell (server, write) {
  const request = new AsyncLocalStorage()
  const handle = server.handleDialRequestStream
  server.handleDialRequestStream = async (stream, connection) => {
    const lines = []
    try {
      return await request.run(lines, () => handle(stream, connection))
    } finally {
      const patience = performance.now() + 5000
      while (stream.remoteWriteStatus === 'writable' && performance.now() < patience) {
        await setTimeout(10)
      }
      lines.forEach(write)
    }
  }
  const dial = server.dialClientBack
  server.dialClientBack = async (address, ...rest) => {
    const since = performance.now()
    const dialled = await dial.call(server, address, ...rest)
    const milliseconds = Math.round(performance.now() - since)
    request.getStore().push({ event: 'autonat', status: 'OK', dial: dialled, address: address.toString(), milliseconds })
    return dialled
  }
}

// js-libp2p believes several servers of different networks, and forgets what each of them said; this keeps it.
function watched (client) {
  const results = new Map()
  const set = client.dialResults.set
  client.dialResults.set = (address, result) => {
    results.set(address, result)
    return set.call(client.dialResults, address, result)
  }
  let questions = 0
  let failure
  let wanted
  const ask = client.askPeerToVerify
  client.askPeerToVerify = async (...question) => {
    questions++
    first(wanted)
    try {
      return await ask.apply(client, question)
    } catch (error) {
      failure = error
      throw error
    } finally {
      questions--
    }
  }

  // A server tells of the first address that it can dial; the request has them in this order.
  const first = (address) => {
    if (client.dialResults.has(address)) {
      for (const [other, result] of [...client.dialResults]) {
        if (other !== address) {
          client.dialResults.delete(other)
          set.call(client.dialResults, other, result)
        }
      }
    }
  }

  const answer = (address) => {
    for (const { multiaddr, success, failure } of results.values()) {
      if ((address ?? multiaddr.toString()) === multiaddr.toString() && success + failure > 0) {
        return { reachable: success > 0 }
      }
    }
  }

  return {
    // Whatever it has asked before is waited for.
    async ask (address, connection, signal) {
      for (const asked of [false, true]) {
        if (asked) {
          failure = undefined
          wanted = address
          await client.verifyExternalAddresses(connection)
        }
        do {
          const told = answer(address)
          if (told != null) {
            return told
          }
          await setTimeout(20, undefined, { signal })
        } while (questions > 0)
      }
      const told = answer(address)
      if (told == null) {
        throw failure ?? new Error('the server did not tell')
      }
      return told
    }
  }
}

// A js-libp2p and Helia node that a test drives by JSON lines; the protocol is in ../README.md.

import { createInterface } from 'node:readline'
import { autonat } from './autonat.js'
import { bulk } from './bulk.js'
import { peer } from './commands.js'
import { hashers, start } from './node.js'
import { configured, universal } from './universal.js'

const write = (line) => process.stdout.write(JSON.stringify(line) + '\n')
const nat = autonat(write)
const run = peer({
  start: (config, discovered) => start(configured(config), discovered, nat.service),
  hashers,
  write,
  more: async (helia, config) => ({ ...bulk(helia), ...nat.commands(helia), ...await universal(helia, config, write) })
})

// A stream that others reset may reject where nobody waits; that ends no peer.
process.on('unhandledRejection', (error) => { console.error('unhandled', error) })

const input = createInterface({ input: process.stdin })
input.on('line', (line) => { void run(JSON.parse(line)) })
// A closed stdin ends the peer; so does the process of the test.
input.on('close', () => { process.exit(0) })

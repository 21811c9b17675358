// In the page: what a test tells it to do. `main.js` calls `run` and hears `answer`.

import { unixfs } from '@helia/unixfs'
import { CID } from 'multiformats/cid'
import { concat } from 'uint8arrays'
import { decode, encode, peer } from './commands.js'
import { collect, hashers, start } from './node.js'
import { configured, universal } from './universal.js'

const write = (line) => globalThis.answer(line)

globalThis.run = peer({
  start: (config, discovered) => start(configured(config), discovered),
  hashers,
  write,
  more: async (helia, config) => {
    const files = unixfs(helia)
    return {
      ...await universal(helia, config, write),

      async add_file ({ data }, signal) {
        const cid = await files.addBytes(decode(data), { signal })
        return { cid: cid.toString() }
      },

      async get_file ({ cid }, signal) {
        return { data: encode(concat(await collect(files.cat(CID.parse(cid), { signal })))) }
      }
    }
  }
})

// In the page: what a test tells it to do. `main.js` calls `run` and hears `answer`.

import { unixfs } from '@helia/unixfs'
import { CID } from 'multiformats/cid'
import { concat } from 'uint8arrays'
import { decode, encode, peer } from './commands.js'
import { collect, hashers, start } from './node.js'

globalThis.run = peer({
  start,
  hashers,
  write: (line) => globalThis.answer(line),
  more: (helia) => {
    const files = unixfs(helia)
    return {
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

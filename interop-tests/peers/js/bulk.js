// Many blocks at once, for `compare`.

import { CID } from 'multiformats/cid'
import { sha256 } from 'multiformats/hashes/sha2'

const RAW = 0x55

// Gets that run beside each other, which Helia leaves to its user. It was fastest between 32 and 128.
const WINDOW = 64

export function bulk (helia) {
  return {
    // Puts the blocks 0..count of so many bytes each, those of src/compare/blocks.rs.
    async generate ({ count, bytes }) {
      for (let index = 0; index < count; index++) {
        const data = generated(index, bytes)
        await helia.blockstore.put(CID.createV1(RAW, await sha256.digest(data)), data)
      }
      return {}
    },

    // Gets every block over bitswap; Helia checks its hash and keeps it.
    async fetch ({ cids }, signal) {
      const wanted = cids.map((cid) => CID.parse(cid)).values()
      let received = 0
      const get = async () => {
        for (const cid of wanted) {
          for await (const chunk of helia.blockstore.get(cid, { signal })) {
            received += chunk.length
          }
        }
      }
      const began = process.hrtime.bigint()
      await Promise.all(Array.from({ length: WINDOW }, get))
      return { bytes: received, nanoseconds: Number(process.hrtime.bigint() - began) }
    }
  }
}

// SplitMix64 from a seed of its own for each block.
function generated (index, bytes) {
  const words = new BigUint64Array(Math.ceil(bytes / 8))
  let state = BigInt.asUintN(64, BigInt(index) * 0xD6E8FEB86659FD93n)
  for (let at = 0; at < words.length; at++) {
    state = BigInt.asUintN(64, state + 0x9E3779B97F4A7C15n)
    let word = state
    word = BigInt.asUintN(64, (word ^ (word >> 30n)) * 0xBF58476D1CE4E5B9n)
    word = BigInt.asUintN(64, (word ^ (word >> 27n)) * 0x94D049BB133111EBn)
    words[at] = word ^ (word >> 31n)
  }
  return new Uint8Array(words.buffer, 0, bytes)
}

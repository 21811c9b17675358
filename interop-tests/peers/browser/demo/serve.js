import { readFile } from 'node:fs/promises'
import { serve } from '../serve.js'

// Serves the demo and returns a link to it that has the node's address.
export async function page (address, port) {
  const html = await readFile(new URL('index.html', import.meta.url))
  return `${await serve('demo/page.js', html, port)}#${address}`
}

// Bundles a script with its libraries and serves it with a page around it, to this machine only.

import { createServer } from 'node:http'
import { readFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { build } from 'esbuild'

const here = dirname(fileURLToPath(import.meta.url))

// js-libp2p (@libp2p/webrtc 6.0.33) loses about one WebRTC dial in eight. The recipient closes the channel `init` as soon as it sees it;
// where that reaches the dialler before it has looked whether the channel is open, it waits for a second opening that never comes. Its
// own comment says that the dialler closes the channel, and so it does here.
const RACE = `            this.log.trace('closing init channel %d', channel.id);
            closeChannel(channel, this.log);
`

const withoutTheRace = {
  name: 'without-the-race',
  setup ({ onLoad }) {
    onLoad({ filter: /@libp2p\/webrtc\/dist\/src\/muxer\.js$/ }, async ({ path }) => {
      const parts = (await readFile(path, 'utf8')).split(RACE)
      if (parts.length !== 2) {
        throw new Error(`${path} is another version: see whether it still has the race`)
      }
      return { contents: parts.join('') }
    })
  }
}

async function bundle (script) {
  const { outputFiles } = await build({
    entryPoints: [join(here, script)],
    bundle: true,
    write: false,
    format: 'esm',
    define: { global: 'globalThis' },
    plugins: [withoutTheRace],
    logLevel: 'error'
  })
  return outputFiles[0].text
}

// Returns the address of the page. Port 0: any.
export async function serve (script, html, port = 0) {
  const answers = new Map([
    ['/', ['text/html; charset=utf-8', html]],
    ['/bundle.js', ['text/javascript; charset=utf-8', await bundle(script)]]
  ])
  const server = createServer(({ url }, response) => {
    const [type, body] = answers.get(url) ?? ['text/plain', undefined]
    response.writeHead(body == null ? 404 : 200, { 'content-type': type, 'cache-control': 'no-store' })
    response.end(body)
  })
  await new Promise((resolve, reject) => {
    server.on('error', reject)
    server.listen(port, '127.0.0.1', resolve)
  })
  return `http://127.0.0.1:${server.address().port}/`
}

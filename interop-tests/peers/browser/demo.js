// npm run demo -- ADDRESS: serves the demo to this machine.

import { page } from './demo/serve.js'

const PORT = 9180

const [address] = process.argv.slice(2)
if (address == null || !address.startsWith('/')) {
  console.error(`usage: npm run demo -- ADDRESS

ADDRESS is where an anypath node listens for pages. To have one:

    anypath start --private --relay-server --ws-port 9101

It prints several; take one with /ws, such as /ip4/127.0.0.1/tcp/9101/ws/p2p/12D3Koo…`)
  process.exit(2)
}
console.log(`Open this twice, in two tabs or two browsers of this machine:\n\n    ${await page(address, PORT)}\n\nCtrl-C ends it.`)

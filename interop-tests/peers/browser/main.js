// A page in Chromium that a test drives by JSON lines; the protocol is in ../README.md. The page does all of it, this passes it on.

import { createInterface } from 'node:readline'
import { launch } from './chromium.js'
import { serve } from './serve.js'

const HTML = '<!doctype html><title>peer</title><link rel="icon" href="data:,"><script type="module" src="bundle.js"></script>'

const address = await serve('peer.js', HTML)
const { browser, context } = await launch()
const page = await context.newPage()
page.on('console', (message) => console.error(message.type(), message.text()))
page.on('pageerror', (error) => console.error('uncaught', error))
await page.exposeFunction('answer', (line) => { process.stdout.write(JSON.stringify(line) + '\n') })
await page.goto(address)
await page.waitForFunction(() => globalThis.run != null)

const gone = () => { process.exit(1) }
browser.on('disconnected', gone)
page.on('crash', gone)

const input = createInterface({ input: process.stdin })
input.on('line', (line) => { void page.evaluate((command) => { void globalThis.run(command) }, JSON.parse(line)) })
// A closed stdin ends the peer; so does the process of the test.
input.on('close', async () => {
  browser.off('disconnected', gone)
  await browser.close()
  process.exit(0)
})

// Chromium of the system, without a window.

import { existsSync } from 'node:fs'
import { delimiter, join } from 'node:path'
import { chromium } from 'playwright-core'

const names = ['chromium', 'chromium-browser', 'google-chrome']

function program () {
  const inPath = (process.env.PATH ?? '').split(delimiter).flatMap((directory) => names.map((name) => join(directory, name)))
  const found = process.env.CHROMIUM ?? inPath.find((file) => existsSync(file))
  if (found == null) {
    throw new Error(`no Chromium: install one (Debian: apt-get install chromium), or name it in CHROMIUM (looked for ${names.join(', ')})`)
  }
  return found
}

// A browser with a new profile, and a context for pages that may use loopback for WebRTC, and so meet without another network.
export async function launch (options = {}) {
  const browser = await chromium.launch({
    executablePath: program(),
    args: [
      // Chromium's own sandbox does not start as root; it loads nothing but our page.
      '--no-sandbox',
      '--disable-gpu',
      '--no-first-run',
      '--disable-background-networking',
      '--disable-component-update',
      '--disable-sync',
      '--allow-loopback-in-peer-connection'
    ]
  })
  const context = await browser.newContext(options)
  // Without these, a page offers no address of an interface to its peers, only a name in mDNS.
  await context.grantPermissions(['microphone', 'camera'])
  return { browser, context }
}

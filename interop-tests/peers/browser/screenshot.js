// npm run screenshot -- ADDRESS CID FILE: two pages of the demo meet at the node, talk, get a file of the node, and share one;
// FILE is a picture of the first page. It fails where any of it does not happen.

import { launch } from './chromium.js'
import { page as serveDemo } from './demo/serve.js'

const [address, cid, file] = process.argv.slice(2)
const demo = await serveDemo(address, 0)
const { browser, context } = await launch({ viewport: { width: 960, height: 590 }, colorScheme: 'light' })
try {
  const [one, two] = [await context.newPage(), await context.newPage()]
  const meets = async (page) => {
    await page.goto(demo)
    await page.getByText('connected over').waitFor()
    await page.getByText('by other pages, over WebRTC').waitFor()
  }
  await Promise.all([one, two].map(meets))
  await Promise.all([one, two].map((page) => page.getByText('direct over WebRTC').waitFor()))

  const say = async (page, text) => {
    await page.getByLabel('Message').fill(text)
    await page.getByRole('button', { name: 'Send' }).click()
  }
  await say(one, 'Hello! Found you through the node.')
  await two.getByText('Hello!').waitFor()
  await say(two, 'Hello. We are connected directly by now.')
  await one.getByText('connected directly').waitFor()

  const get = async (page, wanted) => {
    await page.getByLabel('CID').fill(wanted)
    await page.getByRole('button', { name: 'Get' }).click()
    await page.getByText(`got …${wanted.slice(-8)}`).waitFor()
  }
  await get(one, cid)
  await two.getByLabel('File to share').setInputFiles({ name: 'holiday.jpg', mimeType: 'image/jpeg', buffer: Buffer.alloc(2_500_000, 7) })
  const shared = await two.getByText('anypath get').textContent()
  await get(one, shared.replace('anypath get ', ''))
  await one.screenshot({ path: file })
} finally {
  await browser.close()
}
process.exit(0)

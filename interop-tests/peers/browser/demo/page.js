// What a person sees: one node's address leads to other pages, a chat, and files both ways.

import { unixfs } from '@helia/unixfs'
import { multiaddr } from '@multiformats/multiaddr'
import { CID } from 'multiformats/cid'
import { fromString, toString } from 'uint8arrays'
import { collect, start } from '../node.js'

// That of libp2p's universal-connectivity app; `anypath publish` and `anypath subscribe` take any.
const TOPIC = 'universal-connectivity'
const PATIENCE = 20_000

const at = (id) => document.getElementById(id)
const short = (id) => `…${id.slice(-8)}`

function show (id, text, kind = '') {
  at(id).textContent = text
  at(id).className = kind
}

function item (list, parts) {
  const line = document.createElement('li')
  line.append(...parts)
  at(list).append(line)
  line.scrollIntoView({ block: 'nearest' })
  return line
}

function element (name, text, kind = '') {
  const made = document.createElement(name)
  made.textContent = text
  made.className = kind
  return made
}

// Peers that call the same node, and where they can be called.
const pages = new Map()
let node

const helia = await start({ listen: ['/p2p-circuit', '/webrtc'] }, (peer, addresses) => {
  // Our node announces itself, too; it cannot be called over WebRTC by way of a relay.
  const callable = addresses.filter((address) => address.includes('/webrtc/'))
  if (callable.length > 0) {
    pages.set(peer, callable)
    void call(peer, callable)
    draw()
  }
})
const { libp2p } = helia
const files = unixfs(helia)
const self = libp2p.peerId.toString()
show('self', self, 'id')
show('topic', TOPIC)

// One of two pages calls the other, so that there is one connection.
async function call (peer, addresses) {
  if (self < peer && direct(peer) == null) {
    try {
      await libp2p.dial(addresses.map((address) => multiaddr(address)), { signal: AbortSignal.timeout(PATIENCE) })
    } catch (error) {
      console.warn('calling', peer, error)
    }
  }
}

function connections (peer) {
  return libp2p.getConnections().filter(({ remotePeer }) => remotePeer.toString() === peer)
}

function direct (peer) {
  return connections(peer).find(({ limits }) => limits == null)
}

function transport (connection) {
  const address = connection.remoteAddr.toString()
  if (address.includes('/webrtc-direct')) {
    return 'WebRTC-direct'
  }
  return address.includes('/webrtc') ? 'WebRTC' : 'WebSocket'
}

function draw () {
  const toNode = node == null ? undefined : direct(node)
  if (toNode != null) {
    show('node', `${short(node)}, connected over ${transport(toNode)}`, 'good')
  } else if (node != null) {
    show('node', `${short(node)}, connection lost`, 'bad')
  }
  if (libp2p.getMultiaddrs().some((address) => address.toString().includes('/webrtc/'))) {
    show('reserved', 'by other pages, over WebRTC', 'good')
  }
  if (pages.size > 0) {
    at('peers').replaceChildren()
  }
  for (const peer of pages.keys()) {
    const connected = direct(peer)
    const how = connected == null ? ['found, not connected', 'wait'] : [`direct over ${transport(connected)}`, 'good']
    item('peers', [element('span', short(peer), 'id'), ' ', element('span', ...how)])
  }
}

for (const event of ['connection:open', 'connection:close', 'self:peer:update']) {
  libp2p.addEventListener(event, draw)
}

async function connect (address) {
  show('node', 'connecting…', 'wait')
  try {
    const { remotePeer } = await libp2p.dial(multiaddr(address), { signal: AbortSignal.timeout(PATIENCE) })
    node = remotePeer.toString()
    draw()
  } catch (error) {
    show('node', error.message, 'bad')
  }
}

function on (form, act) {
  at(form).addEventListener('submit', (event) => {
    event.preventDefault()
    void act()
  })
}

on('connect', () => connect(at('address').value.trim()))

libp2p.services.pubsub.subscribe(TOPIC)
libp2p.services.pubsub.addEventListener('message', ({ detail }) => {
  if (detail.topic === TOPIC) {
    item('said', [element('span', `${short(detail.from.toString())} `, 'id soft'), toString(detail.data)])
  }
})

on('say', async () => {
  const text = at('text').value
  at('text').value = ''
  await libp2p.services.pubsub.publish(TOPIC, fromString(text))
  item('said', [element('span', 'this page ', 'soft'), text])
})

const megabytes = (bytes) => `${(bytes / 1e6).toFixed(2)} MB`

at('file').addEventListener('change', async () => {
  const [file] = at('file').files
  const cid = await files.addBytes(new Uint8Array(await file.arrayBuffer()))
  item('files', [`shared ${file.name}, ${megabytes(file.size)}: `, element('code', `anypath get ${cid}`)])
  at('share').reset()
})

on('fetch', async () => {
  const cid = at('cid').value.trim()
  const line = item('files', [element('span', `asking for …${cid.slice(-8)}`, 'wait')])
  try {
    const began = performance.now()
    const signal = AbortSignal.timeout(PATIENCE)
    const file = new Blob(await collect(files.cat(CID.parse(cid), { signal })))
    const seconds = ((performance.now() - began) / 1000).toFixed(2)
    const digest = new Uint8Array(await crypto.subtle.digest('SHA-256', await file.arrayBuffer()))
    const link = element('a', `got …${cid.slice(-8)}`)
    link.href = URL.createObjectURL(file)
    link.download = cid
    line.replaceChildren(link, `, ${megabytes(file.size)} in ${seconds} s, SHA-256 `, element('code', toString(digest, 'base16').slice(0, 16) + '…'))
    const image = new Image()
    image.src = link.href
    image.alt = ''
    await image.decode().then(() => { line.append(image) }, () => {})
  } catch (error) {
    line.replaceChildren(element('span', `…${cid.slice(-8)}: ${error.message}`, 'bad'))
  }
})

// The address may come with the link: http://…/#/ip4/…
const given = decodeURIComponent(location.hash.slice(1))
if (given !== '') {
  at('address').value = given
  await connect(given)
}

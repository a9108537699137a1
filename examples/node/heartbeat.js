#!/usr/bin/env node
// Keeps a session online until it is told to end (Ctrl-C, SIGTERM).
//
//     node heartbeat.js SPACE USER SESSION [redis://127.0.0.1:6379]
//
// A heartbeat every third of the lease, so that two may be lost, and not exactly every third: a
// thousand clients that were started by one restart should not beat in the same moment. Each carries
// the metadata, which makes no event as long as it is the same, and is there again where the server
// lost the session. A server that is away is tried again soon: the lease runs on.
//
// PRESENCE_LEASE_MS is the lease (30000). PRESENCE_LINGER_MS (0) is for one that is restarted: where it
// is back with the same session in this time, nobody has noticed that it was gone. Needs node-redis and a server with the presence module.

import { createClient, ErrorReply } from 'redis'
import { setTimeout as wait } from 'node:timers/promises'

const LEASE_MS = Number(process.env.PRESENCE_LEASE_MS ?? 30000)
const LINGER_MS = Number(process.env.PRESENCE_LINGER_MS ?? 0)
const RETRY_MS = Math.min(500, LEASE_MS / 10) // for a server that is down or still loading
const META = JSON.stringify({ client: 'heartbeat.js' })

const [space, user, session, url = 'redis://127.0.0.1:6379'] = process.argv.slice(2)
if (!session) {
  console.error('usage: heartbeat.js SPACE USER SESSION [redis://127.0.0.1:6379]')
  process.exit(1)
}

const client = createClient({
  url,
  disableOfflineQueue: true, // a heartbeat that is late is no use: the next one says the same
  socket: { reconnectStrategy: RETRY_MS },
})
client.on('error', (error) => console.error(`heartbeat: ${error.message}; trying again`))

const end = new AbortController()
for (const signal of ['SIGINT', 'SIGTERM']) process.once(signal, () => end.abort())
const pause = (ms) => wait(ms, null, { signal: end.signal }).catch(() => {})

client.connect().catch(() => {}) // it goes on trying, and says what is wrong above
let said = false
while (!end.signal.aborted) {
  try {
    const came = await client.sendCommand([
      'PRESENCE.ONLINE', space, user, 'SESSION', session, 'META', META, 'PX', String(LEASE_MS),
    ])
    // 1: the user was not online before this call
    if (came || !said) console.log(said ? 'online again' : 'online')
    said = true
    await pause((LEASE_MS / 3) * (0.8 + 0.2 * Math.random()))
  } catch (error) {
    // CLOSED, WRONGTYPE: it would be told the same again.
    if (error instanceof ErrorReply && !error.message.startsWith('LOADING')) throw error
    await pause(RETRY_MS)
  }
}

// Who knows that it goes says so: nobody has to wait for the end of the lease.
await client.sendCommand([
  'PRESENCE.OFFLINE', space, user, 'SESSION', session, 'LINGER', String(LINGER_MS),
])
console.log('offline')
client.destroy()

#!/usr/bin/env node
// Appends every event of a space to a file, one JSON object a line, each once.
//
//     node log.js SPACE FILE [redis://127.0.0.1:6379]
//
// The file itself says how far it has come: after a restart, also after a kill -9, the program goes
// on after its last complete line; a line that was being written then is cut off and fetched again.
// While the server is down it tries again. One program a file.
//
// The server keeps events for a while (presence.history-length, presence.history-ttl-ms). If the
// program was away for longer, some are lost; it says so on stderr and goes on with what there is.
//
// Needs node-redis (package.json) and a server with the presence module.

import { createClient, ErrorReply } from 'redis'
import fs from 'node:fs'
import { setTimeout as pause } from 'node:timers/promises'

const BLOCK_MS = 5000 // how long one question waits for an answer
const RETRY_MS = 200 // how long to leave a server alone that is down or still loading

function connect(url) {
  const client = createClient({
    url,
    RESP: 3, // maps come as objects, booleans as booleans
    socket: { reconnectStrategy: RETRY_MS, socketTimeout: BLOCK_MS + 5000 },
  })
  client.on('error', (error) => console.error(`log: ${error.message}; trying again`))
  return client
}

// The reply, however long the server is away.
async function ask(client, ...words) {
  for (;;) {
    try {
      return await client.sendCommand(words)
    } catch (error) {
      if (error instanceof ErrorReply && !error.message.startsWith('LOADING')) throw error
      await pause(RETRY_MS)
    }
  }
}

// The file, cut after its last complete line, and the id in that line.
function openLog(path) {
  const file = fs.openSync(path, 'a+')
  let start = fs.fstatSync(file).size
  let tail = Buffer.alloc(0)
  const newlines = () => tail.reduce((n, byte) => n + (byte === 10), 0)
  while (start > 0 && newlines() < 2) {
    const piece = Buffer.alloc(Math.min(start, 1 << 16))
    start -= piece.length
    fs.readSync(file, piece, 0, piece.length, start)
    tail = Buffer.concat([piece, tail])
  }
  const end = tail.lastIndexOf('\n') + 1
  fs.ftruncateSync(file, start + end)
  const lines = tail.toString('utf8', 0, end).split('\n')
  return { file, last: end > 0 ? JSON.parse(lines.at(-2)).id : '0-0' }
}

const idOf = (event) => JSON.parse(event).id

// Whether one id comes after another.
function isAfter(a, b) {
  const [[epochA, seqA], [epochB, seqB]] = [a, b].map((id) => id.split('-').map(Number))
  return epochA > epochB || (epochA === epochB && seqA > seqB)
}

async function run(space, path, url) {
  const client = connect(url)
  let { file, last } = openLog(path)
  await client.connect()
  for (;;) {
    let { id, gap, events } = await ask(
      client, 'PRESENCE.EVENTS', space, 'AFTER', last, 'COUNT', '1000', 'BLOCK', String(BLOCK_MS))
    if (gap) {
      console.error(`log: some events after ${last} are lost`)
      // Where it cannot tell what the file has already, it sends all that it keeps.
      events = events.filter((event) => isAfter(idOf(event), last))
      last = id
    }
    if (events.length > 0) {
      fs.appendFileSync(file, events.map((event) => event + '\n').join(''))
      last = idOf(events.at(-1))
    }
  }
}

const [space, path, url = 'redis://127.0.0.1:6379', ...rest] = process.argv.slice(2)
if (path === undefined || rest.length > 0) {
  console.error('usage: log.js SPACE FILE [redis://127.0.0.1:6379]')
  process.exit(1)
}
await run(space, path, url)

#!/usr/bin/env node
// Follows a space: calls online(user) and offline(user) once for each transition.
//
//     node follow.js SPACE [redis://127.0.0.1:6379]
//
// It begins with who is there, and then waits for what happens (PRESENCE.EVENTS ... BLOCK). While the
// server is down it tries again, and goes on after the event that it saw last: nothing is missed.
// Where the server no longer has what came after that event (a gap: too many events meanwhile, the
// space deleted, the server back without its data), it reads again who is there, and calls the
// difference.
//
// Needs node-redis (package.json) and a server with the presence module. Put your work in the place
// of online() and offline().

import { createClient, ErrorReply } from 'redis'
import { setTimeout as pause } from 'node:timers/promises'

const BLOCK_MS = 5000 // how long one question waits for an answer
const RETRY_MS = 200 // how long to leave a server alone that is down or still loading

function online(user) {
  console.log('online', user)
}

function offline(user) {
  console.log('offline', user)
}

class Follower {
  users = new Set() // who is online, as far as was told
  last = null // the id of the last event that was taken in

  constructor(space, url) {
    this.space = space
    this.client = createClient({
      url,
      RESP: 3, // maps come as objects, booleans as booleans
      socket: { reconnectStrategy: RETRY_MS, socketTimeout: BLOCK_MS + 5000 },
    })
    this.client.on('error', (error) => console.error(`follow: ${error.message}; trying again`))
  }

  // The reply, however long the server is away.
  async ask(command, ...words) {
    for (;;) {
      try {
        return await this.client.sendCommand([command, this.space, ...words])
      } catch (error) {
        if (error instanceof ErrorReply && !error.message.startsWith('LOADING')) throw error
        await pause(RETRY_MS)
      }
    }
  }

  came(user) {
    if (this.users.has(user)) return
    this.users.add(user)
    online(user)
  }

  went(user) {
    if (this.users.delete(user)) offline(user)
  }

  // Page by page, for there may be many. What happens meanwhile comes after the first page's id.
  async takeSnapshot() {
    const users = new Set()
    let first = null
    let cursor = '0'
    do {
      const page = await this.ask('PRESENCE.SPACE', 'CURSOR', cursor, 'COUNT', '1000')
      first ??= page.id
      cursor = page.cursor
      for (const user of page.members) users.add(user)
    } while (cursor !== '0')
    for (const user of [...this.users]) if (!users.has(user)) this.went(user)
    for (const user of users) this.came(user)
    this.last = first
  }

  take(event) {
    if (event.type === 'join') this.came(event.user)
    else if (event.type === 'leave') this.went(event.user)
    // Everybody is gone, without a leave of their own.
    else if (event.type === 'close') for (const user of [...this.users]) this.went(user)
    this.last = event.id
  }

  async run() {
    await this.client.connect()
    await this.takeSnapshot()
    for (;;) {
      const { gap, events } = await this.ask(
        'PRESENCE.EVENTS', 'AFTER', this.last, 'COUNT', '1000', 'BLOCK', String(BLOCK_MS))
      if (gap) await this.takeSnapshot()
      else for (const text of events) this.take(JSON.parse(text))
    }
  }
}

const [space, url = 'redis://127.0.0.1:6379', ...rest] = process.argv.slice(2)
if (space === undefined || rest.length > 0) {
  console.error('usage: follow.js SPACE [redis://127.0.0.1:6379]')
  process.exit(1)
}
await new Follower(space, url).run()

#!/usr/bin/env node
// A contact list: who of these is online, and who comes and goes.
//
//     node contacts.js SPACE CONTACT [CONTACT ...] redis://127.0.0.1:6379
//
// It subscribes first, and then asks for the contacts' status together with the id of the space's last
// event, in one transaction. Events up to that id are in the answer; those after it come on the channel,
// numbered without gaps. Where one is missing, the epoch is another one (the server has loaded its data
// or was promoted, or the space is another one) or the connection broke, it asks again, and so it does
// now and then if nothing comes: for a list of contacts that costs less than reading what happened.
//
// Needs node-redis (package.json) and a server with the presence module.

import { createClient, ErrorReply } from 'redis'
import { on } from 'node:events'
import { setTimeout as pause } from 'node:timers/promises'

const RETRY_MS = 200
const QUIET_MS = 60000 // ask again so often: a replica does not publish what it has lost

class Contacts {
  epoch = 0 // the last event that was taken in: "1795354360536-8" is epoch 1795354360536, seq 8
  seq = 0

  constructor(space, names, url) {
    this.space = space
    this.online = new Map(names.map((name) => [name, null])) // null: not known yet
    this.options = {
      url,
      RESP: 3, // maps come as objects
      socket: { reconnectStrategy: false }, // a new connection begins with a question: see run()
    }
  }

  set(name, online) {
    if (!this.online.has(name) || this.online.get(name) === online) return
    this.online.set(name, online)
    console.log(name, online ? 'online' : 'offline')
  }

  // Status and position of one moment.
  async ask(client) {
    const names = [...this.online.keys()]
    const [sessions, page] = await client
      .multi()
      .addCommand(['PRESENCE.STATUS', this.space, ...names])
      .addCommand(['PRESENCE.SPACE', this.space, 'COUNT', '1'])
      .exec()
    ;[this.epoch, this.seq] = page.id.split('-').map(Number)
    names.forEach((name, i) => this.set(name, sessions[i] > 0))
  }

  async take(event, client) {
    const [epoch, seq] = event.id.split('-').map(Number)
    if (epoch === this.epoch && seq <= this.seq) return
    if (epoch !== this.epoch || seq !== this.seq + 1) return this.ask(client)
    this.seq = seq
    if (event.type === 'join' || event.type === 'leave') this.set(event.user, event.type === 'join')
    else if (event.type === 'close') for (const name of this.online.keys()) this.set(name, false)
  }

  // As long as the connections hold: one that is subscribed, one that asks.
  async follow() {
    const client = createClient(this.options)
    const feed = client.duplicate()
    for (const connection of [client, feed]) connection.on('error', () => {}) // they throw it as well
    const messages = on(feed, 'text') // one after the other, as long as it takes; throws feed's errors
    const quiet = setInterval(() => feed.emit('text', null), QUIET_MS)
    try {
      await client.connect()
      await feed.connect()
      await feed.subscribe(`presence:${this.space}`, (text) => feed.emit('text', text))
      await this.ask(client)
      for await (const [text] of messages) {
        if (text === null) await this.ask(client)
        else await this.take(JSON.parse(text), client)
      }
    } finally {
      clearInterval(quiet)
      for (const connection of [client, feed]) if (connection.isOpen) connection.destroy()
    }
  }

  async run() {
    for (;;) {
      try {
        await this.follow()
      } catch (error) {
        // WRONGTYPE: it would be told the same again.
        if (error instanceof ErrorReply && !error.message.startsWith('LOADING')) throw error
        console.error(`contacts: ${error.message}; trying again`)
        await pause(RETRY_MS)
      }
    }
  }
}

const words = process.argv.slice(2)
if (words.length < 3) {
  console.error('usage: contacts.js SPACE CONTACT [CONTACT ...] redis://127.0.0.1:6379')
  process.exit(1)
}
await new Contacts(words[0], words.slice(1, -1), words.at(-1)).run()

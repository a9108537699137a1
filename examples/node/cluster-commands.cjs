// Tells ioredis or iovalkey which argument of the module's commands is the key. Load it before the library:
//
//     require('./cluster-commands.cjs')('ioredis')         // or 'iovalkey'
//     const { Cluster } = require('ioredis')
//     const cluster = new Cluster([{ host: '127.0.0.1', port: 7000 }])
//     await cluster.call('presence.online', 'lobby', 'alice')
//
// Both have a table of commands of their own and never ask the server. For a command that is not in it they do not know
// the node, do not apply keyPrefix, and do not send reads to replicas (scaleReads). Write the names in lower case:
// iovalkey finds no others.
//
// Tried with ioredis 5.11.1 and 6.0.0, and iovalkey 0.4.0.

const { createRequire } = require('node:module')

const tables = {
  ioredis: '@ioredis/commands/built/commands.json',
  iovalkey: '@iovalkey/commands/dist/commands.json',
}
const writes = ['online', 'offline', 'message', 'close']
const reads = ['status', 'user', 'space', 'count', 'events']

module.exports = (library) => {
  // The library's own copy of the table. A module that is loaded once is shared, so what is added here is there later.
  const table = createRequire(require.resolve(library))(tables[library])
  const command = (flag) => ({ arity: -2, flags: [flag], keyStart: 1, keyStop: 1, step: 1 })
  for (const name of writes) table[`presence.${name}`] = command('write')
  for (const name of reads) table[`presence.${name}`] = command('readonly')
}

// For tests/integration/examples.rs: brings a user online in 60 spaces of a cluster, by the way that docs/guides.md
// describes for a library. Prints how many calls succeeded.
//
//     node routing.cjs ioredis|iovalkey|redis PORT
//     node routing.cjs ioredis|iovalkey PORT KEY-PREFIX

const [library, port, keyPrefix = ''] = process.argv.slice(2)
const spaces = [...Array(60).keys()].map((n) => `room:${n}`)

async function main() {
  let online, end
  if (library === 'redis') {
    const { createCluster } = require('redis')
    const cluster = createCluster({ rootNodes: [{ url: `redis://127.0.0.1:${port}` }] })
    await cluster.connect()
    online = (space) => cluster.sendCommand(space, false, ['PRESENCE.ONLINE', space, 'alice', 'EX', '600'])
    end = () => cluster.destroy()
  } else {
    require('../cluster-commands.cjs')(library)
    const { Cluster } = require(library)
    const cluster = new Cluster([{ host: '127.0.0.1', port: Number(port) }], { keyPrefix })
    await new Promise((ready) => cluster.once('ready', ready))
    online = (space) => cluster.call('presence.online', space, 'alice', 'EX', '600')
    end = () => cluster.disconnect()
  }
  let succeeded = 0
  for (const space of spaces) {
    if (Number(await online(space)) === 1) succeeded++
  }
  console.log(succeeded)
  end()
}

main()

// Who is here: sessions by id, grouped by user. Knows no document.

export class Room {
  #sessions = new Map();
  #users = new Map();

  get users() { return this.#users; }
  get sessionCount() { return this.#sessions.size; }

  replace(clients) {
    this.#sessions.clear();
    this.#users.clear();
    for (const client of clients) this.#put(client);
  }

  // Applies one event of the space. Twice does no harm.
  apply({ type, client }) {
    if (type === "join" || type === "add" || type === "update") this.#put(client);
    else if (type === "remove" || type === "leave") this.#remove(client.id);
    else if (type === "close") this.replace([]);
  }

  #put(client) {
    this.#remove(client.id);
    this.#sessions.set(client.id, client);
    if (!this.#users.has(client.identity)) this.#users.set(client.identity, new Map());
    this.#users.get(client.identity).set(client.id, client);
  }

  #remove(id) {
    const client = this.#sessions.get(id);
    if (!client) return;
    this.#sessions.delete(id);
    const sessions = this.#users.get(client.identity);
    sessions.delete(id);
    if (sessions.size === 0) this.#users.delete(client.identity);
  }
}

// One user's sessions as one line of a list.
export function summary(identity, sessions) {
  const all = [...sessions.values()];
  const named = all.find((s) => s.username);
  return {
    name: named ? named.username : identity,
    devices: all.length,
    simulated: all.every((s) => s.id.endsWith("/simulated")),
    since: new Date(Math.min(...all.map((s) => Date.parse(s.joinedAt)))),
    statuses: [...new Set(all.map((s) => s.status).filter(Boolean))],
  };
}

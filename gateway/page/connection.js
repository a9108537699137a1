// The socket: connects, pings, connects again with the same id, so that nobody sees a reload or a broken line.

const FIRST_PAUSE = 250;
const LONGEST_PAUSE = 4000;

export class Connection {
  #url; #memory; #tell; #socket; #timer; #pause = FIRST_PAUSE; #over = false;

  // `memory` keeps {id, token} of this tab; `tell(what, data)` hears "in", "trying", "out" and "message".
  constructor({ space, identity, username, memory, tell }) {
    this.#url = `${location.protocol.replace("http", "ws")}//${location.host}/${encodeURIComponent(space)}`;
    this.#url += `?${new URLSearchParams({ identity, username, events: "1" })}`;
    this.#memory = memory;
    this.#tell = tell;
    this.#connect();
  }

  #connect() {
    const known = this.#memory.get();
    const socket = new WebSocket(known ? `${this.#url}&${new URLSearchParams(known)}` : this.#url);
    this.#socket = socket;
    let why = "";
    socket.onmessage = ({ data }) => {
      const message = JSON.parse(data);
      if (message.error) why = message.error;
      if (message.clients && message.id) this.#welcome(message);
      // Browsers hold up the timers of tabs in the background, but not this.
      else if (message.ping) this.send({ action: "ping" });
      else this.#tell("message", message);
    };
    socket.onclose = ({ code }) => {
      clearTimeout(this.#timer);
      if (this.#over) return;
      // Refused, taken by a newer tab, or the room is closed: trying again would be told the same.
      if ([1008, 4002, 4003].includes(code)) {
        this.#over = true;
        this.#tell("out", why || "The room is closed.");
        return;
      }
      this.#tell("trying", why);
      // Not everybody at the same moment.
      this.#timer = setTimeout(() => this.#connect(), this.#pause * (0.5 + Math.random()));
      this.#pause = Math.min(this.#pause * 2, LONGEST_PAUSE);
    };
  }

  #welcome(message) {
    this.#pause = FIRST_PAUSE;
    if (message.token) this.#memory.set({ id: message.id, token: message.token });
    this.#tell("in", message);
    // A third of the lease, so that two may be lost.
    const ping = () => {
      this.send({ action: "ping" });
      this.#timer = setTimeout(ping, (message.ttl / 3) * (0.8 + Math.random() * 0.2));
    };
    this.#timer = setTimeout(ping, (message.ttl / 3) * Math.random());
  }

  send(message) {
    if (this.#socket.readyState !== WebSocket.OPEN) return false;
    this.#socket.send(JSON.stringify(message));
    return true;
  }

  // Says goodbye: gone at once, without the linger of a reload.
  leave() {
    this.send({ action: "leave" });
    this.#over = true;
    clearTimeout(this.#timer);
    this.#socket.close();
  }
}

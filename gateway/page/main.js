// The page: what the connection tells becomes what is seen. Drawn at most once a frame, however much happens.

import { Charts } from "./charts.js";
import { Connection } from "./connection.js";
import { Room, summary } from "./room.js";

const CARDS = 24; // people with a card of their own; the others, and simulated ones, are dots
const LINES = 200; // events and messages that are kept

const $ = (id) => document.getElementById(id);
const room = new Room();
const charts = new Charts($("charts"));
let connection = null;
let me = null; // the first message
let fresh = []; // events not drawn yet, oldest first
let drawn = true;

// ---- coming in ----

// This tab's own: a reload has it still, a second tab has not.
const tab = {
  get: (key) => JSON.parse(sessionStorage.getItem(key) ?? "null"),
  set: (key, value) => sessionStorage.setItem(key, JSON.stringify(value)),
  forget: (key) => sessionStorage.removeItem(key),
};

$("join-form").onsubmit = (event) => {
  event.preventDefault();
  const [name, space] = [$("name").value.trim(), $("room").value.trim()];
  if (!name || !space) return;
  tab.forget("id");
  localStorage.setItem("name", name);
  comeIn({ name, space });
  $("people-title").focus(); // the form, which had it, is gone
};

function comeIn({ name, space }) {
  tab.set("in", { name, space });
  history.replaceState(null, "", `?room=${encodeURIComponent(space)}`);
  $("join").hidden = true;
  $("inside").hidden = false;
  $("room-name").textContent = space;
  document.title = `${space} – who is here`;
  state("trying", "Connecting");
  connection = new Connection({
    space,
    identity: name,
    username: name,
    memory: { get: () => tab.get("id"), set: (value) => tab.set("id", value) },
    tell: hear,
  });
  charts.start();
}

$("leave").onclick = () => {
  connection.leave();
  goOut("You left.");
};

function goOut(why) {
  connection = null;
  tab.forget("in");
  tab.forget("id");
  room.replace([]);
  fresh = [];
  for (const list of ["people", "dots", "events", "messages"]) $(list).replaceChildren();
  $("inside").hidden = true;
  $("join").hidden = false;
  state("out", why);
  $("name").focus();
}

function state(name, words) {
  $("connection").dataset.state = name;
  $("connection").textContent = words;
}

// ---- what the connection tells ----

function hear(what, data) {
  if (what === "in") welcome(data);
  else if (what === "trying") state("trying", data ? `Connecting again: ${data}` : "Connecting again");
  else if (what === "out") goOut(data);
  else if (data.event === "space") happened(data.data);
  else if (data.event === "resync") { room.replace(data.clients); soon(); }
  else if (data.event === "crowd") crowd(data);
  else if (data.error) announce(data.error);
}

function welcome(message) {
  me = message;
  room.replace(message.clients);
  state("in", "Connected");
  $("hint").textContent = `PRESENCE.SPACE ${/[\s"]/.test(message.space) ? JSON.stringify(message.space) : message.space}`;
  $("crowd").hidden = !message.crowd;
  $("crowd-size").textContent = message.crowd.toLocaleString("en");
  soon();
}

function happened(event) {
  room.apply(event);
  fresh.push(event);
  if (fresh.length > 5 * LINES) fresh.splice(0, LINES);
  soon();
}

// ---- drawing ----

function soon() {
  if (!drawn) return;
  drawn = false;
  // A page in the background gets no frames, and is drawn all the same.
  if (document.hidden) setTimeout(draw, 250);
  else requestAnimationFrame(draw);
}

function draw() {
  drawn = true;
  if (!connection) return;
  const events = fresh;
  fresh = [];
  drawPeople();
  drawEvents(events.slice(-LINES));
  drawMessages(events.filter((e) => e.type === "message"));
  tell(events);
}

function drawPeople() {
  const people = [...room.users].map(([identity, sessions]) => ({ identity, ...summary(identity, sessions) }));
  const own = me.clients.find((c) => c.id === me.id)?.identity;
  // Oneself, then whoever was first.
  people.sort((a, b) => (b.identity === own) - (a.identity === own) || a.since - b.since);
  $("users").textContent = people.length.toLocaleString("en");
  $("sessions").textContent = room.sessionCount.toLocaleString("en");
  const cards = people.filter((p) => !p.simulated).slice(0, CARDS);
  keep($("people"), cards, (p) => p.identity, card, (li, p) => fillCard(li, p, p.identity === own));
  const shown = new Set(cards);
  const others = people.filter((p) => !shown.has(p));
  keep($("dots"), others, (p) => p.identity, () => document.createElement("i"), () => {});
  $("more").hidden = others.length === 0;
  $("more").textContent = `and ${others.length.toLocaleString("en")} more, a dot each`;
}

// Makes the children of a list those of `items`, and leaves alone what stays: nothing flickers, focus is kept.
function keep(list, items, key, make, fill) {
  const old = new Map([...list.children].map((child) => [child.dataset.key, child]));
  const children = items.map((item) => {
    const child = old.get(key(item)) ?? make();
    child.dataset.key = key(item);
    fill(child, item);
    old.delete(key(item));
    return child;
  });
  for (const child of old.values()) child.remove();
  children.forEach((child, i) => {
    if (list.children[i] !== child) list.insertBefore(child, list.children[i] ?? null);
  });
}

function card() {
  const li = document.createElement("li");
  li.append(part("span", "face"), part("span", "who"), part("span", "what"));
  li.children[0].setAttribute("aria-hidden", "true");
  return li;
}

function fillCard(li, person, self) {
  const [face, who, what] = li.children;
  li.className = self ? "self" : "";
  set(face, [...person.name][0]?.toUpperCase() ?? "?");
  face.style.backgroundColor = `hsl(${hue(person.identity)} 45% 38%)`;
  set(who, self ? `${person.name} (you)` : person.name);
  const devices = person.devices === 1 ? "1 session" : `${person.devices} sessions`;
  const words = [...person.statuses.map((s) => `“${s}”`), devices, `since ${clock(person.since)}`];
  set(what, words.join(" · ").replace(/:\d\d$/, ""));
  li.title = `${person.identity}: ${words.join(", ")}`;
}

function drawEvents(events) {
  const lines = events.map((event) => {
    const li = document.createElement("li");
    const kind = part("span", "kind", event.type);
    kind.dataset.type = event.type;
    li.append(kind, part("span", "about", about(event)), part("span", "id", event.id));
    return li;
  });
  $("events").prepend(...lines.reverse());
  while ($("events").children.length > LINES) $("events").lastChild.remove();
}

function about(event) {
  const reason = event.reason ? `, ${event.reason}` : "";
  const status = event.type === "update" && event.client.status ? `: “${event.client.status}”` : "";
  return `${event.user ?? "the room"}${status}${reason} · ${event.users} here`;
}

function drawMessages(messages) {
  if (messages.length === 0) return;
  const list = $("messages");
  const atEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 40;
  for (const message of messages) {
    const li = document.createElement("li");
    li.append(part("b", "", message.user), part("span", "", message.message), part("time", "", clock(new Date(message.at))));
    list.append(li);
  }
  while (list.children.length > LINES) list.firstChild.remove();
  if (atEnd) list.scrollTop = list.scrollHeight;
}

// For screen readers: who came and went, and only how many where it is many. (Messages are a log of their own.)
function tell(events) {
  const names = (type) => events.filter((e) => e.type === type).map((e) => e.user);
  const words = [["join", "came"], ["leave", "left"]].flatMap(([type, verb]) => {
    const who = names(type);
    if (who.length === 0) return [];
    return [who.length > 3 ? `${who.length} people ${verb}` : `${who.join(", ")} ${verb}`];
  });
  if (words.length) announce(words.join(", "));
}

let announcing;
function announce(words) {
  $("announce").textContent = words;
  clearTimeout(announcing);
  announcing = setTimeout(() => { $("announce").textContent = ""; }, 5000);
}

const clock = (date) => date.toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const set = (element, text) => { if (element.textContent !== text) element.textContent = text; };

function part(tag, className, text = "") {
  const element = document.createElement(tag);
  element.className = className;
  element.textContent = text;
  return element;
}

function hue(name) {
  let n = 0;
  for (const c of name) n = (n * 31 + c.codePointAt(0)) % 360;
  return n;
}

// ---- what one can do ----

$("status-form").onsubmit = (event) => {
  event.preventDefault();
  act({ action: "status", status: $("status").value.trim() });
};

$("message-form").onsubmit = (event) => {
  event.preventDefault();
  const text = $("message").value.trim();
  if (text && act({ action: "message", text })) $("message").value = "";
};

$("come").onclick = () => act({ action: "crowd", do: "come" });
$("crash").onclick = () => act({ action: "crowd", do: "crash" });

function crowd({ state, lease }) {
  const seconds = Math.round(lease / 1000);
  $("crowd-lease").textContent = `${seconds} seconds`;
  $("crowd-says").textContent = state === "here"
    ? "They are coming, and stay by renewing."
    : `Crashed. Whoever is still shown has at most ${seconds} seconds of lease left.`;
}

function act(message) {
  const sent = connection?.send(message) ?? false;
  if (!sent) announce("Not connected, try again in a moment.");
  return sent;
}

// ---- the beginning ----

$("name").value = localStorage.getItem("name") ?? "";
$("room").value = new URLSearchParams(location.search).get("room") || "lobby";
const before = tab.get("in");
if (before) comeIn(before);

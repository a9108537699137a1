// Small line charts of the server's figures, once a second.

const POINTS = 60;
const WIDTH = 120, HEIGHT = 40;
const SVG = "http://www.w3.org/2000/svg";

const CHARTS = [
  { name: "Users", value: (now) => now.users },
  { name: "Sessions", value: (now) => now.sessions },
  { name: "Renewals a second", value: (now, before, seconds) => rate(now.renewals, before?.renewals, seconds) },
  { name: "Sweep lag, 99th percentile", unit: " ms", value: (now) => now.sweep_lag_p99_ms },
];

const rate = (now, before, seconds) => (before === undefined ? 0 : Math.max(0, (now - before) / seconds));
const text = (n) => (n < 10 && n % 1 ? n.toFixed(1) : Math.round(n).toLocaleString("en"));

export class Charts {
  #charts; #before; #at; #timer;

  constructor(place) {
    this.#charts = CHARTS.map((chart) => ({ ...chart, ...draw(place, chart), points: [] }));
  }

  start() {
    if (!this.#timer) this.#tick();
  }

  async #tick() {
    this.#timer = setTimeout(() => this.#tick(), 1000);
    if (document.hidden) return;
    try {
      const reply = await fetch("/stats");
      if (reply.ok) this.#show(await reply.json());
    } catch { /* the gateway is away; the page says so elsewhere */ }
  }

  #show(now) {
    const at = performance.now();
    const seconds = (at - this.#at) / 1000;
    for (const chart of this.#charts) {
      const value = chart.value(now, this.#before, seconds) ?? 0;
      chart.points = [...chart.points, value].slice(-POINTS);
      chart.output.textContent = text(value) + (chart.unit ?? "");
      paint(chart);
    }
    this.#before = now;
    this.#at = at;
  }
}

function draw(place, { name }) {
  const box = document.createElement("div");
  box.className = "chart";
  const label = document.createElement("p");
  label.textContent = name;
  const output = document.createElement("output");
  output.setAttribute("aria-live", "off");
  output.textContent = "–";
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  const [area, line] = ["area", "line"].map((kind) => {
    const path = document.createElementNS(SVG, "path");
    path.setAttribute("class", kind);
    svg.append(path);
    return path;
  });
  box.append(label, output, svg);
  place.append(box);
  return { output, area, line };
}

function paint({ points, area, line }) {
  const top = Math.max(1, ...points) * 1.1;
  const x = (i) => WIDTH - ((points.length - 1 - i) * WIDTH) / (POINTS - 1);
  const y = (value) => HEIGHT - 1 - (value / top) * (HEIGHT - 4);
  const path = points.map((value, i) => `${i ? "L" : "M"}${x(i).toFixed(1)} ${y(value).toFixed(1)}`).join("");
  line.setAttribute("d", path);
  area.setAttribute("d", `${path}L${WIDTH} ${HEIGHT}L${x(0).toFixed(1)} ${HEIGHT}Z`);
}

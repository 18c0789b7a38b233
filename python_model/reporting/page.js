// Figures with values under the pointer and a legend that filters; tables that sort. Without it the page is complete.
"use strict";

const SVG = "http://www.w3.org/2000/svg";
const tip = document.createElement("div");
tip.className = "tip";
tip.hidden = true;
document.body.append(tip);

document.querySelectorAll("figure[data-chart]").forEach(chart);
document.querySelectorAll("table").forEach(sortable);

function chart(figure) {
  const svg = figure.querySelector("svg");
  const { panels, series } = JSON.parse(figure.dataset.chart);
  const off = new Set();
  const visible = () => series.filter((one) => one.facets.every((facet) => !off.has(facet)));

  for (const button of figure.querySelectorAll(".legend button")) {
    button.addEventListener("click", (event) => {
      const peers = [...button.parentElement.querySelectorAll("button")];
      if (event.shiftKey || event.altKey) {
        const alone = peers.every((peer) => (peer === button) !== off.has(peer.value));
        peers.forEach((peer) => (alone || peer === button ? off.delete(peer.value) : off.add(peer.value)));
      } else if (!off.delete(button.value)) off.add(button.value);
      for (const peer of peers) peer.setAttribute("aria-pressed", String(!off.has(peer.value)));
      for (const mark of svg.querySelectorAll("[data-series]")) {
        mark.style.display = series[mark.dataset.series].facets.some((facet) => off.has(facet)) ? "none" : "";
      }
      hide();
    });
  }

  const overlay = svg.appendChild(document.createElementNS(SVG, "g"));
  overlay.setAttribute("pointer-events", "none");
  const hide = () => {
    tip.hidden = true;
    overlay.replaceChildren();
  };
  svg.addEventListener("pointerleave", hide);
  for (const kind of ["pointermove", "pointerdown"]) {
    svg.addEventListener(kind, (event) => {
      const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
      const which = panels.findIndex(({ box }) => inside(box, at));
      const panel = panels[which];
      const near = panel ? nearest(panel, visible().filter((one) => one.panel === which), at) : [];
      if (!near.length) return hide();
      overlay.replaceChildren(...near.map((found) => circle(found, panel)));
      if (panel.along === "x") overlay.prepend(rule(place(panel.x, near[0].point[0]), panel.box));
      show(panel, near, event);
    });
  }
}

const inside = ([left, top, right, bottom], { x, y }) => x >= left && x <= right && y >= top - 6 && y <= bottom + 6;

function place(axis, value) {
  const along = axis.log ? Math.log(value / axis.low) / Math.log(axis.high / axis.low)
    : (value - axis.low) / (axis.high - axis.low);
  return axis.start + along * (axis.end - axis.start);
}

// Along x: every series at the x that is nearest to the pointer. Otherwise the one nearest point within reach.
function nearest(panel, shown, at) {
  const reach = 0.05 * (panel.box[2] - panel.box[0]);
  const distance = panel.along === "x"
    ? ([x]) => Math.abs(place(panel.x, x) - at.x)
    : ([x, y]) => panel.along === "y"
      ? Math.abs(place(panel.y, y) - at.y)
      : Math.hypot(place(panel.x, x) - at.x, place(panel.y, y) - at.y);
  const each = shown.filter((one) => one.points.length).map((one) => {
    const point = one.points.reduce((best, next) => (distance(next) < distance(best) ? next : best));
    return { one, point, far: distance(point) };
  });
  if (!each.length) return [];
  const least = Math.min(...each.map(({ far }) => far));
  if (panel.along !== "x") return least > (panel.along === "y" ? Infinity : reach) ? [] : each.filter(({ far }) => far === least);
  const x = each.find(({ far }) => far === least).point[0];
  return each.filter(({ point }) => Math.abs(place(panel.x, point[0]) - place(panel.x, x)) <= 2)
    .sort((left, right) => right.point[1] - left.point[1]);
}

function circle({ one, point }, panel) {
  const mark = document.createElementNS(SVG, "circle");
  const where = { cx: place(panel.x, point[0]), cy: place(panel.y, point[1]), r: 3.2, fill: "none" };
  for (const [name, value] of Object.entries(where)) mark.setAttribute(name, value);
  mark.style.stroke = one.color;
  mark.style.strokeWidth = 1.6;
  return mark;
}

function rule(x, [, top, , bottom]) {
  const line = document.createElementNS(SVG, "line");
  for (const [name, value] of Object.entries({ x1: x, x2: x, y1: top, y2: bottom })) line.setAttribute(name, value);
  line.setAttribute("style", "stroke: currentColor; stroke-width: .6; opacity: .5");
  return line;
}

const number = (value) => (Math.abs(value) >= 1e5 || Number.isInteger(value)
  ? value.toLocaleString("en", { maximumFractionDigits: 0 }) : String(Number(value.toPrecision(4))));

function show(panel, near, event) {
  const rows = near.map(({ one, point }) => {
    const row = document.createElement("div");
    const swatch = document.createElement("i");
    swatch.style.background = one.color;
    const text = point[2] ?? (panel.along === "x" ? number(point[1]) : `${number(point[0])}, ${number(point[1])}`);
    row.append(swatch, `${one.name ? `${one.name}: ` : ""}${text}`);
    return row;
  });
  const head = document.createElement("b");
  head.textContent = panel.along === "x" ? `${panel.x.label} ${number(near[0].point[0])}` : "";
  tip.replaceChildren(...(head.textContent ? [head] : []), ...rows);
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  const left = event.clientX + 14 + width > innerWidth ? event.clientX - 14 - width : event.clientX + 14;
  tip.style.left = `${Math.max(4, left)}px`;
  tip.style.top = `${Math.max(4, Math.min(event.clientY + 14, innerHeight - height - 4))}px`;
}

function sortable(table) {
  const body = table.tBodies[0];
  if (!table.tHead || !body || body.rows.length < 2) return;
  const original = [...body.rows];
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    if (!head.textContent.trim()) return;
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const order = { none: "descending", descending: "ascending", ascending: "none" }[head.ariaSort ?? "none"];
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const sorted = order === "none" ? original : [...original].sort((left, right) => sign * before(left, right, column));
      body.append(...sorted);
    });
  });
}

// Numbers by value, texts by letters, cells without a value last in descending order.
function before(left, right, column) {
  const [one, other] = [left, right].map((row) => value(row.cells[column]));
  if (typeof one === "number" && typeof other === "number") return one - other;
  if (typeof one === typeof other) return other.localeCompare(one);
  return typeof one === "number" ? 1 : -1;
}

function value(cell) {
  const text = (cell?.dataset.value ?? cell?.textContent ?? "").trim();
  const found = text.replaceAll(",", "").match(/^[-−+]?\d*\.?\d+(e[-+]?\d+)?/i);
  return found ? Number(found[0].replace("−", "-")) : text === "–" || text === "-" ? "" : text;
}

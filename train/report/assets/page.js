// Draws the curves, planes and large confusion matrices from the JSON data in the page, with uPlot. Redraws them when the
// theme changes. Makes tables sortable and filterable.
"use strict";
const found = JSON.parse(document.getElementById("data").textContent);
const ink = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
// The CSS colors use light-dark(…), which a canvas does not support. The browser resolves them for this empty element.
const probe = document.body.appendChild(document.createElement("i"));
const color = text => { probe.style.color = text; return getComputedStyle(probe).color; };
// On a dark page, mix the colors of series with white.
const paint = text => color(`light-dark(${text}, color-mix(in srgb, ${text} 65%, white))`);
let charts = [];
const hiddenRuns = new Set();

function draw(box, height, options, data) {
  const plot = new uPlot({ width: box.clientWidth, height: height(box.clientWidth), ...options }, data, box);
  const follow = new ResizeObserver(() => plot.setSize({ width: box.clientWidth, height: height(box.clientWidth) }));
  follow.observe(box);
  charts.push(() => { follow.disconnect(); plot.destroy(); });
  return plot;
}

// A value, or else the last value before it with its step: test values exist only where the run was evaluated.
function reading({ data }, row, index) {
  if (index == null) return "–";
  let last = index;
  while (last >= 0 && data[row][last] == null) last--;
  if (last < 0) return "–";
  return short(data[row][last]) + (last === index ? "" : ` (step ${short(data[0][last])})`);
}

const short = value => value == null ? "–" : value.toLocaleString("en", { maximumSignificantDigits: 5 });

function curve(box, { data, labels, colors, dashed, runs }) {
  const axis = { stroke: color(ink("--soft")), grid: { stroke: color(ink("--line")), width: 1 }, ticks: { show: false } };
  const series = labels.map((label, i) => ({
    label, stroke: paint(colors[i]), width: 1.5, dash: dashed[i] ? [5, 4] : [], spanGaps: true,
    points: { show: data[i + 1].filter(y => y != null).length < 30, size: 5, fill: color(ink("--paper")) },
    value: (plot, _, row, index) => reading(plot, row, index), show: !hiddenRuns.has(runs[i]),
  }));
  draw(box, width => Math.max(180, width * 0.5), {
    legend: { markers: { dash: (_, i) => dashed[i - 1] ? "dashed" : "solid" } },
    scales: { x: { time: false } },
    axes: [{ ...axis, size: 34 }, { ...axis, size: 60, values: (_, ticks) => ticks.map(short) }],
    series: [{ label: "step", value: (_, x) => short(x) }, ...series],
  }, data);
}

function plane(box, { points, labels, names, colors, rows, columns }) {
  const figure = box.closest(".plane"), sheet = figure.querySelector("img"), canvas = figure.querySelector("canvas");
  const kinds = [...new Set(labels)].sort((a, b) => a - b);
  const data = [points.map(p => p[0]), ...kinds.map(kind => points.map((p, i) => labels[i] === kind ? p[1] : null))];
  const plot = draw(box, width => width, {
    scales: { x: { time: false, range: [-1, 1] }, y: { range: [-1, 1] } },
    axes: [{ show: false }, { show: false }],
    cursor: { drag: { x: false, y: false }, points: { show: false } },
    legend: { live: false },
    series: [{}, ...kinds.map(kind => ({
      label: names[kind] ?? String(kind), stroke: paint(colors[kind]), paths: () => null,
      points: { show: true, size: 4, width: 0, fill: paint(colors[kind]) },
    }))],
  }, data);

  // x and y are fractions of the rectangle, from the left and from the top.
  function look(x, y) {
    const cell = (part, count) => Math.min(count - 1, Math.max(0, Math.floor(part * count)));
    const width = sheet.naturalWidth / columns, height = sheet.naturalHeight / rows;
    canvas.width = width;
    canvas.height = height;
    canvas.getContext("2d").drawImage(sheet, cell(x, columns) * width, cell(y, rows) * height, width, height,
      0, 0, width, height);
  }
  ["pointermove", "pointerdown"].forEach(kind => plot.over.addEventListener(kind, event => {
    const area = plot.over.getBoundingClientRect();
    look((event.clientX - area.left) / area.width, (event.clientY - area.top) / area.height);
  }));
  sheet.decode().then(() => look(0.5, 0.5));
}

// Draws a confusion matrix with one pixel per pair of classes, which the style sheet enlarges.
function matrix(box, { names, counts }) {
  const size = names.length, totals = new Array(size).fill(0), table = new Map();
  for (const [label, predicted, count] of counts) {
    totals[label] += count;
    table.set(label * size + predicted, count);
  }
  const canvas = document.createElement("canvas"), words = document.createElement("output");
  canvas.width = canvas.height = size;
  const context = canvas.getContext("2d");
  for (const [label, predicted, count] of counts) {
    context.globalAlpha = 0.25 + 0.75 * Math.sqrt(count / totals[label]);
    context.fillStyle = color(ink(label === predicted ? "--right" : "--wrong"));
    context.fillRect(predicted, label, 1, 1);
  }
  const show = event => {
    const area = canvas.getBoundingClientRect();
    const cell = part => Math.min(size - 1, Math.max(0, Math.floor(part * size)));
    const predicted = cell((event.clientX - area.left) / area.width), label = cell((event.clientY - area.top) / area.height);
    const isolated = name => `\u2068${name}\u2069`;  // A name from right to left does not reorder the text around it.
    words.textContent = `true ${isolated(names[label])}, predicted ${isolated(names[predicted])}: ` +
      `${table.get(label * size + predicted) ?? 0} of ${totals[label]} test images`;
  };
  ["pointermove", "pointerdown"].forEach(kind => canvas.addEventListener(kind, show));
  box.replaceChildren(canvas, words);
}

// The value of a cell for sorting: a number, a duration in seconds, or text.
function key(cell) {
  const text = cell.textContent.trim();
  if (/^\d+:\d\d:\d\d$/.test(text)) return text.split(":").reduce((sum, part) => 60 * sum + Number(part), 0);
  const number = Number(text.replaceAll(",", ""));
  return text === "" || Number.isNaN(number) ? text : number;
}

function sortable(box) {
  const body = box.querySelector("tbody"), titles = [...box.querySelector("thead tr:last-child").cells];
  titles.forEach((title, column) => {
    const button = document.createElement("button");
    button.append(...title.childNodes);
    title.append(button);
    button.addEventListener("click", () => {
      const up = title.getAttribute("aria-sort") !== "ascending", rows = [...body.rows];
      titles.forEach(other => other.removeAttribute("aria-sort"));
      title.setAttribute("aria-sort", up ? "ascending" : "descending");
      const compare = (a, b) => typeof a === "number" && typeof b === "number" ? a - b
        : String(a).localeCompare(String(b), undefined, { numeric: true });
      rows.sort((one, other) => {
        const a = key(one.cells[column]), b = key(other.cells[column]);
        if (a === "" || b === "") return (a === "") - (b === "");  // Empty cells stay at the end.
        return up ? compare(a, b) : compare(b, a);
      });
      body.append(...rows);
    });
  });
  if (body.rows.length < (body.querySelector("[data-run]") ? 3 : 20)) return;
  const field = document.createElement("input");
  Object.assign(field, { className: "filter", type: "search", placeholder: "Filter" });
  field.setAttribute("aria-label", "Filter the rows of the table below");
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/);
    for (const row of body.rows) {
      const text = [...row.cells].map(cell => cell.textContent).join(" ").toLowerCase();
      row.hidden = !words.every(word => text.includes(word));
      if (row.dataset.run) hiddenRuns[row.hidden ? "add" : "delete"](Number(row.dataset.run));
    }
    if (body.querySelector("[data-run]")) all();  // The curves show the same runs.
  });
  box.before(field);
}

function all() {
  charts.forEach(remove => remove());
  charts = [];
  document.querySelectorAll("[data-curve]").forEach(box => curve(box, found.curves[box.dataset.curve]));
  document.querySelectorAll("[data-matrix]").forEach(box => matrix(box, found.matrices[box.dataset.matrix]));
  document.querySelectorAll("[data-plane]").forEach(box => plane(box, found.planes[box.dataset.plane]));
}
all();
document.querySelectorAll(".sortable").forEach(sortable);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", all);

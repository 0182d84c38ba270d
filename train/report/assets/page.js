// Draws the curves and planes with uPlot from the JSON data in the page. Redraws them when the theme changes.
"use strict";
const found = JSON.parse(document.getElementById("data").textContent);
const ink = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
// The CSS colors use light-dark(…), which a canvas does not support. The browser resolves them for this empty element.
const probe = document.body.appendChild(document.createElement("i"));
const color = text => { probe.style.color = text; return getComputedStyle(probe).color; };
// On a dark page, mix the colors of series with white.
const paint = text => color(`light-dark(${text}, color-mix(in srgb, ${text} 65%, white))`);
let charts = [];

function draw(box, height, options, data) {
  const plot = new uPlot({ width: box.clientWidth, height: height(box.clientWidth), ...options }, data, box);
  const follow = new ResizeObserver(() => plot.setSize({ width: box.clientWidth, height: height(box.clientWidth) }));
  follow.observe(box);
  charts.push(() => { follow.disconnect(); plot.destroy(); });
  return plot;
}

const short = value => value == null ? "–" : Number(value.toPrecision(5)).toLocaleString("en");

function curve(box, { data, labels, colors, dashed }) {
  const axis = { stroke: color(ink("--soft")), grid: { stroke: color(ink("--line")), width: 1 }, ticks: { show: false } };
  const series = labels.map((label, i) => ({
    label, stroke: paint(colors[i]), width: 1.5, dash: dashed[i] ? [5, 4] : [], spanGaps: true,
    points: { show: data[i + 1].filter(y => y != null).length < 30, size: 5, fill: color(ink("--paper")) }, value: (_, y) => short(y),
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

function all() {
  charts.forEach(remove => remove());
  charts = [];
  document.querySelectorAll("[data-curve]").forEach(box => curve(box, found.curves[box.dataset.curve]));
  document.querySelectorAll("[data-plane]").forEach(box => plane(box, found.planes[box.dataset.plane]));
}
all();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", all);

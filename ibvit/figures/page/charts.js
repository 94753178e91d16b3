"use strict";

/* Small building blocks: elements, charts with a log or linear axis, maps and pictures with a marked patch. */

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

function drawn(tag, attributes = {}, text = "") {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text) node.textContent = text;
  return node;
}

const tidy = (value) => (value === 0 ? "0" : Math.abs(value) >= 1e-3 && Math.abs(value) < 1e4
  ? String(Number(value.toPrecision(3))) : Number(value.toPrecision(2)).toExponential());

/* Ticks: powers of ten on a log axis, about five round steps on a linear one. */
function ticks(low, high, log) {
  if (log) {
    const first = Math.ceil(Math.log10(low) - 1e-9), last = Math.floor(Math.log10(high) + 1e-9);
    const step = Math.max(1, Math.ceil((last - first) / 5));
    return Array.from({ length: Math.floor((last - first) / step) + 1 }, (_, k) => 10 ** (first + k * step));
  }
  const raw = (high - low) / 5, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((k) => k * power).find((k) => k >= raw);
  const result = [];
  for (let value = Math.ceil(low / step) * step; value <= high + step * 1e-6; value += step) result.push(value);
  return result;
}

/* A chart with axes. `x` and `y` are {low, high, log, label}; `project` turns data into pixels. */
function chart(width, height, x, y) {
  const left = 58, right = width - 12, top = 10, bottom = height - 38;
  const svg = drawn("svg", { viewBox: `0 0 ${width} ${height}` });
  const share = (axis, value) => axis.log
    ? Math.log(value / axis.low) / Math.log(axis.high / axis.low) : (value - axis.low) / (axis.high - axis.low);
  const project = (a, b) => [left + share(x, a) * (right - left), bottom - share(y, b) * (bottom - top)];
  svg.append(drawn("path", { class: "axis", fill: "none", d: `M${left} ${top}V${bottom}H${right}` }));
  for (const value of ticks(x.low, x.high, x.log)) {
    const [at] = project(value, y.low);
    svg.append(drawn("path", { class: "axis", d: `M${at} ${bottom}v4` }));
    svg.append(drawn("text", { x: at, y: bottom + 16, "text-anchor": "middle" }, tidy(value)));
  }
  for (const value of ticks(y.low, y.high, y.log)) {
    const [, at] = project(x.low, value);
    svg.append(drawn("path", { class: "axis", d: `M${left} ${at}h-4` }));
    svg.append(drawn("text", { x: left - 6, y: at + 4, "text-anchor": "end" }, tidy(value)));
  }
  svg.append(drawn("text", { x: (left + right) / 2, y: height - 4, "text-anchor": "middle" }, x.label));
  svg.append(drawn("text", { x: -(top + bottom) / 2, y: 11, transform: "rotate(-90)", "text-anchor": "middle" }, y.label));
  return { svg, project };
}

/* Numbers packed by report_data.pack and pack_rows. */
function unpack(packed) {
  const text = atob(packed.u16 || packed.u8);
  const bytes = Uint8Array.from(text, (letter) => letter.charCodeAt(0));
  const steps = packed.u16 ? new Uint16Array(bytes.buffer) : bytes;
  return Float32Array.from(steps, (step) => step * packed.scale);
}

const channels = (hex) => [1, 3, 5].map((k) => parseInt(hex.slice(k, k + 2), 16));

/* One pixel a patch: `colors` is a function patch → #rrggbb. */
function paint(canvas, [rows, columns], colors) {
  canvas.width = columns;
  canvas.height = rows;
  const pen = canvas.getContext("2d"), pixels = pen.createImageData(columns, rows);
  for (let patch = 0; patch < rows * columns; patch++) pixels.data.set([...channels(colors(patch)), 255], 4 * patch);
  pen.putImageData(pixels, 0, 0);
}

function shade(palette, share) {
  return palette[Math.max(0, Math.min(palette.length - 1, Math.round(share * (palette.length - 1))))];
}

/* A square with an image or a map, and a frame around one patch. */
function picture(grid, { image = null, colors = null, patch = null } = {}) {
  const box = element("div", { class: "picture" });
  if (image) box.append(element("img", { src: image, alt: "" }));
  if (colors) {
    const canvas = element("canvas");
    paint(canvas, grid, colors);
    box.append(canvas);
  }
  const mark = element("div", { class: "mark" });
  box.append(mark);
  box.mark = (position) => {
    mark.hidden = position === null;
    if (position === null) return;
    const [rows, columns] = grid, row = Math.floor(position / columns), column = position % columns;
    mark.style.cssText = `left:${100 * column / columns}%;top:${100 * row / rows}%;width:${100 / columns}%;height:${100 / rows}%`;
  };
  box.mark(patch);
  return box;
}

function bar(label, share, value, color) {
  const fill = element("i");
  fill.style.width = `${100 * Math.max(0, Math.min(1, share))}%`;
  if (color) fill.style.background = color;
  return element("div", { class: "bar" }, element("span", {}, label), fill, element("span", {}, value));
}

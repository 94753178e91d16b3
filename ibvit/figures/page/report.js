"use strict";

/* Two views of one state: which run, head, image and patch is selection. Every choice draws what depends on it. */

const find = (id) => document.getElementById(id);
const selection = { run: 0, head: null, image: 0, patch: 0 };
let data;

async function read() {
  const bytes = Uint8Array.from(atob(find("data").textContent.trim()), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

const run = () => data.runs[selection.run];
const titleOf = (entry) => `${entry.label} (seed ${entry.seed})`;
const percent = (share) => `${(100 * share).toFixed(1)} %`;

/* ---- choices ---- */

function chooseRun(position) {
  selection.run = position;
  find("run").value = position;
  const { firing, details, accuracy, accuracyStd, nats, active } = run();
  const activeHeads = firing ? Object.keys(firing.survival) : [];
  selection.head = Object.keys(details || {})[0] || activeHeads[0] || null; // the strongest comes first
  const spread = accuracyStd > 0 ? ` ± ${(100 * accuracyStd).toFixed(1)}` : "";
  find("run-facts").textContent = `accuracy ${(100 * accuracy).toFixed(1)}${spread} %` +
    (firing ? `, ${tidy(nats)} nats per patch, ${active} of ${firing.blocks * firing.heads} heads active` : "");
  drawSpectrum();
  drawFiring();
  drawHead();
  fillLayers();
  drawImage();
}

function chooseHead(name) {
  selection.head = name;
  drawFiring();
  drawHead();
}

function chooseImage(position) {
  selection.image = Math.max(0, Math.min(data.images.length - 1, position));
  drawImage();
}

function choosePatch(patch) {
  if (patch === selection.patch) return;
  selection.patch = patch;
  drawPatch();
}

function chooseView(name) {
  for (const view of ["heads", "image"]) {
    find(`view-${view}`).hidden = view !== name;
    find(`tab-${view}`).setAttribute("aria-selected", view === name);
    find(`tab-${view}`).tabIndex = view === name ? 0 : -1;
  }
}

/* ---- spectrum and heads ---- */

function pressable(node, label, pressed, act) {
  for (const [name, value] of Object.entries({ tabindex: 0, role: "button", "aria-label": label, "aria-pressed": pressed })) {
    node.setAttribute(name, value);
  }
  node.append(drawn("title", {}, label));
  node.addEventListener("click", act);
  node.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") { event.preventDefault(); act(); }
  });
  return node;
}

function drawSpectrum() {
  const finite = data.runs.filter((entry) => entry.hasKl && entry.nats > 0).map((entry) => entry.nats);
  const low = finite.length ? Math.min(...finite) : 0.1, high = finite.length ? Math.max(...finite) : 10;
  const x = { low: low / 8, high: high * 8, log: true, label: "nats per patch (left: no attention, right: full attention)" };
  const accuracies = data.runs.flatMap((entry) => [-1, 1].map((side) => 100 * (entry.accuracy + side * entry.accuracyStd)));
  const margin = 0.1 * (Math.max(...accuracies) - Math.min(...accuracies)) + 0.5;
  const y = { low: Math.min(...accuracies) - margin, high: Math.max(...accuracies) + margin, label: "accuracy (%)" };
  const { svg, project } = chart(560, 250, x, y);
  data.runs.forEach((entry, position) => {
    const nats = entry.nats === null ? high * 5 : entry.hasKl ? Math.max(entry.nats, low / 3) : low / 5;
    const [a, b] = project(nats, 100 * entry.accuracy), spread = 100 * entry.accuracyStd;
    if (spread > 0) {
      const [, above] = project(nats, 100 * entry.accuracy + spread), [, below] = project(nats, 100 * entry.accuracy - spread);
      svg.append(drawn("path", { class: "axis", d: `M${a} ${above}V${below}` }));
    }
    const label = `${titleOf(entry)}: ${percent(entry.accuracy)}${entry.hasKl ? `, ${tidy(entry.nats)} nats per patch` : ""}`;
    const dot = drawn("circle", { class: "point", cx: a, cy: b, r: 6, fill: entry.color });
    svg.append(pressable(dot, label, position === selection.run, () => keepFocus("#spectrum .point", position, () => chooseRun(position))));
  });
  find("spectrum").replaceChildren(svg);
}

/* Redrawing replaces nodes; the keyboard focus must survive it. */
function keepFocus(selector, position, act) {
  const hadFocus = document.activeElement && document.activeElement.matches(selector);
  act();
  if (hadFocus) document.querySelectorAll(selector)[position].focus();
}

function drawFiring() {
  const { firing, color, details } = run();
  const cells = find("cells");
  cells.replaceChildren();
  find("survival").replaceChildren();
  if (!firing) {
    cells.append("no bottlenecks");
    return;
  }
  const names = Object.keys(firing.survival);
  const floor = Math.min(1e-2, ...names.flatMap((name) => firing.survival[name].filter((share) => share > 0)));
  const nats = firing.nats;
  const { svg, project } = chart(400, 230,
    { low: nats[0], high: nats[nats.length - 1], log: true, label: "x (nats per patch)" },
    { low: floor / 1.5, high: 1.2, log: true, label: "P(KL ≥ x)" });
  for (const name of names) {
    const points = nats.map((x, k) => [x, firing.survival[name][k]]).filter(([, share]) => share > 0);
    const line = drawn("polyline", {
      points: points.map(([x, share]) => project(x, share).join()).join(" "), fill: "none",
      stroke: name === selection.head ? "#e3342f" : color, "stroke-width": name === selection.head ? 2.5 : 1.2,
    });
    line.append(drawn("title", {}, `head ${name}`));
    svg.append(line);
  }
  find("survival").append(svg);
  cells.style.gridTemplateColumns = `repeat(${firing.heads}, auto)`;
  for (let block = firing.blocks - 1; block >= 0; block--) {
    for (let head = 0; head < firing.heads; head++) {
      const name = `${block}.${head}`, on = names.includes(name);
      const cell = element("button", {
        class: on ? "active" : null, disabled: on ? null : "", "data-head": name, "aria-pressed": name === selection.head,
        title: `${tidy(firing.mean[name])} nats per patch${details[name] ? "" : ", survival only"}`,
        onclick: () => { chooseHead(name); cells.querySelector(`[data-head="${name}"]`).focus(); },
      }, name);
      if (on) { cell.style.background = color; cell.style.color = channels(color)[1] > 140 ? "#222" : "#fff"; }
      cells.append(cell);
    }
  }
}

function moveCell(event) {
  const { firing } = run(), columns = firing ? firing.heads : 1;
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
  if (!step) return;
  event.preventDefault();
  const cells = [...find("cells").children];
  for (let at = cells.indexOf(document.activeElement) + step; at >= 0 && at < cells.length; at += step) {
    if (!cells[at].disabled) { cells[at].focus(); return; }
  }
}

function drawHead() {
  const box = find("head"), { firing, details } = run();
  box.replaceChildren();
  if (!firing) {
    box.append(element("h2", {}, run().label), element("p", {}, "This run has no bottlenecks, so the information of its heads is not measured."));
    return;
  }
  if (selection.head === null) {
    box.append(element("h2", {}, titleOf(run())), element("p", {}, "No head is active: none spends more than 0.01 nats on any patch."));
    return;
  }
  const name = selection.head, detail = details[name];
  box.append(element("h2", {}, `Head ${name} of ${titleOf(run())}`));
  box.append(element("p", {}, `${tidy(firing.mean[name])} nats per patch, ${firing.latents[name]} latent dimensions in use.`));
  if (!detail) {
    box.append(element("p", {}, "This file holds patches, attention and responses of this run's strongest heads only."));
    return;
  }
  const sides = element("div", { class: "sides" });
  for (const [side, title] of [["negative", "Most negative patches"], ["positive", "Most positive patches"]]) {
    const strip = element("div", { class: "strip", id: `patches-${side}` });
    for (const entry of detail[side]) {
      const weights = unpack(entry.attention);
      strip.append(element("div", { class: "pair" },
        picture(data.grid, { image: data.pictures[entry.image], patch: entry.patch }),
        picture(data.grid, { colors: (patch) => shade(data.palettes.attention, weights[patch]), patch: entry.patch }),
        `μ = ${tidy(entry.mu)}, ${tidy(entry.kl)} nats`));
    }
    if (!detail[side].length) strip.append("none among the strongest");
    sides.append(element("div", {}, element("h3", {}, `${title}, and their attention`), strip));
  }
  box.append(sides);
  const row = element("div", { class: "firing" });
  row.append(element("figure", {}, element("h3", {}, "Response to copies of the patch"), copyPaste(detail)));
  const near = element("div", { id: "nearest" }, element("h3", {}, "Nearest heads by normalised mutual information"));
  if (!detail.nearest.length) near.append("this head sends too little to estimate its NMI");
  for (const { run: owner, head, nmi, stderr } of detail.nearest) {
    const entry = data.runs.find((candidate) => candidate.name === owner);
    near.append(bar(`${titleOf(entry)}, ${head}`, nmi, `${nmi.toFixed(2)} ± ${stderr.toFixed(2)}`, entry.color));
  }
  row.append(near);
  box.append(row);
}

function copyPaste({ copies, mu0, shift }) {
  const values = shift.flat(), margin = (list) => 0.05 * (Math.max(...list) - Math.min(...list)) + 1e-3;
  const range = (list) => ({ low: Math.min(...list) - margin(list), high: Math.max(...list) + margin(list) });
  const { svg, project } = chart(330, 230, { ...range(mu0), label: "μ before" }, { ...range([0, ...values]), label: "shift of μ" });
  copies.forEach((amount, k) => {
    const color = shade(data.palettes.nats, 0.8 - (0.6 * k) / Math.max(1, copies.length - 1));
    mu0.forEach((value, image) => {
      const [x, y] = project(value, shift[k][image]);
      svg.append(drawn("circle", { cx: x, cy: y, r: 1.8, fill: color, "fill-opacity": 0.7 }));
    });
    svg.append(drawn("circle", { cx: 66 + 84 * k, cy: 6, r: 4, fill: color }));
    svg.append(drawn("text", { x: 74 + 84 * k, y: 10 }, `${amount} copies`));
  });
  return svg;
}

/* ---- image ---- */

function fillLayers() {
  const { kl, attention } = run().images[0];
  const options = (select, pairs) => {
    select.replaceChildren(...pairs.map(([value, text]) => element("option", { value }, text)));
    select.value = pairs[0][0];
  };
  options(find("layer"), [["sum", kl ? "all heads" : "no bottlenecks"], ...(kl ? kl.heads.map((name) => [name, `head ${name}`]) : [])]);
  const heads = Object.keys(attention || {});
  options(find("attending"), heads.length ? heads.map((name) => [name, `head ${name}`]) : [["", "no attention recorded"]]);
}

/* Nats of each patch in the chosen layer; null without bottlenecks. */
function layerOf(image, layer) {
  if (!image.kl) return null;
  const patches = data.grid[0] * data.grid[1], nats = unpack(image.kl.nats), result = new Float32Array(patches);
  image.kl.heads.forEach((name, k) => {
    if (layer === "sum" || layer === name) for (let patch = 0; patch < patches; patch++) result[patch] += nats[k * patches + patch];
  });
  return result;
}

function drawImage() {
  const image = run().images[selection.image], { index, label } = data.images[selection.image];
  [...find("images").children].forEach((node, k) => node.setAttribute("aria-selected", k === selection.image));
  const [best, share] = image.predicted[0];
  find("prediction").textContent = `true class: ${data.classes[label]}; predicted: ${data.classes[best]} (${percent(share)})`;
  const layer = find("layer").value, nats = layerOf(image, layer);
  const highest = nats ? Math.max(1e-9, ...run().images.flatMap((other) => [...layerOf(other, layer)])) : 1;
  const color = (rank) => data.votes[rank <= 1 ? 0 : rank <= 5 ? 1 : rank <= 10 ? 2 : 3];
  const frames = [["Image", picture(data.grid, { image: data.pictures[index] }), null]];
  if (nats) {
    frames.push(["Nats per patch", picture(data.grid, { colors: (patch) => shade(data.palettes.nats, nats[patch] / highest) }), ramp("nats", highest)]);
  }
  const chips = ["rank 1", "2-5", "6-10", "lower"].map((text, k) => element("span", { style: `--chip:${data.votes[k]}` }, text));
  frames.push(["Votes: rank of the patch's top class", picture(data.grid, { colors: (patch) => color(image.ranks[patch]) }), chips]);
  if (find("attending").value) frames.push(["Attention of the patch", picture(data.grid), ["framed: the patch whose attention is shown"]]);
  find("pictures").replaceChildren(...frames.map(([title, box, scale]) => {
    box.addEventListener("pointermove", (event) => choosePatch(patchAt(box, event)));
    box.addEventListener("pointerdown", (event) => choosePatch(patchAt(box, event)));
    return element("figure", {}, element("figcaption", {}, title), box, element("div", { class: "scale" }, ...(scale || [])));
  }));
  const first = find("pictures").querySelector(".picture");
  first.tabIndex = 0;
  first.setAttribute("aria-label", "Image: arrow keys move the chosen patch");
  first.addEventListener("keydown", movePatch);
  drawPatch();
}

function ramp(palette, highest) {
  const strip = element("div", { class: "ramp" });
  strip.style.background = `linear-gradient(to right, ${data.palettes[palette].join()})`;
  return ["0", strip, `${tidy(highest)} nats`];
}

function patchAt(box, event) {
  const [rows, columns] = data.grid, frame = box.getBoundingClientRect();
  const inside = (share, count) => Math.max(0, Math.min(count - 1, Math.floor(share * count)));
  return inside((event.clientY - frame.top) / frame.height, rows) * columns + inside((event.clientX - frame.left) / frame.width, columns);
}

function movePatch(event) {
  const [rows, columns] = data.grid;
  const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
  if (!step) return;
  event.preventDefault();
  const row = Math.floor(selection.patch / columns) + step[0], column = (selection.patch % columns) + step[1];
  if (row >= 0 && row < rows && column >= 0 && column < columns) choosePatch(row * columns + column);
}

function drawPatch() {
  const image = run().images[selection.image], patch = selection.patch, patches = data.grid[0] * data.grid[1];
  const boxes = [...find("pictures").querySelectorAll(".picture")];
  boxes.forEach((box) => box.mark(patch));
  const attending = find("attending").value;
  if (attending) {
    const weights = unpack(image.attention[attending]).subarray(patch * patches, (patch + 1) * patches);
    const box = boxes[boxes.length - 1];
    const canvas = box.querySelector("canvas") || box.insertBefore(element("canvas"), box.firstChild);
    paint(canvas, data.grid, (key) => shade(data.palettes.attention, weights[key]));
  }
  const width = image.probabilities.shape[1], likely = unpack(image.probabilities);
  const votes = element("div", { id: "votes" }, element("h3", {}, `Patch ${patch}: its five likeliest classes`));
  image.classes[patch].forEach((name, k) => {
    const share = likely[patch * width + k];
    votes.append(bar(data.classes[name], share, percent(share)));
  });
  const spent = element("div", { id: "spent" }, element("h3", {}, "Its information by head"));
  if (image.kl) {
    const nats = unpack(image.kl.nats), each = image.kl.heads.map((name, k) => [name, nats[k * patches + patch]]);
    const highest = Math.max(1e-9, ...nats);
    each.sort((a, b) => b[1] - a[1]);
    for (const [name, value] of each.slice(0, 6)) spent.append(bar(`head ${name}`, value / highest, `${tidy(value)} nats`, run().color));
    if (!each.length) spent.append("no head is active");
  } else spent.append("this run has no bottlenecks");
  find("patch").replaceChildren(votes, spent);
}

/* ---- start ---- */

function listen() {
  find("run").append(...data.runs.map((entry, k) => element("option", { value: k }, titleOf(entry))));
  find("run").addEventListener("change", (event) => chooseRun(Number(event.target.value)));
  for (const id of ["layer", "attending"]) find(id).addEventListener("change", drawImage);
  find("cells").addEventListener("keydown", moveCell);
  for (const name of ["heads", "image"]) find(`tab-${name}`).addEventListener("click", () => chooseView(name));
  document.querySelector("[role=tablist]").addEventListener("keydown", (event) => {
    if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
    const other = document.activeElement.id === "tab-heads" ? "image" : "heads";
    chooseView(other);
    find(`tab-${other}`).focus();
  });
  find("images").append(...data.images.map(({ index, label }, k) => element("div", {
    role: "option", title: `image ${index}: ${data.classes[label]}`, onclick: () => chooseImage(k),
  }, picture(data.grid, { image: data.pictures[index] }))));
  find("images").addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step) { event.preventDefault(); chooseImage(selection.image + step); }
  });
}

read().then((document) => {
  data = document;
  listen();
  chooseView("heads");
  chooseRun(Math.max(0, data.runs.findIndex((entry) => entry.mean_active > 0)));
});

"use strict";
// Text reaches the page by textContent only: names and prompts may hold anything.
const byId = (id) => document.getElementById(id);
const parsed = (id) => JSON.parse(byId(id).textContent);
const sources = parsed("sources"), rows = parsed("rows");
const hasSources = sources.length > 0;
rows.forEach((row, place) => { row.place = place; });

const make = (tag, kind, text) => {
  const made = document.createElement(tag);
  if (kind) made.className = kind;
  if (text !== undefined) made.textContent = text;
  return made;
};
const round = (value) => String(Math.round(value * 1000) / 1000);

// ---- filters ----
const CHOICES = ["method", "data_set", "source", "target"];
const FIELDS = ["text", "status", ...CHOICES, "least", "most", "order"];
const NONE = "\u0000";  // stands for rows without a value

function countOf(values) {
  const counts = new Map();
  for (const value of values) counts.set(value, (counts.get(value) || 0) + 1);
  return counts;
}
function addOption(select, value, text) {
  const option = make("option", "", text);
  option.value = value;
  select.append(option);
}
function fillChoice(name) {
  const counts = countOf(rows.map((row) => row[name] ?? NONE)), select = byId(name);
  addOption(select, "", "all");
  const order = new Intl.Collator(undefined, { numeric: true }).compare;
  for (const value of [...counts.keys()].sort(order))
    addOption(select, value, `${value === NONE ? "(none)" : value} (${counts.get(value)})`);
  select.parentElement.hidden = counts.size - counts.has(NONE) < 2;
}
function fillStatus() {
  const select = byId("status"), counts = countOf(rows.map((row) => row.status));
  addOption(select, "", "all");
  for (const [status, count] of counts) {
    addOption(select, status, `${status} (${count})`);
    const reasons = countOf(rows.filter((row) => row.status === status && row.reason).map((row) => row.reason));
    if (status === "rejected")
      for (const [reason, n] of reasons) addOption(select, `${status}:${reason}`, `\u00a0\u00a0${reason} (${n})`);
  }
  select.parentElement.hidden = counts.size < 2;
}
function fillOrder() {
  const select = byId("order");
  addOption(select, "", "as made");
  addOption(select, "-place", "newest first");
  if (strengths.length) { addOption(select, "+strength", "strength, low first"); addOption(select, "-strength", "strength, high first"); }
  for (const name of new Set(rows.flatMap((row) => Object.keys(row.scores))))
    for (const [sign, word] of [["+", "low"], ["-", "high"]])
      addOption(select, `${sign}score ${name}`, `${name}, ${word} first`);
}
const strengths = rows.map((row) => row.strength).filter((value) => value !== null);
function fillStrength() {
  const ends = strengths.reduce(([a, b], v) => [Math.min(a, v), Math.max(b, v)], [Infinity, -Infinity]);
  byId("least").placeholder = strengths.length ? round(ends[0]) : "";
  byId("most").placeholder = strengths.length ? round(ends[1]) : "";
  document.querySelector(".range").hidden = !strengths.length;
}
function valueOf(row, name) {
  return name.startsWith("score ") ? row.scores[name.slice(6)] : row[name];
}
function haystack(row) {
  row.words ??= [row.prompt, row.source, row.target, row.method, row.key, row.reason, row.data_set]
    .filter(Boolean).join("\n").toLowerCase();
  return row.words;
}
function fits(row, wanted, words) {
  if (wanted.status && wanted.status !== row.status && wanted.status !== `${row.status}:${row.reason}`) return false;
  if (CHOICES.some((name) => wanted[name] && wanted[name] !== (row[name] ?? NONE))) return false;
  if (wanted.least !== "" && !(row.strength !== null && row.strength >= Number(wanted.least) - 1e-9)) return false;
  if (wanted.most !== "" && !(row.strength !== null && row.strength <= Number(wanted.most) + 1e-9)) return false;
  return words.every((word) => haystack(row).includes(word));
}
function ordered(found, order) {
  if (!order) return found;
  const sign = order[0] === "-" ? -1 : 1, name = order.slice(1);
  const worst = (value) => value === null || value === undefined;
  return found.sort((a, b) => {
    const x = valueOf(a, name), y = valueOf(b, name);
    return worst(x) || worst(y) ? worst(x) - worst(y) : sign * (x - y);
  });
}

let shown = rows;
function apply() {
  const wanted = Object.fromEntries(FIELDS.map((name) => [name, byId(name).value]));
  const words = wanted.text.toLowerCase().split(/\s+/).filter(Boolean);
  shown = ordered(rows.filter((row) => fits(row, wanted, words)), wanted.order);
  const total = rows.length.toLocaleString("en");
  byId("count").textContent = shown.length === rows.length ? `${total} images`
    : `${shown.length.toLocaleString("en")} of ${total} images`;
  const state = new URLSearchParams(FIELDS.filter((name) => wanted[name] !== "").map((name) => [name, wanted[name]]));
  byId("reset").hidden = !state.size;
  if (location.hash.slice(1) !== state.toString()) location.replace(`#${state}`);
  clear();
  draw();
}
function readHash() {
  const state = new URLSearchParams(location.hash.slice(1));
  for (const name of FIELDS) byId(name).value = state.get(name) ?? "";
  for (const name of FIELDS) if (byId(name).selectedIndex === -1) byId(name).value = "";
}

// ---- the grid: only cards near the screen exist ----
const grid = byId("grid"), cards = new Map();
const GAP = 10;
let layout = null;
function measure() {
  const isNarrow = matchMedia("(max-width: 699px)").matches, width = grid.clientWidth;
  const least = hasSources ? 270 : isNarrow ? 150 : 180;
  const columns = Math.max(1, Math.floor((width + GAP) / (least + GAP)));
  const cardWidth = Math.floor((width - GAP * (columns - 1)) / columns);
  const cardHeight = (isNarrow && hasSources ? 160 : 132) + 82;
  layout = { columns, cardWidth, cardHeight, rowHeight: cardHeight + GAP };
}
function clear() {
  for (const card of cards.values()) card.remove();
  cards.clear();
}
function draw() {
  if (!layout) measure();
  const { columns, cardWidth, cardHeight, rowHeight } = layout;
  grid.classList.toggle("pairs", hasSources);
  grid.style.height = `${Math.ceil(shown.length / columns) * rowHeight}px`;
  const top = -grid.getBoundingClientRect().top;
  const first = Math.max(0, Math.floor(top / rowHeight) - 2) * columns;
  const last = Math.min(shown.length, (Math.ceil((top + innerHeight) / rowHeight) + 2) * columns);
  for (const [place, card] of cards)
    if (place < first || place >= last) { card.remove(); cards.delete(place); }
  for (let place = first; place < last; place++) {
    if (cards.has(place)) continue;
    const card = cardOf(shown[place], place);
    card.style.width = `${cardWidth}px`;
    card.style.height = `${cardHeight}px`;
    card.style.transform = `translate(${(place % columns) * (cardWidth + GAP)}px, ${Math.floor(place / columns) * rowHeight}px)`;
    cards.set(place, card);
    grid.append(card);
  }
}
function image(data, text) {
  if (!data) return make("span", "none", text);
  const made = make("img");
  made.alt = text;
  made.onload = () => made.classList.toggle("small", Math.max(made.naturalWidth, made.naturalHeight) < 100);
  made.src = `data:image/webp;base64,${data}`;
  return made;
}
const sourceOf = (row) => sources[row.source_picture];
function generatedImage(row) {
  return image(row.picture, row.picture ? `generated: ${row.target ?? ""}` : row.status === "rejected" ? "picture not kept" : "cannot be read");
}
function sourceImage(row) {
  return image(sourceOf(row), sourceOf(row) ? `source: ${row.source ?? ""}` : "source not found");
}
// Each name in an element of its own, so that one of another script does not turn the others round.
function headOf(row) {
  const [source, target] = [row.source ?? "?", row.target ?? "?"];
  if (row.source == null && row.target == null) return [make("bdi", "", row.method ?? row.key.slice(0, 12))];
  if (source === target) return [make("bdi", "", source)];
  return [make("bdi", "", source), " \u2192 ", make("bdi", "", target)];
}
function cardOf(row, place) {
  const card = make("button", "card"), pictures = make("span", "pictures");
  if (hasSources) pictures.append(sourceImage(row));
  pictures.append(generatedImage(row));
  const facts = [row.method, row.strength === null ? null : `strength ${round(row.strength)}`].filter(Boolean).join(", ");
  const scores = Object.entries(row.scores).map(([name, value]) => `${name} ${value === null ? "-" : round(value)}`).join(", ");
  const head = make("span", "text head");
  head.append(...headOf(row));
  card.append(pictures, head, make("span", "text faint", facts));
  card.append(row.reason ? make("span", "text wrong", `${row.status}: ${row.reason}`) : make("span", "text faint", scores || row.prompt || ""));
  card.onclick = () => openOne(place);
  return card;
}

// ---- one image ----
const one = byId("one"), pair = byId("pair");
let opened = 0;
function wipe() {
  const generated = pair.querySelector(".over");
  if (generated) generated.style.clipPath = `inset(0 0 0 ${100 - byId("wipe").value}%)`;
}
function fact(name, value) {
  if (value === null || value === undefined || value === "") return;
  byId("facts").append(make("dt", "", name.replaceAll("_", " ")), make("dd", "", String(value)));
}
function openOne(place) {
  opened = place;
  const row = shown[place], hasSource = sourceOf(row) !== undefined;
  byId("one-title").replaceChildren(...headOf(row));
  const generated = generatedImage(row);
  pair.replaceChildren(...(hasSource ? [sourceImage(row)] : []), generated);
  if (hasSource) generated.classList.add("over");
  byId("wipe-label").hidden = !hasSource || !row.picture;
  if (hasSource && row.picture) { byId("wipe").value = 50; wipe(); }
  byId("facts").replaceChildren();
  fact("status", row.reason ? `${row.status}: ${row.reason}` : row.status);
  for (const name of ["method", "strength", "prompt", "source", "target", "data_set"]) fact(name, row[name]);
  for (const [name, value] of Object.entries(row.scores)) fact(`score ${name}`, value === null ? null : Number(value.toPrecision(5)));
  if (row.created) fact("made", new Date(row.created * 1000).toLocaleString());
  fact("image", row.size);
  for (const [name, value] of Object.entries(row.fields)) fact(name, value);
  fact("key", row.key);
  byId("before").disabled = place === 0;
  byId("after").disabled = place === shown.length - 1;
  if (!one.open) one.showModal();
  one.scrollTop = 0;
}
function step(by) {
  const place = opened + by;
  if (place >= 0 && place < shown.length) openOne(place);
}

// ---- start ----
CHOICES.forEach(fillChoice);
fillStatus();
fillStrength();
fillOrder();
readHash();
byId("more").open = matchMedia("(min-width: 700px)").matches;
let waiting = 0;
byId("filters").addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(apply, 120); });
byId("filters").addEventListener("submit", (event) => event.preventDefault());
byId("filters").addEventListener("reset", () => setTimeout(apply));
addEventListener("hashchange", () => { readHash(); apply(); });
let isAsked = false;
function drawSoon() {
  if (isAsked) return;
  isAsked = true;
  requestAnimationFrame(() => { isAsked = false; draw(); });
}
addEventListener("scroll", drawSoon, { passive: true });
addEventListener("resize", () => { layout = null; clear(); byId("more").open ||= matchMedia("(min-width: 700px)").matches; drawSoon(); });
byId("wipe").addEventListener("input", wipe);
byId("close").onclick = () => one.close();
byId("before").onclick = () => step(-1);
byId("after").onclick = () => step(1);
one.addEventListener("click", (event) => { if (event.target === one) one.close(); });
one.addEventListener("keydown", (event) => {
  if (event.target.type === "range") return;
  if (event.key === "ArrowLeft") step(-1);
  if (event.key === "ArrowRight") step(1);
});
apply();

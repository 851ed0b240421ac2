"use strict";
const GRIDS = JSON.parse(document.getElementById("data").textContent);
const at = id => document.getElementById(id);
const make = (kind, name, text) => {
  const element = document.createElement(kind);
  if (name) element.className = name;
  if (text !== undefined) element.textContent = text;
  return element;
};
const OVERSCAN = 2;
const axisName = axis => axis[0].toUpperCase() + axis.slice(1);

// ---- what is shown; all of it stands in the address, so that a link leads back to it
const ZOOM = Math.max(40, Math.min(160, Math.floor(innerWidth * .37))); // two columns and the labels fit a phone
const state = { grid: 0, x: "model", y: "prompt", fixed: {}, category: "", words: "", zoom: ZOOM, cell: null, focus: [0, 0], open: null, mode: "side" };
let grid, axes = [], columns = [], rows = [], rowNumbers, lookup, labelWidth = 0, headLines = 2, headHeight = 0, shown = new Map(), heads = new Map(), waiting = false, returning = false;

function takeGrid() { grid = GRIDS[state.grid]; axes = Object.keys(grid.axes); }

function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  const named = GRIDS.findIndex(g => g.name === given.get("grid"));
  state.grid = Math.max(0, named);
  takeGrid();
  for (const key of ["x", "y"]) if (axes.includes(given.get(key))) state[key] = given.get(key);
  settleAxes();
  state.fixed = {};
  for (const axis of axes) {
    const number = grid.axes[axis].indexOf(given.get(axis));
    if (number >= 0) state.fixed[axis] = number;
  }
  state.category = given.get("category") ?? "";
  state.words = given.get("words") ?? "";
  const zoom = Number(given.get("zoom"));
  if (zoom >= 40 && zoom <= 768) state.zoom = zoom;
  // By their names, for numbers change when a model is added.
  const known = (axis, text) => grid.axes[axis].indexOf(text);
  const cell = given.getAll("at").map((text, i) => known(axes[i] ?? state.x, text));
  state.cell = cell.length === axes.length && !cell.includes(-1) ? cell : null;
  state.focus = [0, 0];
  const open = given.getAll("open").map(text => known(state.x, text));
  const isPair = open.length === 2 && !open.includes(-1) && (open[0] !== open[1] || grid.axes[state.x].length === 1);
  state.open = state.cell && isPair ? open : null;
  state.mode = ["side", "slider", "flicker"].includes(given.get("mode")) ? given.get("mode") : "side";
}

function address() {
  const said = new URLSearchParams({ grid: grid.name, x: state.x, y: state.y });
  for (const [axis, number] of Object.entries(state.fixed)) said.set(axis, grid.axes[axis][number]);
  if (state.category) said.set("category", state.category);
  if (state.words) said.set("words", state.words);
  said.set("zoom", state.zoom);
  if (state.cell) axes.forEach((axis, i) => said.append("at", grid.axes[axis][state.cell[i]]));
  if (state.open) {
    for (const number of state.open) said.append("open", grid.axes[state.x][number]);
    said.set("mode", state.mode);
  }
  return "#" + said;
}
let writing = 0;
function writeAddress() { clearTimeout(writing); if (!returning) history.replaceState(history.state, "", address()); }
function writeSoon() { clearTimeout(writing); writing = setTimeout(writeAddress, 150); }

// ---- rows and columns
// Columns are what is compared, so they go by an axis of several values, unless no axis has any.
function axesFor(key) {
  const several = axes.filter(axis => grid.axes[axis].length > 1);
  if (key === "x") return several.length ? several : axes;
  return several.length === 1 ? axes.filter(axis => axis !== several[0]) : axes;
}
function settleAxes() {
  if (!axesFor("x").includes(state.x)) state.x = axesFor("x").find(axis => axis !== state.y) ?? state.y;
  if (state.y === state.x || !axesFor("y").includes(state.y)) state.y = axesFor("y").find(axis => axis !== state.x);
}

function arrange() {
  takeGrid();
  settleAxes();
  const words = state.words.toLowerCase();
  const allowed = Object.fromEntries(axes.map(axis => [axis, new Set(grid.axes[axis].keys())]));
  for (const number of grid.axes.prompt.keys()) {
    if (state.category && grid.categories[number] !== state.category) allowed.prompt.delete(number);
  }
  for (const [axis, number] of Object.entries(state.fixed)) if (axis !== state.x && axis !== state.y) allowed[axis] = new Set([number]);
  const order = [state.y, ...axes.filter(axis => axis !== state.x && axis !== state.y)];
  const xAt = axes.indexOf(state.x), orderAt = order.map(axis => axes.indexOf(axis));
  const rowKeys = new Map(), columnKeys = new Set();
  lookup = new Map();
  const promptAt = axes.indexOf("prompt"), replacedAt = axes.indexOf("replaced");
  for (const cell of grid.cells) {
    if (!axes.every((axis, i) => allowed[axis].has(cell[i]))) continue;
    if (words && !textOf(cell[promptAt], cell[replacedAt]).toLowerCase().includes(words)) continue;
    const values = orderAt.map(i => cell[i]), key = values.join(".");
    if (!rowKeys.has(key)) rowKeys.set(key, values);
    columnKeys.add(cell[xAt]);
    lookup.set(key + "|" + cell[xAt], cell);
  }
  const compare = (a, b) => { for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return a[i] - b[i]; return 0; };
  rows = [...rowKeys].sort((a, b) => compare(a[1], b[1])).map(([key, values]) => ({ key, values, order }));
  columns = [...columnKeys].sort((a, b) => a - b);
  rowNumbers = new Map(rows.map((row, number) => [row.key, number]));
  const [row, column] = placeOf(state.cell) ?? state.focus;
  setFocus(row, column);
}
// The focused picture is known by its values on the axes; where it stands changes with what is shown.
function valuesAt(row, column) {
  return axes.map(axis => axis === state.x ? columns[column] : rows[row].values[rows[row].order.indexOf(axis)]);
}
function placeOf(values) {
  if (!values || !rows.length) return null;
  const row = rowNumbers.get(rows[0].order.map(axis => values[axes.indexOf(axis)]).join("."));
  const column = columns.indexOf(values[axes.indexOf(state.x)]);
  return row === undefined || column < 0 ? null : [row, column];
}
function setFocus(row, column) {
  if (!rows.length) { state.focus = [0, 0]; return; }
  state.focus = [Math.min(Math.max(0, row), rows.length - 1), Math.min(Math.max(0, column), columns.length - 1)];
  state.cell = valuesAt(...state.focus);
}
// Behind its values on the axes stand a cell's file and, if it has none, what it failed of.
const fileOf = cell => cell[axes.length], failureOf = cell => cell[axes.length + 1];
const cellAt = (row, column) => rows[row] && lookup.get(rows[row].key + "|" + columns[column]);

function rowText(row) {
  const parts = row.order.map((axis, i) => [axis, row.values[i]]).filter(([axis]) => grid.axes[axis].length > 1 || axis === state.y);
  return parts.map(([axis, number]) => grid.axes[axis][number]);
}
// What a prompt says, with the words of a variant in it; `replaced` counts on that axis, if there is one.
const textOf = (prompt, replaced) => grid.said[`${prompt}.${grid.axes.replaced?.[replaced]}`] ?? grid.axes.prompt[prompt];
function cellText(row, column) {
  const cell = cellAt(row, column), values = valuesAt(row, column), prompt = values[axes.indexOf("prompt")];
  const text = textOf(prompt, values[axes.indexOf("replaced")]);
  const variant = text === grid.axes.prompt[prompt] ? [] : [`“${text}”`];
  const words = [grid.axes[state.x][columns[column]], ...rowText(rows[row]), ...variant].join(", ");
  return cell ? (failureOf(cell) ? `${words}: failed, ${failureOf(cell)}` : words) : `${words}: not drawn`;
}

// ---- the sheet: only what is in sight is in the page
function measure() {
  const width = at("scroll").clientWidth;
  labelWidth = Math.round(Math.min(220, Math.max(84, width * .26)));
  // as high as the longest name wants it: columns of one sampler may differ in their last word alone
  const longest = Math.max(0, ...columns.map(number => grid.axes[state.x][number].length));
  headLines = Math.min(5, Math.max(2, Math.ceil(longest * 10 / (state.zoom - 10))));
  headHeight = 12 + 17 * headLines;
  const sheet = at("sheet");
  sheet.style.width = labelWidth + columns.length * state.zoom + "px";
  sheet.style.height = headHeight + rows.length * state.zoom + "px";
  sheet.setAttribute("aria-rowcount", rows.length + 1);
  sheet.setAttribute("aria-colcount", columns.length + 1);
  const sides = grid.axes.size.map(text => parseInt(text, 10));
  sheet.classList.toggle("pixels", Math.max(...sides) < 200);
}

function rebuild() {
  const isFocused = at("sheet").contains(document.activeElement);
  at("sheet").replaceChildren();
  shown = new Map(); heads = new Map();
  measure();
  const head = make("div", "heads");
  head.setAttribute("role", "row"); head.setAttribute("aria-rowindex", 1);
  head.style.height = headHeight + "px";
  const corner = make("div", "corner");
  corner.setAttribute("role", "columnheader"); corner.setAttribute("aria-colindex", 1);
  corner.style.width = labelWidth + "px";
  corner.append(make("span", "vh", axisName(state.y)));
  head.append(corner);
  at("sheet").append(head);
  heads.element = head;
  at("none").hidden = rows.length > 0;
  const chosen = [state.category && `category “${state.category}”`, state.words && `prompt holds “${state.words}”`, ...Object.entries(state.fixed).map(([axis, number]) => grid.axes[axis][number])];
  at("why").textContent = `Nothing matches: ${chosen.filter(Boolean).join(", ")}.`;
  at("sheet").hidden = rows.length === 0;
  const count = (number, what) => `${number.toLocaleString("en")} ${what}${number === 1 ? "" : "s"}`;
  const cells = lookup.size, failed = [...lookup.values()].filter(failureOf).length;
  at("count").textContent = [count(cells, "picture"), count(rows.length, "row"), count(columns.length, "column")].join(", ") + (failed ? `, ${failed} failed` : "");
  paint();
  if (isFocused) focused()?.focus({ preventScroll: true });
}

function span(start, length, step, count) {
  const first = Math.max(0, Math.floor(start / step) - OVERSCAN);
  const last = Math.min(count - 1, Math.floor((start + length) / step) + OVERSCAN);
  return [first, last];
}
const focused = () => shown.get(state.focus[0])?.cells.get(state.focus[1]);

function paint() {
  waiting = false;
  const box = at("scroll"), z = state.zoom;
  const [top, bottom] = span(box.scrollTop, box.clientHeight - headHeight, z, rows.length);
  const [left, right] = span(box.scrollLeft, box.clientWidth - labelWidth, z, columns.length);
  for (const [column, element] of heads) if (column < left || column > right) { element.remove(); heads.delete(column); }
  for (let column = left; column <= right; column++) if (!heads.has(column)) addHead(column);
  // The focused cell stays, however far away: the keyboard would be lost with it.
  const [focusRow, focusColumn] = state.focus;
  const isInSight = (row, column) => column >= left && column <= right || row === focusRow && column === focusColumn;
  for (const [row, line] of shown) if ((row < top || row > bottom) && row !== focusRow) { line.element.remove(); shown.delete(row); }
  for (let row = top; row <= bottom; row++) paintRow(row, left, right, isInSight);
  if (rows.length && (focusRow < top || focusRow > bottom)) paintRow(focusRow, focusColumn, focusColumn, isInSight);
}

function paintRow(row, left, right, isInSight) {
  if (!shown.has(row)) addRow(row);
  const line = shown.get(row);
  for (const [column, element] of line.cells) if (!isInSight(row, column)) { element.remove(); line.cells.delete(column); }
  for (let column = left; column <= right; column++) if (!line.cells.has(column)) addCell(line, row, column);
  const [focusRow, focusColumn] = state.focus;
  if (row === focusRow && !line.cells.has(focusColumn)) addCell(line, row, focusColumn);
}

function addHead(column) {
  const element = make("div", "head");
  element.setAttribute("role", "columnheader"); element.setAttribute("aria-colindex", column + 2);
  element.style.cssText = `left:${labelWidth + column * state.zoom}px;width:${state.zoom}px;height:${headHeight}px`;
  const text = make("span", "", grid.axes[state.x][columns[column]]);
  text.style.webkitLineClamp = headLines;
  element.title = text.textContent;
  element.append(text);
  heads.element.append(element);
  heads.set(column, element);
}

function addRow(row) {
  const element = make("div", "row");
  element.setAttribute("role", "row"); element.setAttribute("aria-rowindex", row + 2);
  element.style.cssText = `top:${headHeight + row * state.zoom}px;height:${state.zoom}px;width:100%`;
  const label = make("div", "label"), inner = make("div");
  label.setAttribute("role", "rowheader"); label.setAttribute("aria-colindex", 1);
  label.style.width = labelWidth + "px";
  const [first, ...others] = rowText(rows[row]);
  inner.append(document.createTextNode(first));
  for (const text of others) inner.append(make("span", "soft", text));
  label.title = [first, ...others].join("\n");
  label.append(inner);
  element.append(label);
  at("sheet").append(element);
  shown.set(row, { element, cells: new Map() });
}

function addCell(line, row, column) {
  const element = make("div", "cell"), cell = cellAt(row, column);
  element.setAttribute("role", "gridcell"); element.setAttribute("aria-colindex", column + 2);
  element.style.cssText = `left:${labelWidth + column * state.zoom}px;width:${state.zoom}px;height:${state.zoom}px`;
  element.dataset.row = row; element.dataset.column = column;
  element.tabIndex = row === state.focus[0] && column === state.focus[1] ? 0 : -1;
  element.append(picture(cell, cellText(row, column)));
  line.element.append(element);
  line.cells.set(column, element);
}

// Pictures are asked for a few a frame, the latest that came into sight first: a fast scroll passes
// many that nobody will see. What is in sight at first is part of the page, whose load waits for it.
const AT_ONCE = 2;
let queue = [], loading = false;
function load(image, source) {
  if (document.readyState !== "complete") { image.decoding = "sync"; image.src = source; return; }
  image.dataset.source = source;
  queue.push(image);
  if (!loading) { loading = true; requestAnimationFrame(loadSome); }
}
function loadSome() {
  let left = AT_ONCE;
  while (left && queue.length) {
    const image = queue.pop();
    if (image.isConnected) { image.src = image.dataset.source; left--; }
  }
  loading = queue.length > 0;
  if (loading) requestAnimationFrame(loadSome);
}

function picture(cell, text) {
  if (cell && !failureOf(cell)) {
    const image = new Image();
    image.decoding = "async"; image.alt = text; image.draggable = false;
    load(image, grid.base + fileOf(cell).split("/").map(encodeURIComponent).join("/"));
    return image;
  }
  const element = make("div", cell ? "failed" : "missing", cell ? "failed: " + failureOf(cell) : "not drawn");
  element.setAttribute("aria-label", text);
  return element;
}

function soon() { if (!waiting) { waiting = true; requestAnimationFrame(paint); } }

function focusOn(row, column, take = true) {
  if (!rows.length) return;
  const old = focused();
  if (old) old.tabIndex = -1;
  setFocus(row, column);
  [row, column] = state.focus;
  const box = at("scroll"), z = state.zoom;
  const x = column * z, y = row * z, width = box.clientWidth - labelWidth, height = box.clientHeight - headHeight;
  if (x < box.scrollLeft) box.scrollLeft = x;
  else if (x + z > box.scrollLeft + width) box.scrollLeft = x + z - width;
  if (y < box.scrollTop) box.scrollTop = y;
  else if (y + z > box.scrollTop + height) box.scrollTop = y + z - height;
  paint();
  const element = focused();
  element.tabIndex = 0;
  if (take) element.focus({ preventScroll: true });
  writeSoon();
}

// ---- the tools
function options(select, texts, chosen, first) {
  select.replaceChildren();
  if (first !== undefined) select.append(new Option(first, ""));
  texts.forEach(([value, text]) => select.append(new Option(text, value)));
  select.value = chosen;
}

function tools() {
  options(at("grid"), GRIDS.map((g, i) => [i, g.name.replaceAll("_", " ")]), state.grid);
  for (const key of ["x", "y"]) options(at(key), axesFor(key).map(axis => [axis, axisName(axis)]), state[key]);
  at("swap").disabled = !axesFor("x").includes(state.y);
  const categories = [...new Set([...grid.categories, state.category])].filter(Boolean); // also one that a link names in vain
  options(at("category"), categories.map(name => [name, name]), state.category, "all");
  at("category").parentElement.hidden = categories.length === 0;
  at("category").parentElement.style.display = categories.length ? "" : "none";
  at("words").value = state.words;
  at("zoom").value = state.zoom;
  at("common").textContent = grid.common && `drawn with ${grid.common}`;
  const chosen = document.activeElement?.dataset?.axis;
  at("fixed").replaceChildren();
  for (const axis of axes) {
    if (axis === state.x || axis === state.y || grid.axes[axis].length < 2) continue;
    const label = make("label", "", axisName(axis)), select = make("select");
    options(select, grid.axes[axis].map((text, i) => [i, text]), state.fixed[axis] ?? "", "all");
    select.dataset.axis = axis;
    select.addEventListener("change", () => {
      if (select.value === "") delete state.fixed[axis]; else state.fixed[axis] = Number(select.value);
      refresh();
    });
    label.append(select);
    at("fixed").append(label);
    if (chosen === axis) select.focus();
  }
}

function refresh() { arrange(); tools(); rebuild(); writeSoon(); }

function setAxis(key, value) {
  const other = key === "x" ? "y" : "x";
  if (state[other] === value) state[other] = state[key];
  state[key] = value;
  turn();
}

function turn() { at("scroll").scrollTo(0, 0); refresh(); focusOn(...state.focus, false); }

function setZoom(value, keep = true) {
  const box = at("scroll"), old = state.zoom;
  const row = (box.scrollTop + (keep ? box.clientHeight / 2 : 0)) / old, column = box.scrollLeft / old;
  state.zoom = Math.min(768, Math.max(40, Math.round(value)));
  at("zoom").value = state.zoom;
  rebuild();
  box.scrollTop = row * state.zoom - (keep ? box.clientHeight / 2 : 0);
  box.scrollLeft = column * state.zoom;
  paint();
  writeSoon();
}

at("grid").addEventListener("change", event => {
  Object.assign(state, { grid: Number(event.target.value), fixed: {}, category: "", words: "", cell: null, focus: [0, 0] });
  at("scroll").scrollTo(0, 0);
  refresh();
});
for (const key of ["x", "y"]) at(key).addEventListener("change", event => setAxis(key, event.target.value));
at("swap").addEventListener("click", () => { [state.x, state.y] = [state.y, state.x]; turn(); });
at("category").addEventListener("change", event => { state.category = event.target.value; at("scroll").scrollTo(0, 0); refresh(); });
at("words").addEventListener("input", event => { state.words = event.target.value; arrange(); rebuild(); writeSoon(); });
at("all").addEventListener("click", () => {
  Object.assign(state, { category: "", words: "", fixed: {} });
  refresh();
  focusOn(...state.focus);
});
at("zoom").addEventListener("input", event => setZoom(Number(event.target.value)));
at("scroll").addEventListener("scroll", soon, { passive: true });
new ResizeObserver(() => { if (grid) { rebuild(); } }).observe(at("scroll"));
at("scroll").addEventListener("wheel", event => {
  if (!event.ctrlKey) return;
  event.preventDefault();
  setZoom(state.zoom * (event.deltaY < 0 ? 1.15 : 1 / 1.15));
}, { passive: false });

at("sheet").addEventListener("click", event => {
  const cell = event.target.closest(".cell");
  if (cell) { focusOn(Number(cell.dataset.row), Number(cell.dataset.column)); openPair(); }
});
at("sheet").addEventListener("focusin", event => { // by a press of the mouse, or by a screen reader
  const cell = event.target.closest(".cell"), old = focused();
  if (!cell || cell === old || state.open) return; // a dialog that closes gives back the focus of its opening
  if (old) old.tabIndex = -1;
  setFocus(Number(cell.dataset.row), Number(cell.dataset.column));
  cell.tabIndex = 0;
  writeSoon();
});
at("sheet").addEventListener("keydown", event => {
  const [row, column] = state.focus, page = Math.max(1, Math.floor(at("scroll").clientHeight / state.zoom) - 1);
  const moves = {
    ArrowUp: [row - 1, column], ArrowDown: [row + 1, column], ArrowLeft: [row, column - 1], ArrowRight: [row, column + 1],
    PageUp: [row - page, column], PageDown: [row + page, column], Home: [event.ctrlKey ? 0 : row, 0], End: [event.ctrlKey ? rows.length - 1 : row, columns.length - 1],
  };
  if (event.key === "Enter" || event.key === " ") { event.preventDefault(); openPair(); }
  else if (event.key === "+" || event.key === "-") { setZoom(state.zoom * (event.key === "+" ? 1.25 : .8)); focusOn(...state.focus); }
  else if (moves[event.key]) { event.preventDefault(); focusOn(...moves[event.key]); }
});

// ---- two pictures
// A comparison is an entry of the history above that of the sheet, so that Back closes it.
const SHEET = "sheet", PAIR = "pair";
const view = { scale: 1, x: 0, y: 0 };
let flicker = 0;

function pushEntry() {
  const open = state.open;
  state.open = null;
  history.replaceState(SHEET, "", address());
  state.open = open;
  history.pushState(PAIR, "", address());
}

function openPair() {
  const column = state.focus[1], other = column + 1 < columns.length ? column + 1 : Math.max(0, column - 1);
  state.open = [columns[column], columns[other]];
  if (history.state !== PAIR) pushEntry();
  showPair();
}

// Shows the row of the focus; A and B are two of its columns.
function showPair() {
  const row = state.focus[0], texts = columns.map(number => [number, grid.axes[state.x][number]]);
  const [a, b] = state.open.map(number => columns.indexOf(number));
  if (!rows.length || a < 0 || b < 0) { state.open = null; return; }
  options(at("a"), texts, columns[a]); options(at("b"), texts, columns[b]);
  at("said").textContent = `${rowText(rows[row]).join(", ")} (row ${row + 1} of ${rows.length})`;
  for (const [side, column] of [["a", a], ["b", b]]) {
    const pane = at("pane-" + side);
    pane.replaceChildren(make("b", "", (columns.length > 1 ? side.toUpperCase() + ": " : "") + grid.axes[state.x][columns[column]]), picture(cellAt(row, column), cellText(row, column)));
    pane.querySelector("img")?.style.setProperty("image-rendering", at("sheet").classList.contains("pixels") ? "pixelated" : "auto");
  }
  at("compare").classList.toggle("alone", columns.length === 1); // nothing stands beside it
  at("before").disabled = row === 0;
  at("after").disabled = row === rows.length - 1;
  setMode(state.mode);
  place();
  if (!at("compare").open) { at("compare").showModal(); at("stage").focus(); }
  writeSoon();
}

function setMode(mode) {
  state.mode = mode;
  const stage = at("stage");
  stage.className = mode === "side" ? "" : "over " + mode;
  for (const button of document.querySelectorAll("[data-mode]")) button.setAttribute("aria-pressed", String(button.dataset.mode === mode));
  clearInterval(flicker);
  at("pane-b").classList.remove("off");
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  if (mode === "flicker") flicker = setInterval(() => at("pane-b").classList.toggle("off"), calm ? 2000 : 600);
  writeSoon();
}

function place() {
  for (const image of document.querySelectorAll(".pane img")) image.style.transform = `translate(${view.x}px, ${view.y}px) scale(${view.scale})`;
}
function zoomAt(factor, x, y) {
  const scale = Math.min(32, Math.max(1, view.scale * factor)), real = scale / view.scale;
  view.x = scale === 1 ? 0 : x - (x - view.x) * real;
  view.y = scale === 1 ? 0 : y - (y - view.y) * real;
  view.scale = scale;
  place();
}
function zoomMiddle(factor) { const box = at("pane-a").getBoundingClientRect(); zoomAt(factor, box.width / 2, box.height / 2); }
function fit() { Object.assign(view, { scale: 1, x: 0, y: 0 }); place(); }
function step(by) { focusOn(state.focus[0] + by, state.focus[1], false); showPair(); }
function choose(side, number) {
  const other = 1 - side;
  if (state.open[other] === number) state.open[other] = state.open[side]; // they change places
  state.open[side] = number;
  showPair();
}
function stepB(by) {
  const others = columns.filter(number => number !== state.open[0]), place = columns.indexOf(state.open[1]);
  const next = by < 0 ? others.findLast(number => columns.indexOf(number) < place) : others.find(number => columns.indexOf(number) > place);
  if (next !== undefined) choose(1, next);
}

for (const [number, side] of ["a", "b"].entries()) at(side).addEventListener("change", event => choose(number, Number(event.target.value)));
for (const button of document.querySelectorAll("[data-mode]")) button.addEventListener("click", () => setMode(button.dataset.mode));
at("in").addEventListener("click", () => zoomMiddle(1.5));
at("out").addEventListener("click", () => zoomMiddle(1 / 1.5));
at("fit").addEventListener("click", fit);
at("before").addEventListener("click", () => step(-1));
at("after").addEventListener("click", () => step(1));
at("close").addEventListener("click", () => at("compare").close());
at("cut").addEventListener("input", event => at("stage").style.setProperty("--cut", event.target.value + "%"));
at("compare").addEventListener("close", () => {
  if (at("compare").open) return; // opened again before the browser told of its closing
  clearInterval(flicker);
  state.open = null;
  fit();
  focusOn(...state.focus);
  if (history.state === PAIR && !returning) { returning = true; history.back(); }
});
at("compare").addEventListener("keydown", event => {
  if (event.target.matches("select, input") && event.key !== "Escape") return;
  const keys = {
    "1": () => setMode("side"), "2": () => setMode("slider"), "3": () => setMode("flicker"), "+": () => zoomMiddle(1.5), "-": () => zoomMiddle(1 / 1.5), "0": fit,
    ArrowUp: () => step(-1), ArrowDown: () => step(1),
    ArrowLeft: () => stepB(-1), ArrowRight: () => stepB(1),
  };
  if (keys[event.key]) { event.preventDefault(); keys[event.key](); }
});
at("stage").addEventListener("wheel", event => {
  event.preventDefault();
  const pane = event.target.closest(".pane") ?? at("pane-a"), box = pane.getBoundingClientRect();
  zoomAt(event.deltaY < 0 ? 1.2 : 1 / 1.2, event.clientX - box.left, event.clientY - box.top);
}, { passive: false });
const fingers = new Map();
let pinch = null; // the picture, the middle between two fingers, and how far apart they are
function paneAt(x, y) {
  const holds = pane => { const box = pane.getBoundingClientRect(); return x >= box.left && x <= box.right && y >= box.top && y <= box.bottom; };
  return [at("pane-a"), at("pane-b")].find(holds);
}
function between(pane) {
  const [p, q] = [...fingers.values()], x = (p[0] + q[0]) / 2, y = (p[1] + q[1]) / 2;
  return { pane: pane ?? paneAt(x, y) ?? paneAt(...p) ?? at("pane-a"), x, y, wide: Math.max(1, Math.hypot(p[0] - q[0], p[1] - q[1])) };
}
at("stage").addEventListener("pointerdown", event => {
  fingers.set(event.pointerId, [event.clientX, event.clientY]);
  pinch = fingers.size === 2 ? between() : null;
  at("stage").setPointerCapture(event.pointerId);
});
at("stage").addEventListener("pointermove", event => {
  const last = fingers.get(event.pointerId);
  if (!last) return;
  const now = [event.clientX, event.clientY];
  fingers.set(event.pointerId, now);
  if (fingers.size === 2) {
    const old = pinch, box = old.pane.getBoundingClientRect();
    pinch = between(old.pane);
    zoomAt(pinch.wide / old.wide, old.x - box.left, old.y - box.top);
    if (view.scale > 1) { view.x += pinch.x - old.x; view.y += pinch.y - old.y; place(); }
  } else if (view.scale > 1) {
    view.x += now[0] - last[0]; view.y += now[1] - last[1]; place();
  } else if (state.mode === "slider") {
    const box = at("stage").getBoundingClientRect(), cut = Math.min(100, Math.max(0, 100 * (now[0] - box.left) / box.width));
    at("cut").value = cut;
    at("stage").style.setProperty("--cut", cut + "%");
  }
});
for (const end of ["pointerup", "pointercancel"]) at("stage").addEventListener(end, event => { fingers.delete(event.pointerId); pinch = fingers.size === 2 ? between() : null; });

function start() {
  if (at("compare").open) at("compare").close();
  readAddress();
  const wanted = String(state.cell);
  arrange();
  if (String(state.cell) !== wanted) state.open = null; // what the link is about is not here
  tools(); rebuild();
  focusOn(...state.focus, false);
  if (state.open) showPair();
}
addEventListener("popstate", () => {
  const isOpen = at("compare").open, isBelow = history.state === SHEET && (returning || isOpen);
  if (!isBelow) { returning = false; start(); return; }
  if (returning && isOpen) pushEntry(); // opened again before the browser was back
  else if (isOpen) { at("compare").close(); state.open = null; }
  returning = false;
  writeAddress();
});
start();

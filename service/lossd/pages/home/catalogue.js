// The catalogue: every loss of the service as an entry that opens, and a filter over them.

import { curves, smallCurve } from "./curves.js";
import { element, headRow, marked, setOptions, table } from "./elements.js";
import { ask, ownFile } from "./service.js";

const find = (id) => document.getElementById(id);
const FILTERS = { family: "filter-family", kind: "filter-kind", task: "filter-task" };
const KINDS = {
  pixel: "masks",
  box: "boxes",
  value: "values",
  triplet: "triplets of embeddings",
  pair: "pairs of embeddings",
  center: "embeddings and centers",
  instance: "embeddings of pixels",
  scores: "scores of classes",
  linear: "linear classifier",
};

/**
 * Fills the place with the catalogue.
 *
 * @param {(name: string) => void} tryLoss puts a loss into the form
 * @returns the entries as the service gave them
 */
export async function showCatalogue(place, tryLoss) {
  const [entries, descriptions, drawings] = await Promise.all([
    ask("v1/losses"),
    ownJson("descriptions.json"),
    ownJson("curves.json"),
  ]);
  const told = entries.map((entry) => ({ ...entry, ...shownParts(entry, descriptions, drawings) }));
  const rows = told.map((entry) => [entry, row(entry, tryLoss)]);
  place.replaceChildren(...rows.map(([, made]) => made));
  startFilter(rows);
  openLinked();
  return told;
}

// An address may end in `#loss-dice`; the entry was not there yet when the browser looked for it.
function openLinked() {
  const linked = find(location.hash.slice(1));
  if (linked?.classList.contains("loss")) {
    linked.open = true;
    linked.scrollIntoView();
  }
}

// What the page brings along; a service with a loss of its own shows it without.
function shownParts(entry, descriptions, drawings) {
  return { shown: descriptions[entry.name] ?? null, drawing: drawings[entry.name] ?? null };
}

async function ownJson(name) {
  return (await ownFile(name)).json();
}

function row(entry, tryLoss) {
  const body = element("div", { class: "body" });
  const tags = [entry.family, KINDS[entry.kind] ?? entry.kind, ...entry.tasks];
  const made = element(
    "details",
    { class: "loss", id: `loss-${entry.name}` },
    element(
      "summary",
      {},
      element(
        "span",
        { class: "named" },
        element("code", { class: "name" }, entry.name),
        entry.aliases.length ? ` or ${entry.aliases.join(", ")}` : null,
        element(
          "span",
          { class: "tags" },
          ...[...new Set(tags)].map((tag) => element("span", {}, tag)),
        ),
        element("span", { class: "summary" }, ...marked(entry.summary)),
      ),
      entry.drawing ? smallCurve(entry.drawing) : null,
    ),
    body,
  );
  made.addEventListener(
    "toggle",
    () => body.childElementCount || body.append(...opened(entry, tryLoss)),
  );
  return made;
}

function opened(entry, tryLoss) {
  const toTry = element("button", { type: "button" }, `Try ${entry.name}`);
  toTry.addEventListener("click", () => tryLoss(entry.name));
  return [
    ...formula(entry),
    entry.drawing ? curves(entry.name, entry.drawing) : null,
    section("Value", element("p", {}, ...marked(entry.value))),
    section("When", element("p", {}, ...marked(entry.use))),
    section("Parameters", parameterTable(entry)),
    section("Inputs", inputTable(entry)),
    section("Gives", element("p", {}, entry.returns.join(", "))),
    section(
      "Traps",
      element("ul", {}, ...entry.traps.map((trap) => element("li", {}, ...marked(trap)))),
    ),
    section("Source", reference(entry.reference)),
    entry.kind === "pixel" ? element("p", {}, toTry) : null,
  ].filter(Boolean);
}

function formula(entry) {
  const lines = entry.shown
    ? entry.shown.formula.map(mathElement)
    : [element("code", {}, entry.formula)];
  const symbols = Object.entries(entry.symbols).flatMap(([symbol, meaning]) => [
    element("dt", {}, symbol),
    element("dd", {}, meaning),
  ]);
  return [
    element(
      "div",
      { class: "formula", tabindex: "0", role: "group", "aria-label": `Formula of ${entry.name}` },
      ...lines,
    ),
    symbols.length ? element("dl", { class: "symbols" }, ...symbols) : null,
  ];
}

function mathElement(text) {
  const parsed = new DOMParser().parseFromString(text, "application/xml");
  return document.importNode(parsed.documentElement, true);
}

function parameterTable(entry) {
  const schemas = entry.parameters.properties ?? {};
  const names = entry.shown ? Object.keys(entry.shown.parameters) : Object.keys(schemas);
  if (!names.length) {
    return element("p", {}, "none");
  }
  const rows = names.map((name) => {
    const text = entry.shown?.parameters[name] ?? { values: "", default: "" };
    return [
      element("code", {}, name),
      text.default,
      text.values,
      element("span", {}, ...marked(schemas[name]?.description ?? "")),
    ];
  });
  return cellTable(["name", "default", "may be", "meaning"], rows, `Parameters of ${entry.name}`);
}

function inputTable(entry) {
  const rows = entry.inputs.map((input) => [
    element("code", {}, input.name),
    element("code", {}, `[${input.axes.replaceAll(" ", ", ").replaceAll(", or, ", "] or [")}]`),
    input.values,
    [input.required ? "required" : "optional", input.differentiable ? "has a gradient" : ""]
      .filter(Boolean)
      .join(", "),
  ]);
  return cellTable(["name", "shape", "values", ""], rows, `Inputs of ${entry.name}`);
}

function cellTable(titles, rows, label) {
  const made = rows.map((cells) =>
    element("tr", {}, ...cells.map((cell) => element("td", {}, cell))),
  );
  return table(label, made, { head: headRow(titles) });
}

function reference({ text, url }) {
  const link = url ? element("a", { href: url, rel: "noreferrer" }, url) : null;
  return element("p", {}, text, text && link ? ", " : "", link);
}

function section(title, content) {
  return element("div", { class: "part" }, element("h3", {}, title), content);
}

function startFilter(rows) {
  const entries = rows.map(([entry]) => entry);
  const choices = {
    family: [...new Set(entries.map((entry) => entry.family))].sort().map((one) => [one, one]),
    kind: [...new Set(entries.map((entry) => entry.kind))].map((one) => [one, KINDS[one] ?? one]),
    task: [...new Set(entries.flatMap((entry) => entry.tasks))].map((one) => [one, one]),
  };
  for (const [name, id] of Object.entries(FILTERS)) {
    setOptions(find(id), [["", "any"], ...choices[name]]);
  }
  const look = () => applyFilter(rows);
  find("filter").oninput = look; // the catalogue may be filled again, with another key
  find("filter").onsubmit = (event) => event.preventDefault();
  look();
}

function applyFilter(rows) {
  const words = find("filter-text").value.toLowerCase().split(/\s+/).filter(Boolean);
  const wanted = Object.fromEntries(
    Object.entries(FILTERS).map(([name, id]) => [name, find(id).value]),
  );
  let count = 0;
  for (const [entry, made] of rows) {
    const fits =
      words.every((word) => searched(entry).includes(word)) &&
      (!wanted.family || entry.family === wanted.family) &&
      (!wanted.kind || entry.kind === wanted.kind) &&
      (!wanted.task || entry.tasks.includes(wanted.task));
    made.hidden = !fits;
    count += fits;
  }
  find("filter-count").textContent = `${count} of ${rows.length} losses`;
}

function searched(entry) {
  const { name, aliases, family, summary, use, traps, reference: source } = entry;
  return [name, ...aliases, family, summary, use, ...traps, source.text].join(" ").toLowerCase();
}

// The page of every call: what openapi.json says, for people.

import { element, headRow, marked, table } from "./elements.js";
import { problemElement } from "./problem.js";
import { ask, Refusal, setKey } from "./service.js";

const find = (id) => document.getElementById(id);

async function load() {
  const place = find("calls");
  try {
    const { info, paths } = await ask("openapi.json");
    place.replaceChildren(said(info.description), ...calls(paths));
    find("key").hidden = true;
  } catch (error) {
    find("key").hidden = !(error instanceof Refusal && error.status === 401);
    place.replaceChildren(problemElement(error));
  }
}

function calls(paths) {
  return Object.entries(paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, call]) =>
      callElement(`${method.toUpperCase()} ${path}`, call),
    ),
  );
}

function callElement(title, call) {
  return element(
    "details",
    { class: "call" },
    element(
      "summary",
      {},
      element("h2", {}, element("code", {}, title)),
      " ",
      ...marked(firstLine(call.description)),
    ),
    said(call.description),
    call.parameters ? parameterTable(title, call.parameters) : null,
    ...contents("Body", call.requestBody?.content),
    element("h3", {}, "Answers"),
    answerTable(title, call.responses),
    ...Object.entries(call.responses)
      .filter(([status]) => status.startsWith("2"))
      .flatMap(([status, { content }]) => contents(`Answer ${status}`, content)),
  );
}

function firstLine(text) {
  return (text ?? "").split("\n")[0];
}

function said(text) {
  return element("p", { class: "said" }, ...marked(text ?? ""));
}

function parameterTable(title, parameters) {
  const rows = parameters.map(({ name, in: where, description }) =>
    row(element("code", {}, name), where, description ?? ""),
  );
  return table(`Parameters of ${title}`, rows, { head: headRow(["Parameter", "In", "Meaning"]) });
}

function answerTable(title, responses) {
  const rows = Object.entries(responses).map(([status, { description }]) =>
    row(status, description),
  );
  return table(`Answers of ${title}`, rows, { head: headRow(["Status", "Meaning"]) });
}

function row(...cells) {
  return element("tr", {}, ...cells.map((cell) => element("td", {}, cell)));
}

/** Of each media type an example and the schema. */
function contents(title, content = {}) {
  return Object.entries(content).flatMap(([mediaType, { schema, example, examples }]) => [
    element("h3", {}, `${title}, `, element("code", {}, mediaType)),
    ...[example, ...Object.values(examples ?? {}).map((one) => one.value)]
      .filter((one) => one !== undefined)
      .map((one) => text(`Example of ${mediaType}`, one)),
    schema ? text(`Schema of ${mediaType}`, schema) : null,
  ]).filter((one) => one !== null);
}

function text(label, value) {
  const written = typeof value === "string" ? value : JSON.stringify(value, null, 2);
  const attributes = { class: "schema", tabindex: "0", role: "group", "aria-label": label };
  return element("pre", attributes, written);
}

find("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setKey(find("key-field").value);
  find("key-field").value = "";
  load();
});

load();

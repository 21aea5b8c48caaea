// The losses of the request, each with its parameters and its weight.

import { element, marked } from "./elements.js";

/** Chosen losses, shown as a list whose entries open. */
export class Chosen {
  #list;
  #changed;
  #entries = new Map();
  #fields = new Map();

  /**
   * @param {HTMLElement} list where they are shown
   * @param {() => void} changed is called after every change of which there are
   */
  constructor(list, changed) {
    this.#list = list;
    this.#changed = changed;
  }

  /** Says which losses there are; those of other inputs than masks are left out. */
  offer(select, entries) {
    const offered = entries.filter((entry) => entry.kind === "pixel");
    this.#entries = new Map(offered.map((entry) => [entry.name, entry]));
    const families = [...new Set(offered.map((entry) => entry.family))];
    const groups = families.map((family) =>
      element(
        "optgroup",
        { label: family },
        ...offered
          .filter((entry) => entry.family === family)
          .map(({ name }) => element("option", { value: name }, name)),
      ),
    );
    select.replaceChildren(...groups);
  }

  isEmpty() {
    return this.#fields.size === 0;
  }

  /** Adds a loss, once. */
  add(name) {
    const entry = this.#entries.get(name);
    if (!entry || this.#fields.has(name)) {
      return;
    }
    const fields = [weightField(entry), ...parameterFields(entry)];
    const remove = element("button", { type: "button", "aria-label": `Remove ${name}` }, "Remove");
    const row = element(
      "li",
      {},
      element(
        "details",
        {},
        element("summary", {}, element("code", {}, name), " parameters and weight"),
        ...fields.map((field) => field.shown),
      ),
      remove,
    );
    remove.addEventListener("click", () => {
      row.remove();
      this.#fields.delete(name);
      this.#changed();
    });
    this.#fields.set(name, fields);
    this.#list.append(row);
    this.#changed();
  }

  /** The losses as a request has them: the name alone where nothing else was said. */
  losses() {
    return [...this.#fields].map(([name, [weight, ...parameters]]) => {
      const given = parameters.filter((field) => field.control.value.trim() !== "");
      const params = Object.fromEntries(
        given.map((field) => [field.name, valueOf(field.control.value)]),
      );
      const said = {
        ...(given.length ? { params } : {}),
        ...(weight.control.value.trim() ? { weight: valueOf(weight.control.value) } : {}),
      };
      return Object.keys(said).length ? { name, ...said } : name;
    });
  }
}

// What JSON it is, or the text itself: the service says what it does not like.
function valueOf(text) {
  try {
    return JSON.parse(text);
  } catch {
    return text.trim();
  }
}

function weightField(entry) {
  return field(entry.name, "weight", "1", "number", "Factor of this loss in the sum.", textControl);
}

function parameterFields(entry) {
  const schemas = entry.parameters.properties ?? {};
  const names = entry.shown ? Object.keys(entry.shown.parameters) : Object.keys(schemas);
  return names.map((name) => {
    const text = entry.shown?.parameters[name] ?? { values: "", default: "" };
    const control = controlOf(schemas[name]);
    return field(entry.name, name, text.default, text.values, schemas[name].description, control);
  });
}

function controlOf(schema) {
  if (schema.enum) {
    return (attributes, standard) => selectControl(attributes, standard, schema.enum);
  }
  if (schema.type === "boolean") {
    return (attributes, standard) => selectControl(attributes, standard, ["true", "false"]);
  }
  return textControl;
}

function textControl(attributes, standard) {
  return element("input", {
    ...attributes,
    type: "text",
    placeholder: standard,
    spellcheck: "false",
  });
}

function selectControl(attributes, standard, values) {
  const options = values
    .filter((value) => value !== standard)
    .map((value) => element("option", { value }, value));
  const first = element("option", { value: "" }, `${standard} (default)`);
  return element("select", attributes, first, ...options);
}

function field(loss, name, standard, values, meaning, makeControl) {
  const id = `param-${loss}-${name}`;
  const control = makeControl({ id, "aria-describedby": `${id}-note` }, standard);
  const note = element(
    "span",
    { id: `${id}-note`, class: "note" },
    `${values}. `,
    ...marked(meaning ?? ""),
  );
  const shown = element("p", {}, element("label", { for: id }, name), " ", control, " ", note);
  return { name, control, shown };
}

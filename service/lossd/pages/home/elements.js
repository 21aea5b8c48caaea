// Makes elements of the page. Text is always text, never markup.

/**
 * An element with attributes and children; strings become text.
 *
 * Attributes that are null or false are left out, true ones are empty.
 */
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  setAttributes(made, attributes);
  made.append(...children.filter((child) => child !== null));
  return made;
}

/** The same for drawings. */
export function drawn(name, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  setAttributes(made, attributes);
  made.append(...children);
  return made;
}

/**
 * A table that scrolls sideways where there is no room.
 *
 * @param {string} label what it is, for those who do not see it
 * @param {Array<Element>} rows of the body
 * @param {{head?: Element, foot?: Element}} ends rows above and below
 */
export function table(label, rows, { head = null, foot = null } = {}) {
  return element(
    "div",
    { class: "wide", tabindex: "0", role: "group", "aria-label": label },
    element(
      "table",
      {},
      head && element("thead", {}, head),
      element("tbody", {}, ...rows),
      foot && element("tfoot", {}, foot),
    ),
  );
}

/** A row of heads of columns; one without a title is a cell. */
export function headRow(titles) {
  const cells = titles.map((title) =>
    title ? element("th", { scope: "col" }, title) : element("td", {}),
  );
  return element("tr", {}, ...cells);
}

/** Text in which what stands between backticks is code. */
export function marked(text) {
  return text
    .split("`")
    .map((part, number) =>
      number % 2 ? element("code", {}, part) : document.createTextNode(part),
    );
}

/** Options of a select in place of those it has, keeping the choice where it can. */
export function setOptions(select, entries) {
  const before = select.value;
  select.replaceChildren(...entries.map(([value, text]) => element("option", { value }, text)));
  if (entries.some(([value]) => String(value) === before)) {
    select.value = before;
  }
}

function setAttributes(made, attributes) {
  for (const [attribute, value] of Object.entries(attributes)) {
    if (value !== null && value !== false) {
      made.setAttribute(attribute, value === true ? "" : value);
    }
  }
}

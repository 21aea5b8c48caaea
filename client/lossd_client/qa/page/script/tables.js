// What the report was made of, and tables of classes, annotators and jobs.

import { byId, element, grouped, percent, swatch } from "./dom.js";

export function showFacts(head, images) {
  byId("data-set").textContent = head.data_set;
  byId("summary").textContent =
    `${grouped(images.length)} images, ${head.classes.length} classes` +
    (head.views < images.length ? `; the first ${grouped(head.views)} with all layers` : "");
  const rows = head.facts.flatMap(([name, value]) => [
    element("dt", {}, name),
    element("dd", {}, value),
  ]);
  byId("facts").replaceChildren(...rows);
}

export function showClasses(head, chosen) {
  const rows = head.class_rows
    .map((row, label) => ({ ...row, label }))
    .sort((first, second) => second.disputed - first.disputed);
  byId("classes").replaceChildren(
    ...rows.map((row) => {
      const name = element("button", { type: "button", class: "link", click: () => chosen(row.name) });
      name.append(swatch(head.colours[row.label]), row.name);
      const swaps = row.swaps.map(
        ([other, pixels]) => `${other} ${percent(pixels / row.disputed, 0)}`,
      );
      return element(
        "tr",
        {},
        element("th", { scope: "row" }, name),
        element("td", {}, grouped(row.pixels)),
        element("td", {}, row.dice === null ? "" : row.dice.toFixed(3)),
        element("td", {}, row.pixels ? percent(row.disputed / row.pixels, 2) : ""),
        element("td", { class: "words" }, swaps.join(", ")),
      );
    }),
  );
}

export function showGroups(head) {
  const tables = head.group_rows.map(({ title, rows }) => {
    const headings = [title, "images", "mean suspicion", "disputed"].map((text) =>
      element("th", { scope: "col" }, text),
    );
    const lines = rows.map((row) =>
      element(
        "tr",
        {},
        element("th", { scope: "row" }, row.name),
        element("td", {}, grouped(row.images)),
        element("td", {}, row.suspicion.toFixed(2)),
        element("td", {}, row.pixels ? percent(row.disputed / row.pixels, 2) : ""),
      ),
    );
    return element(
      "table",
      {},
      element("caption", {}, `By ${title}, the most suspicious first`),
      element("thead", {}, element("tr", {}, ...headings)),
      element("tbody", {}, ...lines),
    );
  });
  byId("groups").replaceChildren(...tables);
  byId("groups-part").hidden = tables.length === 0;
}

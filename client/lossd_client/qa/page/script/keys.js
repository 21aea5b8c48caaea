// What the keys do, in one table, which the help shows too.

import { byId, element } from "./dom.js";

const WHOLE = { C: "confirmed", X: "rejected", A: "ambiguous", U: "withdrawn" };
const ENTRY = "input:not([type=range], [type=checkbox]), select, textarea";
const ARROWS = "input[type=range], summary";

export function bindKeys(actions) {
  const table = [
    ["Images and regions"],
    ["→ or n", "next image", ["ArrowRight", "n"], () => actions.step(1)],
    ["← or b", "previous image", ["ArrowLeft", "b"], () => actions.step(-1)],
    ["N", "next open image", ["N"], () => actions.nextOpen()],
    ["↓", "next region", ["ArrowDown"], () => actions.stepRegion(1)],
    ["↑", "previous region", ["ArrowUp"], () => actions.stepRegion(-1)],
    ["1 to 9", "that region", [..."123456789"], (key) => actions.chooseRegion(Number(key) - 1)],
    ["i", "no region: the image", ["i"], () => actions.chooseRegion(null)],
    ["Decisions"],
    ["c", "confirm: the annotation is wrong", ["c"], () => actions.decide("confirmed")],
    ["x", "reject: the annotation is right", ["x"], () => actions.decide("rejected")],
    ["a", "ambiguous: the guideline does not say", ["a"], () => actions.decide("ambiguous")],
    ["u", "withdraw the decision", ["u"], () => actions.decide("withdrawn")],
    ["C, X, A, U", "the same of the whole image", [..."CXAU"], (key) => actions.decideImage(WHOLE[key])],
    ["s", "save the decisions to a file", ["s"], () => byId("save").click()],
    ["Layers"],
    ["p", "photo", ["p"], () => actions.toggle("photo")],
    ["g", "given labels", ["g"], () => actions.toggle("given")],
    ["m", "predicted labels, the model's", ["m"], () => actions.toggle("predicted")],
    ["h", "heat", ["h"], () => actions.toggle("heat")],
    ["r", "regions", ["r"], () => actions.toggle("regions")],
    ["o", "points", ["o"], () => actions.toggle("points")],
    ["v", "four pictures or one", ["v"], () => actions.arrange()],
    ["[ and ]", "less and more opaque", ["[", "]"], (key) => actions.dim(key === "]" ? 1 : -1)],
    ["View"],
    ["+ and -", "zoom", ["+", "=", "-"], (key) => actions.zoom(key === "-" ? 1 / 1.5 : 1.5)],
    ["f", "zoom to the region", ["f"], () => actions.fitRegion()],
    ["0", "the whole image", ["0"], () => actions.fit()],
    ["Shift and arrows", "pan", [], null],
    ["?", "this help", ["?"], () => byId("help").showModal()],
    ["Esc", "close this help", [], null],
  ];
  const byKey = new Map();
  for (const [, , keys, act] of table) for (const key of keys ?? []) byKey.set(key, act);
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || byId("help").open) return;
    if (event.target.matches?.(ENTRY)) return;
    const isArrow = event.key.startsWith("Arrow");
    if (isArrow && event.target.matches?.(ARROWS)) return;
    if (isArrow && event.shiftKey) actions.pan(event.key);
    else if (byKey.has(event.key)) byKey.get(event.key)(event.key);
    else return;
    event.preventDefault();
  });
  showHelp(table);
}

function showHelp(table) {
  byId("keys").replaceChildren(
    ...table.map(([keys, what]) =>
      what === undefined
        ? element("tr", {}, element("th", { colspan: 2, scope: "colgroup" }, keys))
        : element("tr", {}, element("td", {}, element("kbd", {}, keys)), element("td", {}, what)),
    ),
  );
  byId("open-help").addEventListener("click", () => byId("help").showModal());
  byId("close-help").addEventListener("click", () => byId("help").close());
}

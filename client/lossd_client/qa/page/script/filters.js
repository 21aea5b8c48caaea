// Which images the gallery shows.

import { byId, element } from "./dom.js";

const CHOICES = ["filter-class", "filter-kind", "filter-annotator", "filter-job", "filter-state"];

export class Filters {
  constructor(head, images, decisions, changed) {
    this.head = head;
    this.decisions = decisions;
    this.changed = changed;
    const values = (key) => [...new Set(images.map((image) => image[key]))].filter(Boolean).sort();
    offer("filter-class", head.classes);
    offer("filter-kind", head.kinds);
    offer("filter-annotator", values("annotator"));
    offer("filter-job", values("job_name"));
    for (const id of CHOICES) byId(id).addEventListener("change", changed);
    byId("filter-name").addEventListener("input", changed);
    byId("filter-cut").addEventListener("change", changed);
    byId("filter-reset").addEventListener("click", () => this.reset());
  }

  chooseClass(name) {
    byId("filter-class").value = name;
    this.changed();
  }

  reset() {
    for (const id of CHOICES) byId(id).selectedIndex = 0;
    byId("filter-name").value = "";
    byId("filter-cut").checked = false;
    this.changed();
  }

  shown(images, cut) {
    const wanted = Object.fromEntries(CHOICES.map((id) => [id.slice(7), byId(id).value]));
    const text = byId("filter-name").value.trim().toLowerCase();
    const limit = byId("filter-cut").checked ? cut : images.length;
    return images.filter(
      (image) =>
        image.rank <= limit &&
        (!text || image.name.toLowerCase().includes(text)) &&
        (!wanted.annotator || image.annotator === wanted.annotator) &&
        (!wanted.job || image.job_name === wanted.job) &&
        this.hasRegion(image, wanted) &&
        this.hasState(image, wanted.state),
    );
  }

  // A region of the class and the kind, where both are wanted the same one.
  hasRegion(image, wanted) {
    if (!wanted.class && !wanted.kind) return true;
    const label = this.head.classes.indexOf(wanted.class);
    const wantedKind = this.head.kinds.indexOf(wanted.kind);
    return image.regions.some(
      ([, given, predicted, kind]) =>
        (!wanted.class || given === label || predicted === label) &&
        (!wanted.kind || kind === wantedKind),
    );
  }

  hasState(image, state) {
    if (!state) return true;
    const { verdict, isSettled } = this.decisions.review(image);
    if (state === "open") return !isSettled;
    if (state === "settled") return isSettled;
    return verdict === state;
  }
}

function offer(id, values) {
  byId(id).append(...values.map((value) => element("option", { value }, value)));
  byId(id).closest("label").hidden = values.length === 0;
}

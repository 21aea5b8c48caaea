// Puts the parts of the page together.

import { Decisions } from "./decisions.js";
import { byId, grouped, say } from "./dom.js";
import { Files } from "./files.js";
import { Filters } from "./filters.js";
import { Gallery } from "./gallery.js";
import { Histogram } from "./histogram.js";
import { bindKeys } from "./keys.js";
import { Layers } from "./layers.js";
import { Panel } from "./panel.js";
import { readReport } from "./report.js";
import { showClasses, showFacts, showGroups } from "./tables.js";
import { Viewer } from "./viewer.js";

const SAID = {
  confirmed: "the annotation is wrong",
  rejected: "the annotation is right",
  ambiguous: "ambiguous",
  withdrawn: "withdrawn",
};
const PANS = { ArrowLeft: [1, 0], ArrowRight: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };

class Review {
  constructor() {
    const { head, images } = readReport();
    this.images = images;
    this.decisions = new Decisions(head, images, storageOf());
    this.decisions.listen();
    this.current = null;
    this.chosen = null;
    this.isOpening = false;
    this.broken = null; // why the image cannot be shown
    this.asked = []; // while an image opens, in order
    showFacts(head, images);
    this.histogram = new Histogram(images, this.decisions);
    this.layers = new Layers(head);
    this.viewer = new Viewer(this.layers, this.decisions);
    this.panel = new Panel(head, this.decisions, (place) => this.chooseRegion(place));
    this.gallery = new Gallery(this.decisions, (image) => this.open(image));
    this.filters = new Filters(head, images, this.decisions, () => this.filter());
    this.files = new Files(head, images, this.decisions, () => this.settled());
    showClasses(head, (name) => {
      this.filters.chooseClass(name);
      byId("review").scrollIntoView();
    });
    showGroups(head);
    this.histogram.onMove(() => byId("filter-cut").checked && this.filter());
    this.decisions.onChange(() => this.tellProgress());
    const actions = this.actions();
    for (const verdict of Object.keys(SAID)) {
      byId(`decide-${verdict}`).addEventListener("click", () => actions.decide(verdict));
      byId(`image-${verdict}`).addEventListener("click", () => actions.decideImage(verdict));
    }
    byId("next").addEventListener("click", () => actions.step(1));
    byId("previous").addEventListener("click", () => actions.step(-1));
    byId("next-open").addEventListener("click", () => actions.nextOpen());
    byId("fit-region").addEventListener("click", () => this.viewer.fitRegion(this.chosen));
    bindKeys(actions);
    if (head.conflicts.length) {
      this.files.warn(`${head.conflicts.length} decisions contradict each other`, head.conflicts);
    }
    this.histogram.show();
    this.tellProgress();
    this.filter();
    this.open(this.gallery.shown.find((image) => !this.decisions.review(image).isSettled));
  }

  actions() {
    const { viewer } = this;
    return {
      step: (by) => this.inOrder(() => this.step(by)),
      nextOpen: () => this.inOrder(() => this.nextOpen()),
      stepRegion: (by) => this.afterOpening(() => this.stepRegion(by)),
      chooseRegion: (place) => this.afterOpening(() => this.chooseRegion(place)),
      decide: (verdict) => this.afterOpening(() => this.decide(verdict)),
      decideImage: (verdict) => this.afterOpening(() => this.decideWhole(verdict)),
      toggle: (layer) => viewer.toggle(layer),
      arrange: () => viewer.arrange(),
      dim: (steps) => viewer.dim(steps),
      zoom: (factor) => viewer.zoom(factor),
      fit: () => viewer.fit(),
      fitRegion: () => viewer.fitRegion(this.chosen),
      pan: (key) => viewer.pan(...PANS[key]),
    };
  }

  filter() {
    this.gallery.show(this.filters.shown(this.images, this.histogram.count), this.images.length);
  }

  async open(image = this.images[0]) {
    this.isOpening = true;
    this.current = image;
    this.chosen = null;
    this.regions = [];
    this.gallery.point(image);
    this.viewer.choose(null);
    this.panel.choose(null);
    this.panel.show(image, { regions: [], labels: [] });
    let loaded;
    try {
      loaded = await this.viewer.show(image);
    } catch (error) {
      if (this.current === image) this.opened(image, null, error);
      return;
    }
    if (loaded !== null) this.opened(image, loaded, null);
  }

  // An image is there, or it is known that its part of the report is broken.
  opened(image, loaded, error) {
    this.isOpening = false;
    this.broken = error;
    if (error) say(`${image.name} cannot be shown: ${error.message}`);
    else {
      this.regions = loaded.regions;
      this.panel.show(image, loaded);
      this.chooseRegion(this.firstOpen(-1));
    }
    while (this.asked.length && !this.isOpening) this.asked.shift()();
    const place = this.gallery.shown.indexOf(image);
    const next = this.gallery.shown[place + 1];
    // What is broken is told when it is opened.
    if (place >= 0 && next) this.layers.of(next).catch(() => {});
  }

  // Whoever is quicker than the picture means the regions that are about to be there.
  afterOpening(act) {
    if (this.isOpening) this.asked.push(act);
    else act();
  }

  // What follows on something that waits waits, too; whoever only passes images does not.
  inOrder(act) {
    if (this.asked.length) this.asked.push(act);
    else act();
  }

  settled() {
    return new Promise((resolve) => this.inOrder(resolve));
  }

  step(by) {
    const { shown } = this.gallery;
    const place = shown.indexOf(this.current);
    const next = place < 0 ? shown[0] : shown[place + by];
    if (next === undefined) say(by > 0 ? "that was the last image" : "that was the first image");
    else this.open(next);
  }

  nextOpen() {
    const { shown } = this.gallery;
    const after = shown.indexOf(this.current) + 1;
    const inOrder = [...shown.slice(after), ...shown.slice(0, after)];
    const next = inOrder.find((image) => !this.decisions.review(image).isSettled);
    if (next === undefined) say("all images that are shown are settled");
    else this.open(next);
  }

  stepRegion(by) {
    const count = this.regions.length;
    if (!count) return;
    this.chooseRegion(this.chosen === null ? (by > 0 ? 0 : count - 1) : (this.chosen + by + count) % count);
  }

  chooseRegion(place) {
    if (place !== null && this.regions[place] === undefined) return;
    this.chosen = place;
    this.viewer.choose(place);
    this.panel.choose(place);
  }

  // Decides the region that is chosen, or the image where none is, and goes to the next open region.
  decide(verdict) {
    if (this.broken) {
      say(`${this.current.name} cannot be shown; C, X and A decide the image as a whole`);
      return;
    }
    if (this.chosen === null) {
      this.decideWhole(verdict);
      return;
    }
    const { id } = this.regions[this.chosen];
    const about = `region ${this.chosen + 1}`;
    this.decisions.decide(this.current, id, verdict, new Date().toISOString());
    const next = verdict === "withdrawn" ? this.chosen : this.firstOpen(this.chosen);
    this.chooseRegion(next ?? this.chosen);
    const isLast = next === null ? "; all regions are decided, N goes to the next open image" : "";
    say(`${about}: ${SAID[verdict]}${isLast}`);
  }

  decideWhole(verdict) {
    this.decisions.decide(this.current, null, verdict, new Date().toISOString());
    say(`${this.current.name} as a whole: ${SAID[verdict]}`);
  }

  // The first region behind a place that is not decided; null if there is none.
  firstOpen(behind) {
    if (this.decisions.ofImage(this.current)) return null;
    const order = this.regions.map((_, place) => (behind + 1 + place) % this.regions.length);
    const isOpen = (place) => !this.decisions.ofRegion(this.current, this.regions[place].id);
    return order.find(isOpen) ?? null;
  }

  tellProgress() {
    const counts = { confirmed: 0, rejected: 0, ambiguous: 0 };
    for (const image of this.images) {
      const { verdict } = this.decisions.review(image);
      if (verdict) counts[verdict] += 1;
    }
    const { confirmed, rejected, ambiguous } = counts;
    const isGone = (made) => made.verdict === "confirmed" && !this.decisions.isOfThisReport(made);
    const changed = this.decisions.made().filter(isGone).length;
    const all = confirmed + rejected + ambiguous;
    byId("progress").textContent =
      `${grouped(all)} of ${grouped(this.images.length)} images decided: ${confirmed} wrong, ` +
      `${rejected} right, ${ambiguous} ambiguous` +
      (changed ? `; ${grouped(changed)} confirmed earlier have changed` : "");
    byId("not-kept").hidden = this.decisions.problem === null;
  }
}

// Some browsers keep nothing for files, and say so only when they are asked.
function storageOf() {
  try {
    return globalThis.localStorage;
  } catch {
    return null;
  }
}

new Review();

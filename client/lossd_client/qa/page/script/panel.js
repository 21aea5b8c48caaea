// Beside the picture: why the image is here, its regions, what is decided of them, and the classes.

import { byId, element, grouped, swatch } from "./dom.js";

const STATES = { confirmed: "annotation wrong", rejected: "annotation right", ambiguous: "ambiguous" };

export class Panel {
  constructor(head, decisions, chooseRegion) {
    this.head = head;
    this.decisions = decisions;
    this.chooseRegion = chooseRegion;
    this.image = null;
    this.regions = [];
    this.chosen = null;
    decisions.onChange(() => this.mark());
    byId("hide-settled").addEventListener("change", () => this.mark());
  }

  show(image, { regions, labels }) {
    this.image = image;
    this.regions = regions;
    const { head } = this;
    const listed = image.regions.length; // known before the regions are there
    byId("image-name").textContent = image.name;
    byId("image-told").textContent =
      `${grouped(image.rank)}. of the ranking, suspicion ${image.suspicion.toFixed(2)}, ` +
      `${grouped(image.disputed)} of ${grouped(image.pixels)} px disputed` +
      (image.annotator ? `, annotated by ${image.annotator}` : "") +
      (image.job_name ? `, job ${image.job_name}` : "");
    byId("image-reason").textContent = listed ? "" : image.reason;
    const overlay = byId("overlay");
    overlay.hidden = image.rank > head.overlays;
    overlay.href = `overlays/${image.name.split("/").map(encodeURIComponent).join("/")}.png`;
    byId("regions").replaceChildren(
      ...regions.map((region, place) => element("li", {}, this.entry(region, place))),
    );
    const left = image.found - listed;
    byId("more-regions").textContent = left > 0 ? `${grouped(left)} smaller ones are not shown` : "";
    byId("no-regions").hidden = listed > 0;
    this.showLegend(labels);
    this.mark();
  }

  // Colours of the classes that the image has.
  showLegend(labels) {
    const { classes, colours, ignored_colour: ignored } = this.head;
    byId("legend").replaceChildren(
      ...labels.map((label) =>
        classes[label] === undefined
          ? element("li", {}, swatch(ignored), "ignored")
          : element("li", {}, swatch(colours[label]), classes[label]),
      ),
    );
  }

  entry(region, place) {
    return element(
      "button",
      { type: "button", class: "region", click: () => this.chooseRegion(place) },
      element("span", { class: "number" }, String(place + 1)),
      element(
        "span",
        {},
        element("strong", {}, `${region.given} → ${region.predicted}`),
        ` ${region.kind}, ${grouped(region.area)} px, score ${region.score.toFixed(1)}`,
        element("span", { class: "reason" }, region.reason),
      ),
      element("span", { class: "mark" }),
    );
  }

  choose(place) {
    this.chosen = place;
    this.mark();
  }

  mark() {
    if (this.image === null) return;
    const isHiding = byId("hide-settled").checked;
    const whole = this.decisions.ofImage(this.image);
    const { verdict, isSettled } = this.decisions.review(this.image);
    let hidden = 0;
    [...byId("regions").children].forEach((item, place) => {
      const own = this.decisions.ofRegion(this.image, this.regions[place].id);
      const isChosen = place === this.chosen;
      const button = item.firstElementChild;
      const decision = own ?? whole;
      const ground = own || !whole ? "" : " (image)";
      button.setAttribute("aria-pressed", String(isChosen));
      button.dataset.verdict = decision?.verdict ?? "";
      button.querySelector(".mark").textContent = decision ? STATES[decision.verdict] + ground : "";
      item.hidden = isHiding && Boolean(decision) && !isChosen;
      hidden += item.hidden;
    });
    byId("hidden-regions").textContent = hidden ? `${hidden} settled ones are hidden` : "";
    byId("image-state").textContent = verdict
      ? `${STATES[verdict]}${isSettled ? "" : ", some regions are open"}`
      : "open";
    byId("image-state").dataset.verdict = verdict ?? "";
    const target = this.chosen === null ? "the image" : `region ${this.chosen + 1}`;
    byId("decision-about").textContent = `About ${target}`;
  }
}

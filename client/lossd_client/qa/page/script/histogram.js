// How suspicious the images are, and the cut: how many of them are reviewed, and what that finds.

import { byId, drawn, grouped } from "./dom.js";
import { Curve, MIN_DECIDED, excess } from "./estimates.js";

const BINS = 48;
const WIDTH = 640;
const HEIGHT = 150;
const FOOT = 22;
const SIDE = 8;
const TICKS = 6;

export class Histogram {
  constructor(images, decisions) {
    this.images = images;
    this.decisions = decisions;
    this.suspicions = images.map(({ suspicion }) => suspicion);
    this.excess = excess(this.suspicions);
    this.low = Math.floor(this.suspicions.at(-1));
    this.high = Math.max(this.low + 1, Math.ceil(this.suspicions[0]));
    this.listeners = [];
    this.range = byId("cut");
    this.number = byId("cut-number");
    for (const input of [this.range, this.number]) {
      input.max = images.length;
      input.addEventListener("input", () => this.moveTo(Number(input.value)));
    }
    this.number.addEventListener("change", () => this.show());
    this.svg = byId("histogram");
    this.svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
    this.followPointer();
    this.count = Math.min(images.length, Math.max(1, Math.round(images.length / 10)));
    decisions.onChange(() => this.show());
  }

  onMove(listener) {
    this.listeners.push(listener);
  }

  moveTo(count) {
    if (!Number.isFinite(count) || count < 1) return;
    this.count = Math.min(this.images.length, Math.round(count));
    this.show();
    for (const listener of this.listeners) listener();
  }

  show() {
    this.range.value = this.count;
    if (document.activeElement !== this.number) this.number.value = this.count;
    const reviews = this.images.map((image) => this.decisions.review(image));
    this.draw(reviews);
    this.tell(reviews);
  }

  draw(reviews) {
    const bins = Array.from({ length: BINS }, () => ({ all: 0, confirmed: 0 }));
    this.images.forEach(({ suspicion }, place) => {
      const share = (suspicion - this.low) / (this.high - this.low);
      const bin = bins[Math.min(BINS - 1, Math.floor(share * BINS))];
      bin.all += 1;
      bin.confirmed += reviews[place].verdict === "confirmed";
    });
    const tallest = Math.max(...bins.map(({ all }) => all));
    const width = (WIDTH - 2 * SIDE) / BINS;
    // A square root, so that single images at the suspicious end are seen beside the many.
    const tall = (count) => Math.sqrt(count / tallest) * (HEIGHT - FOOT - 8);
    const bars = bins.flatMap(({ all, confirmed }, place) => {
      const x = SIDE + place * width;
      return [
        bar("bar", x, tall(all), width),
        ...(confirmed ? [bar("bar confirmed", x, tall(confirmed), width)] : []),
      ];
    });
    const cut = this.xOf(this.suspicions[this.count - 1]);
    const shade = { class: "reviewed", x: cut, y: 0, width: WIDTH - cut, height: HEIGHT - FOOT };
    this.svg.replaceChildren(
      drawn("rect", shade),
      ...bars,
      drawn("line", { class: "cut", x1: cut, x2: cut, y1: 0, y2: HEIGHT - FOOT }),
      ...this.axis(),
    );
  }

  axis() {
    const step = Math.max(1, Math.ceil((this.high - this.low) / TICKS));
    const first = Math.ceil(this.low / step) * step;
    const labels = [];
    for (let value = first; value <= this.high; value += step) {
      const at = { x: this.xOf(value), y: HEIGHT - 6, "text-anchor": "middle", class: "tick" };
      labels.push(drawn("text", at, String(value)));
    }
    return labels;
  }

  tell(reviews) {
    const found = this.found(reviews);
    const suspicion = this.suspicions[this.count - 1].toFixed(1);
    byId("cut-above").textContent = `of ${grouped(this.images.length)} images`;
    byId("cut-finds").textContent = `suspicion from ${suspicion} up: ${found.text}`;
    byId("cut-how").textContent = found.how;
  }

  // What reviewing the images above the cut finds, and what that is derived from.
  found(reviews) {
    const decided = this.decisions
      .observations()
      .filter(({ verdict }) => verdict !== "ambiguous")
      .map(({ suspicion, verdict }) => ({ suspicion, isWrong: Number(verdict === "confirmed") }));
    const wrong = decided.filter(({ isWrong }) => isWrong).length;
    if (decided.length < MIN_DECIDED) {
      const confirmed = reviews.slice(0, this.count);
      const sure = confirmed.filter(({ verdict }) => verdict === "confirmed").length;
      const most = Math.max(sure, this.excess[this.count - 1]);
      return {
        text: `finds about ${grouped(most)} wrong annotations, a guess`,
        how:
          "How: so many more images lie this far above the median than below it; were all " +
          "annotations right, both sides should be alike. Where the errors were known (126 street " +
          "images, 42 wrong), it said 10 for the first 10 images, of which 7 were wrong, 13 for 20 " +
          "(14 wrong) and 15 for 40 (21 wrong). " +
          `From ${MIN_DECIDED} decided images on (now ${decided.length}), the precision of your ` +
          "decisions is used instead.",
      };
    }
    const curve = new Curve(this.suspicions, decided);
    const isOpen = (place) => reviews[place].verdict === null;
    const open = this.suspicions.filter((_, place) => isOpen(place));
    const openAbove = this.suspicions.filter((_, place) => place < this.count && isOpen(place));
    const sure = reviews
      .slice(0, this.count)
      .filter(({ verdict }) => verdict === "confirmed").length;
    const above = curve.wrongOf(openAbove);
    const left = curve.wrongOf(open);
    return {
      text:
        `finds about ${grouped(Math.round(sure + above.count))} wrong annotations ` +
        `(${Math.round(sure + above.low)} to ${Math.round(sure + above.high)}); ` +
        `${sure} of them are confirmed`,
      how:
        `How: of ${decided.length} images that you decided, ${wrong} were wrong, a precision of ` +
        `${Math.round((100 * wrong) / decided.length)} %. A logistic curve of the suspicion through ` +
        `these decisions gives each open image a probability; the range is that of 80 %. Of all ` +
        `${grouped(open.length)} open images about ${Math.round(left.count)} ` +
        `(${Math.round(left.low)} to ${Math.round(left.high)}) should be wrong.`,
    };
  }

  followPointer() {
    const move = (event) => {
      const box = this.svg.getBoundingClientRect();
      const share = ((event.clientX - box.left) / box.width) * WIDTH - SIDE;
      const limit = this.low + (share / (WIDTH - 2 * SIDE)) * (this.high - this.low);
      this.moveTo(Math.max(1, this.suspicions.filter((value) => value >= limit).length));
    };
    this.svg.addEventListener("pointerdown", (event) => {
      this.svg.setPointerCapture(event.pointerId);
      move(event);
    });
    this.svg.addEventListener("pointermove", (event) => {
      if (this.svg.hasPointerCapture(event.pointerId)) move(event);
    });
  }

  xOf(suspicion) {
    return SIDE + ((suspicion - this.low) / (this.high - this.low)) * (WIDTH - 2 * SIDE);
  }
}

function bar(name, x, height, width) {
  const y = HEIGHT - FOOT - height;
  return drawn("rect", { class: name, x: x + 0.5, y, width: width - 1, height });
}

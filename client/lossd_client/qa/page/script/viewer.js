// One image, large: its layers over each other in one picture, or side by side in four, which move
// together.

import { byId, element } from "./dom.js";

const LAYERS = ["photo", "given", "predicted", "heat", "regions", "points"];
const PANELS = ["photo", "given", "predicted", "heat"];
const TAKING_TURNS = ["given", "predicted", "heat"]; // their colours over each other say nothing
const PASSING_MS = 50;
const MAX_SCALE = 40;
const MARGIN_PX = 6;
const STEP_PX = 60;
const OPACITY_STEP = 10;
const REGION_MARGIN = 2.5;
const SMOOTH_BELOW = 3;
const HALO = "#000";
const LINE = "#fff";
const CHOSEN = "#ffe14d";
const POINT = "#ff5d5d";
const FONT = "bold 13px system-ui, sans-serif";

export class Viewer {
  constructor(layers, decisions) {
    this.layers = layers;
    this.decisions = decisions;
    this.image = null;
    this.loaded = null;
    this.chosen = null;
    this.arrangement = "four";
    this.shown = { four: new Set(LAYERS), one: new Set(["photo", "given", "regions", "points"]) };
    this.scale = 1;
    this.x = 0;
    this.y = 0;
    this.isFitted = true;
    this.panels = PANELS.map((name) => this.panel(name));
    byId("panels").replaceChildren(...this.panels.map(({ figure }) => figure));
    for (const name of LAYERS) {
      byId(`layer-${name}`).addEventListener("click", () => this.toggle(name));
    }
    byId("arrange").addEventListener("click", () => this.arrange());
    byId("fit").addEventListener("click", () => this.fit());
    byId("zoom-in").addEventListener("click", () => this.zoom(1.5));
    byId("zoom-out").addEventListener("click", () => this.zoom(1 / 1.5));
    byId("opacity").addEventListener("input", () => this.paint());
    new ResizeObserver(() => (this.isFitted ? this.fit() : this.paint())).observe(byId("panels"));
    decisions.onChange(() => this.paint());
    this.showButtons();
  }

  async show(image) {
    this.image = image;
    this.loaded = null;
    this.paint();
    // Somebody who holds a key down passes images that need not be decoded.
    if (!this.layers.has(image)) await new Promise((resolve) => setTimeout(resolve, PASSING_MS));
    if (this.image !== image) return null;
    const loaded = await this.layers.of(image);
    if (this.image !== image) return null; // another one was chosen meanwhile
    this.loaded = loaded;
    byId("no-view").hidden = loaded.given !== null;
    this.fit();
    return loaded;
  }

  get visible() {
    return this.shown[this.arrangement];
  }

  choose(place) {
    this.chosen = place;
    this.paint();
  }

  toggle(name) {
    if (this.arrangement === "one" && TAKING_TURNS.includes(name) && !this.visible.has(name)) {
      for (const other of TAKING_TURNS) this.visible.delete(other);
    }
    if (!this.visible.delete(name)) this.visible.add(name);
    this.showButtons();
    this.paint();
  }

  arrange() {
    this.arrangement = this.arrangement === "four" ? "one" : "four";
    this.showButtons();
    this.fit();
  }

  dim(steps) {
    const input = byId("opacity");
    input.value = Number(input.value) + steps * OPACITY_STEP;
    this.paint();
  }

  fit() {
    this.isFitted = true;
    if (this.image === null) return;
    const [height, width] = this.image.size;
    const { clientWidth, clientHeight } = this.panels[0].canvas;
    const wide = (clientWidth - 2 * MARGIN_PX) / width;
    const tall = (clientHeight - 2 * MARGIN_PX) / height;
    this.scale = Math.max(0.01, Math.min(wide, tall));
    this.x = (clientWidth - this.scale * width) / 2;
    this.y = (clientHeight - this.scale * height) / 2;
    this.paint();
  }

  // Shows a region with some of what lies around it.
  fitRegion(place) {
    const region = this.loaded?.regions[place];
    if (region === undefined) return;
    const [left, top, width, height] = region.bbox;
    const { clientWidth, clientHeight } = this.panels[0].canvas;
    const largest = Math.max(width / clientWidth, height / clientHeight) * REGION_MARGIN;
    this.isFitted = false;
    this.scale = Math.min(MAX_SCALE, 1 / largest);
    this.x = clientWidth / 2 - this.scale * (left + width / 2);
    this.y = clientHeight / 2 - this.scale * (top + height / 2);
    this.paint();
  }

  zoom(factor, at = null) {
    const { clientWidth, clientHeight } = this.panels[0].canvas;
    const [x, y] = at ?? [clientWidth / 2, clientHeight / 2];
    const scale = Math.min(MAX_SCALE, Math.max(0.02, this.scale * factor));
    this.isFitted = false;
    this.x = x - ((x - this.x) / this.scale) * scale;
    this.y = y - ((y - this.y) / this.scale) * scale;
    this.scale = scale;
    this.paint();
  }

  pan(across, down) {
    this.isFitted = false;
    this.x += across * STEP_PX;
    this.y += down * STEP_PX;
    this.paint();
  }

  panel(name) {
    const canvas = element("canvas", { role: "img" });
    const caption = element("figcaption", {});
    const figure = element("figure", { "data-panel": name }, canvas, caption);
    let last = null;
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      last = [event.clientX, event.clientY];
    });
    canvas.addEventListener("pointermove", (event) => {
      this.tell(event, canvas);
      if (last === null) return;
      this.isFitted = false;
      this.x += event.clientX - last[0];
      this.y += event.clientY - last[1];
      last = [event.clientX, event.clientY];
      this.paint();
    });
    for (const end of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(end, () => {
        last = null;
      });
    }
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoom(Math.exp(-event.deltaY / 400), [event.offsetX, event.offsetY]);
    }, { passive: false });
    canvas.addEventListener("pointerleave", () => {
      byId("pixel").textContent = "";
    });
    return { name, canvas, caption, figure };
  }

  tell(event, canvas) {
    if (this.loaded === null || event.target !== canvas) return;
    const [height, width] = this.image.size;
    const x = (event.offsetX - this.x) / this.scale;
    const y = (event.offsetY - this.y) / this.scale;
    const isInside = x >= 0 && y >= 0 && x < width && y < height;
    byId("pixel").textContent = isInside
      ? `column ${Math.floor(x)}, row ${Math.floor(y)}: ` +
        this.layers.told(this.loaded, this.image, x / width, y / height)
      : "";
  }

  showButtons() {
    for (const name of LAYERS) {
      byId(`layer-${name}`).setAttribute("aria-pressed", String(this.visible.has(name)));
    }
    const isFour = this.arrangement === "four";
    byId("arrange").setAttribute("aria-pressed", String(isFour));
    byId("panels").dataset.arrangement = this.arrangement;
    this.panels.slice(1).forEach(({ figure }) => {
      figure.hidden = !isFour;
    });
  }

  // Once before the next picture on the screen, however often it is asked for.
  paint() {
    if (this.isWaiting) return;
    this.isWaiting = true;
    requestAnimationFrame(() => {
      this.isWaiting = false;
      for (const panel of this.panels) if (!panel.figure.hidden) this.paintPanel(panel);
    });
  }

  paintPanel({ name, canvas, caption }) {
    const context = sized(canvas);
    const over = this.overPhoto(name);
    const label = this.arrangement === "four" ? name : ["photo", ...over].join(" and ");
    caption.textContent = label;
    canvas.setAttribute("aria-label", `${label} of ${this.image?.name ?? "no image"}`);
    if (this.image === null || this.loaded === null) return;
    const [height, width] = this.image.size;
    context.translate(this.x, this.y);
    context.scale(this.scale, this.scale);
    this.paintPhoto(context, over.length > 0);
    context.globalAlpha = byId("opacity").value / 100;
    context.imageSmoothingEnabled = false;
    for (const layer of over) {
      const { canvas: picture, side } = this.loaded[layer];
      if (side) context.drawImage(picture, 0, 0, picture.width * side, picture.height * side);
      else context.drawImage(picture, 0, 0, width, height);
    }
    context.globalAlpha = 1;
    if (this.visible.has("regions")) this.paintRegions(context, name);
    if (this.visible.has("points")) this.paintPoints(context);
  }

  // Layers that a panel shows over its photo.
  overPhoto(name) {
    const wanted = this.arrangement === "four" ? [name] : TAKING_TURNS;
    const isThere = (layer) => layer !== "photo" && Boolean(this.loaded?.[layer]);
    return wanted.filter((layer) => isThere(layer) && this.visible.has(layer));
  }

  paintPhoto(context, isCovered) {
    const [height, width] = this.image.size;
    if (this.loaded.photo === null || !this.visible.has("photo")) {
      context.fillStyle = "#777";
      context.fillRect(0, 0, width, height);
      return;
    }
    context.imageSmoothingEnabled = this.scale < SMOOTH_BELOW;
    // Colours of classes are told apart better over grey.
    context.filter = isCovered ? "grayscale(1)" : "none";
    context.drawImage(this.loaded.photo, 0, 0, width, height);
    context.filter = "none";
  }

  paintRegions(context, panel) {
    const { regions, outlines } = this.loaded;
    regions.forEach(({ id }, place) => {
      const decision = this.decisions.ofRegion(this.image, id);
      const isChosen = place === this.chosen;
      context.setLineDash(decision ? [4 / this.scale, 3 / this.scale] : []);
      const [halo, line, colour] = isChosen ? [6, 3, CHOSEN] : [4, 1.5, LINE];
      stroke(context, this.scale, [[HALO, halo], [colour, line]], outlines[place]);
    });
    context.setLineDash([]);
    regions.forEach((region, place) => this.paintBox(context, region, place, panel));
  }

  // Boxes of all regions in the photo only: elsewhere they hide what they are about.
  paintBox(context, { bbox: [left, top, width, height] }, place, panel) {
    const isChosen = place === this.chosen;
    const gap = 3 / this.scale;
    if (isChosen || panel === "photo") {
      context.lineWidth = (isChosen ? 2 : 1) / this.scale;
      context.strokeStyle = isChosen ? CHOSEN : LINE;
      context.strokeRect(left - gap, top - gap, width + 2 * gap, height + 2 * gap);
    }
    const corner = [left + width + gap, top - gap];
    tag(context, corner, this.scale, String(place + 1), isChosen ? CHOSEN : LINE);
  }

  paintPoints(context) {
    this.image.points.forEach(([column, row], place) => {
      const circle = new Path2D();
      circle.arc(column + 0.5, row + 0.5, 7 / this.scale, 0, 2 * Math.PI);
      stroke(context, this.scale, [[HALO, 4], [POINT, 2]], circle);
      const beside = [column + 0.5 + 8 / this.scale, row + 0.5 + 14 / this.scale];
      tag(context, beside, this.scale, "abcde"[place], POINT);
    });
  }
}

function sized(canvas) {
  const ratio = globalThis.devicePixelRatio || 1;
  const [width, height] = [canvas.clientWidth * ratio, canvas.clientHeight * ratio].map(Math.round);
  if (canvas.width !== width || canvas.height !== height) {
    canvas.width = width;
    canvas.height = height;
  }
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return context;
}

// A path in several colours and widths in pixels of the screen, one over the other.
function stroke(context, scale, lines, path) {
  for (const [colour, px] of lines) {
    context.strokeStyle = colour;
    context.lineWidth = px / scale;
    context.stroke(path);
  }
}

// A short text of constant size on a dark ground, whatever the scale.
function tag(context, [x, y], scale, text, colour) {
  context.save();
  context.translate(x, y);
  context.scale(1 / scale, 1 / scale);
  context.font = FONT;
  const width = context.measureText(text).width + 6;
  context.fillStyle = "rgb(0 0 0 / 80%)";
  context.fillRect(0, 0, width, 17);
  context.fillStyle = colour;
  context.fillText(text, 3, 13);
  context.restore();
}

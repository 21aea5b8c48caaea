// An image's layers as pictures of the size in which they are stored, and what they say of a pixel.

import { inflated, maskInBox } from "./codec.js";
import { pictureAddress, regionsOf, thumbnailOf, viewOf } from "./report.js";

const KEPT_IMAGES = 4;
const OPAQUE = 255;
const CLEAR_BELOW_NATS = 2;

export class Layers {
  constructor(head) {
    this.head = head;
    this.kept = new Map();
    this.classColours = head.colours.map((colour) => [...colour, OPAQUE]);
    this.heatColours = heatColours(head.heat);
  }

  // Everything to be seen of an image; of the last few it is kept.
  of(image) {
    const found = this.kept.get(image) ?? this.load(image);
    this.kept.delete(image);
    this.kept.set(image, found);
    while (this.kept.size > KEPT_IMAGES) {
      const [oldest, gone] = this.kept.entries().next().value;
      this.kept.delete(oldest);
      gone.then(release, () => {}); // nothing to release of what is broken
    }
    return found;
  }

  has(image) {
    return this.kept.has(image);
  }

  async load(image) {
    const [regions, view] = await Promise.all([regionsOf(image), viewOf(image)]);
    const outlines = regions.map((region) => outlineOf(region, image.size));
    if (view === null) {
      const address = await thumbnailOf(image);
      const photo = address === null ? null : await picture(address);
      const nothing = { given: null, predicted: null, heat: null, labels: [] };
      return { regions, outlines, photo, ...nothing };
    }
    const [photo, labels, heat] = await Promise.all([
      picture(pictureAddress(view.photo)),
      this.labels(view),
      this.heat(view),
    ]);
    return { regions, outlines, photo, ...labels, heat };
  }

  async labels({ labels, labels_size: [height, width] }) {
    const bytes = await inflated(labels);
    const isByte = bytes.length === 2 * height * width;
    const values = isByte ? bytes : new Uint16Array(bytes.buffer);
    const nothing = isByte ? OPAQUE : 65535;
    const ignored = [...this.head.ignored_colour, OPAQUE];
    const painted = (from) => {
      const own = values.subarray(from, from + height * width);
      const colour = (label) => (label === nothing ? ignored : this.classColours[label]);
      return { values: own, height, width, nothing, canvas: canvasOf(own, width, height, colour) };
    };
    const found = [...new Set(values)].sort((first, second) => first - second);
    return { given: painted(0), predicted: painted(height * width), labels: found };
  }

  async heat({ heat, heat_size: [height, width], heat_side: side }) {
    const values = await inflated(heat);
    const last = this.heatColours.length - 1;
    const colour = (step) => this.heatColours[Math.min(step, last)];
    return { values, height, width, side, canvas: canvasOf(values, width, height, colour) };
  }

  // What the layers say at a place in [0, 1) x [0, 1).
  told(layers, image, x, y) {
    const at = ({ values, height, width }) =>
      values[Math.floor(y * height) * width + Math.floor(x * width)];
    if (layers.given === null) return "";
    const name = (layer) => {
      const label = at(layer);
      return label === layer.nothing ? "ignored" : this.head.classes[label];
    };
    const { heat } = layers;
    const [height, width] = image.size;
    const row = Math.floor((y * height) / heat.side);
    const column = Math.floor((x * width) / heat.side);
    const nats = heat.values[row * heat.width + column] / this.head.heat.steps_per_nat;
    return `given ${name(layers.given)}, predicted ${name(layers.predicted)}, heat ${nats} nats`;
  }
}

// Colours of the steps of heat; the coldest are clear, so that the photo is seen.
function heatColours({ stops, hot, steps_per_nat: steps }) {
  return Array.from({ length: hot * steps + 1 }, (_, step) => {
    const place = (step / (hot * steps)) * (stops.length - 1);
    const [low, high] = [stops[Math.floor(place)], stops[Math.ceil(place)]];
    const mixed = low.map((value, channel) => value + (high[channel] - value) * (place % 1));
    return [...mixed, OPAQUE * Math.min(1, step / steps / CLEAR_BELOW_NATS)];
  });
}

function canvasOf(values, width, height, colourOf) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(width, height);
  values.forEach((value, at) => pixels.data.set(colourOf(value), 4 * at));
  context.putImageData(pixels, 0, 0);
  return canvas;
}

async function picture(address) {
  const image = new Image();
  image.src = address;
  await image.decode();
  return createImageBitmap(image);
}

// Gives memory back at once, which a browser does not do for pictures that nobody holds.
function release({ photo, given, predicted, heat }) {
  photo?.close();
  for (const layer of [given, predicted, heat]) if (layer) layer.canvas.width = 0;
}

// The edges between a region's pixels and others, as lines between the corners of pixels.
function outlineOf({ counts, bbox: [left, top, width, height] }, size) {
  const mask = maskInBox(counts, size[0], [left, top, width, height]);
  const isInside = (row, column) =>
    row >= top && row < top + height && column >= left && column < left + width
      ? mask[(row - top) * width + column - left]
      : 0;
  const path = new Path2D();
  for (let row = top; row <= top + height; row += 1) {
    lines(left, left + width, (column) => isInside(row, column) !== isInside(row - 1, column),
      (from, to) => {
        path.moveTo(from, row);
        path.lineTo(to, row);
      });
  }
  for (let column = left; column <= left + width; column += 1) {
    lines(top, top + height, (row) => isInside(row, column) !== isInside(row, column - 1),
      (from, to) => {
        path.moveTo(column, from);
        path.lineTo(column, to);
      });
  }
  return path;
}

// Calls `draw` for each run of places for which something holds.
function lines(first, end, holds, draw) {
  let from = null;
  for (let at = first; at <= end; at += 1) {
    if (at < end && holds(at)) from ??= at;
    else if (from !== null) {
      draw(from, at);
      from = null;
    }
  }
}

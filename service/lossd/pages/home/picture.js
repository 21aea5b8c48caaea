// One picture: numbers as colours, a scale, and the number under the pointer or the arrow keys.

import { drawn, element } from "./elements.js";
import { shortNumber } from "./numbers.js";
import { rgb, stops } from "./palettes.js";

const MOST_PIXELS_SORTED = 1_000_000;
const USUAL = 0.99;
const DWARFED = 1.5;
const STEPS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
const HIGHEST_REM = 30;
const FLATTEST = 16;
const GREY = [128, 128, 128];

/**
 * A figure of numbers.
 *
 * @param {string} title what they are
 * @param {{height: number, width: number, numbers: Float64Array}} grid row by row
 * @param palette one of palettes.js
 */
export function picture(title, grid, palette) {
  const range = rangeOf(grid.numbers, palette);
  const canvas = element("canvas", {
    width: grid.width,
    height: grid.height,
    role: "img",
    tabindex: "0",
    "aria-label": `${title}: ${grid.height} by ${grid.width} numbers from ${shortNumber(range.least, 4)} to ${shortNumber(range.most, 4)}; arrow keys read them`,
  });
  size(canvas, grid);
  paint(canvas, grid, range, palette);
  const output = element("output", { class: "reading", "aria-live": "polite" }, "\u00a0");
  watchPlaces(canvas, grid, output);
  return element(
    "figure",
    { class: "picture" },
    element("figcaption", {}, title),
    canvas,
    scale(range, palette),
    element("p", { class: "note" }, extent(grid.numbers, range)),
    output,
  );
}

// As wide as there is room, unless it would be too high; a single row is drawn as a strip.
function size(canvas, { height, width }) {
  if (height * FLATTEST < width) {
    canvas.style.height = "2rem";
  } else {
    canvas.style.width = `min(100%, ${(HIGHEST_REM * width) / height}rem)`;
  }
}

function paint(canvas, grid, range, palette) {
  const image = new ImageData(grid.width, grid.height);
  grid.numbers.forEach((value, place) => {
    const share = (value - range.low) / (range.high - range.low);
    const [red, green, blue] = Number.isFinite(value) ? rgb(palette, share) : GREY;
    image.data.set([red, green, blue, 255], place * 4);
  });
  canvas.getContext("2d").putImageData(image, 0, 0);
}

/** Least and most of the numbers, and the ends of the scale: few peaks shall not dwarf the rest. */
function rangeOf(numbers, palette) {
  const finite = numbers.filter(Number.isFinite);
  const every = Math.max(1, Math.ceil(finite.length / MOST_PIXELS_SORTED));
  const sizes = finite
    .filter((_, place) => place % every === 0)
    .map(Math.abs)
    .sort();
  let least = Infinity;
  let most = -Infinity;
  for (const value of finite) {
    least = Math.min(least, value);
    most = Math.max(most, value);
  }
  if (!finite.length) {
    [least, most] = [0, 0];
  }
  const largest = Math.max(Math.abs(least), Math.abs(most));
  const usual = sizes[Math.floor(USUAL * (sizes.length - 1))] ?? 0;
  const end = (usual > 0 && largest > DWARFED * usual ? usual : largest) || 1;
  const low = palette.isDiverging || least < 0 ? -end : 0;
  return { low, high: end, least, most };
}

function scale({ low, high, least, most }, palette) {
  const id = `scale-${palette.name}`;
  const colours = stops(palette).map(([share, colour]) =>
    drawn("stop", { offset: share, "stop-color": colour }),
  );
  const bar = drawn(
    "svg",
    { viewBox: "0 0 200 12", preserveAspectRatio: "none", "aria-hidden": "true" },
    drawn("defs", {}, drawn("linearGradient", { id }, ...colours)),
    drawn("rect", { width: 200, height: 12, fill: `url(#${id})` }),
  );
  return element(
    "div",
    { class: "scale" },
    bar,
    element("span", {}, (least < low ? "≤ " : "") + shortNumber(low, 3)),
    element("span", {}, shortNumber((low + high) / 2, 3)),
    element("span", {}, (most > high ? "≥ " : "") + shortNumber(high, 3)),
  );
}

function extent(numbers, { least, most }) {
  const none = numbers.reduce((count, value) => count + !Number.isFinite(value), 0);
  const text = `least ${shortNumber(least, 4)}, most ${shortNumber(most, 4)}`;
  return none ? `${text}, ${none} pixels without a number in grey` : text;
}

function watchPlaces(canvas, grid, output) {
  let place = [0, 0];
  const read = (row, column) => {
    place = [clamp(row, grid.height), clamp(column, grid.width)];
    const value = grid.numbers[place[0] * grid.width + place[1]];
    output.textContent = `row ${place[0]}, column ${place[1]}: ${shortNumber(value)}`;
  };
  canvas.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect();
    const row = ((event.clientY - box.top) / box.height) * grid.height;
    read(Math.floor(row), Math.floor(((event.clientX - box.left) / box.width) * grid.width));
  });
  canvas.addEventListener("keydown", (event) => {
    const step = STEPS[event.key];
    if (step) {
      event.preventDefault();
      read(place[0] + step[0], place[1] + step[1]);
    }
  });
}

function clamp(at, count) {
  return Math.min(Math.max(at, 0), count - 1);
}

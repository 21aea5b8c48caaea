// Draws value and gradient of a loss along a line through its inputs.

import { drawn, element } from "./elements.js";
import { shortNumber } from "./numbers.js";

const SMALL = { width: 132, height: 48, left: 2, right: 2, top: 3, bottom: 3 };
const LARGE = { width: 360, height: 220, left: 52, right: 10, top: 12, bottom: 40 };

/** Both drawings with a legend. */
export function curves(name, drawing) {
  const { axis, slope, gradient_limits: limits } = drawing;
  const value = panel(drawing, "value", LARGE, `value of ${name} against ${axis}`);
  const gradient = panel(drawing, "gradient", LARGE, `gradient of ${name} against ${axis}`, limits);
  const legend = drawing.sweeps.map((sweep, number) => {
    const line = drawn("line", { x1: 0, x2: 28, y1: 5, y2: 5, class: `line line-${number}` });
    const sample = drawn("svg", { width: 28, height: 10, "aria-hidden": "true" }, line);
    return element("li", {}, sample, ` ${sweep.label}`);
  });
  return element(
    "div",
    { class: "curves" },
    element("figure", {}, element("figcaption", {}, "value"), value),
    element(
      "figure",
      {},
      element("figcaption", {}, `d value / d ${slope}${limits ? " (peaks reach further)" : ""}`),
      gradient,
    ),
    drawing.sweeps.length > 1 ? element("ul", { class: "legend" }, ...legend) : null,
  );
}

/** The values alone, without axes, for the list. */
export function smallCurve(drawing) {
  const { width, height } = SMALL;
  const lines = paths(drawing, "value", SMALL, rangeOf(drawing, "value"));
  const attributes = { viewBox: `0 0 ${width} ${height}`, class: "small", "aria-hidden": "true" };
  return drawn("svg", attributes, ...lines);
}

function panel(drawing, which, box, label, limits = null) {
  const range = limits ? { low: limits[0], high: limits[1] } : rangeOf(drawing, which);
  return drawn(
    "svg",
    { viewBox: `0 0 ${box.width} ${box.height}`, class: "large", role: "img", "aria-label": label },
    ...axes(drawing, box, range),
    drawn(
      "svg", // cuts off what reaches further
      {
        x: box.left,
        y: 0,
        width: box.width - box.left - box.right,
        height: box.height - box.bottom,
        overflow: "hidden",
        viewBox: `${box.left} 0 ${box.width - box.left - box.right} ${box.height - box.bottom}`,
      },
      ...paths(drawing, which, box, range),
    ),
  );
}

function rangeOf(drawing, which) {
  const numbers = drawing.sweeps.flatMap((sweep) => sweep[which]);
  const low = Math.min(...numbers);
  const high = Math.max(...numbers);
  const margin = (high - low || Math.abs(high) || 1) * 0.04;
  return { low: low - margin, high: high + margin };
}

function scaled(drawing, box, range) {
  const { positions } = drawing;
  const first = positions[0];
  const last = positions[positions.length - 1];
  const width = box.width - box.left - box.right;
  const height = box.height - box.top - box.bottom;
  return {
    x: (at) => box.left + ((at - first) / (last - first)) * width,
    y: (at) => box.top + ((range.high - at) / (range.high - range.low)) * height,
  };
}

function paths(drawing, which, box, range) {
  const { x, y } = scaled(drawing, box, range);
  return drawing.sweeps.map((sweep, number) => {
    const points = sweep[which].map(
      (value, place) => `${x(drawing.positions[place]).toFixed(1)},${y(value).toFixed(1)}`,
    );
    return drawn("polyline", { points: points.join(" "), class: `line line-${number}` });
  });
}

function axes(drawing, box, range) {
  const { x, y } = scaled(drawing, box, range);
  const { positions, axis } = drawing;
  const bottom = box.height - box.bottom;
  const right = box.width - box.right;
  const parts = [];
  for (const at of ticks(range.low, range.high)) {
    parts.push(
      drawn("line", {
        x1: box.left,
        x2: right,
        y1: y(at),
        y2: y(at),
        class: at === 0 ? "zero" : "grid",
      }),
    );
    parts.push(drawn("text", { x: box.left - 5, y: y(at) + 4, class: "left" }, shortNumber(at, 3)));
  }
  for (const at of ticks(positions[0], positions[positions.length - 1])) {
    parts.push(drawn("line", { x1: x(at), x2: x(at), y1: box.top, y2: bottom, class: "grid" }));
    parts.push(drawn("text", { x: x(at), y: bottom + 15, class: "below" }, shortNumber(at, 3)));
  }
  parts.push(drawn("text", { x: (box.left + right) / 2, y: box.height - 6, class: "below" }, axis));
  return parts;
}

/** Round numbers in a range, about four of them. */
export function ticks(low, high) {
  const rough = (high - low) / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].find((one) => one * power >= rough) * power;
  const found = [];
  for (let number = Math.ceil(low / step); number * step <= high; number += 1) {
    found.push(number * step);
  }
  return found;
}

// Colours of numbers, for any colour vision: lightness rises or falls along each arm.

/** From 0 to the largest: after cividis, dark blue to yellow. */
export const SEQUENTIAL = {
  name: "sequential",
  isDiverging: false,
  colours: [
    "#00224e",
    "#1a386f",
    "#434e6c",
    "#61656f",
    "#7d7c78",
    "#9b9476",
    "#bcae6c",
    "#dec958",
    "#fee838",
  ],
};

/** From the least to the largest around 0: blue is below, white is 0, orange is above. */
export const DIVERGING = {
  name: "diverging",
  isDiverging: true,
  colours: ["#003a63", "#0072b2", "#7fb8dd", "#f7f7f7", "#f0a878", "#d55e00", "#742f00"],
};

/** Red, green and blue of a share of the palette; beyond its ends the colours of the ends. */
export function rgb(palette, share) {
  const { colours } = palette;
  const at = Math.min(Math.max(share, 0), 1) * (colours.length - 1);
  const first = Math.min(Math.floor(at), colours.length - 2);
  const [low, high] = [parsed(colours[first]), parsed(colours[first + 1])];
  return low.map((value, channel) => Math.round(value + (high[channel] - value) * (at - first)));
}

/** Stops of a gradient: share and colour. */
export function stops({ colours }) {
  return colours.map((colour, place) => [place / (colours.length - 1), colour]);
}

function parsed(colour) {
  return [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
}

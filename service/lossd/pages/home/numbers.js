// Numbers as people read them.

const UNITS = ["B", "KiB", "MiB", "GiB"];

const SMALLEST_WITHOUT_EXPONENT = 1e-4;

/** A few significant digits; what JSON has no number for is said to be none. */
export function shortNumber(value, digits = 6) {
  if (value === null || Number.isNaN(value)) {
    return "no number";
  }
  if (!Number.isFinite(value)) {
    return String(value);
  }
  const rounded = Number(value.toPrecision(digits));
  const isSmall = rounded !== 0 && Math.abs(rounded) < SMALLEST_WITHOUT_EXPONENT;
  return isSmall ? rounded.toExponential() : String(rounded);
}

/** A number of bytes in the largest unit that leaves at least 1. */
export function bytesText(bytes) {
  let value = bytes;
  let unit = 0;
  while (value >= 1024 && unit < UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${shortNumber(value, 4)} ${UNITS[unit]}`;
}

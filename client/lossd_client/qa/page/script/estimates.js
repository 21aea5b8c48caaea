// How many annotations are wrong: lossd_client/qa/estimates.py, which says how and why.

export const MIN_DECIDED = 10;

const INTERCEPT_SPREAD = 2;
const SLOPE = 1;
const SLOPE_SPREAD = 1;
const STEPS = 50;
const STEEP = 40;
const MAD_TO_SPREAD = 1.4826;
const Z_80 = 1.2816;

// For each N, how many of the first N at least should be wrong; suspicions fall.
export function excess(suspicions) {
  const middle = median(suspicions);
  let most = 0;
  return suspicions.map((suspicion, place) => {
    const mirrored = 2 * middle - suspicion;
    most = Math.max(most, place + 1 - countUpTo(suspicions, mirrored));
    return most;
  });
}

export class Curve {
  constructor(suspicions, decided) {
    this.median = median(suspicions);
    const spread = median(suspicions.map((value) => Math.abs(value - this.median)));
    this.spread = MAD_TO_SPREAD * spread || 1;
    const prior = [INTERCEPT_SPREAD ** -2, SLOPE_SPREAD ** -2];
    let [a, b] = [0, SLOPE];
    for (let step = 0; step < STEPS; step += 1) {
      let [slopeA, slopeB] = [-prior[0] * a, -prior[1] * (b - SLOPE)];
      let [aa, ab, bb] = [prior[0], 0, prior[1]];
      for (const { suspicion, isWrong } of decided) {
        const z = this.scaled(suspicion);
        const p = logistic(a + b * z);
        slopeA += isWrong - p;
        slopeB += (isWrong - p) * z;
        aa += p * (1 - p);
        ab += p * (1 - p) * z;
        bb += p * (1 - p) * z * z;
      }
      this.curvature = [aa, ab, bb];
      const [stepA, stepB] = this.solved(slopeA, slopeB);
      const length = Math.max(1, Math.hypot(stepA, stepB));
      a += stepA / length;
      b += stepB / length;
    }
    this.a = a;
    this.b = b;
  }

  wrongOf(suspicions) {
    let [count, coins, changeA, changeB] = [0, 0, 0, 0];
    for (const suspicion of suspicions) {
      const z = this.scaled(suspicion);
      const p = logistic(this.a + this.b * z);
      count += p;
      coins += p * (1 - p);
      changeA += p * (1 - p);
      changeB += p * (1 - p) * z;
    }
    const [x, y] = this.solved(changeA, changeB);
    const half = Z_80 * Math.sqrt(coins + changeA * x + changeB * y);
    const high = Math.min(suspicions.length, count + half);
    return { count, low: Math.max(0, count - half), high };
  }

  scaled(suspicion) {
    const limit = STEEP * this.spread;
    return clipped(suspicion - this.median, limit) / this.spread;
  }

  solved(x, y) {
    const [aa, ab, bb] = this.curvature;
    const determinant = aa * bb - ab * ab;
    return [(bb * x - ab * y) / determinant, (aa * y - ab * x) / determinant];
  }
}

function median(values) {
  const sorted = Float64Array.from(values).sort();
  const half = sorted.length >> 1;
  return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}

// How many of the falling values are at most the limit.
function countUpTo(values, limit) {
  let [low, high] = [0, values.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (values[middle] > limit) low = middle + 1;
    else high = middle;
  }
  return values.length - low;
}

function logistic(value) {
  return 1 / (1 + Math.exp(-clipped(value, STEEP)));
}

function clipped(value, limit) {
  return Math.min(Math.max(value, -limit), limit);
}

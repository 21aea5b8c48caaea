// Tensors of an answer: `{"dtype", "shape", "base64"}`, row by row, little-endian.

const READERS = {
  float32: { bytes: 4, read: (view, at) => view.getFloat32(at, true) },
  float64: { bytes: 8, read: (view, at) => view.getFloat64(at, true) },
};

/** Numbers and shape of a tensor. */
export function decode({ dtype, shape, base64 }) {
  const { bytes, read } = READERS[dtype];
  const text = atob(base64);
  const raw = Uint8Array.from(text, (sign) => sign.charCodeAt(0));
  const view = new DataView(raw.buffer);
  const numbers = new Float64Array(raw.length / bytes);
  for (let place = 0; place < numbers.length; place += 1) {
    numbers[place] = read(view, place * bytes);
  }
  return { shape, numbers };
}

/** Tensors of single samples, from the tensor of all or from one per input object. */
export function samplesOf(tensors) {
  const objects = Array.isArray(tensors) ? tensors : [tensors];
  return objects.flatMap((one) => {
    const { shape, numbers } = decode(one);
    const [count, ...own] = shape;
    const size = numbers.length / count;
    return Array.from({ length: count }, (_, place) => ({
      shape: own,
      numbers: numbers.subarray(place * size, (place + 1) * size),
    }));
  });
}

/** A part of a tensor along its first axis. */
export function partOf({ shape, numbers }, place) {
  const [count, ...own] = shape;
  const size = numbers.length / count;
  return { shape: own, numbers: numbers.subarray(place * size, (place + 1) * size) };
}

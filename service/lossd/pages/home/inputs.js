// Reads what was sent, so that it can be seen beside what came back: NumPy's arrays and grey masks.
// The service reads far more; what is not read here has no picture, and that is all.

const NPY_MAGIC = "\x93NUMPY";
const PNG_MAGIC = "\x89PNG";
const READERS = {
  f2: (view, at) => half(view.getUint16(at, true)),
  f4: (view, at) => view.getFloat32(at, true),
  f8: (view, at) => view.getFloat64(at, true),
  i1: (view, at) => view.getInt8(at),
  i2: (view, at) => view.getInt16(at, true),
  i4: (view, at) => view.getInt32(at, true),
  i8: (view, at) => Number(view.getBigInt64(at, true)),
  u1: (view, at) => view.getUint8(at),
  u2: (view, at) => view.getUint16(at, true),
  u4: (view, at) => view.getUint32(at, true),
  u8: (view, at) => Number(view.getBigUint64(at, true)),
  b1: (view, at) => view.getUint8(at),
};

/** Numbers and shape of a file, or null for one that only the service can read. */
export async function readInput(file) {
  const raw = await file.arrayBuffer();
  const start = String.fromCharCode(...new Uint8Array(raw.slice(0, 6)));
  if (start === NPY_MAGIC) {
    return readNpy(raw);
  }
  return start.startsWith(PNG_MAGIC) ? readGreyPng(file, raw) : null;
}

function readNpy(raw) {
  const view = new DataView(raw);
  const [start, length] =
    view.getUint8(6) === 1 ? [10, view.getUint16(8, true)] : [12, view.getUint32(8, true)];
  const header = new TextDecoder().decode(new Uint8Array(raw, start, length));
  const descr = header.match(/'descr': '[<|]([a-z]\d)'/);
  const shape = header.match(/'fortran_order': False, 'shape': \(([^)]*)\)/);
  const read = descr && READERS[descr[1]];
  if (!read || !shape) {
    return null;
  }
  const axes = shape[1]
    .split(",")
    .filter((axis) => axis.trim())
    .map(Number);
  const bytes = Number(descr[1][1]);
  const count = axes.reduce((product, axis) => product * axis, 1);
  if (start + length + count * bytes > raw.byteLength) {
    return null;
  }
  const numbers = Float64Array.from({ length: count }, (_, place) =>
    read(view, start + length + place * bytes),
  );
  return { shape: axes, numbers };
}

// Of palettes and of more or fewer bits a browser tells the colours, not the labels.
async function readGreyPng(file, raw) {
  const [depth, colourType] = new Uint8Array(raw, 24, 2);
  if (depth !== 8 || colourType !== 0) {
    return null;
  }
  const bitmap = await createImageBitmap(file, { colorSpaceConversion: "none" });
  const { width, height } = bitmap;
  const context = new OffscreenCanvas(width, height).getContext("2d");
  context.drawImage(bitmap, 0, 0);
  const { data } = context.getImageData(0, 0, width, height);
  const numbers = Float64Array.from({ length: width * height }, (_, place) => data[place * 4]);
  return { shape: [height, width], numbers };
}

function half(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 0x1f;
  const fraction = bits & 0x3ff;
  if (exponent === 0) {
    return sign * fraction * 2 ** -24;
  }
  if (exponent === 0x1f) {
    return fraction ? NaN : sign * Infinity;
  }
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

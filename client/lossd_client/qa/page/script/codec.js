// Bytes and run-length codes, as they are told in lossd_client/qa/rle.py and coco_rle.py.

const LABEL_STUDIO_LENGTH_BITS = [3, 4, 8, 16];
const LABEL_STUDIO_VALUE_BITS = 8;
const RGBA = 4;

export function bytesOf(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let at = 0; at < text.length; at += 1) bytes[at] = text.charCodeAt(at);
  return bytes;
}

// Without a blob, which lies in another process of the browser that may be busy.
export async function inflated(base64) {
  const { readable, writable } = new DecompressionStream("deflate");
  const writer = writable.getWriter();
  const told = () => {}; // whoever reads is told what is wrong with the bytes
  writer.write(bytesOf(base64)).catch(told);
  writer.close().catch(told);
  return new Uint8Array(await new Response(readable).arrayBuffer());
}

// Counts of COCO's compressed string: groups of five bits, the lowest first.
export function expandCoco(text) {
  const counts = [];
  let value = 0;
  let weight = 1;
  for (const character of text) {
    const code = character.charCodeAt(0) - 48;
    value += (code & 31) * weight;
    weight *= 32;
    if (code & 32) continue;
    if (code & 16) value -= weight;
    if (counts.length > 2) value += counts[counts.length - 2];
    counts.push(value);
    value = 0;
    weight = 1;
  }
  return counts;
}

// Mask of COCO's counts inside a box, row after row: 1 inside.
export function maskInBox(counts, height, [left, top, wide, tall]) {
  const mask = new Uint8Array(wide * tall);
  let at = 0;
  expandCoco(counts).forEach((length, place) => {
    for (let pixel = place % 2 ? at : at + length; pixel < at + length; pixel += 1) {
      mask[((pixel % height) - top) * wide + Math.floor(pixel / height) - left] = 1;
    }
    at += length;
  });
  return mask;
}

// Mask of the whole image.
export function maskOf(counts, [height, width]) {
  return maskInBox(counts, height, [0, 0, width, height]);
}

// Label Studio's brush of a mask.
export function labelStudioRle(mask) {
  const bytes = [];
  let pending = 0;
  let held = 0;
  const put = (value, bits) => {
    for (let bit = bits - 1; bit >= 0; bit -= 1) {
      pending = pending * 2 + (Math.floor(value / 2 ** bit) % 2);
      held += 1;
      if (held === 8) {
        bytes.push(pending);
        pending = 0;
        held = 0;
      }
    }
  };
  put(mask.length * RGBA, 32);
  put(LABEL_STUDIO_VALUE_BITS - 1, 5);
  for (const bits of LABEL_STUDIO_LENGTH_BITS) put(bits - 1, 4);
  const run = (pixels, value) => {
    let left = pixels * RGBA;
    while (left > 0) {
      const part = Math.min(left, 65536);
      const choice = LABEL_STUDIO_LENGTH_BITS.findIndex((bits) => part <= 2 ** bits);
      put(1, 1);
      put(choice, 2);
      put(part - 1, LABEL_STUDIO_LENGTH_BITS[choice]);
      put(value, LABEL_STUDIO_VALUE_BITS);
      left -= part;
    }
  };
  let start = 0;
  for (let at = 1; at <= mask.length; at += 1) {
    if (at === mask.length || mask[at] !== mask[start]) {
      run(at - start, mask[start] ? 255 : 0);
      start = at;
    }
  }
  while (held) put(0, 1);
  return bytes;
}

// The data in the page: what is known of all images at once, and of one image when it is asked for.

const PAUSE_MS = 40;

export function readReport() {
  const head = JSON.parse(document.getElementById("head").textContent);
  const [columns, ...rows] = JSON.parse(document.getElementById("index").textContent);
  const images = rows.map((row, place) => ({
    ...Object.fromEntries(columns.map((column, at) => [column, row[at]])),
    rank: place + 1,
  }));
  return { head, images };
}

export async function thumbnailOf(image) {
  const text = await inert(`t${image.rank}`);
  return text === null ? null : pictureAddress(text);
}

export function pictureAddress(base64) {
  return `data:image/webp;base64,${base64}`;
}

export async function regionsOf(image) {
  return JSON.parse((await inert(`r${image.rank}`)) ?? "[]");
}

export async function viewOf(image) {
  const text = await inert(`v${image.rank}`);
  return text === null ? null : JSON.parse(text);
}

// Text of an element behind the scripts; null if there is none once the page has been read.
async function inert(name) {
  let found = document.getElementById(name);
  while (found === null && document.readyState === "loading") {
    await new Promise((resolve) => setTimeout(resolve, PAUSE_MS));
    found = document.getElementById(name);
  }
  return found === null ? null : found.textContent;
}

// Pictures of one sample: its mask and prediction, its per-pixel map and its gradient.

import { setOptions } from "./elements.js";
import { readInput } from "./inputs.js";
import { DIVERGING, SEQUENTIAL } from "./palettes.js";
import { picture } from "./picture.js";
import { partOf, samplesOf } from "./tensors.js";

const find = (id) => document.getElementById(id);
const CONTROLS = ["sample", "map", "gradient", "channel", "slice"];
const SUM = "the weighted sum";
const ACTIVATIONS = ["logits", "probabilities"];

/** The pictures, and the controls that say of what. */
export class Pictures {
  #maps = new Map();
  #gradients = new Map();
  #activation = "";
  #masks = [];
  #predictions = [];

  constructor() {
    for (const name of CONTROLS) {
      find(`picture-${name}`).addEventListener("change", () => this.#draw());
    }
  }

  hide() {
    find("try-pictures").hidden = true;
  }

  /** Takes what an answer has of them, and the files that were sent, by the name of the input. */
  async show(answer, files) {
    const count = answer.total.length;
    this.#maps = new Map(
      Object.entries(answer.maps ?? {}).map(([label, tensors]) => [label, samplesOf(tensors)]),
    );
    this.#gradients = gradientsOf(answer);
    this.#activation = files.find(([input]) => ACTIVATIONS.includes(input))?.[0] ?? "";
    this.#masks = await read(files, "target", count);
    this.#predictions = await read(files, this.#activation, count);
    choices("sample", upTo(count));
    choices("map", [...this.#maps.keys()]);
    choices("gradient", [...this.#gradients.keys()]);
    this.#draw();
  }

  #draw() {
    const sample = Number(find("picture-sample").value);
    const map = this.#maps.get(find("picture-map").value)?.[sample];
    const gradient = this.#gradients.get(find("picture-gradient").value)?.[sample];
    const mask = this.#masks[sample]?.tensor;
    const prediction = withChannel(this.#predictions[sample]?.tensor, mask);
    const channels = gradient ?? prediction;
    choices("channel", upTo(channels ? channels.shape[0] : 1));
    const spatial = channels ? channels.shape.slice(1) : (map?.shape ?? mask?.shape ?? []);
    choices("slice", upTo(spatial.length === 3 ? spatial[0] : 1));
    const figures = [
      mask && figureOf(mask, `mask in ${this.#masks[sample].name}`, SEQUENTIAL),
      prediction && figureOf(channelOf(prediction), this.#predictionTitle(sample), this.#palette()),
      map && figureOf(map, `map of ${find("picture-map").value}`, SEQUENTIAL),
      gradient && figureOf(channelOf(gradient), this.#gradientTitle(), DIVERGING),
    ].filter(Boolean);
    find("picture-figures").replaceChildren(...figures);
    find("try-pictures").hidden = !figures.length;
  }

  #predictionTitle(sample) {
    return `${this.#activation} in ${this.#predictions[sample].name}`;
  }

  #gradientTitle() {
    return `gradient of ${find("picture-gradient").value} with respect to ${this.#activation}`;
  }

  #palette() {
    return this.#activation === "logits" ? DIVERGING : SEQUENTIAL;
  }
}

/** Files of an input, one a sample, as far as they can be read here. */
async function read(files, wanted, count) {
  const own = files.filter(([input]) => input === wanted).map(([, file]) => file);
  if (own.length !== count) {
    return [];
  }
  return Promise.all(own.map(async (file) => ({ name: file.name, tensor: await readInput(file) })));
}

// A file of a binary prediction may leave its one channel out.
function withChannel(prediction, mask) {
  if (!prediction) {
    return null;
  }
  const { shape, numbers } = prediction;
  const isBare = shape.length === 2 || (mask && shape.length === mask.shape.length);
  return isBare ? { shape: [1, ...shape], numbers } : prediction;
}

function channelOf(tensor) {
  return partOf(tensor, Number(find("picture-channel").value));
}

function figureOf(tensor, title, palette) {
  const sliced =
    tensor.shape.length === 3 ? partOf(tensor, Number(find("picture-slice").value)) : tensor;
  const [height, width] = sliced.shape.length === 1 ? [1, ...sliced.shape] : sliced.shape;
  return picture(title, { height, width, numbers: sliced.numbers }, palette);
}

function gradientsOf(answer) {
  const [ofInput] = Object.values(answer.gradients ?? {});
  if (!ofInput) {
    return new Map();
  }
  const ofTotal = Array.isArray(ofInput) || "base64" in ofInput;
  const byLabel = ofTotal ? { [totalName(answer)]: ofInput } : ofInput;
  return new Map(Object.entries(byLabel).map(([label, tensors]) => [label, samplesOf(tensors)]));
}

function totalName(answer) {
  const labels = Object.keys(answer.losses);
  return labels.length === 1 ? labels[0] : SUM;
}

// What there is only one of needs no control.
function choices(name, values) {
  const select = find(`picture-${name}`);
  setOptions(
    select,
    values.map((value) => [value, String(value)]),
  );
  select.parentElement.hidden = values.length < 2;
}

function upTo(count) {
  return Array.from({ length: count }, (_, place) => place);
}

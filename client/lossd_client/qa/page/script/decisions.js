// What was decided, merged by time, and kept in the browser: an item of its own for each decision, so
// that two windows of one report do not overwrite each other.

const PREFIX = "lossd-qa";
const MARK = "\n";

export const VERDICTS = ["confirmed", "rejected", "ambiguous"];

export class Decisions {
  constructor(head, images, storage) {
    this.head = head;
    this.storage = storage;
    this.problem = null;
    this.isKeeping = false;
    this.byKey = new Map();
    this.byImage = new Map();
    this.listeners = [];
    this.images = new Map(images.map((image) => [image.name, image]));
    this.merge(head.decisions);
    this.merge(this.stored(head.id));
    this.isKeeping = true; // what was read just now is kept already
  }

  onChange(listener) {
    this.listeners.push(listener);
  }

  // One decision for each thing, the later one; withdrawn ones too.
  all() {
    return [...this.byKey.values()];
  }

  made() {
    return this.all().filter((decision) => decision.verdict !== "withdrawn");
  }

  decide(image, regionId, verdict, decidedAt) {
    const before = regionId === null ? this.ofImage(image) : this.ofRegion(image, regionId);
    if (verdict === "withdrawn" && before === null) return;
    const decision = {
      image: image.name,
      region: regionId === null ? null : { id: regionId },
      verdict,
      decided_at: decidedAt,
      suspicion: image.suspicion,
      labels: image.labels,
    };
    this.put(decision);
    this.changed();
  }

  // Takes decisions in; what contradicts an earlier one is told, and the later one counts.
  merge(decisions) {
    const told = { added: 0, changed: 0, conflicts: [] };
    for (const decision of decisions) {
      const before = this.byKey.get(keyOf(decision));
      if (before === undefined) {
        told.added += 1;
        this.put(decision);
        continue;
      }
      const isLater = decision.decided_at > before.decided_at;
      if (decision.verdict !== before.verdict) {
        told.changed += isLater;
        // To take something back is no contradiction.
        if (![decision.verdict, before.verdict].includes("withdrawn")) {
          told.conflicts.push({ decision, before, isLater });
        }
      }
      if (isLater) this.put(decision);
    }
    if (told.added || told.changed) this.changed();
    return told;
  }

  // Decisions about this report's regions and masks that an earlier report of the data set left in
  // this browser, and that nobody has made here.
  earlier() {
    const found = new Map();
    for (const { report, decision } of this.items()) {
      if (report === this.head.id || decision.data_set !== this.head.data_set) continue;
      const key = keyOf(decision);
      const other = found.get(key);
      if (this.byKey.has(key) || !this.isOfThisReport(decision)) continue;
      if (other === undefined || decision.decided_at > other.decided_at) found.set(key, decision);
    }
    return [...found.values()].filter((decision) => decision.verdict !== "withdrawn");
  }

  isOfThisReport(decision) {
    const image = this.images.get(decision.image);
    if (image === undefined) return false;
    if (decision.region === null) return decision.labels === image.labels;
    return image.regions.some(([id]) => id === decision.region.id);
  }

  ofRegion(image, regionId) {
    return this.got(keyText(image.name, regionId, ""));
  }

  ofImage(image) {
    return this.got(keyText(image.name, "", image.labels));
  }

  // As ImageReview in lossd_client/qa/reviews.py.
  review(image) {
    const whole = this.ofImage(image);
    const regions = image.regions.map(([id]) => this.ofRegion(image, id));
    const verdicts = new Set([...regions, whole].filter(Boolean).map(({ verdict }) => verdict));
    const open = whole ? 0 : regions.filter((decision) => !decision).length;
    const isSettled = Boolean(whole) || (regions.length > 0 && open === 0);
    let verdict = null;
    if (verdicts.has("confirmed")) verdict = "confirmed";
    else if (whole) verdict = whole.verdict;
    else if (isSettled) verdict = verdicts.has("ambiguous") ? "ambiguous" : "rejected";
    return { verdict, isSettled, open, decided: regions.length - open };
  }

  // Suspicion and verdict of every state of a mask that was decided.
  observations() {
    const states = new Map();
    for (const decision of this.made()) {
      const state = JSON.stringify([decision.image, decision.labels]);
      if (!states.has(state)) states.set(state, []);
      states.get(state).push(decision);
    }
    for (const image of this.images.values()) {
      if (this.byImage.has(image.name) && this.review(image).verdict === null) {
        states.delete(JSON.stringify([image.name, image.labels]));
      }
    }
    return [...states.values()].map((own) => ({
      suspicion: Math.max(...own.map(({ suspicion }) => suspicion)),
      verdict: verdictOf(own),
    }));
  }

  listen() {
    globalThis.addEventListener("storage", ({ key, newValue }) => {
      if (key?.startsWith(`${PREFIX}${MARK}${this.head.id}${MARK}`) && newValue) {
        this.merge([JSON.parse(newValue)]);
      }
    });
  }

  got(key) {
    const decision = this.byKey.get(key);
    return decision === undefined || decision.verdict === "withdrawn" ? null : decision;
  }

  put(decision) {
    const key = keyOf(decision);
    this.byKey.set(key, decision);
    if (!this.byImage.has(decision.image)) this.byImage.set(decision.image, new Set());
    this.byImage.get(decision.image).add(key);
    if (this.isKeeping) this.keep(key, decision);
  }

  changed() {
    for (const listener of this.listeners) listener();
  }

  keep(key, decision) {
    const kept = { ...decision, data_set: this.head.data_set };
    if (decision.region !== null && this.isOfThisReport(decision)) {
      kept.region = { id: decision.region.id };
    }
    try {
      this.storage.setItem([PREFIX, this.head.id, key].join(MARK), JSON.stringify(kept));
    } catch (error) {
      this.problem = error;
    }
  }

  stored(report) {
    return [...this.items()].filter((item) => item.report === report).map((item) => item.decision);
  }

  *items() {
    const names = [];
    try {
      for (let at = 0; at < this.storage.length; at += 1) names.push(this.storage.key(at));
    } catch (error) {
      this.problem = error;
    }
    for (const name of names) {
      const [prefix, report] = name.split(MARK);
      if (prefix === PREFIX) yield { report, decision: JSON.parse(this.storage.getItem(name)) };
    }
  }
}

function keyOf({ image, region, labels }) {
  return region === null ? keyText(image, "", labels) : keyText(image, region.id, "");
}

function keyText(image, region, labels) {
  return JSON.stringify([image, region, labels]);
}

function verdictOf(own) {
  const verdicts = new Set(own.map(({ verdict }) => verdict));
  if (verdicts.has("confirmed")) return "confirmed";
  const whole = own.find(({ region }) => region === null);
  if (whole) return whole.verdict;
  return verdicts.has("ambiguous") ? "ambiguous" : "rejected";
}

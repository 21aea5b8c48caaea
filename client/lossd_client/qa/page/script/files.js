// Decisions to and from files, and what was decided for other tools.

import { VERDICTS } from "./decisions.js";
import { byId, download, element, say } from "./dom.js";
import { cocoOf, csvOf, cvatOf, decidedRegions, labelStudioOf } from "./exports.js";
import { regionsOf } from "./report.js";

const JSON_TYPE = "application/json";

export class Files {
  // `settled` resolves when every decision that was asked for is made.
  constructor(head, images, decisions, settled) {
    this.head = head;
    this.images = images;
    this.decisions = decisions;
    this.settled = settled;
    byId("save").addEventListener("click", () => this.save());
    byId("load").addEventListener("click", () => byId("load-file").click());
    byId("load-file").addEventListener("change", ({ target }) => this.load(target));
    for (const format of ["csv", "coco", "cvat", "label-studio"]) {
      byId(`export-${format}`).addEventListener("click", () => this.export(format));
    }
    this.offerEarlier();
  }

  async save() {
    await this.settled();
    const decisions = await Promise.all(this.decisions.all().map((each) => this.whole(each)));
    const document = {
      ...this.head.decisions_file,
      report: this.head.id,
      data_set: this.head.data_set,
      decisions: decisions.sort((first, second) => (orderOf(first) < orderOf(second) ? -1 : 1)),
    };
    download(`decisions-${this.head.id}.json`, `${JSON.stringify(document, null, 1)}\n`, JSON_TYPE);
    say(`${decisions.length} decisions are saved; give the file to --decisions`);
  }

  async load(input) {
    for (const file of input.files) {
      try {
        const document = JSON.parse(await file.text());
        const { format, version } = this.head.decisions_file;
        if (document.format !== format || document.version !== version) {
          throw new TypeError(`its format is ${document.format}, version ${document.version}`);
        }
        this.tell(file.name, this.decisions.merge(checked(document.decisions)));
      } catch (error) {
        this.warn(`${file.name} is no file of decisions: ${error.message}`);
      }
    }
    input.value = "";
  }

  async export(format) {
    await this.settled();
    const wanted = byId("export-verdicts").value.split(" ");
    const verdicts = format === "csv" ? VERDICTS : wanted;
    const found = await decidedRegions(this.images, this.decisions, verdicts);
    const name = `${format}-${this.head.id}`;
    let note = "";
    if (format === "csv") download(`${name}.csv`, csvOf(found), "text/csv");
    if (format === "coco") downloadJson(name, cocoOf(found, this.head.classes));
    if (format === "label-studio") downloadJson(name, labelStudioOf(found));
    if (format === "cvat") {
      const { issues, unknown } = cvatOf(found);
      if (unknown) note = `; ${unknown} images are left out, their job or frame is not known`;
      downloadJson(name, issues);
    }
    say(`exported ${found.length} images${note}`);
  }

  // A decision with all that is known of its region, which the browser does not keep.
  async whole(decision) {
    const { data_set: _, ...own } = decision;
    if (own.region === null || "counts" in own.region) return own;
    const image = this.decisions.images.get(own.image);
    const region = (await regionsOf(image)).find(({ id }) => id === own.region.id);
    const { id, bbox, counts, given, predicted, area, kind, score } = region;
    const known = { id, bbox, size: image.size, counts, given, predicted, area_px: area, kind, score };
    return { ...own, region: known };
  }

  tell(name, { added, changed, conflicts }) {
    const told = conflicts.map(({ decision, before, isLater }) => {
      const about = decision.region === null ? "as a whole" : `region ${decision.region.id}`;
      const counts = isLater ? "the file's counts, it is later" : "this page's counts, it is later";
      return `${decision.image} ${about}: ${decision.verdict} in ${name}, ${before.verdict} here; ${counts}`;
    });
    say(`${name}: ${added} decisions added, ${changed} changed`);
    if (told.length) this.warn(`${told.length} decisions contradict each other`, told);
  }

  offerEarlier() {
    const earlier = this.decisions.earlier();
    if (!earlier.length) return;
    const take = element("button", { type: "button", id: "take-earlier" }, "Take them over");
    const bar = this.warn(
      `${earlier.length} decisions of an earlier report of this data set are in this browser. `,
    );
    take.addEventListener("click", () => {
      this.tell("the earlier report", this.decisions.merge(earlier));
      bar.remove();
    });
    bar.append(take);
  }

  warn(text, lines = []) {
    const bar = element("div", { class: "notice", role: "status" }, element("p", {}, text));
    if (lines.length) {
      const items = lines.map((line) => element("li", {}, line));
      bar.append(element("details", {}, element("summary", {}, "which"), element("ul", {}, ...items)));
    }
    const close = { type: "button", "aria-label": "close this notice", click: () => bar.remove() };
    bar.append(element("button", close, "×"));
    byId("notices").append(bar);
    return bar;
  }
}

function downloadJson(name, document) {
  download(`${name}.json`, `${JSON.stringify(document)}\n`, JSON_TYPE);
}

function orderOf({ image, region, labels }) {
  return JSON.stringify([image, region === null ? "" : region.id, labels]);
}

// Decisions as a file should have them.
function checked(decisions) {
  if (!Array.isArray(decisions)) throw new TypeError("it has no list of decisions");
  decisions.forEach((decision, place) => {
    const { image, region, verdict, decided_at: time, labels, suspicion } = decision ?? {};
    const isRegion = region === null || (typeof region?.id === "string" && "counts" in region);
    const isWhole =
      typeof image === "string" &&
      typeof labels === "string" &&
      typeof suspicion === "number" &&
      isRegion &&
      [...VERDICTS, "withdrawn"].includes(verdict) &&
      /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/.test(time);
    if (!isWhole) throw new TypeError(`decision ${place + 1} is not whole`);
  });
  return decisions;
}

// What was decided, in the files of annotation tools: lossd_client/qa/export, whose documents these
// are, and a table.

import { labelStudioRle, maskOf } from "./codec.js";
import { regionsOf } from "./report.js";

const POINTS_PER_IMAGE = 5;
const MODEL_VERSION = "lossd";
const CSV_COLUMNS = [
  ...["image", "rank", "suspicion", "region", "verdict", "given", "predicted", "kind", "area_px"],
  ...["left", "top", "width", "height", "reason", "decided_at", "annotator", "job", "file"],
];

// Images with the regions that have one of the verdicts, the most disputed first.
export async function decidedRegions(images, decisions, verdicts) {
  const found = [];
  for (const image of images) {
    if (!decisions.byImage.has(image.name)) continue;
    const whole = decisions.ofImage(image);
    const regions = (await regionsOf(image))
      .map((region) => ({ region, decision: decisions.ofRegion(image, region.id) ?? whole }))
      .filter(({ decision }) => decision && verdicts.includes(decision.verdict))
      .sort((first, second) => second.region.score - first.region.score);
    const isWhole = whole && verdicts.includes(whole.verdict);
    if (regions.length || isWhole) found.push({ image, regions, whole: isWhole ? whole : null });
  }
  return found;
}

export function csvOf(found) {
  const rows = found.flatMap(({ image, regions, whole }) => {
    const own = regions.map(({ region, decision }) => csvRow(image, region, decision));
    return whole && !own.length ? [csvRow(image, null, whole)] : own;
  });
  return [CSV_COLUMNS, ...rows].map((row) => row.map(csvCell).join(",") + "\n").join("");
}

export function cocoOf(found, classes) {
  const shown = found.filter(({ regions }) => regions.length);
  let number = 0;
  return {
    info: { description: "Regions where the model contradicts the annotation, by lossd" },
    categories: classes.map((name, label) => ({ id: label + 1, name })),
    images: shown.map(({ image }, place) => ({
      id: place + 1,
      file_name: image.file,
      height: image.size[0],
      width: image.size[1],
      points: image.points.slice(0, POINTS_PER_IMAGE),
      suspicion: image.suspicion,
    })),
    annotations: shown.flatMap(({ image, regions }, place) =>
      regions.map(({ region }) => ({
        id: (number += 1),
        image_id: place + 1,
        category_id: classes.indexOf(region.predicted) + 1,
        bbox: region.bbox,
        segmentation: { size: image.size, counts: region.counts },
        area: region.area,
        iscrowd: 0,
        score: region.score,
        given_class: region.given,
        predicted_class: region.predicted,
        kind: region.kind,
        reason: region.reason,
        points: region.points,
      })),
    ),
  };
}

// Bodies for POST /api/issues, and how many images have no known job or frame.
export function cvatOf(found) {
  const isKnown = ({ image }) => image.job !== null && image.frame !== null;
  const issues = found.filter(isKnown).flatMap(({ image, regions }) =>
    regions.map(({ region }) => {
      const [left, top, width, height] = region.bbox;
      return {
        job: image.job,
        frame: image.frame,
        position: [left, top, left + width, top + height],
        message: messageOf(region),
      };
    }),
  );
  return { issues, unknown: found.filter((each) => each.regions.length && !isKnown(each)).length };
}

export function labelStudioOf(found) {
  return found
    .filter(({ regions }) => regions.length)
    .map(({ image, regions }) => ({
      data: { image: image.url || image.file },
      predictions: [
        {
          model_version: MODEL_VERSION,
          score: image.suspicion,
          // The most disputed comes last, because later regions lie on top.
          result: regions.toReversed().map(({ region }, place) => brushOf(image, region, place)),
        },
      ],
    }));
}

function brushOf(image, region, place) {
  return {
    id: `${MODEL_VERSION}-${place}`,
    from_name: "label",
    to_name: "image",
    type: "brushlabels",
    original_width: image.size[1],
    original_height: image.size[0],
    image_rotation: 0,
    score: region.score,
    meta: { text: [messageOf(region)] },
    value: {
      format: "rle",
      rle: labelStudioRle(maskOf(region.counts, image.size)),
      brushlabels: [region.predicted],
    },
  };
}

function messageOf(region) {
  return (
    `${region.given} labelled, ${region.predicted} predicted on ${region.area} pixels ` +
    `(${region.kind}, score ${threeDigits(region.score)}): ${region.reason}`
  );
}

// As Python's format "g" with three digits, which rounds a half to the even digit.
function threeDigits(value) {
  if (value === 0) return "0";
  const [exact, exactPower] = value.toExponential(100).split("e");
  const isHalf = /^\d\.\d[02468]50*$/.test(exact);
  const [digits, exponent] = isHalf
    ? [exact.slice(0, 4), exactPower]
    : value.toExponential(2).split("e");
  const power = Number(exponent);
  if (power >= -4 && power < 3) return String(Number(`${digits}e${power}`));
  const sign = power < 0 ? "-" : "+";
  return `${Number(digits)}e${sign}${String(Math.abs(power)).padStart(2, "0")}`;
}

function csvRow(image, region, decision) {
  const box = region ? region.bbox : ["", "", "", ""];
  return [
    ...[image.name, image.rank, image.suspicion, region?.id, decision.verdict, region?.given],
    ...[region?.predicted, region?.kind, region?.area, ...box],
    ...[region ? region.reason : image.reason, decision.decided_at],
    ...[image.annotator, image.job_name, image.file],
  ];
}

function csvCell(value) {
  const text = value === null || value === undefined ? "" : String(value);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

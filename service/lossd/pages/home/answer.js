// Values of an answer as a table, its warnings, and where it came from.

import { element, headRow, table } from "./elements.js";
import { shortNumber } from "./numbers.js";

const SHOWN_SAMPLES = 200;

/** Shows an answer in place of what was there. */
export function showAnswer(place, answer, files) {
  place.replaceChildren(
    element("h3", {}, "Values"),
    values(answer, files),
    ...answer.warnings.map((warning) => element("p", { class: "warning" }, warning)),
    element("p", { class: "note" }, origin(answer)),
  );
}

function values(answer, files) {
  const labels = Object.keys(answer.losses);
  const several = labels.length > 1;
  const names = files.filter(([input]) => input === files[0]?.[0]).map(([, file]) => file.name);
  const count = answer.total.length;
  const head = ["sample", ...labels, ...(several ? ["weighted sum"] : [])];
  const rows = answer.total
    .slice(0, SHOWN_SAMPLES)
    .map((total, sample) =>
      valueRow(names.length === count ? names[sample] : String(sample), [
        ...labels.map((label) => answer.losses[label][sample]),
        ...(several ? [total] : []),
      ]),
    );
  const left = count - rows.length;
  const means = [...labels.map((label) => answer.mean[label]), ...(several ? [""] : [])];
  const shown = table("Values", rows, {
    head: headRow(head),
    foot: count > 1 ? valueRow("mean", means) : null,
  });
  shown.id = "try-values";
  return left
    ? element("div", {}, shown, element("p", {}, `${left} more samples are not shown.`))
    : shown;
}

function valueRow(name, numbers) {
  const cells = numbers.map((value) =>
    element("td", { class: "number" }, value === "" ? "" : shortNumber(value)),
  );
  return element("tr", {}, element("th", { scope: "row" }, name), ...cells);
}

function origin(answer) {
  const { compute, total } = answer.timing_ms;
  return [
    `computed in ${shortNumber(compute, 3)} ms of ${shortNumber(total, 3)} ms`,
    `on ${answer.device}`,
    `numerics ${answer.numerics_version}`,
    `request ${answer.request_id}`,
  ].join(" · ");
}

// Whether the service is ready, asked gently: seldom, never from a hidden tab, and slower the longer
// nothing answers.

import { element, table } from "./elements.js";
import { bytesText, shortNumber } from "./numbers.js";
import { ask } from "./service.js";

const EVERY_MS = 10_000;
const LONGEST_MS = 60_000;

const LIMITS = {
  body_bytes: ["Body", bytesText],
  json_bytes: ["Lists and objects in JSON, as read", bytesText],
  tensor_bytes: ["Kept tensors", bytesText],
  tensor_ttl_s: ["A tensor is kept after its last use", seconds],
  context_bytes: ["Kept contexts of annotation QA", bytesText],
  context_ttl_s: ["A context is kept after its last use", seconds],
  samples: ["Samples", String],
  classes: ["Classes", String],
  spatial_axes: ["Spatial axes", ([fewest, most]) => `${fewest} to ${most}`],
  timeout_ms: ["Deadline", (ms) => seconds(ms / 1000)],
  queue_samples: ["Samples that wait, of all callers", String],
  queue_bytes: ["Bytes that wait, of all callers", bytesText],
  content_types: ["Bodies", (types) => types.join(", ")],
  content_codings: ["Compression of bodies", (codings) => codings.join(", ")],
  quotas: ["Your quotas", quotasText],
};

/** Shows the state now and keeps it up to date while somebody looks. */
export function watchState(shown) {
  let waitMs = EVERY_MS;
  let timer = 0;
  async function look() {
    clearTimeout(timer);
    if (!document.hidden) {
      const answered = await showState(shown);
      waitMs = answered ? EVERY_MS : Math.min(waitMs * 2, LONGEST_MS);
    }
    clearTimeout(timer); // a tab that came back may have begun another
    timer = setTimeout(look, waitMs);
  }
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) {
      look();
    }
  });
  return look();
}

/** Limits of a request as a table. */
export async function showLimits(place) {
  const limits = await ask("v1/limits");
  const rows = Object.entries(limits).map(([name, value]) => {
    const [title, text] = LIMITS[name] ?? [name, (other) => JSON.stringify(other)];
    return element(
      "tr",
      {},
      element("th", { scope: "row" }, title),
      element("td", {}, text(value)),
      element("td", {}, element("code", {}, name)),
    );
  });
  place.replaceChildren(table("Limits of a request", rows));
}

/** Facts about the service that need a key where there are keys. */
export async function showVersion(shown) {
  const index = await ask("");
  shown.version = index.version;
  showFacts(shown);
}

async function showState(shown) {
  try {
    const { status, device, numerics_version: numerics } = await ask("health/ready");
    Object.assign(shown, { state: status, device, numerics });
    say(shown, "ready", `ready on ${device}`);
    return true;
  } catch (refusal) {
    shown.state = refusal.problem?.detail ?? refusal.message;
    say(shown, "waiting", refusal.status ? `not ready: ${shown.state}` : "does not answer");
    return refusal.status !== 0;
  }
}

function say(shown, state, text) {
  const place = shown.place;
  if (place.textContent !== text) {
    place.textContent = text; // only news: a screen reader says it
  }
  place.dataset.state = state;
  showFacts(shown);
}

function showFacts({ facts, state, device, numerics, version }) {
  const known = [
    ["State", state],
    ["Device", device],
    ["Numerics version", numerics],
    ["Version", version],
  ].filter(([, value]) => value);
  const entries = known.flatMap(([title, value]) => [
    element("dt", {}, title),
    element("dd", {}, value),
  ]);
  facts.replaceChildren(...entries);
}

function seconds(s) {
  const [unit, name] = s >= 7200 ? [3600, "h"] : s >= 120 ? [60, "min"] : [1, "s"];
  return `${shortNumber(s / unit, 4)} ${name}`;
}

function quotasText(quotas) {
  const each = Object.entries(quotas).map(
    ([name, { limit, left }]) => `${name}: ${left} of ${limit} left`,
  );
  return each.join(", ") || "none";
}

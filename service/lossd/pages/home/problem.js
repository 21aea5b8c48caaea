// A problem document of the service, said as the service says it.

import { element } from "./elements.js";
import { Refusal } from "./service.js";

/** The document as an alert: title, field and message of each error, code and request id. */
export function problemElement(error) {
  if (!(error instanceof Refusal)) {
    return element("div", { class: "problem", role: "alert" }, element("p", {}, String(error)));
  }
  const { title, detail, code, errors = [], request_id: requestId } = error.problem;
  const told = errors.map(({ loc, message }) =>
    element("li", {}, element("code", {}, loc.join(".")), ` ${message}`),
  );
  const facts = [
    error.status ? `status ${error.status}` : null,
    code ? `code ${code}` : null,
    requestId ? `request ${requestId}` : null,
    error.retryAfterS ? `again in ${error.retryAfterS} s` : null,
  ];
  return element(
    "div",
    { class: "problem", role: "alert" },
    element("strong", {}, title),
    told.length ? element("ul", {}, ...told) : element("p", {}, detail === title ? "" : detail),
    element("p", { class: "note" }, facts.filter(Boolean).join(" · ")),
  );
}

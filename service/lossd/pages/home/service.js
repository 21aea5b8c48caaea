// Calls of the service, with the key that was typed, and its refusals as errors.

let key = "";
let isKeyWanted = false;

/** What the service refused, as its problem document says it. */
export class Refusal extends Error {
  constructor(status, problem, retryAfterS = null) {
    super(problem.detail);
    this.status = status;
    this.problem = problem;
    this.retryAfterS = retryAfterS;
  }
}

/** Keeps a key, or forgets it if it is empty. It lives in this variable and nowhere else. */
export function setKey(text) {
  key = text.trim();
}

export function hasKey() {
  return key !== "";
}

/** Whether the service has asked for a key so far, or one was typed. */
export function wantsKey() {
  return isKeyWanted || hasKey();
}

/** Absolute address of a path of the service, also behind a prefix. */
export function address(path) {
  return new URL(path, document.baseURI).href;
}

/**
 * JSON of a call.
 *
 * @throws {Refusal} for every answer that is none, and where none comes.
 */
export async function ask(path, { method = "GET", body = null } = {}) {
  const headers = { Accept: "application/json" };
  if (hasKey()) {
    headers.Authorization = `Bearer ${key}`;
  }
  let answer;
  try {
    answer = await fetch(address(path), { method, headers, body, credentials: "same-origin" });
  } catch (error) {
    throw new Refusal(0, {
      title: "The service does not answer.",
      detail: error.message,
      errors: [],
    });
  }
  isKeyWanted ||= answer.status === 401;
  if (!answer.ok) {
    throw await refusalOf(answer);
  }
  return answer.json();
}

/** A file of the page itself. */
export async function ownFile(name) {
  const answer = await fetch(new URL(name, import.meta.url));
  if (!answer.ok) {
    throw await refusalOf(answer);
  }
  return answer;
}

async function refusalOf(answer) {
  const retryAfterS = answer.headers.get("Retry-After");
  try {
    return new Refusal(answer.status, await answer.json(), retryAfterS);
  } catch {
    // Not of the service: a proxy's own page, for example.
    const detail = `${answer.status} ${answer.statusText}`;
    return new Refusal(answer.status, { title: "Something else answered.", detail, errors: [] });
  }
}

// Puts the parts of the page together.

import { showCatalogue } from "./catalogue.js";
import { problemElement } from "./problem.js";
import { hasKey, Refusal, setKey } from "./service.js";
import { showLimits, showVersion, watchState } from "./state.js";
import { startForm } from "./try.js";

const find = (id) => document.getElementById(id);

const shown = { place: find("state"), facts: find("service-facts") };
const form = startForm(askForKey);

let newestRound = 0;

/** Everything that may need a key; again after one was typed. */
async function load() {
  newestRound += 1;
  const round = newestRound;
  const isNewest = () => round === newestRound; // a slow answer to an older key says nothing
  await Promise.all([
    shownOrProblem(find("losses"), isNewest, async (place) => {
      const entries = await showCatalogue(place, form.addLoss);
      form.offer(entries);
    }),
    shownOrProblem(find("limits"), isNewest, showLimits),
    showVersion(shown).catch(() => {}), // the limits have said why
  ]);
}

async function shownOrProblem(place, isNewest, show) {
  try {
    await show(place);
  } catch (error) {
    if (isNewest()) {
      askForKey(error);
      place.replaceChildren(problemElement(error));
    }
  }
}

/** Shows the field for a key if that is what is missing. */
function askForKey(error) {
  if (error instanceof Refusal && error.status === 401) {
    find("key").hidden = false;
    find("links-note").hidden = false;
    find("key-said").textContent = hasKey() ? "The service refuses this key." : "";
    form.showCommand();
  }
}

find("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setKey(find("key-field").value);
  find("key-field").value = "";
  find("key-said").textContent = hasKey() ? "In use." : "";
  form.showCommand();
  load();
});
find("key-forget").addEventListener("click", () => {
  setKey("");
  find("key-field").value = "";
  find("key-said").textContent = "Forgotten.";
  form.showCommand();
});

watchState(shown);
load();

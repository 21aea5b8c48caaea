// The form: files, losses and options of a request, and what comes back.

import { showAnswer } from "./answer.js";
import { Chosen } from "./chosen.js";
import { curlCommand } from "./curl.js";
import { watchFiles } from "./files.js";
import { Pictures } from "./pictures.js";
import { problemElement } from "./problem.js";
import { ask, ownFile, wantsKey } from "./service.js";

const find = (id) => document.getElementById(id);
const OPTIONS = ["task", "ignore_index", "preset"];
const EXAMPLE = { prediction: "example-prediction.npy", target: "example-mask.png" };
const FIRST_LOSSES = ["dice", "focal"];

/**
 * Starts the form.
 *
 * @param {(error: Error) => void} refused is told what the service refused
 * @returns `addLoss(name)` adds a loss and goes to the form, `offer(entries)` says which there are,
 *   `showCommand()` writes the curl command anew
 */
export function startForm(refused) {
  const chosen = new Chosen(find("try-losses"), showCommand);
  const pictures = new Pictures();
  watchFiles(find("try-form"), showCommand);

  function showCommand() {
    find("try-curl").textContent = curlCommand(request(chosen), files(), wantsKey());
  }

  async function compute() {
    const sent = files();
    const body = new FormData();
    for (const [name, file] of sent) {
      body.append(name, file, file.name);
    }
    body.append("request", JSON.stringify(request(chosen)));
    say("computing …");
    try {
      const answer = await ask("v1/evaluate", { method: "POST", body });
      say("");
      showAnswer(find("try-answer"), answer, sent);
      await pictures.show(answer, sent);
      find("try-answer").scrollIntoView({ block: "start" });
    } catch (error) {
      say("");
      refused(error);
      pictures.hide();
      find("try-answer").replaceChildren(problemElement(error));
      find("try-answer").scrollIntoView({ block: "nearest" });
    }
  }

  find("try-form").addEventListener("submit", (event) => {
    event.preventDefault();
    find("try-compute").disabled = true;
    compute().finally(() => (find("try-compute").disabled = false));
  });
  find("try-form").addEventListener("input", showCommand);
  find("try-add").addEventListener("click", () => chosen.add(find("try-loss").value));
  find("try-example").addEventListener("click", async () => {
    await loadExample();
    showCommand();
    find("try-form").requestSubmit();
  });
  find("try-copy").addEventListener("click", copyCommand);
  showCommand();

  return {
    showCommand,
    addLoss(name) {
      chosen.add(name);
      find("try").scrollIntoView();
      find("try-compute").focus();
    },
    offer(entries) {
      chosen.offer(find("try-loss"), entries);
      if (chosen.isEmpty()) {
        FIRST_LOSSES.forEach((name) => chosen.add(name));
      }
    },
  };
}

function say(text) {
  find("try-progress").textContent = text;
}

/** Files by the name of the input that they are of. */
function files() {
  const inputs = {
    [find("try-activation").value]: "try-prediction",
    target: "try-target",
    mask: "try-mask",
    weight_map: "try-weight_map",
  };
  return Object.entries(inputs).flatMap(([name, id]) =>
    [...find(id).files].map((file) => [name, file]),
  );
}

function request(chosen) {
  const document = { losses: chosen.losses(), gradient: find("try-gradient").value, maps: true };
  for (const name of OPTIONS) {
    const text = find(`try-${name}`).value.trim();
    if (text) {
      document[name] = /^-?\d+$/.test(text) ? Number(text) : text;
    }
  }
  return document;
}

async function loadExample() {
  for (const [input, name] of Object.entries(EXAMPLE)) {
    const content = await (await ownFile(name)).blob();
    const list = new DataTransfer();
    list.items.add(new File([content], name));
    find(`try-${input}`).files = list.files;
    find(`try-${input}`).dispatchEvent(new Event("change", { bubbles: true }));
  }
  find("try-activation").value = "logits";
  find("try-task").value = "binary";
}

async function copyCommand() {
  try {
    await navigator.clipboard.writeText(find("try-curl").textContent);
    find("try-copied").textContent = "Copied.";
  } catch {
    // Only pages of https or of this machine may write there.
    getSelection().selectAllChildren(find("try-curl"));
    find("try-copied").textContent = "Selected; copy it with the keyboard.";
  }
}

// Fields for files that also take what is dropped on them.

import { bytesText } from "./numbers.js";

/** Makes the `.drop` areas of a form take files, and says which were chosen. */
export function watchFiles(form, changed) {
  for (const area of form.querySelectorAll(".drop")) {
    const input = area.querySelector("input");
    const said = area.querySelector(".chosen");
    input.addEventListener("change", () => {
      said.textContent = [...input.files]
        .map((file) => `${file.name}, ${bytesText(file.size)}`)
        .join(" · ");
      changed();
    });
    area.addEventListener("dragover", (event) => {
      event.preventDefault();
      area.classList.add("over");
    });
    area.addEventListener("dragleave", () => area.classList.remove("over"));
    area.addEventListener("drop", (event) => {
      event.preventDefault();
      area.classList.remove("over");
      if (event.dataTransfer.files.length) {
        input.files = event.dataTransfer.files;
        input.dispatchEvent(new Event("change", { bubbles: true }));
      }
    });
  }
  // A file that misses its place would otherwise replace the page.
  for (const kind of ["dragover", "drop"]) {
    window.addEventListener(kind, (event) => event.preventDefault());
  }
}

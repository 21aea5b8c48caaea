// The request of the form as a command for a shell.

import { address } from "./service.js";

/**
 * A curl command that sends the same request. A key is named, never shown.
 *
 * @param {object} request the JSON of the request
 * @param {Array<[string, File]>} files by the name of the input
 * @param {boolean} withKey whether the service wants one
 */
export function curlCommand(request, files, withKey) {
  const sent = files.length
    ? files.map(([name, file]) => [name, file.name])
    : [
        ["logits", "prediction.npy"],
        ["target", "mask.png"],
      ];
  const parts = [
    "curl",
    ...(withKey ? ['-H "Authorization: Bearer $LOSSD_API_KEY"'] : []),
    ...sent.map(([name, file]) => `-F ${quoted(`${name}=@${filePart(file)}`)}`),
    `-F ${quoted(`request=${JSON.stringify(request)}`)}`,
    quoted(address("v1/evaluate")),
  ];
  return parts.join(" \\\n  ");
}

/** A word for the shell: as it is where that is safe, otherwise in single quotes. */
function quoted(text) {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}

// curl reads options after a semicolon or a comma unless the name is in double quotes.
function filePart(name) {
  return /[;,"\\]/.test(name) ? `"${name.replace(/["\\]/g, "\\$&")}"` : name;
}

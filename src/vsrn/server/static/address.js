// What is asked, as the address says it: it can be sent to a friend, and the way back works.
// A query: { sentence, like, photo, picture, filters: { folder, from, to, name } }. A photo is a File, which no address
// can hold; as long as the page is open, the history knows it by a number.

export const FILTERS = ["folder", "from", "to", "name"];
const NAMES = ["q", "like", ...FILTERS];
const MOST_UPLOADS = 10;
const uploads = new Map(); // number -> { photo, picture }
let lastUpload = 0;

// The query of the address, and a sentence for each part of it that means nothing.
export function fromAddress() {
  const given = new URLSearchParams(location.search), said = [], filters = {};
  for (const name of new Set(given.keys())) {
    if (!NAMES.includes(name)) said.push(`The address has “${name.slice(0, 40)}”, which means nothing here; it may have ${NAMES.join(", ")}.`);
  }
  for (const name of FILTERS) {
    const value = given.get(name)?.trim();
    if (value && (name === "from" || name === "to") && !isDay(value)) said.push(`“${value.slice(0, 40)}” is no date; write it as 2024-05-17.`);
    else if (value) filters[name] = value;
  }
  const upload = uploads.get(history.state?.upload) ?? {};
  return { query: { sentence: given.get("q")?.trim() ?? "", like: given.get("like") ?? "", ...upload, filters }, said };
}

// Write it down: how is "push" for a step that Back undoes, "replace", or "" for what the address says already.
export function remember(query, how) {
  const words = { q: query.sentence, like: query.like, ...query.filters };
  const search = new URLSearchParams(Object.entries(words).filter(([, value]) => value));
  const address = `${location.pathname}${search.size ? `?${search}` : ""}`;
  const state = query.photo ? { upload: numberOf(query) } : null;
  const same = address === location.pathname + location.search && state?.upload === history.state?.upload;
  if (!how || same) return;
  history[how === "push" ? "pushState" : "replaceState"](state, "", address);
}

function numberOf({ photo, picture }) {
  for (const [number, upload] of uploads) if (upload.photo === photo) return number;
  uploads.set(++lastUpload, { photo, picture });
  if (uploads.size > MOST_UPLOADS) {
    const [oldest, { picture: unused }] = uploads.entries().next().value;
    URL.revokeObjectURL(unused);
    uploads.delete(oldest);
  }
  return lastUpload;
}

function isDay(text) {
  return /^\d{4}-\d{2}-\d{2}$/.test(text) && !Number.isNaN(Date.parse(text));
}

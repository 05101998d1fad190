// The service's routes. Every failure is a Problem with one sentence for people.

export class Problem extends Error {
  constructor(status, sentence) {
    super(sentence);
    this.status = status;
  }
}

const answers = {
  about: () => get("api/about"),
  latest: (k, signal) => get("api/photos", { k }, signal),
  search: (sentence, k, signal) => get("api/search", { sentence, k }, signal),
  like: (id, k, signal) => get("api/search/like", { id, k }, signal),
  photo: (file, k, signal) => ask(`api/search/photo?k=${k}`, {
    method: "POST", body: file, headers: { "Content-Type": file.type || "application/octet-stream" }, signal,
  }),
  explain: (id, sentence, signal) => get("api/explain", { id, sentence }, signal),
  caption: (id, signal) => get("api/caption", { id }, signal),
  path: (id) => get("api/path", { id }),
  // Whether a picture or a file can be had: a Problem says why not, which the browser keeps to itself.
  check: async (url) => { await (await fetched(url)).body?.cancel(); },
};
export default answers;

// Trade the token for a cookie, which pictures can bring. True where it was right.
export async function bringToken(token) {
  const answer = await fetch("api/session", { method: "POST", headers: { Authorization: `Bearer ${token}` } });
  return answer.ok;
}

function get(path, parameters = {}, signal = undefined) {
  const query = new URLSearchParams(parameters);
  return ask(query.size ? `${path}?${query}` : path, { signal });
}

async function ask(url, options) {
  return (await fetched(url, options)).json();
}

async function fetched(url, options) {
  let answer;
  try {
    answer = await fetch(url, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, "The service does not answer. Is it still running?");
  }
  if (answer.ok) return answer;
  const body = await answer.json().catch(() => ({}));
  throw new Problem(answer.status, sentenceOf(body.detail ?? `this failed (${answer.status}).`));
}

function sentenceOf(detail) {
  return detail[0].toUpperCase() + detail.slice(1);
}

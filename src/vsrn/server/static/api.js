// The service's routes. Every failure is a Problem with one sentence for people.

export class Problem extends Error {
  constructor(status, sentence) {
    super(sentence);
    this.status = status;
  }
}

const answers = {
  about: () => get("api/about"),
  folders: () => get("api/folders"),
  // The k photos that answer a query (address.js) best, or the k latest that follow `after`: { hits, said, total, next, k }.
  // next is null where nothing follows; a search goes on by asking for more.
  ask: async ({ sentence, like, photo, filters }, k, after, signal) => {
    const asked = set({ sentence, k, fold: true, folder: filters.folder, since: filters.from, until: filters.to, name: filters.name });
    if (!sentence && !like && !photo) {
      const { photos, num_passing, next } = await get("api/photos", set({ ...asked, after }), signal);
      return { hits: photos, said: [], total: num_passing, next, k };
    }
    const { hits, said } = photo ? await send(`api/search/photo?${new URLSearchParams(asked)}`, photo, signal)
      : await get(like ? "api/search/like" : "api/search", set({ ...asked, id: like }), signal);
    const num = hits.reduce((sum, { alike }) => sum + 1 + alike.length, 0);
    return { hits, said, total: num, next: num === k && k > (after ?? 0) ? k : null, k };
  },
  explain: (id, sentence, signal) => get("api/explain", { id, sentence }, signal),
  caption: (id, signal) => get("api/caption", { id }, signal),
  indexing: () => get("api/indexing"),
  indexNow: (folder) => ask(`api/indexing${folder === undefined ? "" : `?${new URLSearchParams({ folder })}`}`, { method: "POST" }),
  stopIndexing: () => ask("api/indexing", { method: "DELETE" }),
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

// Without what is not set.
function set(parameters) {
  return Object.fromEntries(Object.entries(parameters).filter(([, value]) => value));
}

function send(url, photo, signal) {
  return ask(url, { method: "POST", body: photo, headers: { "Content-Type": photo.type || "application/octet-stream" }, signal });
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

// The page: a query, the photos that answer it, and the way between the two.

import answers, { bringToken } from "./api.js";
import { fromAddress, remember } from "./address.js";
import { Details } from "./details.js";
import { Filters } from "./filters.js";
import { Grid } from "./grid.js";
import { Indexing } from "./indexing.js";

const part = (id) => document.getElementById(id);
const PAGE = 24, PIECE = 72, WAIT = 160; // photos at first, photos that scrolling adds; milliseconds after the last key
const PATIENCE = 400; // milliseconds for which the old photos stay, dimmed, while new ones are on their way
const FITS = 0.1; // chance from which a photo is shown at once; docs/flickr8k-small.md has what it means
const PHOTO_REFUSED = [400, 404, 413];
const TRY_AGAIN = [0, 408, 429, 500, 502, 503, 504]; // statuses after which the same may work

let about = null;
let query = { sentence: "", filters: {} }; // address.js has what it may be
let answer = null; // { hits, said, total, next } of the query
let asked = new AbortController();
let all = false; // whether photos that hardly fit are shown too
let typing = 0;
let settled = true; // whether the next key begins another search, which Back undoes
let notes = []; // what the address said that means nothing

const grid = new Grid(part("photos"), (place) => { settled = true; details.open(grid.photos, place, query.sentence); });
const indexing = new Indexing(() => { about = null; run(query, null); });
const details = new Details({ like: searchLike, closed: (place) => grid.focus(place) });
const filters = new Filters((chosen) => run({ ...query, sentence: part("sentence").value.trim(), filters: chosen }, "push"));

const byPhoto = () => Boolean(query.like || query.photo);
const isFiltered = () => Object.values(query.filters).some(Boolean);
const isStart = () => !query.sentence && !byPhoto() && !isFiltered();
const isBrowsing = () => !query.sentence && !byPhoto();

// Asking

async function run(next, how = "replace") {
  clearTimeout(typing);
  asked.abort();
  asked = new AbortController();
  const { signal } = asked;
  query = next;
  answer = null;
  if (how) notes = [];
  all = false;
  remember(query, how);
  showQuery();
  showWaiting(signal);
  try {
    // Both at once: on a slow network each takes its time.
    const [known, found] = await Promise.all([about ?? answers.about(), answers.ask(query, PAGE, null, signal)]);
    if (signal.aborted) return;
    about = known;
    details.about = about;
    part("sentence").maxLength = about.sentence_letters;
    answer = found;
    showAnswer();
    indexing.begin();
  } catch (error) {
    if (error.name !== "AbortError" && !signal.aborted && !(await indexing.offers(error))) showProblem(error);
  }
  if (!signal.aborted) stopWaiting();
}

// The next photos, behind those that are there.
async function goOn() {
  if (!answer?.next || answer.coming) return;
  const { signal } = asked, before = answer;
  before.coming = true;
  part("more").textContent = "More photos";
  part("progress").hidden = false;
  try {
    const found = await answers.ask(query, isBrowsing() ? PIECE : Math.min(before.k + PIECE, about.most_hits), before.next, signal);
    if (signal.aborted) return;
    const known = new Set(before.hits.flatMap((hit) => [hit.id, ...hit.alike.map(({ id }) => id)]));
    answer = isBrowsing() ? { ...found, hits: [...before.hits, ...found.hits.filter(({ id }) => !known.has(id))] } : found;
    showAnswer(before.hits.length);
  } catch (error) {
    if (signal.aborted) return;
    before.coming = false;
    part("more").textContent = "That failed; try again";
  }
  part("progress").hidden = true;
}

function searchLike(photo) {
  settled = true;
  run({ sentence: "", like: photo.id, picture: photo.thumbnail, filters: query.filters }, "push");
  scrollTo({ top: 0 });
}

function searchPhoto(file) {
  if (!file) return;
  settled = true;
  run({ sentence: "", photo: file, picture: URL.createObjectURL(file), filters: query.filters }, "push");
  scrollTo({ top: 0 });
}

function searchSentence(how = settled ? "push" : "replace") {
  const sentence = part("sentence").value.trim();
  settled = false;
  if (sentence !== query.sentence || !answer) run({ ...query, sentence }, how);
}

const startAgain = () => run({ sentence: "", filters: {} }, "push");

// Showing

function showQuery() {
  part("query-photo").hidden = !byPhoto();
  if (byPhoto()) part("query-photo").querySelector("img").src = query.picture ?? `api/thumbnail?id=${encodeURIComponent(query.like)}`;
  part("sentence").placeholder = byPhoto() ? "e.g. in snow" : "Describe a photo";
  if (document.activeElement !== part("sentence") || part("sentence").value.trim() !== query.sentence) part("sentence").value = query.sentence;
  part("clear").hidden = !part("sentence").value;
  filters.show(query.filters);
  document.title = query.sentence ? `${query.sentence} · photos` : "Photos by a sentence";
}

function showWaiting(signal) {
  part("progress").hidden = false;
  part("problem").hidden = part("start").hidden = part("unsure").hidden = part("more").hidden = part("end").hidden = part("unfilter").hidden = true;
  part("heading").hidden = false;
  part("status").textContent = "Looking…";
  part("status").classList.remove("unseen");
  part("unknown").replaceChildren();
  part("photos").classList.add("busy");
  part("photos").setAttribute("aria-busy", "true");
  setTimeout(() => { if (!signal.aborted && !answer && part("problem").hidden) grid.showGhosts(); }, about ? PATIENCE : 0);
  if (!grid.photos.length) grid.show([]);
}

function stopWaiting() {
  part("progress").hidden = true;
  part("photos").classList.remove("busy");
  part("photos").removeAttribute("aria-busy");
}

// added: how many photos are there already, where more of the same have come
function showAnswer(added = 0) {
  const { hits, said, total } = answer;
  const rated = hits.some(({ fit }) => fit != null);
  const shown = rated && !all ? hits.filter(({ fit }) => fit >= FITS) : hits;
  const cut = shown.length < hits.length;
  const sentences = [...notes, ...said].map((textContent) => Object.assign(document.createElement("p"), { textContent }));
  if (!added) part("unknown").replaceChildren(...sentences);
  if (added) grid.add(shown.slice(added));
  else grid.show(shown, { empty: emptyWords(), months: isBrowsing(), ranked: !isBrowsing() });
  showWords(shown, cut);
  const left = hits.length - shown.length;
  part("unsure").hidden = !cut;
  part("unsure").textContent = `Show ${left} more that may fit`;
  part("unsure").onclick = () => { all = true; const from = shown.length; showAnswer(from || 0); grid.focus(from); };
  part("more").hidden = cut || !answer.next;
  part("unfilter").hidden = hits.length > 0 || !isFiltered();
  part("end").hidden = cut || Boolean(answer.next) || hits.length < PAGE;
  part("end").textContent = isBrowsing() ? `That is all: ${total.toLocaleString("en")} photos.` : `These are the best ${numPhotos(hits)}. Say more, or filter, to find others.`;
  showStart();
  seeFarther();
}

function showWords(shown, cut) {
  const photo = query.photo ? "Like your photo" : query.like ? "Like the one you chose" : "";
  const words = query.sentence ? `“${query.sentence}”` : "";
  const lead = photo ? [photo, words].filter(Boolean).join(", ") : words ? `Best first for ${words}` : "The latest photos";
  const count = numPhotos(shown);
  const fitting = `${count || "No"} ${count === 1 ? "photo fits" : "photos fit"} ${words}`;
  const total = isBrowsing() ? answer.total : isFiltered() ? 0 : about.num_photos; // how many pass a search's filters is not known
  const of = ` · ${count.toLocaleString("en")}${total ? ` of ${total.toLocaleString("en")}` : ""}`;
  part("heading").textContent = isBrowsing() ? "Photos" : `Photos: ${[photo, words].filter(Boolean).join(", ")}`;
  const empty = !shown.length && !cut; // the grid says so
  part("status").textContent = empty ? emptyWords() : cut ? fitting : lead + of;
  part("status").classList.toggle("unseen", empty);
}

const numPhotos = (hits) => hits.reduce((sum, { alike }) => sum + 1 + alike.length, 0);

function emptyWords() {
  if (!about.num_photos) return "";
  if (answer.hits.length) return "No photo fits well.";
  return isFiltered() && !answer.said.length ? "No photo passes these filters." : "No photo fits.";
}

function showStart() {
  const empty = about.num_photos === 0;
  part("start").hidden = !(isStart() || empty);
  part("heading").hidden = !part("start").hidden;
  part("start-heading").textContent = empty ? "No photos yet." : "Say it, see it.";
  part("start-full").hidden = empty;
  part("start-empty").hidden = !empty;
  part("num-photos").textContent = about.num_photos.toLocaleString("en");
  part("examples").replaceChildren(...(empty ? [] : about.examples).map((sentence) => {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: sentence });
    button.onclick = () => { settled = true; run({ ...query, sentence }, "push"); };
    return button;
  }));
}

function showProblem(problem) {
  const asksForToken = problem.status === 401;
  if (asksForToken && !part("login").open) part("login").showModal();
  const [words, remedy] = asksForToken ? ["Enter the token", () => run(query)]
    : TRY_AGAIN.includes(problem.status) ? ["Try again", () => run(query)]
    : isFiltered() ? ["Clear the filters", () => run({ ...query, filters: {} }, "push")] : ["Start again", startAgain];
  if (PHOTO_REFUSED.includes(problem.status) && byPhoto()) {
    query = { sentence: query.sentence, filters: query.filters }; // words that follow are not for it
    showQuery();
  }
  // Behind the login, for those who close it.
  part("problem-words").textContent = asksForToken ? "This service asks for its token." : problem.message;
  part("again").textContent = words;
  part("again").onclick = remedy;
  part("problem").hidden = part("heading").hidden = false;
  part("heading").textContent = "Photos";
  part("status").textContent = "";
  grid.show([]);
}

// Going on while somebody scrolls. The observer tells of a change alone, so that it is asked anew after each piece.
const watching = new IntersectionObserver(([seen]) => { if (seen.isIntersecting && !part("more").hidden) goOn(); }, { rootMargin: "300px" });
function seeFarther() {
  watching.disconnect();
  if (!part("more").hidden) watching.observe(part("more"));
}

// Hands

part("sentence").addEventListener("input", () => {
  part("clear").hidden = !part("sentence").value;
  clearTimeout(typing);
  typing = setTimeout(searchSentence, WAIT);
});
part("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  clearTimeout(typing);
  searchSentence();
  settled = true;
});
part("sentence").addEventListener("blur", () => { settled = true; });
part("sentence").addEventListener("keydown", (event) => {
  if (event.key === "ArrowDown") { event.preventDefault(); grid.focus(0); }
  if (event.key === "Escape") clear();
});
document.addEventListener("keydown", (event) => {
  const writing = /^(INPUT|TEXTAREA|SELECT)$/.test(document.activeElement.tagName);
  if (event.key === "/" && !writing && !document.querySelector("dialog[open]")) {
    event.preventDefault();
    part("sentence").select();
    part("sentence").focus();
  }
});
// The words first, then the photo.
function clear() {
  settled = true;
  if (part("sentence").value) { part("sentence").value = ""; searchSentence(); }
  else if (byPhoto()) run({ sentence: "", filters: query.filters }, "push");
  part("sentence").focus();
}
part("clear").onclick = clear;
part("choose").onclick = () => part("file").click();
part("file").onchange = () => { searchPhoto(part("file").files[0]); part("file").value = ""; };
part("forget-photo").onclick = () => { run({ sentence: query.sentence, filters: query.filters }, "push"); part("sentence").focus(); };
part("more").onclick = goOn;
part("unfilter").onclick = () => run({ ...query, filters: {} }, "push");
document.addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find(({ type }) => type.startsWith("image/"));
  if (file) { event.preventDefault(); searchPhoto(file); }
});

let dragged = 0;
const brings = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
document.addEventListener("dragenter", (event) => { if (brings(event)) part("drop").hidden = ++dragged < 1; });
document.addEventListener("dragleave", (event) => { if (brings(event)) part("drop").hidden = --dragged < 1; });
document.addEventListener("dragover", (event) => brings(event) && event.preventDefault());
document.addEventListener("drop", (event) => {
  if (!brings(event)) return;
  event.preventDefault();
  dragged = 0;
  part("drop").hidden = true;
  searchPhoto(event.dataTransfer.files[0]);
});

part("login-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const right = await bringToken(part("token").value).catch(() => false);
  part("wrong").hidden = right;
  if (right) { part("login").close(); run(query); }
});

function readAddress() {
  const { query: next, said } = fromAddress();
  settled = true;
  notes = said;
  part("sentence").value = next.sentence;
  run(next, "");
}
addEventListener("popstate", readAddress);

// Beginning

const token = new URLSearchParams(location.hash.slice(1)).get("token");
if (token) {
  await bringToken(token).catch(() => false);
  history.replaceState(null, "", location.pathname + location.search);
}
readAddress();
if (matchMedia("(hover: hover)").matches) part("sentence").focus();

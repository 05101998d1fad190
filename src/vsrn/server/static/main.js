// The page: a query, the photos that answer it, and the way between the two.

import answers, { bringToken } from "./api.js";
import { Details } from "./details.js";
import { Grid } from "./grid.js";

const part = (id) => document.getElementById(id);
const PAGE = 24, WAIT = 160; // photos at a time; milliseconds after the last key
const FITS = 0.1; // chance from which a photo is shown at once; docs/flickr8k-small.md has what it means

let about = null;
let query = { kind: "start" }; // or {sentence}, {like, picture}, {photo: File, picture}
let asked = new AbortController();
let count = PAGE;
let all = false; // whether photos that hardly fit are shown too
let typing = 0;

const grid = new Grid(part("photos"), (place) => details.open(grid.photos, place, query.sentence ?? ""));
const details = new Details({ like: searchLike, closed: (place) => grid.focus(place) });

// Asking

async function run(next, { more = false, remember = "replace" } = {}) {
  clearTimeout(typing);
  asked.abort();
  asked = new AbortController();
  if (!more) { count = PAGE; all = false; }
  if (query.photo && query.photo !== next.photo) URL.revokeObjectURL(query.picture);
  query = next;
  if (!more) remembered(remember);
  showQuery();
  part("progress").hidden = false;
  part("photos").classList.add("busy");
  const { signal } = asked;
  try {
    about ??= await answers.about();
    details.about = about;
    const answer = await answerTo(query, Math.min(count, about.most_hits), signal);
    if (!signal.aborted) showAnswer(answer);
  } catch (error) {
    if (error.name !== "AbortError" && !signal.aborted) showProblem(error);
  }
  if (!signal.aborted) {
    part("progress").hidden = true;
    part("photos").classList.remove("busy");
  }
}

async function answerTo({ sentence, like, photo }, k, signal) {
  if (sentence) return answers.search(sentence, k, signal);
  if (like) return answers.like(like, k, signal);
  if (photo) return answers.photo(photo, k, signal);
  const { photos, num_photos } = await answers.latest(k, signal);
  about.num_photos = num_photos;
  return { hits: photos };
}

function searchLike(photo) {
  run({ kind: "like", like: photo.id, picture: photo.thumbnail }, { remember: "push" });
  scrollTo({ top: 0 });
}

function searchPhoto(file) {
  if (!file) return;
  run({ kind: "photo", photo: file, picture: URL.createObjectURL(file) });
  scrollTo({ top: 0 });
}

function searchSentence(options) {
  const sentence = part("sentence").value.trim();
  run(sentence ? { kind: "sentence", sentence } : { kind: "start" }, options);
}

// Showing

function showQuery() {
  const byPhoto = Boolean(query.picture || query.like);
  part("query-photo").hidden = !byPhoto;
  if (byPhoto) part("query-photo").querySelector("img").src = query.picture ?? `api/thumbnail?id=${encodeURIComponent(query.like)}`;
  part("sentence").placeholder = byPhoto ? "or say it" : "Say what you are looking for";
  if (query.kind !== "sentence") part("sentence").value = "";
  else if (document.activeElement !== part("sentence")) part("sentence").value = query.sentence;
  showStart();
  document.title = query.sentence ? `${query.sentence} · photos` : "Photos by a sentence";
}

function showAnswer({ hits, said = [] }) {
  part("problem").hidden = true;
  part("unknown").replaceChildren(...said.map((textContent) => Object.assign(document.createElement("p"), { textContent })));
  const rated = hits.some(({ fit }) => fit != null);
  const shown = rated && !all ? hits.filter(({ fit }) => fit >= FITS) : hits;
  const nothing = hits.length ? "No photo fits well." : about.num_photos ? "No photo fits." : "This index is empty: add photos with vsrn index.";
  grid.show(shown, nothing);
  const cut = shown.length < hits.length;
  const words = { start: "The latest photos", sentence: `Best first for “${query.sentence}”`, like: "Like the one you chose", photo: "Like your photo" };
  const total = about.num_photos.toLocaleString("en");
  part("status").textContent = cut ? `${shown.length || "No"} ${shown.length === 1 ? "photo fits" : "photos fit"} “${query.sentence}”` : `${words[query.kind]} · ${hits.length} of ${total}`;
  part("unsure").hidden = !cut;
  part("unsure").textContent = `Show ${hits.length - shown.length} more that may fit`;
  part("unsure").onclick = () => { all = true; showAnswer({ hits, said }); grid.focus(shown.length); };
  part("more").hidden = cut || hits.length < count || count >= Math.min(about.most_hits, about.num_photos);
  showStart();
}

function showStart() {
  part("start").hidden = !about || query.kind !== "start";
  if (!about) return; // nothing is known of the photos yet
  part("num-photos").textContent = about.num_photos.toLocaleString("en");
  part("examples").replaceChildren(...about.examples.map((sentence) => {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: sentence });
    button.onclick = () => { part("sentence").value = sentence; run({ kind: "sentence", sentence }, { remember: "push" }); };
    return button;
  }));
}

function showProblem(problem) {
  const asksForToken = problem.status === 401;
  if (asksForToken && !part("login").open) part("login").showModal();
  // Behind the login, for those who close it.
  part("problem-words").textContent = asksForToken ? "This service asks for its token." : problem.message;
  part("again").textContent = asksForToken ? "Enter the token" : "Try again";
  part("problem").hidden = false;
  part("status").textContent = "";
  part("unknown").replaceChildren();
  part("unsure").hidden = part("more").hidden = true;
  grid.show([], "");
}

// The address bar: a sentence can be sent to a friend, and the way back works

function remembered(how) {
  const address = new URL(location.href);
  address.search = query.sentence ? `?${new URLSearchParams({ q: query.sentence })}` : query.like ? `?${new URLSearchParams({ like: query.like })}` : "";
  if (how === "push") history.pushState(null, "", address);
  if (how === "replace") history.replaceState(null, "", address);
}

function fromAddress() {
  const given = new URLSearchParams(location.search);
  const sentence = given.get("q")?.trim(), like = given.get("like");
  part("sentence").value = sentence ?? "";
  run(sentence ? { kind: "sentence", sentence } : like ? { kind: "like", like } : { kind: "start" }, { remember: "" });
}

// Hands

part("sentence").addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(searchSentence, WAIT);
});
part("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  searchSentence({ remember: "push" });
});
part("sentence").addEventListener("keydown", (event) => {
  if (event.key === "ArrowDown") { event.preventDefault(); grid.focus(0); }
  if (event.key === "Escape") { part("sentence").value = ""; searchSentence(); }
});
document.addEventListener("keydown", (event) => {
  const writing = /^(INPUT|TEXTAREA)$/.test(document.activeElement.tagName);
  if (event.key === "/" && !writing && !document.querySelector("dialog[open]")) {
    event.preventDefault();
    part("sentence").select();
    part("sentence").focus();
  }
});
part("choose").onclick = () => part("file").click();
part("file").onchange = () => { searchPhoto(part("file").files[0]); part("file").value = ""; };
part("forget-photo").onclick = () => { run({ kind: "start" }); part("sentence").focus(); };
part("again").onclick = () => run(query);
part("more").onclick = () => { count += 2 * PAGE; run(query, { more: true }); };
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
addEventListener("popstate", fromAddress);

// Beginning

const token = new URLSearchParams(location.hash.slice(1)).get("token");
if (token) {
  await bringToken(token).catch(() => false);
  history.replaceState(null, "", location.pathname + location.search);
}
fromAddress();
if (matchMedia("(hover: hover)").matches) part("sentence").focus();

// Making an index and bringing it up to date: the first screen, the strip that says how far it is, and the panel.

import answers from "./api.js";

const part = (id) => document.getElementById(id);
const WAIT = 1000; // milliseconds between two looks at a run
const KINDS = {
  damaged: ["damaged photo", "damaged photos"], "too-large": ["photo too large", "photos too large"],
  unreadable: ["unreadable file", "unreadable files"], link: ["link that leads elsewhere", "links that lead elsewhere"],
  "no-photo": ["file that is no photo", "files that are no photos"],
  "needs-heif": ["HEIC photo, which needs the extra heif", "HEIC photos, which need the extra heif"],
  "needs-raw": ["raw file, which needs the extra raw", "raw files, which need the extra raw"],
  "needs-video": ["video, which needs the extra video", "videos, which need the extra video"],
};

export class Indexing {
  // refresh: asks again for the photos that are shown, since there are more
  constructor(refresh) {
    this.refresh = refresh;
    this.state = null;
    this.shown = null; // how many photos the index had when the page last asked for photos
    part("first-form").onsubmit = (event) => this.choose(event, "folder");
    part("add-form").onsubmit = (event) => this.choose(event, "add-folder");
    part("index-now").onclick = () => this.act(answers.indexNow());
    part("index-stop").onclick = () => this.act(answers.stopIndexing());
    part("index-said").onclick = () => { part("strip").hidden = true; this.said = null; };
    part("index-news").onclick = () => this.take();
    part("age").onclick = () => { this.look(); part("index-panel").showModal(); };
    part("index-close").onclick = () => part("index-panel").close();
  }

  // Look once, when the first photos are there.
  begin() {
    if (!this.state) this.look();
  }

  // Whether a problem is that there is no index, which is then offered to be made.
  async offers(problem) {
    if (problem.status === 503) await this.look();
    return problem.status === 503 && this.state?.num_photos === null;
  }

  async look() {
    clearTimeout(this.timer);
    const state = await answers.indexing().catch(() => null);
    if (state) this.show(state);
    else if (this.state?.running) this.timer = setTimeout(() => this.look(), 5 * WAIT);
  }

  async act(asked, wrong = part("panel-wrong")) {
    wrong.hidden = true;
    try {
      this.show(await asked);
      part("index-panel").close(); // the strip below it says how far it is
    } catch (problem) {
      wrong.textContent = problem.message;
      wrong.hidden = false;
    }
  }

  choose(event, field) {
    event.preventDefault();
    this.act(answers.indexNow(part(field).value), field === "folder" ? part("first-wrong") : part("panel-wrong"));
  }

  take() {
    this.shown = this.state.num_photos;
    part("index-news").hidden = true;
    this.refresh();
  }

  show(state) {
    const before = this.state;
    this.state = state;
    clearTimeout(this.timer);
    if (state.running) this.timer = setTimeout(() => this.look(), WAIT);
    if (before?.running && !state.running) this.said = state.ended === "well" ? `Every photo is searchable.${unread(state)}` : sentence(state.said);
    if (state.running) this.said = null;
    const none = !state.num_photos && (state.running || state.num_photos === null);
    document.body.classList.toggle("first", none);
    part("first").hidden = !none || state.running;
    if (none && !state.running) this.showFirst(before);
    this.showStrip();
    this.showPanel();
    this.shown ??= before === null ? state.num_photos : null;
    const more = (state.num_photos ?? 0) - (this.shown ?? 0);
    // Nothing moves under the eyes of somebody who looks at photos.
    const looking = scrollY > 0 || document.querySelector("dialog[open]") || document.activeElement?.closest?.("#photos");
    if (more && (!this.shown || (!looking && !new URLSearchParams(location.search).size))) this.take();
    part("index-news").hidden = state.num_photos === this.shown;
    part("index-news").textContent = more === 1 ? "Show 1 new photo" : more > 0 ? `Show ${count(more)} new photos` : "Show the photos as they are now";
  }

  showFirst(before) {
    const { refusal, choice } = this.state;
    part("first-form").hidden = part("first-place").hidden = !choice;
    part("first-title").textContent = choice ? "Which folder of photos shall be searchable?" : "No photos are searchable yet";
    part("first-refusal").hidden = Boolean(choice);
    part("first-refusal").textContent = sentence(refusal);
    part("first-index").textContent = choice?.index ?? "";
    suggest(part("folders"), choice, part("folder"));
    if (this.said) { part("first-wrong").textContent = this.said; part("first-wrong").hidden = false; }
    if (!before && choice && matchMedia("(hover: hover)").matches) part("folder").focus();
  }

  showStrip() {
    const { running, num_photos } = this.state;
    part("strip").hidden = !running && (!this.said || num_photos === null);
    part("index-bar").hidden = part("index-stop").hidden = !running;
    part("index-said").hidden = running;
    part("index-words").ariaLive = running ? "off" : "polite"; // heard at the end, not every second
    part("index-words").textContent = running ? this.pace() : this.said ?? "";
    if (this.state.total) part("index-bar").value = this.state.done / this.state.total;
    else part("index-bar").removeAttribute("value");
  }

  pace() {
    const { done, total, per_second: rate, seconds_left: left, num_photos } = this.state;
    if (total === null) return "Looking for photos…";
    const said = [`${count(done)} of ${count(total)} files`];
    if (rate) said.push(rate >= 10 ? `${count(Math.round(rate))} a second` : `${rate.toFixed(1)} a second`);
    if (left) said.push(`${span(left)} left`);
    return `${num_photos ? "Indexing" : "Reading the first photos"}: ${said.join(" · ")}`;
  }

  showPanel() {
    const { num_photos, last_run, skipped, running, refusal, choice } = this.state;
    part("age").hidden = num_photos === null;
    const age = last_run === null ? "never finished a run" : `last updated ${ago(last_run)}`;
    part("age").ariaLabel = part("age").title = `The index: ${age}`;
    part("index-photos").textContent = count(num_photos ?? 0);
    part("index-age").textContent = last_run === null ? "not finished yet" : `${ago(last_run)}, ${new Date(last_run).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" })}`;
    const kinds = Object.entries(skipped).map(([kind, many]) => `${count(many)} ${KINDS[kind]?.[Number(many !== 1)] ?? kind}`);
    part("index-skipped").replaceChildren(...(kinds.length ? kinds : ["nothing"]).map((textContent) => Object.assign(document.createElement("li"), { textContent })));
    part("index-now").hidden = Boolean(refusal) || running;
    part("index-running").hidden = !running;
    part("index-refusal").hidden = !refusal;
    part("index-refusal").textContent = sentence(refusal);
    part("add-form").hidden = !choice || running;
  }
}

function suggest(list, choice, field) {
  list.replaceChildren(...(choice?.folders ?? []).map((folder) => {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: folder });
    button.onclick = () => { field.value = folder; field.focus(); };
    return button;
  }));
}

function unread({ skipped }) {
  const many = Object.entries(skipped).reduce((sum, [kind, files]) => sum + (kind === "no-photo" ? 0 : files), 0);
  return many ? ` ${count(many)} ${many === 1 ? "file" : "files"} could not be read.` : "";
}

const count = (number) => number.toLocaleString("en");
const sentence = (words) => words && words[0].toUpperCase() + words.slice(1);

function span(seconds) {
  const [size, unit] = [[86400, "day"], [3600, "hour"], [60, "minute"], [1, "second"]].find(([size]) => seconds >= size) ?? [1, "second"];
  const many = Math.max(1, Math.round(seconds / size));
  return `${many} ${unit}${many === 1 ? "" : "s"}`;
}

function ago(time) {
  const seconds = (Date.now() - new Date(time)) / 1000;
  return seconds < 60 ? "a moment ago" : `${span(seconds)} ago`;
}

// One photo, large: what earned its match, what the model says of it, and the way to more like it.

import answers from "./api.js";
import { drawOverlay, strongest } from "./overlay.js";

const part = (id) => document.getElementById(id);

export class Details {
  // explain(photo) -> a promise of {score, regions}, or null; like(photo) is called for more like it
  constructor({ explain, like, closed }) {
    Object.assign(this, { explain, photos: [], place: 0, sentence: "", captions: false, asked: new AbortController() });
    this.dialog = part("details");
    part("close").onclick = () => this.dialog.close();
    part("previous").onclick = () => this.step(-1);
    part("next").onclick = () => this.step(1);
    part("like").onclick = () => { this.dialog.close(); like(this.photos[this.place]); };
    part("show-why").onchange = () => this.drawOverlay();
    this.dialog.addEventListener("close", () => { this.asked.abort(); closed(this.place); });
    this.dialog.addEventListener("click", (event) => event.target === this.dialog && this.dialog.close());
    this.dialog.addEventListener("keydown", (event) => {
      if (event.key === "ArrowLeft") this.step(-1);
      if (event.key === "ArrowRight") this.step(1);
    });
  }

  open(photos, place, sentence) {
    Object.assign(this, { photos, place, sentence });
    this.show();
    this.dialog.showModal();
    part("close").focus();
  }

  step(by) {
    const to = this.place + by;
    if (to < 0 || to >= this.photos.length) return;
    this.place = to;
    this.show();
  }

  show() {
    const photo = this.photos[this.place];
    this.asked.abort();
    this.asked = new AbortController();
    this.regions = null;
    part("details-name").textContent = photo.id;
    part("facts").textContent = [photo.taken.slice(0, 16), `${photo.width} × ${photo.height}`].join(" · ");
    part("figure").style.setProperty("--ratio", photo.width / photo.height);
    this.showPicture(photo);
    part("full").href = photo.photo;
    part("previous").disabled = this.place === 0;
    part("next").disabled = this.place === this.photos.length - 1;
    this.drawOverlay();
    this.showWhy(photo);
    this.showCaption(photo);
  }

  showPicture(photo) {
    const large = part("large");
    large.alt = photo.id;
    large.src = photo.thumbnail; // there at once; the sharp one takes its place
    const sharp = new Image();
    sharp.onload = () => { if (this.photos[this.place] === photo) large.src = sharp.src; };
    sharp.src = photo.photo;
  }

  async showWhy(photo) {
    part("why").hidden = true;
    const explained = await Promise.resolve(this.explain(photo)).catch(() => null);
    if (!explained || this.photos[this.place] !== photo) return;
    this.regions = explained.regions;
    part("why-sentence").textContent = this.sentence;
    const best = strongest(explained.regions);
    part("why-words").textContent = `Similarity ${explained.score.toFixed(2)}. ${
      best.length ? `Of what speaks for it in its ${explained.regions.length} regions, the strongest places:` : "No region speaks for it."}`;
    part("regions").replaceChildren(...best.map((region, number) => this.line(region, number, best[0].share)));
    part("why").hidden = false;
    this.drawOverlay();
  }

  line(region, number, most) {
    const button = Object.assign(document.createElement("button"), { type: "button" });
    const share = Object.assign(document.createElement("b"), { textContent: `${Math.round(100 * region.share)} %` });
    const bar = Object.assign(document.createElement("span"), { className: "bar" });
    const filled = document.createElement("i");
    filled.style.width = `${(100 * region.share) / most}%`;
    bar.append(filled);
    const where = Object.assign(document.createElement("small"), { textContent: region.label ?? whereOf(region.box) });
    button.append(share, bar, where);
    const only = (place) => this.dialog.querySelectorAll(".overlay g").forEach((group, other) => {
      group.classList.toggle("faint", place !== null && other !== place);
    });
    for (const kind of ["pointerenter", "focus"]) button.addEventListener(kind, () => only(number));
    for (const kind of ["pointerleave", "blur"]) button.addEventListener(kind, () => only(null));
    const line = document.createElement("li");
    line.append(button);
    return line;
  }

  drawOverlay() {
    part("figure").querySelector(".overlay")?.remove();
    const photo = this.photos[this.place];
    if (!this.regions || !part("show-why").checked) return;
    part("figure").append(drawOverlay(this.regions, photo.width, photo.height, `what earned the match with ${this.sentence}`));
  }

  async showCaption(photo) {
    part("caption").hidden = !this.captions;
    if (!this.captions) return;
    const words = part("caption-words");
    words.textContent = "Looking for words…";
    words.classList.add("waiting");
    try {
      const { caption } = await answers.caption(photo.id, this.asked.signal);
      if (this.photos[this.place] !== photo) return;
      words.textContent = caption;
      words.classList.remove("waiting");
    } catch (error) {
      if (error.name !== "AbortError") words.textContent = error.message;
    }
  }
}

// Where a box lies, for those who cannot see it.
function whereOf([left, top, right, bottom]) {
  const third = (value, names) => names[Math.min(2, Math.floor(1.5 * value))];
  const row = third(top + bottom, ["top", "middle", "bottom"]), column = third(left + right, ["left", "centre", "right"]);
  return row === "middle" && column === "centre" ? "in the centre" : `${row} ${column}`;
}

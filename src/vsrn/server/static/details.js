// One photo, large, and what can be done with it. Nothing is asked of the model before a person does.

import answers from "./api.js";
import { Stage } from "./stage.js";
import { folderOf, nameOf } from "./tile.js";
import { Why } from "./why.js";

const part = (id) => document.getElementById(id);

export class Details {
  // like(photo) is called for more like it; closed(place) with the place of the photo that was shown last
  constructor({ like, closed }) {
    Object.assign(this, { photos: [], place: 0, sentence: "", about: null, captions: new Map(), asked: new AbortController() });
    this.dialog = part("details");
    this.stage = new Stage((by) => this.step(by));
    this.why = new Why();
    part("close").onclick = () => this.dialog.close();
    part("previous").onclick = () => this.step(-1);
    part("next").onclick = () => this.step(1);
    part("like").onclick = () => { this.dialog.close(); like(this.photo); };
    part("describe").onclick = () => this.describe();
    part("download").onclick = () => this.download();
    part("copy").onclick = () => this.copy();
    this.dialog.addEventListener("cancel", (event) => {
      if (!this.stage.isWhole) return;
      event.preventDefault(); // Escape leaves the full screen first
      this.stage.fill(false);
    });
    this.dialog.addEventListener("close", () => { this.asked.abort(); this.stage.fill(false); closed(this.place); });
    this.dialog.addEventListener("click", (event) => event.target === this.dialog && this.dialog.close());
    document.addEventListener("keydown", (event) => this.key(event));
  }

  get photo() {
    return this.photos[this.place];
  }

  open(photos, place, sentence) {
    Object.assign(this, { photos, place, sentence });
    this.why.on = false;
    this.dialog.showModal();
    this.show();
    part("close").focus();
  }

  step(by) {
    const to = this.place + by;
    if (to < 0 || to >= this.photos.length) return;
    this.place = to;
    this.show();
  }

  key(event) {
    if (!this.dialog.open || event.altKey || event.ctrlKey || event.metaKey) return;
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!this.stage.key(event)) {
      if (!by) return;
      this.step(by);
    }
    event.preventDefault();
  }

  show() {
    const { photo } = this;
    this.asked.abort();
    this.asked = new AbortController();
    part("details-name").textContent = nameOf(photo);
    part("facts").textContent = [
      folderOf(photo), photo.taken.slice(0, 16), `${photo.width} × ${photo.height}`,
      `${this.place + 1} of ${this.photos.length}`,
      /\.(mov|mp4|m4v|webm|mkv|avi|3gp)$/i.test(photo.id) && "first frame of a video",
    ].filter(Boolean).join(" · ");
    part("previous").disabled = this.place === 0;
    part("next").disabled = this.place === this.photos.length - 1;
    if (document.activeElement === document.body || document.activeElement.disabled) part("close").focus();
    this.stage.show(photo);
    this.why.show(photo, this.sentence, Boolean(this.about?.explains));
    this.showCaption(this.captions.get(photo.thumbnail) ?? "");
    part("copy").textContent = this.about?.paths ? "Copy path" : "Copy name";
    part("done").textContent = "";
  }

  // A sentence for the photo

  showCaption(caption, { waiting = "", failed = "" } = {}) {
    part("caption").hidden = !this.about?.captions;
    part("caption-words").textContent = caption || waiting;
    part("caption-words").classList.toggle("waiting", Boolean(waiting));
    part("caption-failed").textContent = failed;
    part("caption-failed").hidden = !failed;
    part("describe").textContent = failed ? "Try again" : "Describe this photo";
    part("describe").hidden = Boolean(caption || waiting);
    if (caption) part("large").alt = caption;
  }

  async describe() {
    const { photo, asked: { signal } } = this;
    this.showCaption("", { waiting: "Looking for words…" });
    part("caption-words").focus();
    try {
      const { caption } = await answers.caption(photo.id, signal);
      this.captions.set(photo.thumbnail, caption);
      if (this.photo === photo) this.showCaption(caption);
    } catch (error) {
      if (error.name === "AbortError" || this.photo !== photo) return;
      this.showCaption("", { failed: `No sentence was found. ${error.message}` });
      part("describe").focus();
    }
  }

  // The file, and where it is

  async download() {
    const { photo } = this;
    try {
      await answers.check(photo.original); // what a link cannot say: a browser would save the refusal
      Object.assign(document.createElement("a"), { href: photo.original, download: "" }).click();
      this.say(photo, "The original is being downloaded.");
    } catch (error) {
      this.say(photo, `The original cannot be downloaded. ${error.message}`);
    }
  }

  async copy() {
    const { photo } = this;
    try {
      const path = this.about?.paths ? (await answers.path(photo.id)).path : photo.id;
      this.say(photo, (await written(path)) ? `Copied: ${path}` : `Copy it from here: ${path}`);
    } catch (error) {
      this.say(photo, `The path is not known. ${error.message}`);
    }
  }

  say(photo, words) {
    if (this.photo === photo) part("done").textContent = words;
  }
}

// Whether the clipboard took a text: browsers give it to pages of this machine, and to others over TLS alone.
function written(words) {
  return navigator.clipboard?.writeText(words).then(() => true, () => false) ?? false;
}

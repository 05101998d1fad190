// Why a photo fits, once somebody asks: the places that fit the sentence, and those of each of its words.

import answers from "./api.js";
import { drawBox, drawOverlay } from "./overlay.js";
import { fitOf } from "./tile.js";

const part = (id) => document.getElementById(id);
const KEPT = 100; // explanations
const PLACES = 3; // in the list of numbers

export class Why {
  constructor() {
    Object.assign(this, { on: false, photo: null, sentence: "", explained: null, kept: new Map() });
    part("show-why").onclick = () => this.turn(!this.on);
  }

  // offered: whether the index can explain
  show(photo, sentence, offered) {
    Object.assign(this, { photo, sentence, explained: null });
    part("why").hidden = !sentence;
    part("show-why").hidden = !offered;
    part("numbers").hidden = photo.score === undefined;
    const chance = photo.fit == null ? "" : `${Math.round(100 * photo.fit)} %`;
    part("fit").textContent = chance ? `${capital(fitOf(photo))} fits “${sentence}”.` : `Found by “${sentence}”.`;
    this.showNumbers(chance);
    this.turn(this.on && offered && Boolean(sentence));
  }

  turn(on) {
    this.on = on;
    part("show-why").setAttribute("aria-pressed", on);
    part("named").hidden = !on;
    part("why-failed").hidden = true;
    part("words").replaceChildren();
    part("named-said").textContent = "";
    part("regions").replaceChildren();
    this.clear();
    if (on) this.ask();
  }

  async ask() {
    const { photo, sentence } = this, still = () => this.on && this.photo === photo && this.sentence === sentence;
    part("named-said").textContent = "Looking…";
    try {
      const explained = await this.explanation(photo, sentence);
      if (!still()) return;
      this.explained = explained;
      this.showWords();
      this.showRegions();
      this.light(null);
    } catch (error) {
      if (!still()) return;
      this.turn(false);
      part("why-failed").textContent = `Why it fits cannot be said. ${error.message}`;
      part("why-failed").hidden = false;
    }
  }

  explanation(photo, sentence) {
    const key = JSON.stringify([photo.thumbnail, sentence]);
    if (!this.kept.has(key)) {
      const asked = answers.explain(photo.id, sentence);
      asked.catch(() => this.kept.delete(key));
      this.kept.set(key, asked);
      if (this.kept.size > KEPT) this.kept.delete(this.kept.keys().next().value);
    }
    return this.kept.get(key);
  }

  // The sentence, its words that have a place as buttons.
  showWords() {
    const known = new Map(this.explained.words.map((word) => [word.word, word]));
    const pieces = this.sentence.split(/([\p{L}\p{N}][\p{L}\p{N}'’-]*)/u).map((piece) => {
      const word = known.get(piece.toLowerCase());
      return word ? this.word(word, piece) : piece;
    });
    part("words").replaceChildren(...pieces);
  }

  word(word, piece) {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: piece });
    button.setAttribute("aria-pressed", false);
    const back = () => this.light(this.pinned());
    button.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && this.light(word));
    button.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && back());
    button.addEventListener("focus", () => button.matches(":focus-visible") && this.light(word));
    button.addEventListener("blur", back);
    button.onclick = () => {
      const pressed = button.getAttribute("aria-pressed") !== "true";
      for (const other of part("words").children) other.setAttribute("aria-pressed", pressed && other === button);
      this.light(pressed ? word : null);
    };
    button.word = word;
    return button;
  }

  pinned() {
    return part("words").querySelector("[aria-pressed=true]")?.word ?? null;
  }

  // Light what fits a word, or the sentence; nothing where nothing stands out.
  light(word) {
    this.clear();
    const { regions } = this.explained ?? {};
    if (!regions) return;
    const named = word ? `“${word.word}”` : "the sentence";
    for (const button of part("words").children) button.classList.toggle("lit", button.word === word);
    if (!(word ?? this.explained).stands_out) {
      part("named-said").textContent = `Nothing in this photo stands out for ${named}.`;
      return;
    }
    const shares = word ? word.shares : regions.map(({ share }) => share), best = regions[shares.indexOf(Math.max(...shares))];
    const hint = !word && this.explained.words.length > 1 ? " Choose a word to see it alone." : "";
    part("named-said").textContent = `What fits ${named} is bright: ${best.label ?? whereOf(best.box)}.${hint}`;
    part("figure").append(drawOverlay(regions, shares, this.photo.width, this.photo.height, `What fits ${named}`));
  }

  clear() {
    part("figure").querySelector(".overlay")?.remove();
  }

  showNumbers(chance) {
    const { score } = this.photo;
    const lines = [["Similarity, a cosine", score === undefined ? "" : number(score)], ["Chance that it fits", chance]].filter(([, value]) => value);
    part("numbers-list").replaceChildren(...lines.flatMap(([name, value]) => [text("dt", name), text("dd", value)]));
  }

  showRegions() {
    const best = this.explained.regions.filter(({ share }) => share > 0).sort((a, b) => b.share - a.share).slice(0, PLACES);
    part("regions").replaceChildren(...(this.explained.stands_out ? best : []).map((region) => {
      const button = Object.assign(text("button", `${Math.round(100 * region.share)} %`), { type: "button" });
      button.append(text("small", region.label ?? whereOf(region.box)));
      const frame = () => part("figure").querySelector(".overlay")?.append(drawBox(region.box, this.photo.width, this.photo.height));
      const unframe = () => part("figure").querySelectorAll(".overlay g").forEach((group) => group.remove());
      for (const kind of ["pointerenter", "focus"]) button.addEventListener(kind, () => { unframe(); frame(); });
      for (const kind of ["pointerleave", "blur"]) button.addEventListener(kind, unframe);
      const line = document.createElement("li");
      line.append(button);
      return line;
    }));
  }
}

// With two digits, and no minus before a zero.
function number(value) {
  return (Math.round(100 * value) / 100 || 0).toFixed(2);
}

const capital = (word) => word[0].toUpperCase() + word.slice(1);

function text(name, words) {
  return Object.assign(document.createElement(name), { textContent: words });
}

// Where a box lies, for those who cannot see it.
function whereOf([left, top, right, bottom]) {
  const third = (value, names) => names[Math.min(2, Math.floor(1.5 * value))];
  const row = third(top + bottom, ["top", "middle", "bottom"]), column = third(left + right, ["left", "centre", "right"]);
  return row === "middle" && column === "centre" ? "in the centre" : `${row} ${column}`;
}

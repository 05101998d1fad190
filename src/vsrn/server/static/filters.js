// Which photos are looked at: a panel with folder, dates and file name, and a chip for each that is set.

import answers from "./api.js";
import { FILTERS } from "./address.js";
import { text, written } from "./tile.js";

const part = (id) => document.getElementById(id);
const field = (name) => part(`filter-${name}`);
const WAIT = 250; // milliseconds after the last key

export class Filters {
  // changed(filters) is called with { folder, from, to, name }, without those that are not set
  constructor(changed) {
    Object.assign(this, { changed, filters: {}, typing: 0, folders: null });
    part("filter").onclick = () => this.open(part("filters").hidden);
    part("filters").addEventListener("submit", (event) => { event.preventDefault(); this.read(); this.open(false); });
    part("filters").addEventListener("keydown", (event) => { if (event.key === "Escape") this.open(false); });
    for (const name of FILTERS) field(name).addEventListener("change", () => this.read());
    field("name").addEventListener("input", () => { clearTimeout(this.typing); this.typing = setTimeout(() => this.read(), WAIT); });
    part("filter-clear").onclick = () => changed({});
  }

  // Bring panel and chips in step with what is asked.
  show(filters) {
    this.filters = filters;
    const names = FILTERS.filter((name) => filters[name]);
    for (const name of FILTERS) if (document.activeElement !== field(name) || name !== "name") this.fill(name, filters[name] ?? "");
    part("filter").classList.toggle("on", names.length > 0);
    part("chips").replaceChildren(...names.map((name) => this.chip(name, filters[name])));
  }

  async open(open) {
    part("filters").hidden = !open;
    part("filter").setAttribute("aria-expanded", String(open));
    if (!open) { part("filter").focus(); return; }
    field("folder").focus();
    this.folders ??= answers.folders().catch(() => null);
    const found = await this.folders;
    if (!found) { this.folders = null; return; }
    const options = found.folders.map(({ folder, num_photos }) => new Option(`${folder} (${num_photos.toLocaleString("en")})`, folder));
    field("folder").replaceChildren(new Option("All folders", ""), ...options);
    this.fill("folder", this.filters.folder ?? "");
  }

  fill(name, value) {
    if (name === "folder" && value && ![...field(name).options].some((option) => option.value === value)) field(name).add(new Option(value, value));
    field(name).value = value;
  }

  read() {
    clearTimeout(this.typing);
    const filters = Object.fromEntries(FILTERS.map((name) => [name, field(name).value.trim()]).filter(([, value]) => value));
    if (JSON.stringify(filters) !== JSON.stringify(this.filters)) this.changed(filters);
  }

  chip(name, value) {
    const day = () => written(value, { dateStyle: "medium" });
    const words = { folder: () => `in ${value}`, from: () => `from ${day()}`, to: () => `until ${day()}`, name: () => `named “${value}”` }[name]();
    const chip = text("button", words, "chip");
    chip.type = "button";
    chip.setAttribute("aria-label", `Remove the filter: ${words}`);
    chip.onclick = () => { part("filter").focus(); this.changed({ ...this.filters, [name]: undefined }); };
    return chip;
  }
}

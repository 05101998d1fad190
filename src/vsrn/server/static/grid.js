// A justified grid: rows of equal width, photos in order, thousands of them.

import { keyOf, monthOf, nameTile, newTile, text } from "./tile.js";

const NARROWEST = 0.45, WIDEST = 3.2; // width to height; beyond, photos are cut
const GHOSTS = [1.5, 0.8, 1.3, 1.5, 1, 1.4, 0.7, 1.5, 1.2, 1.5, 0.9, 1.4]; // shapes of photos that have not come yet

export class Grid {
  // list: a <ul>; open(place) when a photo is chosen
  constructor(list, open) {
    Object.assign(this, { list, open, photos: [], tiles: [], months: false, ranked: false, lastRow: 0 });
    new ResizeObserver(() => this.arrange()).observe(list);
    list.addEventListener("keydown", (event) => this.walk(event));
  }

  // months: whether each month has a heading; ranked: whether the best come first
  show(photos, { empty = "", months = false, ranked = false } = {}) {
    const kept = new Map(this.tiles.map((tile) => [tile.dataset.key, tile.parentElement]));
    for (const [key, item] of kept) if (item.querySelector("[aria-expanded=true]")) kept.delete(key);
    Object.assign(this, { photos: [], tiles: [], months, ranked, lastRow: 0 });
    this.list.replaceChildren();
    this.add(photos, kept);
    if (!photos.length && empty) this.list.append(text("li", empty, "nothing"));
  }

  // More photos behind those that are there.
  add(photos, kept = new Map()) {
    const added = document.createDocumentFragment();
    for (const photo of photos) {
      const item = kept.get(keyOf(photo)) ?? this.newItem(photo);
      const last = this.photos.at(-1);
      if (this.months && (!last || monthOf(last) !== monthOf(photo))) added.append(this.heading(photo));
      this.insert(this.tiles.length, photo, item);
      added.append(item);
    }
    this.list.append(added);
    this.arrange(this.lastRow);
  }

  // Grey shapes in the place of photos that are on their way.
  showGhosts() {
    Object.assign(this, { photos: [], tiles: [], lastRow: 0 });
    this.list.replaceChildren(...GHOSTS.map((ratio) => {
      const ghost = text("li", "", "ghost");
      ghost.style.aspectRatio = ratio;
      ghost.ariaHidden = "true";
      return ghost;
    }));
  }

  focus(place) {
    this.tiles[Math.max(0, Math.min(place, this.tiles.length - 1))]?.focus();
  }

  insert(place, photo, item) {
    const tile = item.firstChild;
    this.photos.splice(place, 0, photo);
    this.tiles.splice(place, 0, tile);
    tile.tabIndex = place ? -1 : 0;
    nameTile(tile, photo, place, this.ranked);
  }

  newItem(photo) {
    const item = newTile(photo, (chosen) => this.toggleAlike(chosen));
    item.firstChild.addEventListener("click", () => this.open(this.tiles.indexOf(item.firstChild)));
    return item;
  }

  // Those that look the same come out behind their first, or go back.
  toggleAlike(item) {
    const badge = item.querySelector(".alike"), place = this.tiles.indexOf(item.firstChild), { alike } = this.photos[place];
    const out = badge.getAttribute("aria-expanded") === "true";
    badge.setAttribute("aria-expanded", String(!out));
    if (out) {
      for (const tile of this.tiles.splice(place + 1, alike.length)) tile.parentElement.remove();
      this.photos.splice(place + 1, alike.length);
    } else {
      const items = alike.map((photo) => this.newItem(photo));
      items.forEach((one, number) => this.insert(place + 1 + number, alike[number], one));
      item.after(...items);
    }
    this.arrange();
  }

  heading(photo) {
    const month = text("li", "", "month");
    month.append(text("h2", monthOf(photo), ""));
    return month;
  }

  // Give every photo from one that begins a row on its size.
  arrange(first = 0) {
    const width = this.list.clientWidth, gap = parseFloat(getComputedStyle(this.list).columnGap) || 0;
    if (!width) return;
    const height = width < 600 ? width / 2.6 : Math.min(230, 120 + width / 12);
    let row = [], sum = 0;
    const end = (full) => {
      if (row.length) this.fill(row, full ? width - gap * (row.length - 1) : null, full ? (width - gap * (row.length - 1)) / sum : height);
      row = [];
      sum = 0;
    };
    for (let place = first; place < this.photos.length; place++) {
      const photo = this.photos[place];
      if (this.months && place && monthOf(this.photos[place - 1]) !== monthOf(photo)) end(false);
      if (!row.length) this.lastRow = place;
      const ratio = Math.max(NARROWEST, Math.min(WIDEST, photo.width / photo.height));
      row.push({ place, ratio });
      sum += ratio;
      if (sum * height + gap * (row.length - 1) >= width) end(true);
    }
    end(false);
  }

  fill(row, width, height) {
    let left = 0;
    row.forEach(({ place, ratio }, number) => {
      // Whole pixels that together are exactly as wide as the row.
      const right = width !== null && number === row.length - 1 ? width : Math.floor(left + ratio * height);
      Object.assign(this.tiles[place].parentElement.style, { width: `${right - left}px`, height: `${Math.round(height)}px` });
      left = right;
    });
  }

  walk(event) {
    const here = this.tiles.indexOf(document.activeElement);
    if (here < 0 || event.altKey || event.ctrlKey || event.metaKey) return;
    const to = { ArrowLeft: () => here - 1, ArrowRight: () => here + 1, Home: () => 0, End: () => this.tiles.length - 1,
      ArrowUp: () => this.acrossFrom(here, -1), ArrowDown: () => this.acrossFrom(here, 1) }[event.key]?.();
    if (to === undefined) return;
    event.preventDefault();
    if (to < 0 && event.key === "ArrowUp") document.getElementById("sentence").focus();
    else this.focus(to);
  }

  // The photo of the next row, down or up, whose middle is nearest; -1 above the first row.
  acrossFrom(here, direction) {
    const boxes = this.tiles.map((tile) => tile.parentElement.getBoundingClientRect()), from = boxes[here];
    const middle = (box) => box.left + box.width / 2;
    const tops = boxes.map((box) => box.top).filter((top) => (top - from.top) * direction > 2);
    if (!tops.length) return direction < 0 ? -1 : here;
    const row = tops.reduce((best, top) => (Math.abs(top - from.top) < Math.abs(best - from.top) ? top : best));
    const inRow = boxes.map((box, place) => [Math.abs(middle(box) - middle(from)), place]).filter(([, place]) => Math.abs(boxes[place].top - row) < 2);
    return inRow.sort((a, b) => a[0] - b[0])[0][1];
  }
}

// A justified grid: rows of equal width, photos in order, none cut.

const NARROWEST = 0.45, WIDEST = 3.2; // width to height; beyond, photos are cut

export class Grid {
  // list: a <ul>; open(place) when a photo is chosen
  constructor(list, open) {
    Object.assign(this, { list, open, photos: [], tiles: [] });
    new ResizeObserver(() => this.arrange()).observe(list);
    list.addEventListener("keydown", (event) => this.walk(event));
  }

  show(photos, emptyWords) {
    const kept = new Map(this.tiles.map((tile) => [tile.dataset.key, tile]));
    this.photos = photos;
    this.tiles = photos.map((photo, place) => this.tile(photo, place, kept.get(photo.thumbnail)));
    this.list.replaceChildren(...this.tiles.map((tile) => tile.parentElement));
    if (!photos.length) this.list.append(text("li", emptyWords, "nothing"));
    this.arrange();
  }

  focus(place) {
    this.tiles[Math.max(0, Math.min(place, this.tiles.length - 1))]?.focus();
  }

  tile(photo, place, kept) {
    const tile = kept ?? this.newTile(photo);
    tile.tabIndex = place ? -1 : 0;
    const rated = photo.fit != null; // of models that were measured; others have the similarity alone
    const score = rated ? `${Math.round(100 * photo.fit)} %` : photo.score === undefined ? "" : photo.score.toFixed(2);
    tile.querySelector(".score").textContent = score;
    tile.querySelector(".score").hidden = !score;
    tile.setAttribute("aria-label", score ? `${photo.id}, ${rated ? "chance that it fits" : "similarity"} ${score}` : photo.id);
    return tile;
  }

  newTile(photo) {
    const tile = Object.assign(document.createElement("button"), { type: "button", className: "tile" });
    tile.dataset.key = photo.thumbnail;
    const picture = Object.assign(document.createElement("img"), { src: photo.thumbnail, alt: "", decoding: "async" });
    tile.append(picture, text("span", "", "score"));
    document.createElement("li").append(tile);
    tile.addEventListener("click", () => this.open(this.tiles.indexOf(tile)));
    return tile;
  }

  arrange() {
    const width = this.list.clientWidth, gap = parseFloat(getComputedStyle(this.list).columnGap) || 0;
    if (!width) return;
    const height = width < 600 ? width / 2.6 : Math.min(230, 120 + width / 12);
    let row = [], sum = 0;
    for (const [place, photo] of this.photos.entries()) {
      const ratio = Math.max(NARROWEST, Math.min(WIDEST, photo.width / photo.height));
      row.push({ place, ratio });
      sum += ratio;
      if (sum * height + gap * (row.length - 1) >= width) {
        this.fill(row, width - gap * (row.length - 1), (width - gap * (row.length - 1)) / sum);
        row = [];
        sum = 0;
      }
    }
    if (row.length) this.fill(row, null, height);
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
    const from = this.tiles[here].getBoundingClientRect(), middle = (box) => box.left + box.width / 2;
    const boxes = this.tiles.map((tile) => tile.getBoundingClientRect());
    const tops = boxes.map((box) => box.top).filter((top) => (top - from.top) * direction > 2);
    if (!tops.length) return direction < 0 ? -1 : here;
    const row = tops.reduce((best, top) => (Math.abs(top - from.top) < Math.abs(best - from.top) ? top : best));
    const inRow = boxes.map((box, place) => [Math.abs(middle(box) - middle(from)), place]).filter(([, place]) => Math.abs(boxes[place].top - row) < 2);
    return inRow.sort((a, b) => a[0] - b[0])[0][1];
  }
}

function text(name, words, className) {
  return Object.assign(document.createElement(name), { textContent: words, className });
}

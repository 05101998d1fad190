// One photo in the grid: its picture, its name for those who do not see it, and those that look the same.

const LIKELY = 0.5, POSSIBLE = 0.2; // chance that it fits

// An <li> with a button. alike(li) is called when the others that look the same are to be shown or put away.
export function newTile(photo, alike) {
  const item = document.createElement("li");
  const tile = Object.assign(document.createElement("button"), { type: "button", className: "tile" });
  Object.assign(tile.dataset, { key: keyOf(photo), id: photo.id });
  const picture = Object.assign(document.createElement("img"), { alt: "", decoding: "async", loading: "lazy" });
  picture.addEventListener("error", () => showLost(tile, photo));
  picture.src = photo.thumbnail;
  tile.append(picture, text("span", "", "score"));
  item.append(tile);
  if (photo.alike?.length) {
    const badge = text("button", `${photo.alike.length + 1} alike`, "alike");
    badge.type = "button";
    badge.setAttribute("aria-expanded", "false");
    badge.setAttribute("aria-label", `${photo.alike.length + 1} photos look like ${nameOf(photo)}: show all`);
    badge.addEventListener("click", () => alike(item));
    item.append(badge);
  }
  return item;
}

// Say what is known of it; place counts from 0, of a search that puts the best first.
export function nameTile(tile, photo, place, ranked) {
  const words = [nameOf(photo), dayOf(photo)];
  if (folderOf(photo)) words.push(`in ${folderOf(photo)}`);
  if (ranked) words.push(`number ${place + 1}`);
  if (photo.fit != null) words.push(`fits: ${fitOf(photo)}`);
  tile.setAttribute("aria-label", words.join(", "));
  tile.querySelector(".score").textContent = photo.fit != null ? `fits: ${fitOf(photo)}` : dayOf(photo);
}

// Photos of equal keys have equal tiles.
export const keyOf = ({ thumbnail, alike }) => `${thumbnail} ${alike?.length ?? 0}`;
export const nameOf = ({ id }) => id.slice(id.lastIndexOf("/") + 1);
export const folderOf = ({ id }) => id.slice(0, Math.max(0, id.lastIndexOf("/")));
export const dayOf = ({ taken }) => written(taken, { dateStyle: "medium" });
export const monthOf = ({ taken }) => written(taken, { month: "long", year: "numeric" });
export const fitOf = ({ fit }) => (fit >= LIKELY ? "likely" : fit >= POSSIBLE ? "possibly" : "hardly");

// A day such as 2024-05-17, with or without a time.
export function written(day, how) {
  const date = new Date(`${day.slice(0, 10)}T00:00`);
  return Number.isNaN(date.getTime()) ? day.slice(0, 10) : new Intl.DateTimeFormat("en-GB", how).format(date);
}

function showLost(tile, photo) {
  tile.classList.add("lost");
  tile.querySelector("img").remove();
  tile.prepend(text("span", nameOf(photo), "lost-name"));
}

export function text(name, words, className) {
  return Object.assign(document.createElement(name), { textContent: words, className });
}

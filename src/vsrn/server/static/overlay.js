// What earned a match, drawn over a photo: everything else goes dark, and the strongest regions get a box.

const SVG = "http://www.w3.org/2000/svg";
const SIDE = 56; // cells along each side of the heat map
const DARKEST = 175; // of 255
const BOXES = 3;
const LEAST = 0.25; // of the strongest share: what adds less gets no box
const MOST_COVERED = 0.1; // intersection over union of two boxes that are both drawn

// An SVG for a photo of width x height, from regions with `box` (xyxy, fractions) and `share` (of 1).
export function drawOverlay(regions, width, height, label) {
  const svg = element("svg", { class: "overlay", viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none" });
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", label);
  const whole = { x: 0, y: 0, width, height, preserveAspectRatio: "none" };
  svg.append(element("image", { ...whole, href: darkness(heatOf(regions)) }));
  for (const region of strongest(regions)) {
    const [left, top, right, bottom] = region.box;
    const place = {
      x: left * width, y: top * height, width: (right - left) * width, height: (bottom - top) * height, rx: width / 90,
    };
    const group = element("g", {});
    group.append(element("rect", { ...place, class: "under" }), element("rect", { ...place, class: "box" }));
    svg.append(group);
  }
  return svg;
}

// The regions that get a box: the strongest first, none of them over another that is stronger.
export function strongest(regions) {
  const chosen = [], sorted = regions.filter(({ share }) => share > 0).sort((a, b) => b.share - a.share);
  for (const region of sorted) {
    if (chosen.length < BOXES && region.share >= LEAST * sorted[0].share && chosen.every((other) => covered(region.box, other.box) <= MOST_COVERED)) chosen.push(region);
  }
  return chosen;
}

function covered(one, other) {
  const area = ([left, top, right, bottom]) => Math.max(0, right - left) * Math.max(0, bottom - top);
  const both = area([0, 1].map((edge) => Math.max(one[edge], other[edge])).concat([2, 3].map((edge) => Math.min(one[edge], other[edge]))));
  return both / (area(one) + area(other) - both);
}

// Shares summed where boxes lie over each other.
function heatOf(regions) {
  const heat = new Float32Array(SIDE * SIDE);
  for (const { box, share } of regions) {
    const [left, top, right, bottom] = box.map((edge) => Math.round(edge * SIDE));
    for (let y = top; y < bottom; y++) for (let x = left; x < right; x++) heat[y * SIDE + x] += share;
  }
  return heat;
}

// A picture that hides what is cold: smooth, since it is blurred and then stretched.
function darkness(heat) {
  const canvas = Object.assign(document.createElement("canvas"), { width: SIDE, height: SIDE });
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(SIDE, SIDE);
  const smooth = blurred(blurred(heat)), hottest = Math.max(...smooth) || 1;
  for (let cell = 0; cell < heat.length; cell++) {
    pixels.data.set([13, 12, 20, Math.round(DARKEST * (1 - smooth[cell] / hottest) ** 1.4)], 4 * cell);
  }
  context.putImageData(pixels, 0, 0);
  return canvas.toDataURL();
}

// The mean over a square of 7 cells a side, cut at the edges.
function blurred(heat) {
  const reach = 3;
  return heat.map((_, cell) => {
    const [row, column] = [Math.floor(cell / SIDE), cell % SIDE];
    let sum = 0, count = 0;
    for (let y = Math.max(0, row - reach); y <= Math.min(SIDE - 1, row + reach); y++) {
      for (let x = Math.max(0, column - reach); x <= Math.min(SIDE - 1, column + reach); x++) {
        sum += heat[y * SIDE + x];
        count++;
      }
    }
    return sum / count;
  });
}

function element(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

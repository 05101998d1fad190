// What fits, drawn over a photo: all else goes dark.

const SVG = "http://www.w3.org/2000/svg";
const SIDE = 56; // cells along each side of the heat map
const BLUR = 5; // cells of standard deviation: as wide as that of the library's heat, 10 of 112
const DARKEST = 165; // of 255

// An SVG for a photo of width x height, from regions with `box` (xyxy, fractions) and a share of each (of 1).
export function drawOverlay(regions, shares, width, height, label) {
  const svg = element("svg", { class: "overlay", viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", role: "img", "aria-label": label });
  svg.append(element("image", { width, height, preserveAspectRatio: "none", href: darkness(heatOf(regions, shares)) }));
  return svg;
}

// A frame around one region, for the same SVG.
export function drawBox([left, top, right, bottom], width, height) {
  const place = { x: left * width, y: top * height, width: (right - left) * width, height: (bottom - top) * height };
  const group = element("g", {});
  group.append(element("rect", { ...place, class: "under" }), element("rect", { ...place, class: "box" }));
  return group;
}

// Shares summed where boxes lie over each other.
function heatOf(regions, shares) {
  const heat = new Float32Array(SIDE * SIDE);
  regions.forEach(({ box }, place) => {
    const [left, top, right, bottom] = box.map((edge) => Math.round(edge * SIDE));
    for (let y = top; y < bottom; y++) for (let x = left; x < right; x++) heat[y * SIDE + x] += shares[place];
  });
  return heat;
}

// A picture that hides what is cold: smooth, since it is blurred and then stretched.
function darkness(heat) {
  const canvas = Object.assign(document.createElement("canvas"), { width: SIDE, height: SIDE });
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(SIDE, SIDE);
  const smooth = blurred(blurred(heat, 1, SIDE), SIDE, 1), hottest = Math.max(...smooth) || 1;
  for (let cell = 0; cell < heat.length; cell++) {
    pixels.data.set([13, 12, 20, Math.round(DARKEST * (1 - smooth[cell] / hottest) ** 1.4)], 4 * cell);
  }
  context.putImageData(pixels, 0, 0);
  return canvas.toDataURL();
}

// Blurred along one direction: `step` cells from one to the next in a line, `next` from a line to the next. Outside of
// the photo there is no heat, so it fades towards the edges, as the library's does.
function blurred(heat, step, next) {
  const spread = Array.from({ length: SIDE }, (_, distance) => Math.exp(-(distance ** 2) / (2 * BLUR ** 2)));
  const smooth = new Float32Array(heat.length);
  for (let line = 0; line < SIDE; line++) {
    for (let to = 0; to < SIDE; to++) {
      let sum = 0;
      for (let from = 0; from < SIDE; from++) sum += heat[line * next + from * step] * spread[Math.abs(to - from)];
      smooth[line * next + to * step] = sum;
    }
  }
  return smooth;
}

function element(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

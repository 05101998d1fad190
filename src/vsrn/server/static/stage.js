// One photo as large as there is room for, and larger: zoom, pan, swipe, full screen.

import answers from "./api.js";

const part = (id) => document.getElementById(id);
const STEP = 1.5; // how much a press of + enlarges
const CLOSER = 2.5; // how much a double click does at least
const SWIPE = 50; // pixels that a finger must travel
const TWICE = 320, NEAR = 30; // milliseconds and pixels between two taps that are a double one

export class Stage {
  // swiped(by) is called for the next photo, 1, or the previous one, -1
  constructor(swiped) {
    Object.assign(this, { swiped, photo: null, scale: 1, x: 0, y: 0, fingers: new Map(), moved: 0, tapped: null });
    this.view = part("view");
    this.figure = part("figure");
    const { view } = this;
    view.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    view.addEventListener("pointerdown", (event) => this.press(event));
    view.addEventListener("pointermove", (event) => this.move(event));
    view.addEventListener("pointerup", (event) => this.lift(event));
    view.addEventListener("pointercancel", (event) => { this.fingers.delete(event.pointerId); this.draw(); });
    new ResizeObserver(() => this.draw()).observe(view);
    part("zoom-in").onclick = () => this.zoom(STEP);
    part("zoom-out").onclick = () => this.zoom(1 / STEP);
    part("whole").onclick = () => this.fill(!this.isWhole);
    document.addEventListener("fullscreenchange", () => document.fullscreenElement || this.fill(false));
  }

  // The picture

  show(photo) {
    this.photo = photo;
    Object.assign(this, { scale: 1, x: 0, y: 0, finest: 0, asked: 1 });
    this.fingers.clear();
    this.figure.style.setProperty("--ratio", photo.width / photo.height);
    this.figure.classList.remove("small");
    part("gone").textContent = "";
    part("large").alt = photo.id;
    part("large").src = photo.thumbnail; // there at once; the sharp one takes its place
    this.load(photo.photo, 1);
    this.draw();
  }

  // Put a finer picture in the place of a coarser one: 1 the photo for the screen, 2 the one to look at closely.
  async load(address, fineness) {
    const { photo } = this, still = () => this.photo === photo && this.finest < fineness;
    const sharp = Object.assign(new Image(), { src: address });
    part("stage").classList.add("busy");
    try {
      await sharp.decode();
      if (!still()) return;
      part("large").src = sharp.src;
      this.finest = fineness;
    } catch {
      if (still() && fineness === 1) await this.showGone(photo);
    } finally {
      if (this.photo === photo) part("stage").classList.remove("busy");
    }
  }

  // The thumbnail stays, at its own size, with words on what is missing.
  async showGone(photo) {
    const problem = await answers.check(photo.photo).then(() => null, (error) => error);
    if (this.photo !== photo) return;
    const why = problem?.status === 410 ? "The original is gone, or is another file since it was indexed."
      : `The photo cannot be shown. ${problem?.message ?? "The browser cannot read it."}`;
    part("gone").textContent = `${why} This is the small picture that the index keeps.`;
    this.figure.style.setProperty("--own", `${(part("large").naturalHeight * photo.width) / photo.height}px`);
    this.figure.classList.add("small");
  }

  // Zoom

  get most() {
    return Math.max(4, (2 * this.photo.width) / this.room().width, this.cover);
  }

  // The scale at which the view has no empty side: a panorama's height is then the view's.
  get cover() {
    const { width, height } = this.room();
    return Math.max(this.view.clientWidth / width, this.view.clientHeight / height);
  }

  room() {
    return { width: this.figure.offsetWidth || 1, height: this.figure.offsetHeight || 1 };
  }

  // Enlarge by a factor around a point of the view, measured from its middle.
  zoom(factor, x = 0, y = 0) {
    const scale = Math.min(this.most, Math.max(1, this.scale * factor));
    this.x = x - ((x - this.x) * scale) / this.scale;
    this.y = y - ((y - this.y) * scale) / this.scale;
    this.scale = scale;
    this.draw();
  }

  pan(x, y) {
    this.x += x;
    this.y += y;
    this.draw();
  }

  draw(pulled = 0) {
    if (!this.photo) return;
    const { width, height } = this.room(), { clientWidth, clientHeight } = this.view;
    const within = (value, size, space) => Math.min(1, Math.max(-1, value / Math.max(0.5, (size - space) / 2))) * Math.max(0, (size - space) / 2);
    this.x = within(this.x, width * this.scale, clientWidth);
    this.y = within(this.y, height * this.scale, clientHeight);
    this.figure.style.transform = `translate(${this.x + pulled}px, ${this.y}px) scale(${this.scale})`;
    this.view.classList.toggle("zoomed", this.scale > 1);
    part("zoom-out").disabled = this.scale <= 1;
    part("zoom-in").disabled = this.scale >= this.most;
    const needed = width * this.scale * devicePixelRatio, large = part("large");
    if (this.scale > 1 && this.finest === 1 && this.asked === 1 && Math.min(needed, this.photo.width) > large.naturalWidth) {
      this.asked = 2;
      this.load(`${this.photo.photo}&large=true`, 2);
    }
  }

  // Hands

  wheel(event) {
    event.preventDefault();
    const lines = event.deltaMode === 1 ? 16 : 1;
    this.zoom(Math.exp(-event.deltaY * lines * (event.ctrlKey ? 0.01 : 0.002)), ...this.fromMiddle(event));
  }

  fromMiddle({ clientX, clientY }) {
    const { left, top, width, height } = this.view.getBoundingClientRect();
    return [clientX - left - width / 2, clientY - top - height / 2];
  }

  press(event) {
    if (event.button) return;
    this.view.setPointerCapture(event.pointerId);
    if (!this.fingers.size) this.moved = 0;
    this.fingers.set(event.pointerId, { at: this.fromMiddle(event), from: this.fromMiddle(event) });
  }

  move(event) {
    const finger = this.fingers.get(event.pointerId);
    if (!finger) return;
    const [x, y] = this.fromMiddle(event), [oldX, oldY] = finger.at;
    const other = [...this.fingers.values()].find((one) => one !== finger);
    this.moved += Math.hypot(x - oldX, y - oldY);
    finger.at = [x, y];
    if (other) {
      const apart = (px, py) => Math.hypot(px - other.at[0], py - other.at[1]) || 1;
      this.zoom(apart(x, y) / apart(oldX, oldY), (x + other.at[0]) / 2, (y + other.at[1]) / 2);
      this.pan((x - oldX) / 2, (y - oldY) / 2);
    } else if (this.scale > 1) this.pan(x - oldX, y - oldY);
    else if (event.pointerType !== "mouse") this.draw(x - finger.from[0]);
  }

  lift(event) {
    const finger = this.fingers.get(event.pointerId);
    if (!finger) return;
    this.fingers.delete(event.pointerId);
    this.draw();
    if (this.fingers.size) { this.tapped = null; return; }
    const [x, y] = this.fromMiddle(event), across = x - finger.from[0], down = y - finger.from[1];
    if (this.moved < NEAR / 2) this.tap(event, x, y);
    else if (event.pointerType !== "mouse" && this.scale === 1 && Math.abs(across) > SWIPE && Math.abs(across) > 1.5 * Math.abs(down)) {
      this.swiped(across < 0 ? 1 : -1);
    }
  }

  // The second of two taps or clicks goes closer, or back.
  tap({ timeStamp }, x, y) {
    const { tapped } = this;
    const twice = tapped && timeStamp - tapped.time < TWICE && Math.hypot(x - tapped.x, y - tapped.y) < NEAR;
    this.tapped = twice ? null : { time: timeStamp, x, y };
    if (twice) this.zoom(this.scale > 1 ? 0 : Math.max(CLOSER, this.cover), x, y);
  }

  // Whether a key was one of ours.
  key({ key }) {
    const arrows = { ArrowLeft: [1, 0], ArrowRight: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
    if (key === "+" || key === "=") this.zoom(STEP);
    else if (key === "-") this.zoom(1 / STEP);
    else if (key === "0") this.zoom(0);
    else if (key === "f") this.fill(!this.isWhole);
    else if (key in arrows && this.scale > 1) this.pan(...arrows[key].map((way) => (way * this.view.clientWidth) / 6));
    else return false;
    return true;
  }

  // Full screen

  get isWhole() {
    return part("details").classList.contains("whole");
  }

  // The photo alone; on a phone that gives no page the full screen, at least all of the window.
  fill(whole) {
    if (whole === this.isWhole) return;
    part("details").classList.toggle("whole", whole);
    part("whole").setAttribute("aria-pressed", whole);
    part("whole").focus(); // what had the focus may be hidden now
    if (whole) part("stage").requestFullscreen?.().catch(() => {});
    else if (document.fullscreenElement) document.exitFullscreen();
  }
}

// Tabs: one data set at a time. Without scripts all panels are there, one below the other.
for (const list of document.querySelectorAll("[role=tablist]")) {
  const tabs = [...list.querySelectorAll("[role=tab]")];
  const show = (chosen) => tabs.forEach((tab) => {
    tab.setAttribute("aria-selected", tab === chosen);
    tab.tabIndex = tab === chosen ? 0 : -1;
    document.getElementById(tab.getAttribute("aria-controls")).hidden = tab !== chosen;
  });
  tabs.forEach((tab, i) => {
    tab.onclick = () => show(tab);
    tab.onkeydown = (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      const next = tabs[(i + step + tabs.length) % tabs.length];
      show(next);
      next.focus();
    };
  });
  show(tabs[0]);
}

// The section in view is marked in the navigation.
const links = [...document.querySelectorAll("nav a")];
const seen = new IntersectionObserver((entries) => entries.forEach((entry) => {
  if (entry.isIntersecting) links.forEach((link) => link.classList.toggle("here", link.hash === "#" + entry.target.id));
}), { rootMargin: "-15% 0px -75% 0px" });
document.querySelectorAll("section").forEach((section) => seen.observe(section));

// Pictures lie at the end of the page, in packs that are taken apart when one of theirs is shown.
const PACK = 100; // as in gallery.py
const packs = new Map();
function picture(index) {
  const number = Math.floor(index / PACK);
  if (!packs.has(number)) {
    const element = document.getElementById("pack-" + number);
    if (!element) return null; // not loaded yet
    packs.set(number, element.textContent.split(" "));
  }
  return "data:image/webp;base64," + packs.get(number)[index % PACK];
}

function make(kind, className, parent) {
  const element = document.createElement(kind);
  if (className) element.className = className;
  if (parent) parent.append(element);
  return element;
}

async function pixels(index, width, height) {
  const image = new Image();
  image.src = picture(index);
  await image.decode();
  const canvas = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  canvas.drawImage(image, 0, 0, width, height);
  return canvas.getImageData(0, 0, width, height);
}

// The image in faint grey, red where truth and prediction differ, dark where the truth is void.
const VOID = [58, 60, 66];
const WRONG = [255, 64, 48];
async function drawErrors(canvas, row, cell) {
  const [width, height] = row.size;
  const [image, truth, guess] = await Promise.all([row.image, row.truth, cell.p].map((i) => pixels(i, width, height)));
  for (let i = 0; i < image.data.length; i += 4) {
    const is = (colour) => colour.every((value, k) => truth.data[i + k] === value);
    const grey = 96 + 0.5 * (0.299 * image.data[i] + 0.587 * image.data[i + 1] + 0.114 * image.data[i + 2]);
    const wrong = [0, 1, 2].some((k) => truth.data[i + k] !== guess.data[i + k]);
    for (let k = 0; k < 3; k++) image.data[i + k] = is(VOID) ? VOID[k] : wrong ? 0.25 * grey + 0.75 * WRONG[k] : grey;
  }
  [canvas.width, canvas.height] = [width, height];
  canvas.getContext("2d").putImageData(image, 0, 0);
}

const GAP = 12; // pixels between pictures
const NARROWEST = 160; // of a picture, where there is room
const WIDEST = 420;
const CAPTION = 28; // height below a picture
const FEW = 6; // rows before all are asked for
const ON = 6; // columns that are shown at first
const BEYOND = 600; // pixels above and below the window that are ready
const PRINTED = 60; // rows at most

// A gallery keeps only the rows in view in the page, so thousands of them cost no more than a few.
class Gallery {
  constructor(root) {
    Object.assign(this, JSON.parse(document.getElementById(root.dataset.gallery).textContent));
    this.root = root;
    this.list = root.querySelector(".rows");
    this.form = root.querySelector("form");
    this.more = root.querySelector(".more button");
    this.on = this.columns.map((_, i) => i < ON);
    this.open = false;
    this.drawn = new Map();
    this.gates = this.rows.some((row) => row.gate !== null) || (this.kind === "transfers" && this.score !== "");
    root.querySelector(".gate").hidden = !this.gates;
    this.form.oninput = () => this.refresh();
    this.more.onclick = () => {
      this.open = !this.open;
      this.refresh();
      if (!this.open) root.scrollIntoView({ block: "start" });
    };
    this.keys = [...root.querySelectorAll("[data-column]")];
    this.keys.forEach((key, i) => {
      key.onclick = () => {
        this.on[i] = !this.on[i];
        this.refresh();
      };
    });
    this.refresh();
  }

  option(name) {
    const field = this.form.elements[name];
    return field ? field.value : "";
  }

  value(cell) {
    if (!cell) return null;
    const chosen = this.option("class");
    return chosen === "" || !cell.c ? cell.s : cell.c[chosen];
  }

  // The number that rows are sorted by; null comes last.
  rank(row) {
    const values = row.cells.map((cell, i) => (this.on[i] ? this.value(cell) : null));
    const known = (found) => found.filter((value) => value !== null && value !== undefined);
    const by = this.option("by"), order = this.option("order");
    if (order === "gain" || order === "loss") {
      const gain = (i) => {
        const [value, first] = [i, this.firsts[i]].map((k) => (k === null || k === undefined ? null : this.value(row.cells[k]) ?? null));
        return value === null || first === null ? null : value - first;
      };
      const one = by !== "" && this.firsts[by] !== null; // of a column that gains over none, any that is shown
      const others = known(one ? [gain(+by)] : values.map((value, i) => (value === null ? null : gain(i))));
      return others.length ? (order === "gain" ? Math.max(...others) : Math.min(...others)) : null;
    }
    if (by !== "") return this.value(row.cells[by]) ?? null;
    const all = known(values);
    return all.length ? (order === "high" ? Math.max(...all) : Math.min(...all)) : null;
  }

  gate(row) {
    if (this.kind === "predictions") return row.gate;
    const scores = row.cells.filter((cell, i) => this.on[i] && cell && cell.s !== null).map((cell) => cell.s);
    return scores.length ? Math.min(...scores) : null;
  }

  refresh() {
    this.keys.forEach((key, i) => key.setAttribute("aria-pressed", this.on[i]));
    const domain = this.option("domain"), chosen = this.option("class"), order = this.option("order");
    const limit = +this.option("gate");
    this.form.querySelector("output").value = limit.toFixed(2);
    const kept = this.rows.filter((row) => {
      if (domain !== "" && row.domain !== +domain) return false;
      if (chosen !== "" && !row.has.includes(+chosen)) return false;
      if (!this.gates || limit === 1) return true;
      const gate = this.gate(row);
      return gate !== null && gate <= limit;
    });
    const name = (a, b) => (a.id < b.id ? -1 : a.id > b.id ? 1 : a.domain - b.domain);
    if (order === "name") {
      kept.sort(name);
    } else {
      const sign = order === "high" || order === "gain" ? -1 : 1;
      const ranks = new Map(kept.map((row) => [row, this.rank(row)]));
      kept.sort((a, b) => {
        const [x, y] = [ranks.get(a), ranks.get(b)];
        if (x === null || y === null) return (x === null) - (y === null) || name(a, b);
        return sign * (x - y) || name(a, b);
      });
    }
    this.kept = kept;
    const whole = this.rows.length.toLocaleString("en");
    const count = kept.length === this.rows.length ? whole : `${kept.length.toLocaleString("en")} of ${whole}`;
    this.root.querySelector(".count").textContent = `${count} frames`;
    this.more.hidden = kept.length <= FEW;
    this.more.textContent = this.open ? "Show fewer" : `Show all ${kept.length.toLocaleString("en")}`;
    this.root.classList.toggle("open", this.open);
    this.layout();
  }

  layout() {
    const wide = this.list.clientWidth;
    const cells = 1 + (this.rows.some((row) => row.truth !== null) ? 1 : 0) + this.on.filter(Boolean).length;
    const fits = Math.max(2, Math.floor((wide + GAP) / (NARROWEST + GAP)));
    const across = Math.ceil(cells / Math.ceil(cells / Math.min(cells, fits))); // lines of equal length
    this.cell = Math.min(WIDEST, (wide - GAP * (across - 1)) / across);
    const tall = this.kept.reduce((most, row) => Math.max(most, row.size[1] / row.size[0]), 0);
    this.height = Math.ceil(cells / across) * (this.cell * tall + CAPTION) + 14;
    this.list.style.setProperty("--across", across);
    this.list.style.setProperty("--cell", this.cell + "px");
    this.shown = this.open ? this.kept : this.kept.slice(0, FEW);
    this.list.style.height = this.shown.length * this.height + "px";
    this.drawn.forEach((element) => element.remove());
    this.drawn.clear();
    this.scroll();
  }

  scroll() {
    const top = this.list.getBoundingClientRect().top;
    const first = Math.max(0, Math.floor((-BEYOND - top) / this.height));
    const last = Math.min(this.shown.length, Math.ceil((innerHeight + BEYOND - top) / this.height));
    this.draw(first, last);
  }

  // Rows first to last (without), and no others, are in the document.
  draw(first, last) {
    for (const [i, element] of this.drawn) {
      if (i < first || i >= last) {
        element.remove();
        this.drawn.delete(i);
      }
    }
    for (let i = first; i < last; i++) {
      if (this.drawn.has(i)) continue;
      const element = this.row(this.shown[i]);
      element.style.top = i * this.height + "px";
      const next = [...this.drawn.keys()].filter((k) => k > i).sort((a, b) => a - b)[0]; // the keyboard goes in order
      this.list.insertBefore(element, next === undefined ? null : this.drawn.get(next));
      this.drawn.set(i, element);
    }
  }

  row(row) {
    const strip = make("div", "strip");
    const told = row.gate === null ? row.id : `gate score ${row.gate.toFixed(2)} · ${row.id}`;
    const what = this.kind === "transfers" ? "source" : this.domains.length > 1 ? this.domains[row.domain] : "image";
    this.figure(strip, row, row.image, `image ${row.id}`, what, told, row.source);
    if (row.truth !== null) {
      const name = this.kind === "transfers" ? "layout" : "truth";
      this.figure(strip, row, row.truth, `${name} of ${row.id}`, name, "", null);
    } else if (this.rows.some((other) => other.truth !== null)) make("figure", "", strip);
    row.cells.forEach((cell, i) => this.on[i] && this.result(strip, row, cell, i));
    return strip;
  }

  result(strip, row, cell, i) {
    if (!cell || cell.p === null) {
      const empty = make("figure", "", strip);
      make("div", "empty", empty).style.aspectRatio = row.size.join("/");
      this.caption(empty, this.columns[i], cell ? cell.note : "none", i);
      return;
    }
    const value = this.value(cell), chosen = this.option("class");
    let told = "";
    if (value !== null && value !== undefined) {
      const name = chosen === "" || !cell.c ? this.score : this.classes[chosen];
      told = this.score === "mIoU" ? `${(100 * value).toFixed(1)} % ${name}` : `${name} ${value.toFixed(2)}`;
    }
    told = [told, cell.note].filter(Boolean).join(" · ");
    const transfers = this.kind === "transfers";
    const name = transfers ? `${this.columns[i]} of ${row.id}` : `prediction of ${this.columns[i]} for ${row.id}`;
    if (!transfers && this.option("view") === "errors" && row.truth !== null) {
      const figure = make("figure", "", strip);
      const canvas = make("canvas", "", figure);
      canvas.style.aspectRatio = row.size.join("/");
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", `errors of ${this.columns[i]} for ${row.id}`);
      drawErrors(canvas, row, cell);
      this.caption(figure, this.columns[i], told, i);
    } else if (!transfers && this.option("view") === "uncertainty" && cell.u !== null) {
      this.figure(strip, row, cell.u, `uncertainty of ${this.columns[i]} for ${row.id}`, this.columns[i], told, null, i);
    } else this.figure(strip, row, cell.p, name, this.columns[i], told, transfers ? row.image : null, i);
  }

  // A picture; `under` is laid over it from the left by a slider.
  figure(strip, row, index, alt, name, told, under, series) {
    const figure = make("figure", "", strip);
    const frame = make("div", under === null ? "" : "compare", figure);
    const add = (number, className, text) => {
      const image = make("img", className, frame);
      image.decoding = "async";
      image.alt = text;
      [image.width, image.height] = row.size;
      const source = picture(number);
      if (source) image.src = source;
    };
    add(index, "", alt);
    if (under !== null) {
      add(under, "over", "");
      const range = make("input", "", frame);
      Object.assign(range, { type: "range", min: 0, max: 100, value: 0 });
      range.setAttribute("aria-label", `share of the source image over ${alt}`);
      range.oninput = () => frame.style.setProperty("--cut", range.value + "%");
    }
    this.caption(figure, name, told, series);
  }

  caption(figure, name, told, series) {
    const caption = make("figcaption", "", figure);
    if (series !== undefined && this.kind === "predictions") {
      make("i", "dot", caption).style.background = `var(--s${series % SERIES})`;
    }
    make("span", "name", caption).textContent = name;
    if (told) make("span", "", caption).textContent = " " + told;
    caption.title = `${name} ${told}`.trim();
  }
}

const SERIES = 6; // colours of the style sheet, as in drawing.py
const galleries = [...document.querySelectorAll(".gallery")].map((root) => new Gallery(root));
const main = document.querySelector("main");
let waiting = false, printing = false, wide = main.clientWidth;
function moved() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    if (printing) return;
    const same = main.clientWidth === wide;
    wide = main.clientWidth;
    galleries.forEach((gallery) => (same ? gallery.scroll() : gallery.layout()));
  });
}
addEventListener("scroll", moved, { passive: true });
addEventListener("resize", moved);
new ResizeObserver(moved).observe(main); // what opens or closes above moves the galleries
addEventListener("beforeprint", () => {
  printing = true;
  galleries.forEach((gallery) => gallery.draw(0, Math.min(PRINTED, gallery.shown.length)));
});
addEventListener("afterprint", () => {
  printing = false;
  moved();
});
// The packs are behind this script: what is in view before they are there is drawn again.
addEventListener("DOMContentLoaded", () => galleries.forEach((gallery) => gallery.layout()));

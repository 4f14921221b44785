// The list of rows: only those on the screen are in the document, however many there are.

const ROW_HEIGHT = 64;
const FEWEST_BARS = 3; // one or two checkpoints draw no line worth looking at
const MOST_ROWS = 250000; // taller boxes than these exceed what browsers can lay out
const SVG = "http://www.w3.org/2000/svg";

function sparkline() {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "spark");
  svg.setAttribute("viewBox", "0 0 56 26");
  svg.setAttribute("aria-hidden", "true");
  for (const name of ["up", "down"]) {
    const path = document.createElementNS(SVG, "path");
    path.setAttribute("class", name);
    svg.append(path);
  }
  const line = document.createElementNS(SVG, "line");
  for (const [key, value] of Object.entries({ x1: 0, x2: 56, y1: 13, y2: 13 })) line.setAttribute(key, value);
  svg.append(line);
  return svg;
}

// Bars around a middle line; `reach` is the height of a full bar, and longer ones are cut.
function drawSpark(svg, values, reach) {
  const step = 56 / values.length;
  const parts = ["", ""];
  values.forEach((value, k) => {
    const height = Number.isFinite(value) ? Math.min(1, Math.abs(value) / reach) * 13 : 0;
    const [x, width, up] = [k * step + 0.75, Math.max(1, Math.min(step - 1.5, 12)), value >= 0];
    parts[up ? 0 : 1] += `M${x} 13h${width}v${up ? -height : height}h${-width}z`;
  });
  svg.children[0].setAttribute("d", parts[0]);
  svg.children[1].setAttribute("d", parts[1]);
}

class List {
  constructor(box, rows, choice, { onChoose, onOpen, onTick, isTicked, isRead }) {
    Object.assign(this, { box, rows, choice, onChoose, onOpen, onTick, isTicked, isRead, hits: [], pool: [], at: -1 });
    this.hasBars = rows.traces.length >= FEWEST_BARS;
    box.parentElement.classList.toggle("bars", this.hasBars);
    this.inner = box.firstElementChild;
    this.reach = this.commonReach();
    box.addEventListener("scroll", () => this.draw(), { passive: true });
    box.addEventListener("keydown", (event) => this.onKey(event));
    this.inner.addEventListener("click", (event) => {
      const row = event.target.closest(".row");
      if (!row) return;
      const at = Number(row.dataset.at);
      if (event.shiftKey && this.at >= 0) {
        const [from, to] = [Math.min(this.at, at), Math.max(this.at, at)];
        this.onTick(this.hits.slice(from, to + 1));
      } else if (event.target.closest(".tick")) {
        this.onTick([this.hits[at]]);
      } else {
        this.choose(at);
        this.onOpen();
      }
    });
    new ResizeObserver(() => this.draw()).observe(box);
  }

  // So that bars of different rows compare: all but the longest two per cent fit.
  commonReach() {
    const sizes = [];
    const step = Math.max(1, Math.floor(this.rows.nScored / 4000));
    for (const term of this.rows.traces) {
      for (let k = 0; k < this.rows.nScored; k += step) sizes.push(Math.abs(term[this.rows.byScore[k]]));
    }
    sizes.sort((a, b) => a - b);
    return sizes[Math.floor(0.98 * sizes.length)] || 1;
  }

  set(hits) {
    const chosen = this.at >= 0 ? this.hits[this.at] : -1;
    this.hits = hits;
    this.n = Math.min(hits.length, MOST_ROWS);
    this.inner.style.height = `${this.n * ROW_HEIGHT}px`;
    this.at = chosen >= 0 ? hits.indexOf(chosen) : -1;
    if (this.at >= this.n) this.at = -1;
    this.box.scrollTop = 0;
    this.draw();
  }

  draw() {
    const first = Math.max(0, Math.floor(this.box.scrollTop / ROW_HEIGHT) - 3);
    const last = Math.min(this.n, first + Math.ceil(this.box.clientHeight / ROW_HEIGHT) + 7);
    while (this.pool.length < last - first) this.pool.push(this.newRow());
    this.pool.forEach((row, k) => {
      const visible = first + k < last;
      if (visible !== row.isConnected) visible ? this.inner.append(row) : row.remove();
      if (visible) this.fill(row, first + k);
    });
    const active = this.at >= first && this.at < last;
    if (active) this.box.setAttribute("aria-activedescendant", `at-${this.at}`);
    else this.box.removeAttribute("aria-activedescendant");
  }

  newRow() {
    const row = make("div", "row");
    row.setAttribute("role", "option");
    const said = make("span", "said");
    said.append(make("span", "ask"), make("span", "answer"));
    const chips = make("span");
    chips.append(make("span", "chip"));
    row.append(make("span", "tick"), make("span", "score"), sparkline(), chips, said, make("span", "length"));
    return row;
  }

  fill(element, at) {
    const { rows, choice } = this;
    const row = this.hits[at];
    element.style.top = `${at * ROW_HEIGHT}px`;
    element.id = `at-${at}`;
    element.dataset.at = at;
    element.setAttribute("aria-selected", String(at === this.at));
    element.setAttribute("aria-posinset", at + 1);
    element.setAttribute("aria-setsize", this.n);
    const [tick, score, spark, chips, said, length] = element.children;
    const ticked = this.isTicked(row);
    element.setAttribute("aria-checked", String(ticked));
    tick.classList.toggle("on", ticked);
    element.classList.toggle("seen", this.isRead(row));
    score.textContent = shown(rows.score[row]);
    if (this.hasBars) drawSpark(spark, rows.traces.map((trace) => trace[row]), this.reach);
    const kept = choice.keptHere(row);
    const hand = choice.handHere[row] ? " hand" : "";
    chips.firstChild.className = `chip ${kept ? "kept" : "dropped"}${hand}`;
    chips.firstChild.textContent = `${kept ? "kept" : "set aside"}${hand ? "*" : ""}`;
    chips.firstChild.title = hand ? "decided by a person" : "";
    const turns = rows.turns(row);
    said.children[0].textContent = turns.slice(0, -1).map((t) => t.content).join(" / ").slice(0, 300);
    said.children[1].textContent = turns[turns.length - 1].content.slice(0, 300);
    length.textContent = rows.arrays.response[row] ? COUNT.format(rows.arrays.response[row]) : "";
    element.setAttribute("aria-label", `Row ${row + 1}, score ${shown(rows.score[row])}, ${kept ? "kept" : "set aside"}${hand ? " by hand" : ""}${this.isRead(row) ? ", read" : ""}: ${said.children[1].textContent.slice(0, 80)}`);
  }

  choose(at) {
    if (!this.n) return;
    this.at = Math.max(0, Math.min(this.n - 1, at));
    const top = this.at * ROW_HEIGHT;
    if (top < this.box.scrollTop) this.box.scrollTop = top;
    if (top + ROW_HEIGHT > this.box.scrollTop + this.box.clientHeight) {
      this.box.scrollTop = top + ROW_HEIGHT - this.box.clientHeight;
    }
    this.draw();
    this.onChoose(this.hits[this.at]);
  }

  onKey(event) {
    const page = Math.max(1, Math.floor(this.box.clientHeight / ROW_HEIGHT) - 1);
    const moves = { ArrowDown: this.at + 1, ArrowUp: this.at < 0 ? 0 : this.at - 1, PageDown: this.at + page, PageUp: this.at - page, Home: 0, End: this.n - 1 };
    if (event.key in moves && !event.ctrlKey && !event.metaKey && !event.altKey) {
      event.preventDefault();
      this.choose(moves[event.key]);
    } else if (event.key === " " && this.at >= 0) {
      event.preventDefault();
      this.onTick([this.hits[this.at]]);
    } else if (event.key === "Enter" && this.at >= 0) {
      this.onOpen();
    }
  }
}

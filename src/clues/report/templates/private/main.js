// The page: wires the parts together and draws what depends on the threshold.

const get = (id) => document.getElementById(id);

class Page {
  constructor(rows) {
    this.rows = rows;
    this.choice = new Choice(rows);
    this.only = null; // rows of one group: { by, code }
    this.hits = null;
    this.detail = new Detail(get("detail"), rows, this.choice, (id, decision) => {
      get("list").focus(); // first: a form that has the focus is not drawn anew
      this.decisions.set(id, decision);
    });
    this.list = new List(get("list"), rows, this.choice, (row) => this.detail.show(row));
    this.decisions = new Decisions(rows, this.choice, () => this.refresh(), (row) => this.open(row));
    this.codes = rows.header.groupings.map((_, k) => rows.arrays[`group${k}`]);
    this.wireThreshold();
    this.wireGroups();
    this.wireRows();
    this.decisions.draw();
    this.refresh();
    this.find();
  }

  // --- threshold

  wireThreshold() {
    const { low, high } = this.rows.header;
    const [slider, number] = [get("slider"), get("number")];
    const step = 10 ** Math.floor(Math.log10((high - low) / 200));
    Object.assign(slider, { min: low, max: high, step, value: this.choice.value, disabled: false });
    Object.assign(number, { disabled: false });
    slider.addEventListener("input", () => this.move(slider.valueAsNumber));
    number.addEventListener("change", () => this.move(Number.isFinite(number.valueAsNumber) ? number.valueAsNumber : this.choice.inForce));
    get("back").addEventListener("click", () => {
      this.move(this.choice.inForce);
      slider.focus();
    });
    const plot = get("plot");
    const drag = (event) => {
      const box = plot.getBoundingClientRect();
      const place = (event.clientX - box.left) / box.width;
      const [left, right] = this.span();
      this.move(low + ((place - left) / (right - left)) * (high - low));
    };
    plot.addEventListener("pointerdown", (event) => {
      plot.setPointerCapture(event.pointerId);
      drag(event);
    });
    plot.addEventListener("pointermove", (event) => plot.hasPointerCapture(event.pointerId) && drag(event));
    new ResizeObserver(() => this.drawThreshold()).observe(plot);
  }

  // Where the data area of the visible figure begins and ends, as shares of its width.
  span() {
    const charts = [...document.querySelectorAll(".chart")];
    const chart = charts.find((c) => c.clientWidth > 0) ?? charts[0];
    return [Number(chart.dataset.left), Number(chart.dataset.right)];
  }

  move(value) {
    // Moved within a tick of the one in force means that one, digit for digit.
    const { low, high } = this.rows.header;
    const near = Math.abs(value - this.choice.inForce) < (high - low) / 500;
    this.choice.value = near ? this.choice.inForce : Math.round(value * 1e4) / 1e4;
    if (!this.pending) {
      this.pending = requestAnimationFrame(() => {
        this.pending = 0;
        this.refresh();
        this.later();
      });
    }
  }

  // The list follows when the slider rests: re-sorting 100,000 rows at every pixel helps nobody.
  later() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.find(), 120);
  }

  refresh() {
    this.drawThreshold();
    this.drawFigures();
    this.drawGroups();
    this.list.draw();
    if (this.detail.row >= 0 && !get("detail").contains(document.activeElement)) this.detail.show(this.detail.row);
  }

  drawThreshold() {
    const { low, high } = this.rows.header;
    const value = this.choice.value;
    const [left, right] = this.span();
    const share = Math.max(0, Math.min(1, (value - low) / (high - low)));
    for (const chart of document.querySelectorAll(".chart")) {
      const gradient = chart.querySelector(".split");
      gradient.setAttribute("x1", 0);
      gradient.setAttribute("x2", chart.querySelector("svg").viewBox.baseVal.width);
      const [from, to] = [Number(chart.dataset.left), Number(chart.dataset.right)];
      for (const stop of gradient.children) stop.setAttribute("offset", from + share * (to - from));
    }
    const slider = get("slider").parentElement.style;
    slider.setProperty("--left", `${100 * left}%`);
    slider.setProperty("--right", `${100 * (1 - right)}%`);
    get("here").hidden = value === this.choice.inForce;
    get("here").style.left = `${100 * (left + share * (right - left))}%`;
    if (document.activeElement !== get("slider")) get("slider").value = value;
    get("slider").setAttribute("aria-valuetext", shown(value));
    if (document.activeElement !== get("number") || value === this.choice.inForce) get("number").value = Number.isFinite(value) ? Number(value.toFixed(4)) : "";
    get("back").disabled = value === this.choice.inForce;
  }

  drawFigures() {
    const [all] = this.choice.counts(null, 1);
    const lines = [
      ["Threshold", this.choice.inForce, this.choice.value, shown],
      ["Kept rows", all.now, all.here, (x) => COUNT.format(x)],
      ["Keep rate", all.now / all.n, all.here / all.n, percent],
    ];
    if (this.rows.header.kinds) {
      lines.push(["Clean recall", all.cleanNow / all.clean, all.cleanHere / all.clean, percent], ["Precision", all.cleanNow / all.now, all.cleanHere / all.here, percent]);
    }
    get("figures").tBodies[0].replaceChildren(...lines.map(([name, now, here, show]) => {
      const line = make("tr");
      const head = make("th", "", name);
      head.scope = "row";
      const cell = make("td", "number");
      cell.append(make("strong", "", show(here)));
      const change = Number.isFinite(here - now) ? here - now : 0;
      line.append(head, make("td", "number faint", show(now)), cell, make("td", "number change", change ? signed(change, show === percent ? `${(100 * change).toFixed(1)} points` : show(change)) : "\u2013"));
      return line;
    }));
    const few = all.here < this.rows.header.minKept || all.here === all.n;
    const moved = all.gained || all.lost ? `${rowsOf(all.gained)} would come in, ${rowsOf(all.lost)} would go out.` : "No row changes sides.";
    get("moved").textContent = few ? `${moved} A selection like this is refused: it keeps ${all.here === all.n ? "every row" : `fewer than ${COUNT.format(this.rows.header.minKept)} rows`}.` : moved;
    const { summary } = this.rows.header;
    get("lede").textContent = summary || `${rowsOf(this.rows.n)}; ${COUNT.format(all.now)} kept (${percent(all.now / all.n)}) at threshold ${shown(this.choice.inForce)}${this.choice.ruled.size ? `, ${COUNT.format(this.choice.ruled.size)} decided by hand` : ""}.`;
  }

  // --- groups

  wireGroups() {
    const select = get("by");
    select.replaceChildren(...this.rows.header.groupings.map((g, k) => Object.assign(make("option", "", g.name), { value: k })));
    select.disabled = false;
    select.addEventListener("change", () => this.drawGroups());
  }

  drawGroups() {
    const by = Number(get("by").value);
    const { values, note } = this.rows.header.groupings[by];
    const labels = this.rows.header.kinds;
    const counts = this.choice.counts(this.codes[by], values.length);
    get("by-note").textContent = note;
    const names = ["Group", "Rows", "Kept", "Keep rate", "", ...(labels ? ["Clean recall"] : [])];
    const head = make("tr");
    head.append(...names.map((name, k) => {
      const cell = make("th", k && k < 4 ? "number" : k === 4 ? "bar" : k ? "number" : "", name);
      cell.scope = "col";
      if (!name) cell.append(make("span", "unseen", "Keep rate as a bar"));
      return cell;
    }));
    get("groups").tHead.replaceChildren(head);
    get("groups").tBodies[0].replaceChildren(...values.flatMap((value, code) => {
      const count = counts[code];
      if (!count.n) return [];
      const line = make("tr");
      const name = make("th");
      name.scope = "row";
      const button = make("button", "link", value);
      button.type = "button";
      button.title = "Show these rows";
      button.addEventListener("click", () => this.showGroup(by, code));
      name.append(button);
      const meter = make("div", "meter");
      const [bar, tick] = [make("b"), make("i")];
      bar.style.width = `${(100 * count.here) / count.n}%`;
      tick.style.left = `calc(${(100 * count.now) / count.n}% - 1px)`;
      meter.append(bar, tick);
      const cell = make("td", "bar");
      cell.append(meter);
      line.append(name, make("td", "number", COUNT.format(count.n)), make("td", "number", COUNT.format(count.here)), make("td", "number", percent(count.here / count.n)), cell);
      if (labels) line.append(make("td", "number", count.clean ? percent(count.cleanHere / count.clean) : "\u2013"));
      return [line];
    }));
  }

  showGroup(by, code) {
    this.only = { by, code };
    this.drawShow();
    get("show").value = "group";
    this.find();
    get("list").focus();
    get("list").scrollIntoView({ block: "nearest" });
  }

  // --- rows

  wireRows() {
    this.drawShow();
    const search = get("search");
    for (const field of [search, get("show")]) field.disabled = false;
    search.addEventListener("input", () => {
      clearTimeout(this.typing);
      this.typing = setTimeout(() => this.find(true), 60);
    });
    get("show").addEventListener("change", () => this.find());
    for (const input of document.querySelectorAll('input[name="order"]')) input.addEventListener("change", () => this.find());
    document.addEventListener("keydown", (event) => {
      const typing = event.target.matches("input:not([type=radio]):not([type=range]), select, textarea");
      if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.key === "/") {
        event.preventDefault();
        search.focus();
      } else if ((event.key === "k" || event.key === "d") && this.detail.row >= 0) {
        event.preventDefault();
        this.detail.ask(event.key === "k" ? "keep" : "drop");
      }
    });
    search.addEventListener("keydown", (event) => {
      if (event.key === "ArrowDown") {
        event.preventDefault();
        get("list").focus();
        this.list.choose(0);
      }
    });
  }

  drawShow() {
    const kinds = this.rows.header.kinds;
    const options = [["all", "all rows"], ["kept", "kept"], ["dropped", "dropped"], ["changed", "would change sides"], ["hand", "decided by hand"]];
    if (this.rows.arrays.aside.some(Boolean)) options.push(["aside", "set aside by name"]);
    if (this.rows.arrays.turnRow.length) options.push(["lowturn", "with a low turn"]);
    if (this.rows.nScored < this.rows.n) options.push(["unscored", "without a score"]);
    if (kinds) options.push(["lost", "clean, yet dropped"], ["passed", "damaged, yet kept"]);
    if (this.only) {
      const { name, values } = this.rows.header.groupings[this.only.by];
      options.push(["group", `${name}: ${values[this.only.code]}`]);
    }
    const select = get("show");
    const before = select.value;
    select.replaceChildren(...options.map(([value, text]) => Object.assign(make("option", "", text), { value })));
    if (options.some(([value]) => value === before)) select.value = before;
  }

  test(show) {
    const { choice, rows } = this;
    const label = rows.arrays.label;
    const tests = {
      all: () => true,
      kept: (row) => choice.keptHere(row),
      dropped: (row) => !choice.keptHere(row),
      changed: (row) => choice.keptHere(row) !== choice.keptNow(row),
      hand: (row) => choice.handHere[row] > 0,
      aside: (row) => rows.arrays.aside[row] > 0,
      lowturn: (row) => choice.hasLowTurn(row),
      unscored: (row) => Number.isNaN(rows.score[row]),
      lost: (row) => label[row] === 0 && !choice.keptHere(row),
      passed: (row) => label[row] > 0 && choice.keptHere(row),
      group: (row) => this.codes[this.only.by][row] === this.only.code,
    };
    return tests[show];
  }

  // All rows in the chosen order; borderline goes outward from the threshold.
  order() {
    const { rows } = this;
    const way = document.querySelector('input[name="order"]:checked').value;
    if (way === "file") return Uint32Array.from({ length: rows.n }, (_, i) => i);
    if (way === "lowest") return rows.byScore;
    const scored = rows.byScore.subarray(0, rows.nScored);
    const out = new Uint32Array(rows.n);
    out.set(rows.byScore.subarray(rows.nScored), rows.nScored);
    if (way === "highest") {
      for (let k = 0; k < scored.length; k++) out[k] = scored[scored.length - 1 - k];
      return out;
    }
    let above = 0;
    while (above < scored.length && rows.score[scored[above]] < this.choice.value) above++;
    for (let k = 0, below = above - 1; k < scored.length; k++) {
      const [down, up] = [below >= 0 ? this.choice.value - rows.score[scored[below]] : Infinity, above < scored.length ? rows.score[scored[above]] - this.choice.value : Infinity];
      out[k] = down < up ? scored[below--] : scored[above++];
    }
    return out;
  }

  find(searched = false) {
    const started = performance.now();
    const query = get("search").value;
    if (searched || this.query !== query) {
      this.query = query;
      this.hits = this.rows.search(query);
      this.detail.words = query.toLowerCase().split(/\s+/).filter(Boolean);
      if (this.detail.row >= 0) this.detail.show(this.detail.row);
    }
    const passes = this.test(get("show").value);
    const { hits } = this;
    const found = Array.from(this.order()).filter((row) => (!hits || hits[row]) && passes(row));
    this.list.set(found);
    const some = found.length > MOST_ROWS ? `; the first ${COUNT.format(MOST_ROWS)} are listed` : "";
    get("found").textContent = found.length ? `${rowsOf(found.length)}${some}` : "No row is like this.";
    this.searchTook = performance.now() - started;
  }

  open(row) {
    get("search").value = "";
    get("show").value = "all";
    this.find();
    this.list.choose(this.list.hits.indexOf(row));
    get("list").focus();
  }
}

if (typeof DecompressionStream === "undefined") {
  get("loading").textContent = "This browser is too old to read the rows. Use one from 2023 or newer.";
} else {
  const page = new Page(new Rows(await unpack(get("data"))));
  get("loading").hidden = true;
  document.documentElement.dataset.ready = "yes";
  // For tests and the curious: the whole state under one name.
  window.clues = page;
}

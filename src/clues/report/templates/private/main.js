// The page: wires the parts together, and says which rows are listed.

const get = (id) => document.getElementById(id);

class Page {
  constructor(rows) {
    this.rows = rows;
    this.choice = new Choice(rows);
    this.only = null; // rows of one group: { by, code }
    this.fate = 0; // rows of one reason
    this.hits = null;
    this.terms = new Terms();
    const key = `clues ${rows.header.silo} ${rows.header.recipe} ${rows.n} ${rows.id(0)}`;
    this.reading = new Reading(rows, this.choice, key);
    this.several = new Several(rows, this.choice, (ids, decision) => this.decisions.set(ids, decision), () => this.list.draw());
    this.detail = new Detail(get("detail"), rows, this.choice, {
      onDecide: (id, decision) => this.decide(id, decision),
      onNext: () => this.next(),
      onShow: (row) => this.reading.add(row) && this.decisions && this.drawReading(),
    });
    this.list = new List(get("list"), rows, this.choice, {
      onChoose: (row) => this.detail.show(row),
      onOpen: () => this.detail.cover(true),
      onTick: (chosen) => (chosen.length === 1 ? this.several.toggle(chosen[0]) : this.several.tick(chosen, true)),
      isTicked: (row) => this.several.ticked.has(row),
      isRead: (row) => this.reading.has(row),
    });
    this.decisions = new Decisions(rows, this.choice, key, { reading: this.reading, onChange: () => this.refresh(), onOpen: (row) => this.open(row) });
    this.codes = rows.header.groupings.map((_, k) => rows.arrays[`group${k}`]);
    this.whatIf = new WhatIf(rows, this.choice, {
      onMove: () => this.refresh(),
      onRest: () => this.find(),
      onWish: () => {
        this.decisions.ask(this.whatIf.wanted());
        get("wished").scrollIntoView({ block: "nearest" });
      },
    });
    this.groups = new Groups(rows, this.choice, this.codes, (by, code) => this.showOnly("group", { only: { by, code } }));
    this.wireRows();
    this.decisions.draw();
    this.refresh();
    this.find();
  }

  refresh() {
    this.whatIf.drawThreshold();
    this.whatIf.drawFigures();
    this.groups.draw();
    this.list.draw();
    this.reading.draw();
    if (this.detail.row >= 0 && !get("detail").contains(document.activeElement)) this.detail.show(this.detail.row);
  }

  drawReading() {
    this.reading.draw();
    this.decisions.draw();
  }

  decide(id, decision) {
    // First: a form that has the focus is not drawn anew.
    if (this.detail.isOver) document.activeElement?.blur();
    else get("list").focus();
    const left = !decision && !this.choice.decided.has(id);
    this.decisions.set([id], decision);
    if (left) this.next();
    if (this.detail.isOver) this.detail.box.querySelector(".next")?.focus();
  }

  // --- rows

  wireRows() {
    this.drawShow();
    const search = get("search");
    for (const field of [search, get("show"), get("start")]) field.disabled = false;
    get("start").addEventListener("click", () => this.start());
    for (const button of document.querySelectorAll("button[data-fate]")) {
      button.disabled = false;
      button.addEventListener("click", () => this.showOnly("fate", { fate: Number(button.dataset.fate) }));
    }
    search.addEventListener("input", () => {
      clearTimeout(this.typing);
      this.typing = setTimeout(() => this.find(true), 60);
    });
    get("show").addEventListener("change", () => this.find());
    for (const input of document.querySelectorAll('input[name="order"]')) input.addEventListener("change", () => this.find());
    document.addEventListener("keydown", (event) => this.onKey(event));
    search.addEventListener("keydown", (event) => {
      if (event.key === "ArrowDown") {
        event.preventDefault();
        get("list").focus();
        this.list.choose(0);
      }
    });
  }

  onKey(event) {
    const typing = event.target.matches("input:not([type=radio]):not([type=range]), select, textarea");
    if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
    const chosen = this.detail.row >= 0;
    const keys = {
      "/": () => get("search").focus(),
      n: () => this.next(),
      k: () => chosen && this.detail.ask("keep"),
      s: () => chosen && this.detail.ask("drop"),
    };
    if (!(event.key in keys)) return;
    event.preventDefault();
    keys[event.key]();
  }

  // The rows to read first, from the first that is not read yet.
  start() {
    get("search").value = "";
    this.showOnly("first");
    const at = this.list.hits.findIndex((row) => !this.reading.has(row));
    this.list.choose(Math.max(0, at));
    get("h-rows").scrollIntoView({ block: "start" });
    this.detail.cover(true);
  }

  next() {
    const at = this.reading.next(this.list.hits, this.list.at);
    if (at < 0) {
      get("found").textContent = "Every row of this list is decided.";
      return;
    }
    this.list.choose(at);
  }

  showOnly(show, what = {}) {
    Object.assign(this, what);
    this.drawShow();
    get("show").value = show;
    this.find();
    get("list").focus({ preventScroll: true });
    get("h-rows").scrollIntoView({ block: "start" });
  }

  drawShow() {
    const { header, arrays, nScored, n } = this.rows;
    const options = [["first", `the ${header.first.length} to read first`], ["all", "all rows"], ["kept", "kept"], ["dropped", "set aside"], ["changed", "would change sides"], ["hand", "decided by hand"], ["unread", "not read yet"]];
    if (arrays.aside.some(Boolean)) options.push(["aside", "set aside by name"]);
    if (arrays.turnRow.length) options.push(["lowturn", "with a low turn"]);
    if (nScored < n) options.push(["unscored", "without a score"]);
    if (header.kinds) options.push(["lost", "clean, yet set aside"], ["passed", "damaged, yet kept"]);
    if (this.fate) options.push(["fate", `why: ${header.fates[this.fate - 1]}`]);
    if (this.only) {
      const { name, values } = header.groupings[this.only.by];
      options.push(["group", `${name}: ${values[this.only.code]}`]);
    }
    const select = get("show");
    const before = select.value || "all";
    select.replaceChildren(...options.map(([value, text]) => Object.assign(make("option", "", text), { value })));
    if (options.some(([value]) => value === before)) select.value = before;
  }

  test(show) {
    const { choice, rows } = this;
    const label = rows.arrays.label;
    const first = new Set(rows.header.first);
    const tests = {
      first: (row) => first.has(row),
      all: () => true,
      kept: (row) => choice.keptHere(row),
      dropped: (row) => !choice.keptHere(row),
      changed: (row) => choice.keptHere(row) !== choice.keptNow(row),
      hand: (row) => choice.handHere[row] > 0,
      unread: (row) => !this.reading.has(row),
      aside: (row) => rows.arrays.aside[row] > 0,
      lowturn: (row) => choice.hasLowTurn(row),
      unscored: (row) => Number.isNaN(rows.score[row]),
      lost: (row) => label[row] === 0 && !choice.keptHere(row),
      passed: (row) => label[row] > 0 && choice.keptHere(row),
      fate: (row) => rows.arrays.fate[row] === this.fate,
      group: (row) => this.codes[this.only.by][row] === this.only.code,
    };
    return tests[show];
  }

  // All rows in the chosen order; borderline goes outward from the threshold.
  order() {
    const { rows } = this;
    if (get("show").value === "first") return Uint32Array.from(rows.header.first);
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

  find(searchedNow = false) {
    const started = performance.now();
    const query = get("search").value;
    if (searchedNow || this.query !== query) {
      this.query = query;
      this.hits = this.rows.search(query);
      this.detail.words = query.toLowerCase().split(/\s+/).filter(Boolean);
      if (this.detail.row >= 0) this.detail.show(this.detail.row);
    }
    const passes = this.test(get("show").value);
    const { hits } = this;
    const found = Array.from(this.order()).filter((row) => (!hits || hits[row]) && passes(row));
    this.list.set(found);
    this.several.offer(found);
    const some = found.length > MOST_ROWS ? `; the first ${COUNT.format(MOST_ROWS)} are listed` : "";
    get("found").textContent = found.length ? `${rowsOf(found.length)}${some}` : "No row is like this.";
    for (const input of document.querySelectorAll('input[name="order"]')) input.disabled = get("show").value === "first";
    this.searchTook = performance.now() - started;
  }

  open(row) {
    get("search").value = "";
    get("show").value = "all";
    this.find();
    this.list.choose(this.list.hits.indexOf(row));
    get("list").focus();
    this.detail.cover(true);
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

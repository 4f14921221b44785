// What is read so far: a row counts as read once it was on the screen in full.

class Reading {
  constructor(rows, choice, key) {
    Object.assign(this, { rows, choice, key: `${key} read`, ids: new Set() });
    try {
      for (const id of JSON.parse(sessionStorage.getItem(this.key)) ?? []) if (rows.withId(id).length) this.ids.add(id);
    } catch {
      this.key = ""; // storage is switched off
    }
  }

  has(row) {
    return this.ids.has(this.rows.id(row));
  }

  add(row) {
    const id = this.rows.id(row);
    if (this.ids.has(id)) return false;
    this.ids.add(id);
    try {
      if (this.key) sessionStorage.setItem(this.key, JSON.stringify([...this.ids]));
    } catch {
      this.key = "";
    }
    return true;
  }

  // The place in a list of the next row that is neither read nor decided; of all read, the next undecided.
  next(hits, from) {
    const undecided = (row) => !this.choice.decided.has(this.rows.id(row));
    for (const wanted of [(row) => undecided(row) && !this.has(row), undecided]) {
      for (let k = 1; k <= hits.length; k++) {
        const at = (Math.max(from, -1) + k) % hits.length;
        if (at !== from && wanted(hits[at])) return at;
      }
    }
    return -1;
  }

  // Each row that was read, and whether it is kept as this reader leaves it.
  content() {
    return [...this.ids].map((id) => {
      const [row] = this.rows.withId(id);
      const own = this.choice.decided.get(id);
      return { id, kept: own ? own.keep : this.choice.keptWithout(row) };
    });
  }

  draw() {
    const { first } = this.rows.header;
    const read = first.filter((row) => this.has(row)).length;
    const decided = this.choice.mine().length;
    const text = `${read} of ${first.length} read` + (this.ids.size > read ? `, ${COUNT.format(this.ids.size)} in all` : "");
    document.getElementById("progress-text").textContent = `${text}; ${decided ? COUNT.format(decided) : "none"} decided by you`;
    const bar = document.getElementById("progress");
    Object.assign(bar, { value: read, max: Math.max(1, first.length) });
    document.getElementById("start").textContent = read && read < first.length ? `Read the other ${first.length - read}` : `Read these ${first.length}`;
  }
}

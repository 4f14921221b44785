// Who is kept at a threshold, and what follows from it. A person's decision wins over the score.

class Choice {
  constructor(rows) {
    this.rows = rows;
    this.inForce = rows.header.cut ?? Infinity;
    this.value = this.inForce;
    this.again = new Set(rows.header.again); // rows that repeat one: a text is kept once
    this.judged = new Set(rows.header.judged); // decided by the files of checked and rejected rows
    this.ruled = new Map(rows.header.rulings.map(([id, keep, why]) => [id, { keep, why }]));
    this.decided = new Map(this.ruled); // what an export holds
    this.handNow = this.byHand(this.ruled);
    this.handHere = this.byHand(this.decided);
  }

  // By row 1 for keep, 2 for drop, 0 where the score decides.
  byHand(decisions) {
    const hand = new Uint8Array(this.rows.n);
    for (const [id, { keep }] of decisions) this.mark(hand, id, keep);
    return hand;
  }

  mark(hand, id, keep) {
    for (const row of this.rows.withId(id)) if (!keep || !this.again.has(row)) hand[row] = keep ? 1 : 2;
  }

  static same(a, b) {
    return a?.keep === b?.keep && a?.why === b?.why;
  }

  // What this reader has decided, without what the files of checked and rejected rows say.
  mine() {
    return [...this.decided].filter(([id, own]) => !this.judged.has(id) || !Choice.same(own, this.ruled.get(id)));
  }

  // By score and text alone, at the threshold in force.
  keptWithout(row) {
    return !this.rows.arrays.aside[row] && this.rows.decides[row] >= this.inForce;
  }

  keptNow(row) {
    return this.handNow[row] ? this.handNow[row] === 1 : this.keptWithout(row);
  }

  // What a row's text shows stands above every threshold.
  keptHere(row) {
    return this.handHere[row] ? this.handHere[row] === 1 : !this.rows.arrays.aside[row] && this.rows.decides[row] >= this.value;
  }

  decide(id, decision) {
    if (decision) this.decided.set(id, decision);
    else this.decided.delete(id);
    for (const row of this.rows.withId(id)) this.handHere[row] = 0;
    if (decision) this.mark(this.handHere, id, decision.keep);
  }

  // Rows kept, clean rows and clean rows kept, in force and here, in all or by group.
  counts(codes, nGroups) {
    const { rows } = this;
    const label = rows.arrays.label;
    const found = Array.from({ length: nGroups }, () => ({ n: 0, now: 0, here: 0, clean: 0, cleanNow: 0, cleanHere: 0, gained: 0, lost: 0 }));
    for (let row = 0; row < rows.n; row++) {
      const group = found[codes ? codes[row] : 0];
      const [now, here] = [this.keptNow(row), this.keptHere(row)];
      const clean = label ? label[row] === 0 : false;
      group.n++;
      group.now += now;
      group.here += here;
      group.gained += here && !now;
      group.lost += now && !here;
      group.clean += clean;
      group.cleanNow += clean && now;
      group.cleanHere += clean && here;
    }
    return found;
  }

  // Whether a turn is below the threshold, and whether it is then read and not trained.
  turnIs(row, score) {
    const low = score < this.value;
    return { low, untrained: low && this.rows.header.masksTurns && !this.handHere[row] && this.keptHere(row) };
  }

  hasLowTurn(row) {
    for (const score of this.rows.turnScores(row).values()) if (score < this.value) return true;
    return false;
  }

  reason(row) {
    const { rows } = this;
    const own = this.decided.get(rows.id(row));
    if (own) return `${own.keep ? "Kept" : "Set aside"} by a person: ${own.why}`;
    const stored = rows.storedReason(row);
    // As in decisions.csv, as long as nothing is tried here that changes it.
    if (stored && !this.handNow[row] && (rows.arrays.aside[row] || Number.isNaN(rows.score[row]) || this.value === this.inForce)) return stored;
    if (Number.isNaN(rows.score[row])) return `Without a score: ${rows.whyUnscored(row)}.`;
    const below = rows.decides[row] < this.value;
    if (rows.decides[row] !== rows.score[row]) return `Its turns decide: ${shown(rows.decides[row])} is ${below ? "below" : "not below"} ${shown(this.value)}.`;
    const [score, cut] = [shown(rows.score[row]), shown(this.value)];
    return score === cut ? `Its score is at the threshold, ${cut}${below ? ", and just below it" : ""}.` : `Score ${score} is ${below ? "below" : "not below"} ${cut}.`;
  }
}

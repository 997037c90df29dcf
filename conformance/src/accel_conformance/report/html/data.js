// What the report says. packed.py documents how cases are packed.

const DATA = JSON.parse(document.getElementById("data").textContent);
const { report: REPORT, selfTest: SELF_TEST, shares: SHARES } = DATA;
const RULES = REPORT ? REPORT.rules : {};

// In the order they are shown: sign, and what it means.
const OUTCOMES = {
  passed: ["✓", "kept every rule"],
  failed: ["✗", "broke a rule"],
  unexpected: ["!", "was written down to fail, and does not"],
  untested: ["?", "looked at nothing"],
  expected: ["~", "failed as written down"],
  refused: ["–", "declined, with a reason"],
  skipped: ["·", "not run, as written down"],
};
// A cell shows the worst there is in it; a refusal or a skip only where nothing passed.
const WORST = ["failed", "unexpected", "untested", "expected", "passed", "refused", "skipped"];
const BAD = new Set(["failed", "unexpected", "untested"]);

const CASES = DATA.rows.map(unpacked);
// Failures first; of one outcome in the order they were run.
const LISTED = WORST.flatMap((outcome) => CASES.filter((one) => one.outcome === outcome));

function unpacked(row, index) {
  const shared = row.length - 1 - SHARES.length;
  const one = Object.assign({ index }, ...row.slice(0, shared).map((part) => DATA.parts[part]));
  one.id = one.group ? `${one.group}/${one.name}` : one.name;
  one.reproduce = one.reproduce.replaceAll("\0", one.id);
  one.seconds = row[shared];
  one.shares = Object.fromEntries(SHARES.map((share, i) => [share, row[shared + 1 + i]]));
  return one;
}

/** The largest share of an error budget that a case used, or of one of them; null for none. */
function used(one, share = "largest") {
  const found = share === "largest" ? Object.values(one.shares) : [one.shares[share]];
  const measured = found.filter((value) => value !== null && value !== undefined);
  return measured.length ? Math.max(...measured) : null;
}

/** "rms" of "rms_share". */
const budgetName = (share) => share.replace(/_share$/, "");

/** outcome -> how many, in the order of WORST. */
function tally(cases) {
  const counts = new Map(WORST.map((outcome) => [outcome, 0]));
  for (const one of cases) counts.set(one.outcome, counts.get(one.outcome) + 1);
  return new Map([...counts].filter(([, number]) => number));
}

function grouped(items, key) {
  const groups = new Map();
  for (const item of items) {
    const name = key(item);
    if (!groups.has(name)) groups.set(name, []);
    groups.get(name).push(item);
  }
  return groups;
}

const ruleTitle = (name) => (RULES[name] ? `${RULES[name].number} ${name}` : name);

function mark(outcome, ...more) {
  const [sign, says] = OUTCOMES[outcome];
  return h("span", { class: `mark ${outcome}`, title: `${outcome}: ${says}` }, h("span", { "aria-hidden": "true" }, sign), ...more);
}

/** How outcomes share a whole, as a bar. */
function mixture(counts) {
  const bar = h("span", { class: "mixture", "aria-hidden": "true" });
  for (const [outcome, number] of counts) {
    const part = h("i", { class: outcome });
    part.style.flexGrow = number;
    bar.append(part);
  }
  return bar;
}

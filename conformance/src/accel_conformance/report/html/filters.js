// Which cases are listed: one value at most for each kind of filter, all of which must hold.

// kind -> whether a case has the value; null stands for cases that have none.
const MATCHES = {
  outcome: (one, value) => one.outcome === value,
  area: (one, value) => one.area === value,
  op: (one, value) => one.op === value,
  implementation: (one, value) => one.implementation === value,
  dtype: (one, value) => one.dtype === value,
  rule: (one, value) => one.rules.includes(value),
  part: (one, value) => partOf(one) === value,
  id: (one, value) => one.id === value,
  text: (one, value) => value.toLowerCase().split(/\s+/).every((word) => searched(one).includes(word)),
};

const filters = {
  values: {},
  listeners: [],

  /** Set all filters anew, and tell why: what was chosen is shown unless it is being typed. */
  set(values, { shown = true } = {}) {
    this.values = Object.fromEntries(Object.entries(values).filter(([, value]) => value !== undefined && value !== ""));
    for (const listener of this.listeners) listener(this.values, shown);
  },

  change(values, options) {
    this.set({ ...this.values, ...values }, options);
  },

  onChange(listener) {
    this.listeners.push(listener);
  },

  /** Whether exactly these are set. */
  are(values) {
    const own = Object.entries(this.values);
    return own.length === Object.keys(values).length && own.every(([kind, value]) => kind in values && values[kind] === value);
  },

  apply(cases) {
    const active = Object.entries(this.values);
    return cases.filter((one) => active.every(([kind, value]) => MATCHES[kind](one, value)));
  },
};

/** Of a case without an op, what of its area it is about: engine/gpt2/... is of gpt2. */
function partOf(one) {
  const [, part, ...rest] = one.id.split("/");
  return rest.length ? part : null;
}

function searched(one) {
  one.searched ??= [one.id, one.outcome, one.ran, one.input, one.reason, one.message,
    ...one.rules.map(ruleTitle), ...one.broken.map((b) => b.says),
    ...one.refusals.map((r) => `${r.code} ${r.want} ${r.have}`)].join("\n").toLowerCase();
  return one.searched;
}

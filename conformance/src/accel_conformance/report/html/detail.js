// All there is to say of one case.

function detail(one) {
  const broken = new Set(one.broken.map(({ rule }) => rule));
  const kept = Object.keys(RULES).filter((rule) => one.rules.includes(rule) && !broken.has(rule));
  return h("div", { class: "detail" },
    one.reason && h("p", { class: "reason" }, "Written down: ", one.reason),
    one.message && !one.reason && h("p", { class: "says" }, one.message),
    one.broken.map(finding),
    one.refusals.map(refusal),
    definitions("about", [
      ["Input", one.input && h("code", {}, one.input)],
      ["Ran", one.ran && [h("code", {}, one.ran), one.implementation && one.ran !== one.implementation && ` instead of ${one.implementation}`]],
      ["Budget used", budgetsOf(one)],
      ["Rules kept", kept.length > 0 && h("ul", { class: "kept" }, kept.map((rule) => h("li", {}, sentence(rule))))],
      ["Reproduce", command(one.reproduce)],
    ].filter(([, said]) => said)));
}

function finding(broken) {
  return h("div", { class: "finding failed" },
    h("p", { class: "rule" }, sentence(broken.rule)), h("p", { class: "says" }, broken.says));
}

/** A rule in full: number, name, strength, and what it promises. */
function sentence(name) {
  const rule = RULES[name];
  return [h("b", {}, ruleTitle(name)), rule && [" ", h("span", { class: "strength" }, rule.strength), " ", rule.says]];
}

function refusal({ code, want, have, remedy }) {
  return h("div", { class: "finding refused" }, h("p", { class: "rule" }, h("b", {}, code)),
    h("p", { class: "says" }, `needs ${want}, found ${have}`, remedy && `; ${remedy}`));
}

function budgetsOf(one) {
  const measured = SHARES.filter((share) => one.shares[share] !== null);
  return measured.map((share) => `${budgetName(share)} ${percent(one.shares[share])}`).join(", ");
}

// The rules, and how many cases looked at each; what the expectations file says.

function rules() {
  const names = Object.keys(RULES);
  const broken = names.filter((name) => RULES[name].broken);
  const looked = names.filter((name) => RULES[name].cases);
  return section("rules", "Rules",
    `${count(looked.length)} of ${count(names.length)} rules were looked at, ${broken.length ? `${count(broken.length)} broken` : "none broken"}. Choose one to list its cases.`,
    broken.length > 0 && ruleTable(broken),
    h("details", { class: "more", open: !broken.length && names.length < 12 }, h("summary", {}, broken.length ? "All rules" : "The rules"), ruleTable(names)));
}

function ruleTable(names) {
  return h("table", { class: "rules" },
    h("thead", {}, h("tr", {}, ["rule", "strength", "what it promises", "cases", "broken"].map((heading) => h("th", { scope: "col" }, heading)))),
    h("tbody", {}, names.map((name) => {
      const rule = RULES[name];
      const title = [h("span", { class: "number" }, rule.number), " ", name];
      return h("tr", { class: rule.broken ? "broken" : rule.cases ? "" : "unseen" },
        h("th", { scope: "row" }, rule.cases ? h("button", { type: "button", class: "link", onclick: () => filters.set({ rule: name }) }, title) : title),
        h("td", { class: "strength" }, rule.strength),
        h("td", { class: "says" }, rule.says),
        h("td", { class: "number" }, count(rule.cases)),
        h("td", { class: "number" }, rule.broken ? mark("failed", " ", count(rule.broken)) : "–"));
    })));
}

function expectations() {
  const { file, problems, entries = [] } = REPORT.expectations;
  if (!file && !problems.length) return null;
  return section("expectations", "Expectations", `From ${file}. Each names a reason and the last day it holds.`,
    problems.map((problem) => h("p", { class: "problem" }, mark("failed"), " ", problem)),
    entries.length > 0 && h("table", { class: "entries" },
      h("thead", {}, h("tr", {}, ["cases", "may", "reason", "until", "matched"].map((heading) => h("th", { scope: "col" }, heading)))),
      h("tbody", {}, entries.map((entry) => h("tr", {},
        h("th", { scope: "row" }, h("code", {}, entry.id)), h("td", {}, entry.outcome), h("td", {}, entry.reason),
        h("td", { class: "day" }, entry.expires), h("td", { class: "number" }, entry.cases ? count(entry.cases) : "none of these"))))));
}

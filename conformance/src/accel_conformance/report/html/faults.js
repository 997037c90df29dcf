// The kill matrix of the self-test: planted faults by kind, the rule that claims each, its end.

const VERDICTS = { killed: ["✓", "passed"], "killed otherwise": ["!", "unexpected"], survived: ["✗", "failed"], "not planted": ["–", "skipped"] };

function faults() {
  if (!SELF_TEST) return null;
  const killed = SELF_TEST.faults.filter((fault) => fault.verdict === "killed").length;
  const alarms = SELF_TEST.unfaulted.flatMap((one) => one.problems);
  const clean = SELF_TEST.unfaulted.reduce((sum, one) => sum + one.cases, 0);
  const kinds = [...grouped(SELF_TEST.faults, (fault) => fault.kind)];
  return section("self-test", "What the suite would have caught",
    `Faults planted one at a time in a right backend, by suite ${SELF_TEST.suite}: ${count(killed)} of ${count(SELF_TEST.faults.length)} were killed by the cases that claim them, for their own reason. ` +
    `Without a fault, ${count(clean)} cases raised ${alarms.length ? plural(alarms.length, "false alarm") : "no false alarm"}.`,
    alarms.map((alarm) => h("p", { class: "problem" }, mark("failed"), " ", alarm)),
    h("div", { class: "kinds" }, kinds.map(([kind, some]) => kindOf(kind, some))));
}

function kindOf(kind, some) {
  const killed = some.filter((fault) => fault.verdict === "killed").length;
  const element = h("details", { class: "kind", open: killed < some.length },
    h("summary", {}, h("b", {}, kind),
      h("span", { class: "squares", "aria-hidden": "true" }, some.map((fault) => h("i", { class: VERDICTS[fault.verdict][1], title: `${fault.name}: ${fault.verdict}` }))),
      h("span", { class: "number" }, `${count(killed)} of ${count(some.length)} killed`)));
  const open = () => element.open && !element.querySelector("table") && element.append(faultTable(some));
  element.addEventListener("toggle", open);
  open();
  return element;
}

function faultTable(some) {
  return h("table", { class: "faults" },
    h("thead", {}, h("tr", {}, ["fault", "rule that claims it", "cases that must say so", "killed by"].map((heading) => h("th", { scope: "col" }, heading)))),
    h("tbody", {}, some.map((fault) => {
      const [sign, color] = VERDICTS[fault.verdict];
      return h("tr", {},
        h("th", { scope: "row" }, h("b", {}, fault.name), h("span", {}, fault.op && `${fault.op}: `, fault.says),
          fault.problems.map((problem) => h("span", { class: "problem" }, problem))),
        h("td", {}, `${fault.number} ${fault.rule}`),
        h("td", {}, fault.where.map((pattern) => h("code", {}, pattern))),
        h("td", { class: "number" }, h("span", { class: `mark ${color}` }, `${sign} ${fault.verdict}`), h("small", {}, `${count(fault.killed_by.length)} of ${plural(fault.cases, "case")}`)));
    })));
}

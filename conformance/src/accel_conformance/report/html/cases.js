// The list of cases: filtered, failures first, made as far as it is looked at.

const STEP = 25;
const KINDS = { outcome: "outcome", op: "op", dtype: "dtype", rule: "rule", implementation: "impl.", area: "area" };

function caseList() {
  const list = h("div", { class: "list" });
  const said = h("p", { class: "soft found", role: "status" });
  const more = h("button", { type: "button", class: "more-cases", onclick: () => grow(true) });
  let found = [];
  let shown = 0;

  function grow(follow) {
    const next = found.slice(shown, shown + STEP).map((one) => item(one));
    shown += next.length;
    list.append(...next);
    const left = found.length - shown;
    more.hidden = !left;
    more.textContent = `Show ${count(Math.min(left, STEP))} more of ${count(left)}`;
    if (follow && next.length) next[0].querySelector("summary").focus();
  }

  function refresh() {
    found = filters.apply(LISTED);
    shown = 0;
    list.replaceChildren();
    said.textContent = found.length ? `${plural(found.length, "case")}${found.length < CASES.length ? ` of ${count(CASES.length)}` : ""}` : "No case is like this.";
    grow(false);
    if (found.length === 1 || BAD.has(found[0]?.outcome)) list.firstChild.open = true;
  }

  filters.onChange((_, chosen) => {
    refresh();
    if (chosen) bring(document.getElementById("cases-title"));
  });
  refresh();
  return section("cases", "Cases", null, bar(), active(), said, list, more);
}

/** Go there, for keys too; scroll unless it can be seen with the first of the list beneath it. */
function bring(heading) {
  heading.focus({ preventScroll: true });
  const { top } = heading.getBoundingClientRect();
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  if (top < 0 || top > innerHeight * 0.6) heading.scrollIntoView({ behavior: still ? "auto" : "smooth", block: "start" });
}

function item(one) {
  const share = used(one);
  const first = one.broken[0] ? `${ruleTitle(one.broken[0].rule)}: ${one.broken[0].says}` : one.message ||
    one.refusals.map((r) => `needs ${r.want}, found ${r.have}`)[0];
  const [path, name] = one.group ? [`${one.group}/`, one.name] : ["", one.name];
  const element = h("details", { class: `case ${one.outcome}`, ontoggle: opened },
    h("summary", {}, mark(one.outcome, h("span", { class: "hidden" }, one.outcome)),
      h("span", { class: "id" }, h("span", { class: "path" }, path.replaceAll("/", "/\u200b")), h("b", {}, name)),
      h("span", { class: "measure" }, share === null ? "" : gauge(share)),
      first && h("span", { class: "first" }, first)));
  function opened() {
    if (element.open && !element.querySelector(".detail")) element.append(detail(one));
  }
  return element;
}

function gauge(share) {
  const part = h("i", { class: share > 1 ? "failed" : "passed" });
  part.style.width = `${Math.min(share, 1) * 100}%`;
  return [h("span", { class: "gauge", "aria-hidden": "true" }, part), h("span", { title: "largest share of an error budget" }, percent(share))];
}

/** Search, and a choice for each kind of filter. */
function bar() {
  const search = h("input", { type: "search", placeholder: "Search ids, findings, rules, inputs", "aria-label": "Search cases",
    oninput: () => filters.change({ text: search.value.trim() }, { shown: false }) });
  filters.onChange((values) => {
    if (search !== document.activeElement) search.value = values.text ?? "";
  });
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest("input, select, textarea");
    if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey) {
      event.preventDefault();
      search.focus();
    }
    if (event.key === "Escape" && Object.keys(filters.values).length) {
      search.value = "";
      filters.set({}, { shown: false });
    }
  });
  return h("form", { class: "filters", role: "search", onsubmit: (event) => event.preventDefault() },
    search, Object.entries(KINDS).map(([kind, label]) => choice(kind, label)));
}

function choice(kind, label) {
  const values = kind === "rule" ? Object.keys(RULES).filter((rule) => RULES[rule].cases) :
    kind === "outcome" ? Object.keys(OUTCOMES).filter((outcome) => REPORT.totals[outcome]) :
    [...new Set(CASES.map((one) => one[kind]))].filter((value) => value !== null);
  if (values.length < 2) return null;
  const select = h("select", { "aria-label": kind, "data-kind": kind,
    onchange: () => filters.change({ [kind]: select.value || undefined }, { shown: false }) },
  h("option", { value: "" }, `any ${label}`),
  values.map((value) => h("option", { value }, kind === "rule" ? ruleTitle(value) : value)));
  filters.onChange((chosen) => {
    select.value = chosen[kind] ?? "";
    select.classList.toggle("set", Boolean(select.value));
  });
  return select;
}

/** What is set, each with a button that takes it back; of a rule its sentence. */
function active() {
  const shown = h("div", { class: "active", hidden: true });
  filters.onChange((values) => {
    const chips = Object.entries(values).filter(([, value]) => value !== undefined).map(([kind, value]) =>
      h("button", { type: "button", class: "chip", "aria-label": `remove ${kind} ${value ?? "none"}`, onclick: () => filters.change({ [kind]: undefined }, { shown: false }) },
        `${kind === "part" ? "of" : kind} `, h("b", {}, kind === "rule" ? ruleTitle(value) : value ?? "none"), h("span", { "aria-hidden": "true" }, " ×")));
    shown.replaceChildren(...chips,
      ...(chips.length > 1 ? [h("button", { type: "button", class: "chip clear", onclick: () => filters.set({}, { shown: false }) }, "Clear all")] : []),
      ...(values.rule ? [h("p", { class: "soft" }, sentence(values.rule))] : []));
    shown.hidden = !chips.length;
  });
  return shown;
}

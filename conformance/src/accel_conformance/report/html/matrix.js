// The matrix: ops by dtypes, then what has no op by its areas. A cell lists its cases.

const dtypes = [...new Set(CASES.filter((one) => one.op && one.dtype).map((one) => one.dtype)),
  ...new Set(CASES.filter((one) => !one.op && one.dtype).map((one) => one.dtype))]
  .filter((dtype, i, all) => all.indexOf(dtype) === i);
const columns = CASES.some((one) => !one.dtype) ? [...dtypes, null] : dtypes;

function matrix() {
  const grid = h("table", { class: "matrix", role: "grid", "aria-label": "cases by op and dtype", onkeydown: walked });
  grid.style.setProperty("--columns", columns.length);
  const headings = columns.map((dtype) => h("th", { scope: "col" }, dtype ?? "no dtype"));
  grid.append(h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "op"), headings)));
  grid.append(block(grouped(CASES.filter((one) => one.op), (one) => one.op), "op", "implementation"));
  const others = CASES.filter((one) => !one.op);
  if (others.length) {
    grid.append(h("tbody", {}, h("tr", { class: "heading" }, h("th", { scope: "rowgroup", colspan: columns.length + 1 }, "no op"))));
    grid.append(block(grouped(others, (one) => one.area), "area", "part"));
  }
  const first = grid.querySelector(".cell");
  if (first) first.tabIndex = 0;
  return section("matrix", "Ops by dtypes",
    "Each cell says how many of its cases have the worst outcome there is in it. Choose one, by pointer or keys, to list its cases.",
    legend(), h("div", { class: "scroll" }, grid));
}

function legend() {
  return h("ul", { class: "legend", "aria-label": "outcomes" },
    Object.entries(OUTCOMES).map(([outcome, [, says]]) => h("li", { title: says }, mark(outcome, " ", outcome))));
}

/** Rows of `kind`, each of which opens into rows of its `inner` kind. */
function block(groups, kind, inner) {
  const body = h("tbody");
  for (const [name, cases] of groups) {
    const base = kind === "area" ? { area: name, op: null } : { [kind]: name };
    const parts = grouped(cases, (one) => (kind === "area" ? partOf(one) : one.implementation));
    const rows = parts.size < 2 ? [] : [...parts].map(([part, some]) =>
      row(part ?? "others", some, { ...base, [inner]: part }, { inner: true }));
    body.append(row(name, cases, base, { opens: rows }), ...rows);
  }
  return body;
}

function row(name, cases, base, { inner = false, opens = [] }) {
  const byDtype = grouped(cases, (one) => one.dtype);
  const cells = columns.map((dtype) => h("td", {}, byDtype.has(dtype) ? cell(name, byDtype.get(dtype), { ...base, dtype }) :
    h("span", { class: "none", title: "no case" })));
  const button = opens.length > 0 && h("button", { type: "button", class: "open", "aria-expanded": "false",
    "aria-label": `${name}: ${plural(opens.length, "row")} more`, onclick: () => toggle(button, opens) });
  return h("tr", { class: inner ? "inner" : "outer", hidden: inner },
    h("th", { scope: "row" }, h("span", {}, button,
      h("button", { type: "button", class: "name", onclick: () => filters.set(base) }, name))), cells);
}

function toggle(button, rows) {
  const open = button.getAttribute("aria-expanded") === "false";
  button.setAttribute("aria-expanded", open);
  for (const one of rows) one.hidden = !open;
}

function cell(name, cases, values) {
  const counts = tally(cases);
  const [outcome, number] = counts.entries().next().value;
  const said = [...counts].map(([o, n]) => `${n} ${o}`).join(", ");
  const largest = Math.max(...cases.map((one) => used(one) ?? -1));
  const title = `${name}, ${values.dtype ?? "no dtype"}: ${said}${largest < 0 ? "" : `; largest share of an error budget ${percent(largest)}`}`;
  const button = h("button", { type: "button", class: `cell ${outcome}`, tabindex: "-1", title, "aria-label": title, "aria-pressed": "false",
    onclick: () => filters.set(filters.are(values) ? {} : values) },
  h("span", {}, h("b", { "aria-hidden": "true" }, OUTCOMES[outcome][0]), count(number),
    number < cases.length && h("small", {}, `/${count(cases.length)}`)), mixture(counts));
  filters.onChange(() => button.setAttribute("aria-pressed", filters.are(values)));
  return button;
}

/** Arrow keys go from cell to cell; one cell alone is in the order of tabs. */
function walked(event) {
  const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
  const from = event.target.closest("td");
  if (!step || !from) return;
  event.preventDefault();
  const rows = [...event.currentTarget.querySelectorAll("tr:not([hidden])")].filter((one) => one.querySelector("td"));
  let [down, across] = [rows.indexOf(from.parentElement), from.cellIndex];
  for (;;) {
    [down, across] = [down + step[0], across + step[1]];
    const there = rows[down]?.cells[across];
    if (!there || there.tagName !== "TD") return;
    const next = there.querySelector(".cell");
    if (next) return focusCell(event.currentTarget, next);
  }
}

function focusCell(grid, next) {
  for (const one of grid.querySelectorAll('.cell[tabindex="0"]')) one.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
}

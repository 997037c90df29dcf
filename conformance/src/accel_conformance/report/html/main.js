// The page, from its parts.

const THEMES = { "": "as the system", dark: "dark", light: "light" };

function themeButton() {
  const names = Object.keys(THEMES);
  const button = h("button", { type: "button", class: "theme", onclick: () => apply(names[(names.indexOf(now()) + 1) % names.length]) });
  const now = () => document.documentElement.dataset.theme ?? "";
  function apply(theme) {
    document.documentElement.dataset.theme = theme;
    button.textContent = { "": "◐ Auto", dark: "● Dark", light: "○ Light" }[theme];
    button.setAttribute("aria-label", `colours: ${THEMES[theme]}`);
    try {
      localStorage.setItem("accel-theme", theme);
    } catch {
      // A page from a file may have nowhere to keep it.
    }
  }
  let kept = "";
  try {
    kept = localStorage.getItem("accel-theme") ?? "";
  } catch {
    // As above.
  }
  apply(kept in THEMES ? kept : "");
  return button;
}

function main() {
  const parts = REPORT ? [matrix(), caseList(), budgets(), rules(), expectations(), faults()] : [faults()];
  const sections = parts.filter(Boolean);
  const links = sections.map((one) => h("a", { href: `#${one.id}` }, one.id.replace("-", " ")));
  const foot = REPORT && h("footer", { class: "soft" }, "The same as data: ", h("code", {}, "report.json"), `, schema ${REPORT.schema}. Keys: / searches, Escape clears, arrows walk the matrix and the plot.`);
  document.body.append(
    h("nav", { "aria-label": "sections" }, h("div", {}, h("span", { class: "links" }, links), themeButton())),
    h("main", {}, head(), sections, foot));
}

main();

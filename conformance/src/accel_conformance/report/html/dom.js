// Elements and words. Whatever is shown goes through here as text, never as markup.

const SVG = "http://www.w3.org/2000/svg";

/** An element: functions among `props` are listeners, null and false are left out. */
function h(tag, props = {}, ...children) {
  return fill(document.createElement(tag), props, children);
}

function svg(tag, props = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), props, children);
}

function fill(element, props, children) {
  for (const [name, value] of Object.entries(props)) {
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.flat(Infinity).filter((c) => c !== null && c !== undefined && c !== false));
  return element;
}

function section(id, heading, says, ...children) {
  const title = h("h2", { id: `${id}-title`, tabindex: "-1" }, heading);
  return h("section", { id, "aria-labelledby": `${id}-title` }, title, says && h("p", { class: "soft" }, says), ...children);
}

/** Pairs of terms and what there is to say; pairs without it are left out. */
function definitions(kind, pairs) {
  const given = pairs.filter(([, said]) => said !== null && said !== undefined && said !== "" && said.length !== 0);
  return h("dl", { class: kind }, given.map(([term, said]) => h("div", {}, h("dt", {}, term), h("dd", {}, said))));
}

/** A command in one line, and a button that copies it. */
function command(text) {
  const button = h("button", { class: "copy", type: "button" }, "Copy");
  button.addEventListener("click", async () => {
    button.textContent = (await copied(text)) ? "Copied" : "Select it";
    setTimeout(() => (button.textContent = "Copy"), 2500);
  });
  return h("div", { class: "command" }, h("code", { tabindex: "0" }, text), button);
}

async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = h("textarea", { readonly: true });
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy"); // where a page from a file may not use the clipboard
    area.remove();
    return done;
  }
}

const thousands = new Intl.NumberFormat("en");
const count = (number) => thousands.format(number);
const plural = (number, word) => `${count(number)} ${word}${number === 1 ? "" : "s"}`;

/** A share of a budget in three digits; what no number says (1e9) in words. */
function percent(share) {
  if (share >= 1e9) return "beyond any";
  if (share > 10) return `× ${share >= 1e4 ? share.toExponential(0) : count(Math.round(share))}`;
  return `${Number((share * 100).toPrecision(share < 0.1 ? 2 : 3))}%`;
}

function seconds(value) {
  if (value >= 90) return `${Math.floor(value / 60)} min ${Math.round(value % 60)} s`;
  return value >= 1 ? `${value.toFixed(1)} s` : `${Number((value * 1000).toPrecision(2))} ms`;
}

function bytes(number) {
  const units = ["bytes", "KiB", "MiB", "GiB", "TiB"];
  const unit = Math.min(Math.floor(Math.log2(Math.max(number, 1)) / 10), units.length - 1);
  return `${Number((number / 1024 ** unit).toPrecision(3))} ${units[unit]}`;
}

/** A fact of a device: lists and tables on one line. */
function words(value) {
  if (Array.isArray(value)) return value.map(words).join(", ");
  if (value && typeof value === "object") return Object.entries(value).map(([k, v]) => `${k} ${words(v)}`).join(", ");
  return String(value);
}

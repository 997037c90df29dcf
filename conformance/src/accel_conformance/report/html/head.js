// The head: who was tested, what came out, on what, by which versions.

function head() {
  const passed = (REPORT || SELF_TEST).verdict === "passed";
  const word = REPORT ? (passed ? "conforms" : "does not conform") : passed ? "holds" : "does not hold";
  const name = REPORT ? h("span", { class: "name" }, REPORT.plugin.backend) : "The suite";
  const verdict = h("span", { class: `verdict ${passed ? "passed" : "failed"}` }, word);
  return h("header", {},
    h("p", { class: "eyebrow" }, "accel conformance"),
    h("h1", {}, name, " ", verdict),
    REPORT && [lead(), totals(), facts(), moreOfDevice()]);
}

function lead() {
  const { plugin, device, seconds: took } = REPORT;
  return h("p", { class: "lead" }, `${plugin.distribution} on ${device.name}: ${plural(CASES.length, "case")} in ${seconds(took)}.`);
}

/** A bar, and a button for each outcome there is, which lists its cases. */
function totals() {
  const counts = new Map(Object.keys(OUTCOMES).map((o) => [o, REPORT.totals[o]]).filter(([, number]) => number));
  const buttons = [...counts].map(([outcome, number]) =>
    h("button", { type: "button", class: `total ${outcome}`, "data-outcome": outcome, onclick: () => filters.set({ outcome }) },
      h("b", {}, OUTCOMES[outcome][0], " ", count(number)), ` ${outcome}`, h("small", {}, OUTCOMES[outcome][1])));
  const stale = REPORT.expectations.problems.length;
  return h("div", { class: "totals" }, mixture(counts), h("div", { class: "buttons" }, buttons,
    stale > 0 && h("a", { class: "total failed", href: "#expectations" }, h("b", {}, `✗ ${count(stale)}`), " stale",
      h("small", {}, "expectations that no longer hold"))));
}

function facts() {
  const { plugin, device, core, suite, software, selection, expectations, started } = REPORT;
  const when = started.replace("T", " ").replace(/\+00:00$/, " UTC");
  const asked = ["ops", "impls", "dtypes", "cases"].filter((kind) => selection[kind]);
  return definitions("facts", [
    ["Backend", [plugin.distribution, h("small", {}, [plugin.vendor, `device type ${plugin.device_type}`].filter(Boolean).join(", "))]],
    ["Device", [device.name, h("small", {},
      [device.total_memory !== null && bytes(device.total_memory),
        device.compute_units !== null && plural(device.compute_units, "compute unit"),
        device.count !== 1 && plural(device.count, "device")].filter(Boolean).join(", "))]],
    ["Computes in", device.dtypes.join(", ")],
    ["Versions", [`torch ${software.torch}, Python ${software.python}`,
      h("small", {}, `accel ${core.version}, suite ${suite.version}, numpy ${software.numpy}`)]],
    ["Run", [`${selection.profile ? `profile ${selection.profile}` : "every profile"}, level ${selection.level}`,
      selection.seed === undefined ? "" : `, seed ${selection.seed}`, h("small", {}, when)]],
    ["System", software.system],
    ["Expectations", expectations.file],
    ...asked.map((kind) => [`Only ${kind === "impls" ? "implementations" : kind}`, selection[kind].join(", ")]),
  ]);
}

function moreOfDevice() {
  const details = Object.entries(REPORT.device.details || {});
  return details.length > 0 && h("details", { class: "more" }, h("summary", {}, "More about the device"),
    definitions("facts", details.map(([name, value]) => [name.replaceAll("_", " "), words(value)])));
}

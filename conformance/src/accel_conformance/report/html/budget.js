// The plot of error budgets: a lane for each op and dtype, a point for each case that was measured.

const LANE = 15;
const NARROW = 560; // of the plot, where names of ops stand above their lanes
const SPREAD = [0, 3, -3, 1.5, -1.5, 4, -4]; // of points that would hide each other

function budgets() {
  const measured = CASES.filter((one) => used(one) !== null);
  if (!measured.length) return null;
  const figure = h("figure", { class: "plot" });
  const tip = h("div", { class: "tip", role: "status", hidden: true });
  let share = "largest";
  let plot = null;

  function draw() {
    const width = figure.clientWidth;
    if (!width) return;
    plot = drawn(measured.filter((one) => used(one, share) !== null), share, width);
    hide();
    figure.replaceChildren(plot.element, tip);
    for (const pointed of ["pointermove", "pointerdown"]) plot.element.addEventListener(pointed, point);
    for (const left of ["pointerleave", "blur"]) plot.element.addEventListener(left, hide);
    plot.element.addEventListener("click", list);
    plot.element.addEventListener("keydown", keyed);
  }

  function point(event) {
    const found = near(plot, event);
    if (found) show(found);
    else hide();
  }

  function list(event) {
    const found = plot.chosen ?? near(plot, event); // a finger has left before it clicks
    if (found) filters.set({ id: found.one.id });
  }

  function show(point) {
    plot.chosen = point;
    plot.ring.setAttribute("cx", point.x);
    plot.ring.setAttribute("cy", point.y);
    plot.ring.removeAttribute("visibility");
    tip.hidden = false;
    tip.replaceChildren(h("b", {}, percent(point.share)), ` of the ${share === "largest" ? "error" : budgetName(share)} budget`, h("span", {}, point.one.id));
    tip.style.left = `${Math.max(0, Math.min(point.x + 12, figure.clientWidth - tip.offsetWidth))}px`;
    tip.style.top = `${point.y + 14}px`;
  }

  function hide() {
    tip.hidden = true;
    if (plot) plot.chosen = null;
    plot?.ring.setAttribute("visibility", "hidden");
  }

  /** Up and down to other lanes, left and right to other points, Enter to the case. */
  function keyed(event) {
    const from = plot.chosen;
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (event.key === "Enter") return list(event);
    if (!step) return undefined;
    event.preventDefault();
    if (!from) return show(plot.lanes[0].points.at(-1));
    const lane = plot.lanes.indexOf(from.lane);
    const along = event.key === "ArrowLeft" || event.key === "ArrowRight";
    const next = along ? from.lane.points[from.lane.points.indexOf(from) + step] : plot.lanes[lane + step]?.points.at(-1);
    return next && show(next);
  }

  new ResizeObserver(([entry]) => {
    if (plot?.width !== Math.floor(entry.contentRect.width)) draw();
  }).observe(figure);
  return section("budgets", "Error budgets",
    "The share of its error budget that each case used: against float64, on a logarithmic axis, with half of the cases of each lane in the box. At 1 a budget is all used.",
    h("div", { class: "segments", role: "radiogroup", "aria-label": "which budget" },
      ["largest", ...SHARES].map((one) => h("label", {},
        h("input", { type: "radio", name: "share", value: one, checked: one === share, onchange: () => draw((share = one)) }),
        h("span", {}, one === "largest" ? "largest" : budgetName(one))))),
    figure);
}

function drawn(cases, share, width) {
  const narrow = width < NARROW;
  const scale = decades(cases.map((one) => used(one, share)), narrow ? 62 : 190, width - 1);
  const element = svg("svg", { width, role: "img", tabindex: "0", "aria-label": "shares of error budgets by op and dtype; arrow keys go from point to point" });
  const lanes = [];
  let y = 30;
  for (const [op, ofOp] of grouped(cases, (one) => one.op ?? one.area)) {
    element.append(svg("text", { class: "op", x: 0, y: narrow ? y + 11 : y + 12 }, op));
    if (narrow) y += 18;
    for (const [dtype, some] of grouped(ofOp, (one) => one.dtype ?? "")) {
      lanes.push(lane(some, share, scale, y + LANE / 2));
      element.append(svg("text", { class: "dtype", x: scale.left - 6, y: y + 11 }, dtype), lanes.at(-1).element);
      y += LANE;
    }
    y += 9;
  }
  element.prepend(...ground(scale, y));
  element.setAttribute("height", y + 24);
  const ring = svg("circle", { class: "ring", r: 5, visibility: "hidden" });
  element.append(ring);
  return { element, lanes, ring, width, chosen: null };
}

/** Grid, limit, and what the ends of the axis mean. */
function ground(scale, bottom) {
  const limit = scale.ticks.find((tick) => tick.limit);
  const axis = (y) => [...scale.ticks, { x: scale.less, says: "<" }, { x: scale.more, says: ">" }]
    .map((tick) => svg("text", { class: tick.limit ? "tick limit" : "tick", x: tick.x, y }, tick.limit ? "limit 1" : tick.says));
  return [
    svg("rect", { class: "over", x: limit.x, y: 20, width: scale.right - limit.x, height: bottom - 20 }),
    ...scale.ticks.map((tick) => svg("line", { class: tick.limit ? "grid limit" : "grid", x1: tick.x, x2: tick.x, y1: 20, y2: bottom })),
    ...axis(13), ...axis(bottom + 16),
  ];
}

function lane(cases, share, scale, y) {
  const self = {};
  const sorted = cases.map((one) => ({ one, share: used(one, share) })).sort((a, b) => a.share - b.share);
  self.points = sorted.map((point, i) => ({ ...point, lane: self, x: scale.at(point.share), y: y + SPREAD[i % SPREAD.length] }));
  const [low, middle, high] = quartiles(sorted.map((point) => scale.at(point.share)));
  const dots = (points) => points.map((point) => `M${point.x.toFixed(1)} ${point.y}h0`).join("");
  self.y = y;
  self.element = svg("g", { class: "lane" },
    svg("line", { class: "base", x1: scale.left, x2: scale.right, y1: y, y2: y }),
    svg("rect", { class: "box", x: low, y: y - 5, width: Math.max(high - low, 1), height: 10, rx: 2 }),
    svg("path", { class: "dots", d: dots(self.points.filter((point) => point.share <= LIMIT)) }),
    svg("path", { class: "dots out", d: dots(self.points.filter((point) => point.share > LIMIT)) }),
    svg("line", { class: "median", x1: middle, x2: middle, y1: y - 5, y2: y + 5 }));
  return self;
}

/** The point under the pointer, if there is one. */
function near(plot, event) {
  const box = plot.element.getBoundingClientRect();
  const [x, y] = [event.clientX - box.left, event.clientY - box.top];
  const distance = (point) => Math.hypot(point.x - x, point.y - y);
  const close = plot.lanes.filter((one) => Math.abs(one.y - y) <= LANE).flatMap((one) => one.points);
  const best = close.reduce((a, b) => (a && distance(a) <= distance(b) ? a : b), null);
  return best && distance(best) < 10 ? best : null;
}

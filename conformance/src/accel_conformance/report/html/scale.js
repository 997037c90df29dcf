// The axis of the error budgets: decades of a share, and at its ends what is less or more.

const LIMIT = 1;
const EDGE = 40; // pixels at either end
const APART = 46; // pixels that the name of a decade needs

/** From shares to pixels between `left` and `right`. */
function decades(shares, left, right) {
  const smallest = Math.max(1e-4, shares.filter((share) => share > 0).reduce((a, b) => Math.min(a, b), 0.01));
  const largest = Math.min(100, shares.reduce((a, b) => Math.max(a, b), LIMIT));
  const lowest = Math.floor(Math.log10(smallest));
  const highest = Math.ceil(Math.log10(largest));
  const per = (right - left - 2 * EDGE) / (highest - lowest);
  const ends = { less: left + EDGE / 4, more: right - EDGE / 4 };
  const at = (share) => {
    if (share < 10 ** lowest) return ends.less;
    if (share > 10 ** highest) return ends.more;
    return left + EDGE + (Math.log10(share) - lowest) * per;
  };
  const ticks = [];
  const every = Math.ceil(APART / per);
  for (let decade = lowest; decade <= highest; decade++) {
    ticks.push({ x: at(10 ** decade), says: decade % every ? "" : tickName(decade), limit: decade === 0 });
  }
  return { at, ticks, ...ends, left, right };
}

function tickName(decade) {
  if (decade === 0) return "1";
  return decade > 0 ? String(10 ** decade) : (10 ** decade).toFixed(-decade);
}

/** Quartiles of sorted numbers. */
function quartiles(sorted) {
  const at = (part) => sorted[Math.round((sorted.length - 1) * part)];
  return [at(0.25), at(0.5), at(0.75)];
}

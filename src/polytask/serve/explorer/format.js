// How numbers are written.

const MINUS = "\u2212";
const KINDS = { binary: "probability", regression: "value", ranking: "rank score" };

/** What a task of this kind predicts, in words. */
export function meaning(kind) {
  return KINDS[kind] ?? "value";
}

/** A prediction of a task: a probability in percent, anything else with three digits; a dash for none. */
export function prediction(value, kind) {
  return value === null || value === undefined ? "–" : minus(plain(value, kind, value));
}

/** A change to `now` with its sign and the decimals of `now`; "no change" where no digit of it would show. */
export function change(value, now, kind) {
  const text = plain(Math.abs(value), kind, now);
  if (!/[1-9]/.test(text)) return "no change";
  return (value > 0 ? "+" : MINUS) + text.replace("%", " pp"); // percentage points
}

/** A metric or score with four digits. */
export function score(value) {
  return value === null || value === undefined ? "–" : minus(digits(value, 4));
}

/** A score with its sign. */
export function signed(value) {
  return value > 0 ? `+${score(value)}` : score(value);
}

/** A whole number with thin gaps between thousands. */
export function count(value) {
  return value === null || value === undefined ? "–" : value.toLocaleString("en").replaceAll(",", "\u202f");
}

function plain(value, kind, scale) {
  return kind === "binary" ? `${digits(value * 100, 3, scale * 100)}%` : digits(value, 3, scale);
}

/** `value` with the decimals that give `scale` that many digits. */
function digits(value, wanted, scale = value) {
  const size = Math.abs(scale);
  if (size >= 1e6 || (size > 0 && size < 1e-6)) return value.toExponential(2);
  const order = size > 0 ? Math.floor(Math.log10(size)) + 1 : 1;
  return value.toFixed(Math.max(0, wanted - (order === 0 ? 1 : order)));
}

function minus(text) {
  return /^-[0.]*%?$/.test(text) ? text.slice(1) : text.replace(/^-/, MINUS);
}

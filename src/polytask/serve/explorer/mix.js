// Mixes that sliders can set: products of powers (a ** 0.5 * b) and weighted sums (0.7 * a + 0.3 * b).
// Anything else a mix may say is for the server to read; here it is "neither".

const TOKEN = /\s*(?:(`(?:[^`]|``)*`)|([\p{L}_][\p{L}\p{N}_]*)|((?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)|(\*\*|[*+\-]))/uy;
const IDENTIFIER = /^[A-Za-z_][A-Za-z0-9_]*$/;

/** A task's name as a mix writes it: in backticks unless it is an identifier. */
export function written(name) {
  return IDENTIFIER.test(name) ? name : `\`${name.replaceAll("`", "``")}\``;
}

/**
 * `{ form: "powers" | "sum", weights: Map }` of a mix over `tasks`, 0 for those it leaves out; null for neither. The
 * name of one task alone is of both forms, and read as `usual`.
 */
export function parse(text, tasks, usual = "powers") {
  const tokens = tokenize(text);
  if (!tokens || !tokens.length) return null;
  const forms = [
    ["powers", powers(tokens)],
    ["sum", sum(tokens)],
  ].filter(([, f]) => f);
  const [form, found] = forms.find(([name]) => name === usual) ?? forms[0] ?? [null, null];
  if (!found || found.some(([name]) => !tasks.includes(name))) return null;
  const weights = new Map(found);
  if (weights.size !== found.length) return null;
  for (const task of tasks) if (!weights.has(task)) weights.set(task, 0);
  return { form, weights };
}

/** The mix that gives each task of `weights` (a Map) its exponent or weight. */
export function write(form, weights) {
  const used = [...weights].filter(([, weight]) => weight !== 0);
  const [first] = weights.keys();
  if (form === "powers") {
    if (!used.length) return `${written(first)} ** 0`;
    return used.map(([name, w]) => (w === 1 ? written(name) : `${written(name)} ** ${number(w)}`)).join(" * ");
  }
  if (!used.length) return `0 * ${written(first)}`;
  const terms = used.map(([name, w]) => `${w < 0 ? "-" : "+"} ${factor(w)}${written(name)}`).join(" ");
  return terms.replace(/^\+ /, "").replace(/^- /, "-");
}

/** How far two mixes of one form are apart, 0 to 2; scaling all exponents or weights alike changes no order. */
export function distance(one, other) {
  const [a, b] = [one, other].map(({ weights }) => {
    const size = Math.hypot(...weights.values()) || 1;
    return new Map([...weights].map(([name, w]) => [name, w / size]));
  });
  return Math.hypot(...[...a].map(([name, w]) => w - (b.get(name) ?? 0)));
}

/** The form of most of `mixes`, for sliders over tasks whose default mix does not tell. */
export function commonForm(mixes, tasks) {
  const found = mixes.map((mix) => [parse(mix, tasks, "powers")?.form, parse(mix, tasks, "sum")?.form]);
  const sums = found.filter(([a, b]) => a === "sum" && b === "sum").length;
  return sums > found.filter(([a, b]) => a === "powers" && b === "powers").length ? "sum" : "powers";
}

function factor(value) {
  return Math.abs(value) === 1 ? "" : `${number(Math.abs(value))} * `;
}

function number(value) {
  return String(Number(value.toFixed(4)));
}

function tokenize(text) {
  const found = [];
  TOKEN.lastIndex = 0;
  const end = text.trimEnd().length;
  while (TOKEN.lastIndex < end) {
    const match = TOKEN.exec(text);
    if (!match) return null;
    const [, ticked, word, digits, sign] = match;
    if (ticked !== undefined) found.push({ name: ticked.slice(1, -1).replaceAll("``", "`") });
    else if (word !== undefined) found.push({ name: word });
    else if (digits !== undefined) found.push({ number: Number(digits) });
    else found.push({ sign });
  }
  return found;
}

function powers(tokens) {
  const factors = [[]];
  for (const token of tokens) {
    if (token.sign === "*") factors.push([]);
    else factors.at(-1).push(token);
  }
  const read = factors.map(power);
  return read.includes(null) ? null : read;
}

function power([base, raise, ...exponent]) {
  if (base?.name === undefined) return null;
  if (raise === undefined) return [base.name, 1];
  const value = raise.sign === "**" ? signed(exponent) : null;
  return value === null ? null : [base.name, value];
}

function sum(tokens) {
  const terms = [{ times: 1, rest: [] }];
  for (const token of tokens) {
    const times = { "+": 1, "-": -1 }[token.sign];
    if (times === undefined) terms.at(-1).rest.push(token);
    else if (token === tokens[0]) terms[0].times = times;
    else terms.push({ times, rest: [] });
  }
  const read = terms.map(term);
  return read.includes(null) ? null : read;
}

function term({ times, rest: [one, star, two, ...more] }) {
  if (one === undefined || more.length) return null;
  if (star === undefined) return one.name === undefined ? null : [one.name, times];
  const [factor, task] = one.number === undefined ? [two, one] : [one, two];
  if (star.sign !== "*" || factor?.number === undefined || task?.name === undefined) return null;
  return [task.name, times * factor.number];
}

function signed(tokens) {
  const negative = tokens[0]?.sign === "-";
  const rest = negative ? tokens.slice(1) : tokens;
  return rest.length === 1 && rest[0].number !== undefined ? (negative ? -1 : 1) * rest[0].number : null;
}

// A small reader of Markdown: headings, paragraphs, lists, tables, code and quotes, built of elements and text only.

import { element, visible } from "./elements.js";

const LOWEST = 6;
const INLINE = /\\([\\<>[\]()*_`#|.!+-])|`([^`]+)`|\*\*([^*]+)\*\*|\*([^*\s][^*]*)\*|\[([^\]]*)\]\(([^()\s]+)\)/g;
const ITEM = /^(\s*)(?:[-*+]|(\d+)[.)])\s+(.*)$/;
const BREAKS = /^(#{1,6}\s|```|~~~|>|\s*(?:[-*+]|\d+[.)])\s|\s*$)/;

/** The elements of a Markdown text; its headings begin `under` levels lower. A YAML block in front is left out. */
export function markdown(text, under = 2) {
  const lines = text
    .replace(/\r\n?/g, "\n")
    .replace(/^---\n[\s\S]*?\n---\n/, "")
    .split("\n");
  const found = [];
  for (let at = 0; at < lines.length;) {
    const [node, next] = block(lines, at, under);
    if (node) found.push(node);
    at = next;
  }
  return found;
}

function block(lines, at, under) {
  const line = lines[at];
  const heading = /^(#{1,6})\s+(.*?)\s*#*$/.exec(line);
  if (!line.trim()) return [null, at + 1];
  if (heading) return [element(`h${Math.min(LOWEST, heading[1].length + under)}`, {}, ...inline(heading[2])), at + 1];
  if (/^(```|~~~)/.test(line)) return code(lines, at);
  if (/^(\s*[-*_]){3,}\s*$/.test(line)) return [element("hr"), at + 1];
  if (line.includes("|") && /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/.test(lines[at + 1] ?? ""))
    return table(lines, at);
  if (ITEM.test(line)) return list(lines, at);
  if (line.startsWith(">")) return quote(lines, at, under);
  return paragraph(lines, at);
}

function code(lines, at) {
  const fence = lines[at].slice(0, 3);
  const end = lines.findIndex((line, n) => n > at && line.startsWith(fence));
  const body = lines
    .slice(at + 1, end < 0 ? lines.length : end)
    .map(visible)
    .join("\n");
  return [element("pre", { tabindex: "0" }, element("code", {}, body)), end < 0 ? lines.length : end + 1];
}

function table(lines, at) {
  let end = at + 2;
  while (end < lines.length && lines[end].includes("|")) end += 1;
  const right = cells(lines[at + 1]).map((rule) => rule.endsWith(":"));
  const row = (line, tag) =>
    element(
      "tr",
      {},
      ...cells(line).map((text, n) => {
        const scope = tag === "th" ? "col" : null;
        return element(tag, { scope, class: right[n] ? "right" : null }, ...inline(text));
      }),
    );
  const body = lines.slice(at + 2, end).map((line) => row(line, "td"));
  const made = element("table", {}, element("thead", {}, row(lines[at], "th")), element("tbody", {}, ...body));
  return [element("div", { class: "wide", tabindex: "0", role: "region", "aria-label": "Table" }, made), end];
}

function cells(line) {
  const inner = line
    .trim()
    .replace(/^\|/, "")
    .replace(/(?<!\\)\|$/, "");
  return inner.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}

function list(lines, at) {
  const numbered = ITEM.exec(lines[at])[2] !== undefined;
  const node = element(numbered ? "ol" : "ul");
  let text = null;
  const close = () => text && node.append(element("li", {}, ...inline(text)));
  let end = at;
  for (; end < lines.length; end += 1) {
    const item = ITEM.exec(lines[end]);
    if (item) {
      close();
      text = item[3];
    } else if (/^\s+\S/.test(lines[end])) text += ` ${lines[end].trim()}`;
    else break;
  }
  close();
  return [node, end];
}

function quote(lines, at, under) {
  let end = at;
  while (end < lines.length && lines[end].startsWith(">")) end += 1;
  const inner = lines
    .slice(at, end)
    .map((line) => line.replace(/^>\s?/, ""))
    .join("\n");
  return [element("blockquote", {}, ...markdown(inner, under)), end];
}

function paragraph(lines, at) {
  let end = at + 1;
  while (end < lines.length && !BREAKS.test(lines[end])) end += 1;
  return [element("p", {}, ...inline(lines.slice(at, end).join(" "))), end];
}

function inline(text) {
  const nodes = [];
  let from = 0;
  for (const match of text.matchAll(INLINE)) {
    const [whole, escaped, ticked, strong, stressed, label, address] = match;
    nodes.push(visible(text.slice(from, match.index)));
    if (escaped !== undefined) nodes.push(escaped);
    else if (ticked !== undefined) nodes.push(element("code", {}, visible(ticked)));
    else if (strong !== undefined) nodes.push(element("strong", {}, ...inline(strong)));
    else if (stressed !== undefined) nodes.push(element("em", {}, ...inline(stressed)));
    else nodes.push(link(label, address));
    from = match.index + whole.length;
  }
  nodes.push(visible(text.slice(from)));
  return nodes;
}

/** A link to the web; any other address (a script's, a file's) stays text. */
function link(label, address) {
  if (!/^https?:\/\//i.test(address)) return visible(`${label} (${address})`);
  return element("a", { href: address, rel: "noreferrer noopener", target: "_blank" }, visible(label));
}

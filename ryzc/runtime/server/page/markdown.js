// Markdown to HTML. Everything is escaped before any mark is looked at, so that no text of a model can become a tag;
// the marks themselves make only the elements that are written out here.

const ESCAPES = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" };

export function escape(text) {
  return text.replace(/[&<>"']/g, (character) => ESCAPES[character]);
}

// Inline marks of a text that is escaped already. Code and links are taken out first: what is in them has no marks.
function inline(text) {
  const kept = [];
  const keep = (html) => `\u0000${kept.push(html) - 1}\u0000`;
  text = text.replace(/\u0000/g, "");
  text = text.replace(/(`+)(.+?)\1(?!`)/g, (_, ticks, code) => keep(`<code>${code.trim() || code}</code>`));
  text = text.replace(/\\([\\`*_{}[\]()#+\-.!|~])/g, (_, character) => keep(character));
  text = text.replace(/!?\[([^\]]*)\]\(\s*((?:[^()\s]|\([^()\s]*\))+)(?:\s+&quot;.*?&quot;)?\s*\)/g, (whole, label, url) =>
    /^(https?:\/\/|mailto:)/i.test(url) ? keep(link(url, marks(label) || url)) : whole);
  text = text.replace(/(?<![\w"=/])https?:\/\/[^\s<\u0000]+[^\s<\u0000.,;:!?)\]*_]/g, (url) => keep(link(url, url)));
  text = marks(text);
  for (let round = 0; round < 4 && text.includes("\u0000"); round++) {
    text = text.replace(/\u0000(\d+)\u0000/g, (_, number) => kept[number] ?? "");
  }
  return text;
}

function link(url, label) {
  return `<a href="${url}" target="_blank" rel="noopener noreferrer nofollow">${label}</a>`;
}

function marks(text) {
  return text
    .replace(/\*\*\*(?=\S)(.+?)(?<=\S)\*\*\*/g, "<strong><em>$1</em></strong>")
    .replace(/\*\*(?=\S)(.+?)(?<=\S)\*\*/g, "<strong>$1</strong>")
    .replace(/(?<!\w)__(?=\S)(.+?)(?<=\S)__(?!\w)/g, "<strong>$1</strong>")
    .replace(/\*(?=[^\s*])(.+?)(?<=[^\s*])\*/g, "<em>$1</em>")
    .replace(/(?<!\w)_(?=[^\s_])(.+?)(?<=[^\s_])_(?!\w)/g, "<em>$1</em>")
    .replace(/~~(?=\S)(.+?)(?<=\S)~~/g, "<del>$1</del>");
}

const FENCE = /^( {0,3})(`{3,}|~{3,})\s*([^\s`]*)[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*$/;
const RULE = /^ {0,3}([-*_])(\s*\1){2,}\s*$/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const QUOTE = /^ {0,3}> ?(.*)$/;
const TABLE = /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;

export function markdown(source) {
  return blocks(source.replace(/\r\n?/g, "\n").split("\n"), 0);
}

function blocks(lines, depth) {
  let html = "";
  let at = 0;
  if (depth > 8) return `<p>${inline(escape(lines.join(" ")))}</p>`;
  while (at < lines.length) {
    const line = lines[at];
    let found;
    if (!line.trim()) {
      at++;
    } else if ((found = FENCE.exec(line))) {
      const [, indent, fence, language] = found;
      const end = new RegExp(`^ {0,3}\\${fence[0]}{${fence.length},}\\s*$`);
      const body = [];
      for (at++; at < lines.length && !end.test(lines[at]); at++) body.push(lines[at].replace(new RegExp(`^ {0,${indent.length}}`), ""));
      at++;
      html += code(body.join("\n"), language);
    } else if ((found = HEADING.exec(line))) {
      html += `<h${found[1].length}>${inline(escape(found[2]))}</h${found[1].length}>`;
      at++;
    } else if (RULE.test(line)) {
      html += "<hr>";
      at++;
    } else if (QUOTE.test(line)) {
      const body = [];
      while (at < lines.length && (found = QUOTE.exec(lines[at]))) { body.push(found[1]); at++; }
      html += `<blockquote>${blocks(body, depth + 1)}</blockquote>`;
    } else if (ITEM.test(line)) {
      [found, at] = list(lines, at, depth);
      html += found;
    } else if (line.includes("|") && at + 1 < lines.length && lines[at + 1].includes("-") && TABLE.test(lines[at + 1])) {
      [found, at] = table(lines, at);
      html += found;
    } else {
      const body = [];
      while (at < lines.length && lines[at].trim() && !(body.length && starts(lines[at]))) body.push(lines[at++].trim());
      html += `<p>${body.map((part) => inline(escape(part))).join("<br>")}</p>`;
    }
  }
  return html;
}

function starts(line) {
  return FENCE.test(line) || HEADING.test(line) || RULE.test(line) || ITEM.test(line) || QUOTE.test(line);
}

function code(text, language) {
  const name = escape(language.slice(0, 30));
  return `<figure class="code"><figcaption><span>${name}</span><button type="button" class="copy-code">Copy</button></figcaption>` +
    `<pre><code>${escape(text)}</code></pre></figure>`;
}

function list(lines, at, depth) {
  const [, indent, mark] = ITEM.exec(lines[at]);
  const ordered = /\d/.test(mark);
  const items = [];
  let loose = false;
  while (at < lines.length) {
    const found = ITEM.exec(lines[at]);
    if (found && found[1].length <= indent.length + 1 && /\d/.test(found[2]) === ordered) {
      items.push([found[3]]);
      at++;
      continue;
    }
    const blank = !lines[at].trim();
    const inside = /^\s/.test(lines[at]) && lines[at].search(/\S/) > indent.length;
    const next = lines[at + 1] ?? "";
    if (blank && (/^\s+\S/.test(next) && next.search(/\S/) > indent.length || ITEM.test(next) && ITEM.exec(next)[1].length <= indent.length + 1)) {
      items.at(-1).push("");
      loose ||= !ITEM.test(next);
    } else if (!blank && (inside || !starts(lines[at]) && lines[at - 1].trim())) {
      items.at(-1).push(lines[at]);
    } else {
      break;
    }
    at++;
  }
  const body = items.map((item) => {
    const rest = item.slice(1);
    const margins = rest.filter((line) => line.trim()).map((line) => line.search(/\S/));
    const margin = Math.min(...margins, 80);
    let inner = blocks([item[0], ...rest.map((line) => line.slice(Math.min(margin, Math.max(line.search(/\S/), 0))))], depth + 1);
    if (!loose) inner = inner.replace(/^<p>(.*?)<\/p>/s, "$1");
    return `<li>${inner.replace(/^\[( |x)\]\s/i, (_, done) => `<input type="checkbox" disabled${done === " " ? "" : " checked"}> `)}</li>`;
  });
  const start = ordered && parseInt(mark, 10) !== 1 ? ` start="${parseInt(mark, 10)}"` : "";
  return [ordered ? `<ol${start}>${body.join("")}</ol>` : `<ul>${body.join("")}</ul>`, at];
}

function table(lines, at) {
  const cells = (line) => line.trim().replace(/^\|/, "").replace(/\|$/, "").split(/(?<!\\)\|/).map((cell) => cell.trim().replace(/\\\|/g, "|"));
  const head = cells(lines[at]);
  const aligns = cells(lines[at + 1]).map((cell) => (/^:.*:$/.test(cell) ? "center" : /:$/.test(cell) ? "right" : ""));
  const row = (line, tag) => `<tr>${head.map((_, i) => `<${tag}${aligns[i] ? ` class="${aligns[i]}"` : ""}>${inline(escape(cells(line)[i] ?? ""))}</${tag}>`).join("")}</tr>`;
  let html = `<div class="table"><table><thead>${row(lines[at], "th")}</thead><tbody>`;
  for (at += 2; at < lines.length && lines[at].includes("|"); at++) html += row(lines[at], "td");
  return [`${html}</tbody></table></div>`, at];
}

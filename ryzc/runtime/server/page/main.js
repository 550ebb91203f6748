// The chat: what is shown, and what happens when something is pressed.

import { answer, models, props } from "./api.js";
import { markdown } from "./markdown.js";
import { Store } from "./store.js";

const $ = (id) => document.getElementById(id);
const store = new Store();
const NUMBERS = ["temperature", "top_p", "top_k", "min_p", "repeat_penalty", "seed", "max_tokens"];
const IDEAS = ["Explain in three sentences how a CPU cache works.", "Write a haiku about rain on a tin roof.", "Give me a Python function that checks whether a number is prime.", "What are good questions to ask before buying a used bicycle?"];
let running = null;
let following = true;

// --- elements -------------------------------------------------------------------------------------

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("class", "icon");
  svg.innerHTML = `<use href="page/icons.svg#${name}"/>`;
  return svg;
}

function button(name, label, action) {
  const made = make("button", { type: "button", className: "small", title: label, onclick: action }, icon(name));
  made.setAttribute("aria-label", label);
  return made;
}

// --- conversation ---------------------------------------------------------------------------------

function show() {
  const messages = store.current?.messages ?? [];
  $("messages").replaceChildren(...messages.map((message, i) => view(message, i === messages.length - 1)));
  $("empty").hidden = messages.length > 0;
  $("chats").replaceChildren(...store.chats.map(entry));
  document.title = store.current ? `${store.current.title} · ryzc` : "ryzc";
}

function entry(chat) {
  const open = make("button", { type: "button", className: "chat", textContent: chat.title || "Chat", title: chat.title });
  open.onclick = () => { halt(); store.current = chat; following = true; menu(false); show(); toEnd(); };
  const remove = button("bin", "Delete this conversation", () => { if (store.current === chat) halt(); store.remove(chat); show(); });
  const line = make("div", { className: "line" }, open, remove);
  if (chat === store.current) open.setAttribute("aria-current", "true");
  return line;
}

function view(message, last) {
  const body = make("div", { className: "body" });
  const element = make("article", { className: message.role }, body);
  if (message.role === "user") {
    body.textContent = message.content;
    element.append(make("footer", {}, button("copy", "Copy", (event) => copy(message.content, event.currentTarget)), button("pen", "Edit", () => edit(message))));
    return element;
  }
  fill(body, message);
  const footer = make("footer");
  if (message.content) footer.append(button("copy", "Copy", (event) => copy(message.content, event.currentTarget)));
  if (last && running?.message !== message) footer.append(button("again", "Answer again", regenerate));
  if (message.stats) footer.append(make("span", { className: "stats", textContent: message.stats }));
  element.append(footer);
  return element;
}

// Fills an answer's body: thoughts, text, and what went wrong.
function fill(body, message) {
  const waiting = running?.message === message;
  let details = body.querySelector("details");
  if (message.reasoning) {
    if (!details) {
      details = make("details", {}, make("summary"), make("div", { className: "thought" }));
      details.open = waiting;
      body.prepend(details);
    }
    const thinking = waiting && !message.content;
    details.firstChild.textContent = thinking ? "Thinking …" : "Thoughts";
    if (!thinking && details.dataset.thinking) details.open = false;
    details.dataset.thinking = thinking ? "yes" : "";
    details.lastChild.textContent = message.reasoning.trim();
  }
  let text = body.querySelector(".text");
  if (!text) body.append((text = make("div", { className: "text" })));
  text.innerHTML = markdown(message.content);
  text.classList.toggle("waiting", waiting);
  body.querySelector(".failure")?.remove();
  if (message.error) body.append(make("p", { className: "failure", textContent: message.error }));
}

async function send(text) {
  if (running || !text.trim()) return;
  const chat = store.chat(text);
  chat.messages.push({ role: "user", content: text });
  $("input").value = "";
  grow();
  await reply(chat);
}

function regenerate() {
  const chat = store.current;
  if (running || !chat) return;
  while (chat.messages.at(-1)?.role === "assistant") chat.messages.pop();
  if (chat.messages.length) reply(chat);
}

function edit(message) {
  const chat = store.current;
  if (running || !chat) return;
  chat.messages.splice(chat.messages.indexOf(message));
  $("input").value = message.content;
  if (!chat.messages.length) store.remove(chat);
  store.save();
  show();
  grow();
  $("input").focus();
}

async function reply(chat) {
  const message = { role: "assistant", content: "", reasoning: "" };
  const history = chat.messages.filter((m) => !m.error || m.content).map(({ role, content }) => ({ role, content }));
  const { system, key } = store.settings;
  const sent = [...(system ? [{ role: "system", content: system }] : []), ...history];
  chat.messages.push(message);
  running = { message, abort: new AbortController() };
  following = true;
  busy(true);
  show();
  toEnd();
  const begin = performance.now();
  const times = {};
  const body = $("messages").lastElementChild.querySelector(".body");
  const paint = painter(() => { fill(body, message); if (following) toEnd(); });
  const mine = running;
  try {
    const parts = answer({ model: $("model").value, messages: sent, options: options(), key, signal: mine.abort.signal });
    for await (const part of parts) {
      if (part.text || part.thought) {
        times.last = performance.now();
        times.first ??= times.last;
        times.pieces = (times.pieces ?? 0) + 1;
      }
      message.content += part.text ?? "";
      message.reasoning += part.thought ?? "";
      times.reason = part.reason ?? times.reason;
      times.usage = part.usage ?? times.usage;
      if (running === mine) paint();
    }
  } catch (error) {
    if (error.name !== "AbortError") message.error = error instanceof TypeError ? "The server cannot be reached." : error.message;
    else times.reason = "stopped";
  }
  message.stats = statistics(begin, times);
  if (running === mine) {
    running = null;
    busy(false);
  }
  store.save();
  show();
  if (following) toEnd();
}

// At most one painting a frame, however fast the tokens come.
function painter(paint) {
  let asked = false;
  return () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => { asked = false; if (running) paint(); });
  };
}

function statistics(begin, { first, last, usage, reason, pieces }) {
  const parts = [];
  const tokens = usage?.completion_tokens ?? pieces;
  if (tokens) parts.push(`${tokens} tokens`);
  if (tokens > 1 && last > first) parts.push(`${((tokens - 1) / (last - first) * 1000).toFixed(1)} tokens/s`);
  if (first) parts.push(`first after ${first - begin < 1000 ? `${Math.round(first - begin)} ms` : `${((first - begin) / 1000).toFixed(1)} s`}`);
  if (reason === "length") parts.push("cut at the limit");
  if (reason === "stopped") parts.push("stopped");
  return parts.join(" · ");
}

function options() {
  const { thinking, ...given } = store.settings;
  const chosen = Object.fromEntries(NUMBERS.filter((name) => given[name] !== undefined).map((name) => [name, given[name]]));
  return thinking ? { ...chosen, chat_template_kwargs: { enable_thinking: thinking === "on" } } : chosen;
}

function halt() {
  running?.abort.abort();
}

function busy(is) {
  $("stop").hidden = !is;
  $("send").hidden = is;
}

// --- scrolling, growing, copying ------------------------------------------------------------------

function toEnd() {
  $("scroll").scrollTop = $("scroll").scrollHeight;
}

$("scroll").addEventListener("scroll", () => {
  const { scrollTop, clientHeight, scrollHeight } = $("scroll");
  following = scrollTop + clientHeight > scrollHeight - 60;
  $("down").hidden = following;
});
$("down").onclick = () => { following = true; toEnd(); };

function grow() {
  const input = $("input");
  input.style.height = "auto";
  input.style.height = `${Math.min(input.scrollHeight, window.innerHeight * 0.4)}px`;
  $("send").disabled = !input.value.trim();
}

async function copy(text, from) {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // without HTTPS there is no clipboard but this one
    const area = make("textarea", { value: text });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  const before = [...from.childNodes];
  from.replaceChildren(from.classList.contains("copy-code") ? "Copied" : icon("check"));
  setTimeout(() => from.replaceChildren(...before), 1200);
}

$("messages").addEventListener("click", (event) => {
  const pressed = event.target.closest(".copy-code");
  if (pressed) copy(pressed.closest("figure").querySelector("code").textContent, pressed);
});

// --- composer -------------------------------------------------------------------------------------

$("composer").onsubmit = (event) => { event.preventDefault(); send($("input").value); };
$("input").oninput = grow;
$("input").onkeydown = (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing && matchMedia("(pointer: fine)").matches) {
    event.preventDefault();
    send($("input").value);
  }
};
$("stop").onclick = halt;
$("new").onclick = () => { halt(); store.begin(); menu(false); show(); $("input").focus(); };
document.addEventListener("keydown", (event) => { if (event.key === "Escape" && !$("settings").open) halt(); });
$("ideas").append(...IDEAS.map((text) => make("button", { type: "button", textContent: text, onclick: () => send(text) })));

// --- side, theme, settings ------------------------------------------------------------------------

function menu(open) {
  document.body.classList.toggle("menu", open);
}
$("menu").onclick = () => menu(!document.body.classList.contains("menu"));
$("shade").onclick = () => menu(false);

const dark = matchMedia("(prefers-color-scheme: dark)");
function theme() {
  return document.documentElement.dataset.theme ?? (dark.matches ? "dark" : "light");
}
function themed() {
  $("theme").replaceChildren(icon(theme() === "dark" ? "sun" : "moon"));
}
$("theme").onclick = () => {
  document.documentElement.dataset.theme = theme() === "dark" ? "light" : "dark";
  localStorage.setItem("ryzc.theme", theme());
  themed();
};
dark.addEventListener("change", themed);

const form = $("settings").querySelector("form");
$("open-settings").onclick = async () => {
  for (const field of form.elements) if (field.name) field.value = store.settings[field.name] ?? "";
  $("settings").showModal();
  const { default_generation_settings: defaults } = await props($("model").value, store.settings.key).catch(() => ({ default_generation_settings: {} }));
  for (const name of NUMBERS) if (defaults?.[name] != null) form.elements[name].placeholder = defaults[name];
};
form.onsubmit = () => {
  const given = {};
  for (const field of form.elements) {
    if (field.name && field.value !== "") given[field.name] = NUMBERS.includes(field.name) ? Number(field.value) : field.value;
  }
  const key = store.settings.key;
  store.set(given);
  if (given.key !== key) connect();
};
$("reset").onclick = () => { for (const field of form.elements) if (field.name && field.name !== "key") field.value = ""; };
$("settings").addEventListener("click", (event) => { if (event.target === $("settings")) form.requestSubmit(); });

// --- models ---------------------------------------------------------------------------------------

async function connect() {
  try {
    const listed = await models(store.settings.key);
    const before = localStorage.getItem("ryzc.model");
    $("model").replaceChildren(...listed.map(({ id }) => make("option", { value: id, textContent: id })));
    if (listed.some(({ id }) => id === before)) $("model").value = before;
    $("state").textContent = "";
  } catch (error) {
    $("state").textContent = error instanceof TypeError ? "not connected" : error.message;
    if (error instanceof TypeError) setTimeout(connect, 3000);
  }
}
$("model").onchange = () => localStorage.setItem("ryzc.model", $("model").value);

themed();
grow();
show();
toEnd();
connect();

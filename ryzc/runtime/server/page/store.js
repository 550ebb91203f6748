// Conversations and settings, kept in this browser.

const CHATS = "ryzc.chats";
const SETTINGS = "ryzc.settings";

function read(key, otherwise) {
  try {
    return JSON.parse(localStorage.getItem(key)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

export class Store {
  constructor() {
    this.chats = read(CHATS, []).filter((chat) => Array.isArray(chat?.messages));
    this.settings = read(SETTINGS, {});
    this.current = this.chats[0] ?? null;
  }

  begin() {
    this.current = null;
  }

  // The chat that a message goes into: a new one appears in the list with its first message.
  chat(title) {
    if (!this.current) {
      this.current = { id: crypto.randomUUID?.() ?? String(Math.random()), title: title.trim().slice(0, 60), messages: [] };
      this.chats.unshift(this.current);
    }
    return this.current;
  }

  remove(chat) {
    this.chats = this.chats.filter((other) => other !== chat);
    if (this.current === chat) this.current = null;
    this.save();
  }

  // The newest first; where the browser's space is used up, the oldest go.
  save() {
    if (this.current) this.chats = [this.current, ...this.chats.filter((chat) => chat !== this.current)];
    for (;;) {
      try {
        localStorage.setItem(CHATS, JSON.stringify(this.chats));
        return;
      } catch {
        if (this.chats.length < 2) return;
        this.chats.pop();
      }
    }
  }

  set(settings) {
    this.settings = settings;
    try {
      localStorage.setItem(SETTINGS, JSON.stringify(settings));
    } catch { /* they hold for this visit */ }
  }
}

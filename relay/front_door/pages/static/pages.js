// The behaviour of the pages, by data attributes, also in parts that arrive later; they can be used without it.
const all = (css, root = document) => [...root.querySelectorAll(css)];
const first = (css) => document.querySelector(css);
const byId = (id) => document.getElementById(id);
const on = (name, handler) => document.addEventListener(name, handler);
const loadedAt = Date.now();
const relayAtLoad = Date.parse(document.body.dataset.now);

// The time of the relay: a development relay's clock may be ahead of the browser's.
const relayNow = () => relayAtLoad + (Date.now() - loadedAt);

const announce = (text) => {
  byId("announcements").textContent = text;
};

// <time datetime>: the relay writes UTC; here it is in the browser's time zone, and UTC in the title.
const clockTime = new Intl.DateTimeFormat(undefined, { timeStyle: "short" });
const yesterday = new Intl.RelativeTimeFormat(undefined, { numeric: "auto" }).format(-1, "day");
const withSeconds = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" });
const withDay = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short", hour: "numeric", minute: "2-digit" });
const withYear = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
const inUtc = (at) => `${at.toISOString().slice(0, 19).replace("T", " ")} UTC`;
const showLocalTime = (element) => {
  const at = new Date(element.dateTime);
  if (Number.isNaN(at.getTime())) return;
  const now = new Date(relayNow());
  const days = element.dataset.day === undefined ? Math.round((now.setHours(0, 0, 0, 0) - new Date(at).setHours(0, 0, 0, 0)) / 86400e3) : NaN;
  element.textContent = days === 0 ? withSeconds.format(at) : days === 1 ? `${yesterday} ${clockTime.format(at)}`
    : (at.getFullYear() === now.getFullYear() ? withDay : withYear).format(at);
  element.title = inUtc(at);
};

// <time data-countdown>: the time that is left, each second; as time_left() of the relay.
const timeLeft = (seconds) => {
  if (seconds <= 0) return "now";
  if (seconds < 60) return `in ${seconds} s`;
  const units = [[86400, "d"], [3600, "h"], [60, "min"]];
  const largest = units.findIndex(([size]) => seconds >= size);
  const parts = [];
  let rest = seconds;
  for (const [size, name] of units.slice(largest, largest + 2)) {
    if (rest >= size) parts.push(`${Math.floor(rest / size)} ${name}`);
    rest %= size;
  }
  return `in ${parts.join(" ")}`;
};
const countDown = () => {
  for (const element of all("[data-countdown]")) {
    const left = Math.round((Date.parse(element.dateTime) - relayNow()) / 1000);
    element.textContent = timeLeft(left);
  }
};

const prepare = (root) => {
  for (const element of all("time[datetime]:not([data-countdown], [data-clock])", root)) showLocalTime(element);
  for (const element of all("[data-copy][hidden], [data-copy-from][hidden], [data-needs-script][hidden]", root)) element.hidden = false;
  for (const tab of all(".tabs [aria-current]", root)) tab.closest("ul").scrollLeft = tab.offsetLeft - innerWidth / 2;
  for (const element of all("[data-expires-s]", root)) setTimeout(() => element.remove(), 1000 * element.dataset.expiresS);
  countDown();
};

// data-copy="TEXT" or data-copy-from="ID": a button that copies.
const copy = async (button) => {
  const source = byId(button.dataset.copyFrom);
  const text = button.dataset.copy ?? source.textContent.trim();
  try {
    await navigator.clipboard.writeText(text);
    announce("Copied.");
    button.dataset.copied = "";
    setTimeout(() => delete button.dataset.copied, 1500);
  } catch {
    if (source) window.getSelection().selectAllChildren(source);
    announce("Copying is not allowed here. The text is selected.");
  }
};
on("click", (event) => {
  const button = event.target.closest("[data-copy], [data-copy-from]");
  if (button) copy(button);
});

// The list next to a message, where there is room: [data-pane] is where it comes from. A message that is opened
// there takes the place of the one that is shown.
const split = matchMedia("(min-width: 1000px)");
const paneOf = () => (split.matches ? first("[data-pane]") : null);
const markOpened = () => {
  const shown = first("[data-message]")?.dataset.message;
  for (const row of all("[data-pane] [data-key]")) {
    const link = row.querySelector("[data-row]");
    if (row.dataset.key === shown) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
};
const fillPane = async () => {
  const pane = paneOf();
  if (!pane || pane.childElementCount > 0) return;
  const answer = await fetch(pane.dataset.pane);
  if (!answer.ok || answer.redirected) return;
  htmx.swap(pane, await answer.text(), { swapStyle: "innerHTML" });
  markOpened();
  pane.querySelector("tr:has([aria-current])")?.scrollIntoView({ block: "nearest" });
};
let asked = "";  // the last message that was opened: the answers may come in another order
const openBeside = async (url) => {
  asked = url;
  let message = null, page;
  try {
    const answer = await fetch(url);
    page = new DOMParser().parseFromString(await answer.text(), "text/html");
    message = page.getElementById("message");
  } catch {
    look();  // the relay does not answer
    return;
  }
  if (asked !== url) return;
  if (!message) {
    location.assign(url);
    return;
  }
  const tab = document.activeElement?.dataset?.tab;
  history.pushState(null, "", url);
  shownUrl = url.split("#")[0];
  document.title = page.title;
  htmx.swap(byId("message"), message.outerHTML, { swapStyle: "outerHTML" });
  showJourney();
  first(tab ? `[data-tab="${tab}"]` : "#message h1")?.focus({ preventScroll: true });
};

// The journey is in each page of a message: its tab is open where the address names a part of it.
const showJourney = () => {
  const part = /^#(journey|recipients-heading|step-\d)$/.test(location.hash) && byId(location.hash.slice(1));
  if (!part) return;
  byId("message").dataset.view = "journey";
  for (const one of all("[data-tab]")) {
    if (one.dataset.tab === "journey") one.setAttribute("aria-current", "true");
    else one.removeAttribute("aria-current");
  }
  if (part.id === "journey") return;
  part.scrollIntoView();
  part.focus();
};
window.addEventListener("hashchange", showJourney);

on("click", (event) => {
  if (event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
  const row = event.target.closest("tr[data-key]:has([data-row])");
  const isFree = row && !event.target.closest("a, input, button") && getSelection().isCollapsed;
  const link = isFree ? row.querySelector("[data-row]") : event.target.closest("[data-row], [data-next], [data-previous], [data-tab]");
  if (!link) return;
  for (const one of all(".opening")) one.classList.remove("opening");
  (link.closest("tr[data-key]") ?? link).classList.add("opening");
  if (!paneOf() && !link.dataset.tab) {
    if (isFree) link.click();
    return;
  }
  event.preventDefault();
  openBeside(link.href);
});
let shownUrl = location.href.split("#")[0];
window.addEventListener("popstate", () => {
  if (first("[data-pane]") && shownUrl !== location.href.split("#")[0]) location.reload();
});
split.addEventListener("change", fillPane);

// Unread messages of the list: their number in the title and in the icon.
const showUnread = () => {
  if (!first("[data-live] .messages, #no-messages")) return;
  const count = all(".messages .unread").length;
  const more = count && first("[data-live] a[rel=next]") ? "+" : "";
  first("[data-unread-count]").textContent = count ? `${count}${more}` : "";
  document.title = (count ? `(${count}) ` : "") + document.title.replace(/^\(\d+\) /, "");
  const icon = first("link[rel=icon]");
  icon.dataset.read ??= icon.href;
  icon.href = count ? icon.dataset.unread : icon.dataset.read;
};

// Until then, htmx shows elements with the attributes that they had before.
on("htmx:afterSettle", () => {
  markOpened();
  showUnread();
  showPreview();
});

// htmx loads no parts that replace others out of band.
on("htmx:oobAfterSwap", () => prepare(document));

// A menu closes when something else is pressed.
const openMenu = () => first("details.menu[open]");
on("click", (event) => {
  const menu = openMenu();
  if (menu && !menu.contains(event.target)) menu.open = false;
});

// [data-theme-switch]: the other colours; those of the system are no choice.
const isDark = () => (document.documentElement.dataset.theme ?? systemTheme()) === "dark";
const systemTheme = () => (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
const nameTheme = () => {
  const button = first("[data-theme-switch]");
  if (button) button.title = button.lastElementChild.textContent = isDark() ? "Light mode" : "Dark mode";
  showPreview();
};
on("click", (event) => {
  if (!event.target.closest("[data-theme-switch]")) return;
  const theme = isDark() ? "light" : "dark";
  const isChoice = theme !== systemTheme();
  if (isChoice) document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
  nameTheme();
  try {
    if (isChoice) localStorage.setItem("relay-theme", theme);
    else localStorage.removeItem("relay-theme");
  } catch {}  // it stays until the next page
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => nameTheme());

// [name=preview-width] and [name=preview-scheme]: how the frame shows the mail. Without a choice it has
// the colours of the page. A new frame leaves the browser's history as it is.
const chosen = {};
const showPreview = () => {
  const stage = first(".stage");
  if (!stage) return;
  const choose = (name, value) => { first(`[name=${name}][value="${value}"]`).checked = true; };
  choose("preview-width", chosen["preview-width"] ?? "");
  const scheme = chosen["preview-scheme"] ?? (isDark() ? "dark" : "light");
  choose("preview-scheme", scheme);
  const frame = stage.querySelector("iframe");
  const url = new URL(frame.src);
  if ((url.searchParams.get("scheme") ?? "light") === scheme) return;
  url.searchParams.set("scheme", scheme);
  const other = frame.cloneNode();
  other.src = url;
  frame.replaceWith(other);
};
on("change", ({ target }) => {
  if (!target.matches("[name=preview-width], [name=preview-scheme]")) return;
  chosen[target.name] = target.value;
  showPreview();
});

// Keys outside of fields: "/" focuses the search; j and k move among [data-row] links, x marks a row, Enter on its
// mark opens it. On the page of a message, j and k follow [data-next] and [data-previous], unless the focus is in
// the list. Others press what has their [data-shortcut].
const move = (by) => {
  const row = document.activeElement.closest("tr")?.querySelector("[data-row]");
  if (!row && first("[data-message]")) {
    first(by > 0 ? "[data-next]" : "[data-previous]")?.click();
    return;
  }
  const rows = all("[data-row]");
  if (rows.length === 0) return;
  const at = rows.indexOf(row);
  rows[at < 0 ? 0 : Math.min(Math.max(at + by, 0), rows.length - 1)].focus();
};
on("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.closest("input:not([type=checkbox]), select, textarea, [contenteditable], dialog")) return;
  if (event.key === "/") {
    const search = first("[data-search]");
    if (!search) return;
    search.focus();
    search.select();
  } else if (event.key === "j") move(1);
  else if (event.key === "k") move(-1);
  else if (event.key === "x") {
    const box = document.activeElement.closest("tr")?.querySelector("input[type=checkbox]");
    if (!box) return;
    box.click();
  }
  // by itself, Enter on a mark submits the form of the marks
  else if (event.key === "Enter" && event.target.matches("tr input[type=checkbox]")) {
    const link = event.target.closest("tr").querySelector("[data-row]");
    if (!link) return;
    link.click();
  }
  else if (event.key === "Escape") {
    const menu = openMenu();
    if (menu) {
      menu.open = false;
      menu.querySelector("summary").focus();
    } else first("[data-back]")?.click();
  } else {
    const wanted = first(`[data-shortcut="${CSS.escape(event.key)}"]`);
    if (!wanted) return;
    wanted.click();
  }
  event.preventDefault();
});

// data-keeps-open: a part that arrives has those <details> open that were open before.
let keptOpen = [];
on("htmx:beforeSwap", (event) => {
  keptOpen = event.detail.target.matches("[data-keeps-open]") ? all("details[open][id]", event.detail.target).map((one) => one.id) : [];
});
on("htmx:afterSwap", () => {
  for (const id of keptOpen) byId(id)?.setAttribute("open", "");
});

// [data-submit]: a choice that sends its form at once; in a field, one of what it suggests. [data-mark-all] marks all
// rows of the page.
on("change", ({ target }) => {
  if (target.matches("select[data-submit]")) target.form.requestSubmit();
  if (target.matches("[data-mark-all]")) for (const box of all("[data-key] input[type=checkbox]")) box.checked = target.checked;
});
on("input", (event) => {
  const isChosen = (event.inputType ?? "insertReplacementText") === "insertReplacementText";
  if (isChosen && event.target.matches("input[data-submit]")) event.target.form.requestSubmit();
});

// [data-live]: the part of a page that changes by itself. Marks stay, and htmx keeps the focus by ids; while a mouse
// button is down the part waits, so that no click is lost; new [data-key] elements are counted.
const isLive = (element) => element.matches?.("[data-live]");
const marks = (root) => all("input[type=checkbox]:checked", root).map((box) => `${box.name}=${box.value}`);
const keys = (root) => all("[data-key]", root).map((element) => element.dataset.key);
let before = null;
const held = new Map();  // by the part
let isPressed = false;
const restore = (root) => {
  const { marked, known, open, focused } = before;
  for (const box of all("input[type=checkbox]", root)) {
    if (marked.has(`${box.name}=${box.value}`)) box.checked = true;
  }
  for (const element of all("details[id]")) {
    if (open.has(element.id)) element.open = true;
  }
  // htmx cannot give the focus back to what is in a menu that it has closed
  if (focused && document.activeElement === document.body) byId(focused)?.focus();
  const fresh = keys(root).filter((key) => !known.has(key));
  for (const key of fresh) root.querySelector(`[data-key="${CSS.escape(key)}"]`).classList.add("fresh");
  if (fresh.length > 0 && root.querySelector("[data-announce]")) {
    announce(`${fresh.length} new ${fresh.length === 1 ? "message" : "messages"}`);
  }
  const boxes = byId("answer");
  if (boxes && before.boxes > 0) {  // what is below does not move
    const missing = before.boxes - boxes.querySelectorAll(".say:not(.good)").length;
    for (const one of all(".good", boxes).slice(0, missing)) one.classList.add("kept");
    boxes.parentElement.style.minHeight = `${before.height}px`;
  }
  before = null;
};
on("htmx:sseBeforeMessage", (event) => {
  const root = event.target;
  if (!isLive(root)) return;
  if (isPressed) {
    event.preventDefault();
    held.set(root, event.detail.data);
    return;
  }
  before = {
    boxes: all("#answer .say:not(.good), #answer .kept").length,
    height: byId("answer")?.parentElement.offsetHeight,
    focused: document.activeElement?.id,
    marked: new Set(marks(root)),
    known: new Set(keys(root)),
    open: new Set(all("details[id][open]").map((element) => element.id)),
  };
});
on("htmx:sseMessage", (event) => {
  if (isLive(event.target) && before) restore(event.target);
});
on("pointerdown", () => { isPressed = true; });
const release = () => setTimeout(() => {
  isPressed = false;
  const parts = [...held];
  held.clear();
  for (const [root, text] of parts) {
    if (!htmx.trigger(root, "htmx:sseBeforeMessage", { data: text })) continue;
    htmx.swap(root, text, { swapStyle: "innerHTML" });
    htmx.trigger(root, "htmx:sseMessage", {});
  }
});
on("pointerup", release);
on("pointercancel", release);

// A browser keeps few connections to one host: a page that is not visible gives its own back.
const streams = new Map();
const showLive = (root, isConnected) => {
  const state = root.previousElementSibling;
  if (state?.matches("[data-live-state]")) state.hidden = isConnected;
  root.toggleAttribute("data-connected", isConnected);
};
on("htmx:sseOpen", (event) => {
  if (!isLive(event.target)) return;
  streams.set(event.target, event.detail.source);
  showLive(event.target, true);
});
on("htmx:sseError", (event) => {
  if (isLive(event.target)) showLive(event.target, false);
});
const connectAgain = () => {
  for (const root of all("[data-live]")) {
    if (streams.get(root)?.readyState !== EventSource.CLOSED) continue;
    root.setAttribute("sse-connect", `${root.getAttribute("sse-connect").split("#")[0]}#${Date.now()}`);
    htmx.process(root);
  }
};
on("visibilitychange", () => {
  if (!document.hidden) connectAgain();
  else for (const root of all("[data-live]")) streams.get(root)?.close();
});

// A search that takes longer than 300 ms shows that it runs.
on("submit", ({ target }) => {
  if (target.id === "find") setTimeout(() => { target.classList.add("running"); announce("Searching…"); }, 300);
});

// Each page says within five seconds that its relay does not answer, and when it does again it goes on by itself.
const gone = byId("gone");
const look = async () => {
  if (document.hidden) return;
  const alive = await fetch(gone.dataset.alive, { cache: "no-store", signal: AbortSignal.timeout(2000) }).then(() => true, () => false);
  if (alive && !gone.hidden) connectAgain();
  gone.hidden = alive;
};
setInterval(look, 2500);

// form data-busy="TEXT": what its button says while the relay answers.
on("submit", (event) => {
  const text = event.target.dataset.busy;
  if (!text || event.defaultPrevented) return;
  const button = event.submitter ?? event.target.querySelector("button");
  setTimeout(() => {  // after the browser has read the form
    button.textContent = text;
    for (const one of all("button", event.target)) one.disabled = true;
  });
  announce(text);
});

// <time data-clock>: the time of the relay, each second.
const showTime = () => {
  const now = new Date(relayNow());
  for (const element of all("[data-clock]")) {
    element.textContent = withSeconds.format(now);
    element.title = inUtc(now);
  }
};
window.addEventListener("pageshow", (event) => {
  for (const one of all(".opening, .running")) one.classList.remove("opening", "running");
  if (event.persisted) location.reload();  // a page from the browser's history has old buttons
  // The browser has taken the focus away when it went to the row.
  else if (location.hash.startsWith("#row-")) setTimeout(() => byId(location.hash.slice(1))?.querySelector("[data-row]").focus());
});

prepare(document);
nameTheme();
showUnread();
showTime();
fillPane();
showJourney();
setInterval(() => { countDown(); showTime(); }, 1000);
on("htmx:load", (event) => prepare(event.detail.elt));

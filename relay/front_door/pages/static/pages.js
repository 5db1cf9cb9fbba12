// The behaviour of the pages. Each works by data attributes, also in parts that arrive later; the
// pages can be read and used without it.
"use strict";

(() => {
  const loadedAt = Date.now();
  const relayAtLoad = Date.parse(document.body.dataset.now);

  // The time of the relay: a development relay's clock may be ahead of the browser's.
  const relayNow = () => relayAtLoad + (Date.now() - loadedAt);

  const announce = (text) => {
    document.getElementById("announcements").textContent = text;
  };

  // <time datetime>: the relay writes UTC; here it is in the browser's time zone, and UTC in the title.
  const clockTime = new Intl.DateTimeFormat(undefined, { timeStyle: "short" });
  const withSeconds = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" });
  const withDay = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short", hour: "numeric", minute: "2-digit" });
  const withYear = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
  const inUtc = (at) => `${at.toISOString().slice(0, 19).replace("T", " ")} UTC`;
  const showLocalTime = (element) => {
    const at = new Date(element.dateTime);
    if (Number.isNaN(at.getTime())) return;
    const now = new Date(relayNow());
    const isToday = element.dataset.day === undefined && at.toDateString() === now.toDateString();
    const format = isToday ? clockTime : at.getFullYear() === now.getFullYear() ? withDay : withYear;
    element.textContent = format.format(at);
    element.title = inUtc(at);
  };

  // <time data-countdown>: the time that is left, each second; as time_left() of the relay.
  const timeLeft = (seconds) => {
    if (seconds <= 0) return "now";
    if (seconds < 60) return `in ${seconds} s`;
    const units = [[86400, "d"], [3600, "h"], [60, "min"]];
    const first = units.findIndex(([size]) => seconds >= size);
    const parts = [];
    let rest = seconds;
    for (const [size, name] of units.slice(first, first + 2)) {
      if (rest >= size) parts.push(`${Math.floor(rest / size)} ${name}`);
      rest %= size;
    }
    return `in ${parts.join(" ")}`;
  };
  const countDown = () => {
    for (const element of document.querySelectorAll("[data-countdown]")) {
      const left = Math.round((Date.parse(element.dateTime) - relayNow()) / 1000);
      element.textContent = timeLeft(left);
    }
  };

  const prepare = (root) => {
    for (const element of root.querySelectorAll("time[datetime]:not([data-countdown], [data-clock])")) showLocalTime(element);
    for (const element of root.querySelectorAll("[data-copy][hidden], [data-copy-from][hidden], [data-needs-script][hidden]")) element.hidden = false;
    for (const element of root.querySelectorAll("[data-expires-s]")) setTimeout(() => element.remove(), 1000 * element.dataset.expiresS);
    countDown();
  };

  // data-copy="TEXT" or data-copy-from="ID": a button that copies.
  const copy = async (button) => {
    const source = document.getElementById(button.dataset.copyFrom);
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
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-copy], [data-copy-from]");
    if (button) copy(button);
  });

  // The list next to a message, where there is room: [data-pane] is where it comes from. A message that is opened
  // there takes the place of the one that is shown.
  const split = matchMedia("(min-width: 1100px)");
  const paneOf = () => (split.matches ? document.querySelector("[data-pane]") : null);
  const markOpened = () => {
    const shown = document.querySelector("[data-message]")?.dataset.message;
    for (const row of document.querySelectorAll("[data-pane] [data-key]")) {
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
    pane.querySelector("[data-row][aria-current]")?.scrollIntoView({ block: "nearest" });
  };
  let asked = "";  // the last message that was opened: the answers may come in another order
  const openBeside = async (url) => {
    asked = url;
    const answer = await fetch(url);
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    if (asked !== url) return;
    const message = page.getElementById("message");
    if (!message) {
      location.assign(url);
      return;
    }
    history.pushState(null, "", url);
    document.title = page.title;
    htmx.swap(document.getElementById("message"), message.outerHTML, { swapStyle: "outerHTML" });
    scrollTo(0, 0);
    document.querySelector("#message h1").focus({ preventScroll: true });
  };
  document.addEventListener("click", (event) => {
    const link = event.target.closest("[data-row], [data-next], [data-previous]");
    if (!link || !paneOf() || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
    event.preventDefault();
    openBeside(link.href);
  });
  window.addEventListener("popstate", () => { if (document.querySelector("[data-pane]")) location.reload(); });
  split.addEventListener("change", fillPane);

  // Unread messages of the list: their number in the title and in the icon.
  const showUnread = () => {
    if (!document.querySelector("[data-live] .messages, #no-messages")) return;
    const count = document.querySelectorAll(".messages .unread").length;
    document.title = (count ? `(${count}) ` : "") + document.title.replace(/^\(\d+\) /, "");
    const icon = document.querySelector("link[rel=icon]");
    icon.dataset.read ??= icon.href;
    icon.href = count ? icon.dataset.unread : icon.dataset.read;
  };

  // Until then, htmx shows elements with the attributes that they had before.
  document.addEventListener("htmx:afterSettle", () => {
    markOpened();
    showUnread();
    showPreview();
  });

  // htmx loads no parts that replace others out of band.
  document.addEventListener("htmx:oobAfterSwap", () => prepare(document));

  // A menu closes when something else is pressed.
  const openMenu = () => document.querySelector("details.menu[open]");
  document.addEventListener("click", (event) => {
    const menu = openMenu();
    if (menu && !menu.contains(event.target)) menu.open = false;
  });

  // [data-theme-switch]: the other colours; those of the system are no choice.
  const isDark = () => (document.documentElement.dataset.theme ?? systemTheme()) === "dark";
  const systemTheme = () => (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  const nameTheme = () => {
    const button = document.querySelector("[data-theme-switch]");
    if (button) button.textContent = isDark() ? "Light mode" : "Dark mode";
    showPreview();
  };
  document.addEventListener("click", (event) => {
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

  // [name=preview-width] and [name=preview-scheme]: how the frame shows the mail. Without a choice it is as wide as
  // there is room for, in the colours of the page. A new frame leaves the browser's history as it is.
  const chosen = {};
  const showPreview = () => {
    const stage = document.querySelector(".stage");
    if (!stage) return;
    const choose = (name, value) => { document.querySelector(`[name=${name}][value="${value}"]`).checked = true; };
    const widths = [...document.querySelectorAll("[name=preview-width]")].map((one) => one.value);
    choose("preview-width", chosen["preview-width"] ?? widths.findLast((one) => one <= stage.clientWidth) ?? widths[0]);
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
  document.addEventListener("change", ({ target }) => {
    if (!target.matches("[name=preview-width], [name=preview-scheme]")) return;
    chosen[target.name] = target.value;
    showPreview();
  });

  // Keys outside of fields: "/" focuses the search; j and k move among [data-row] links, x marks a row, Enter on its
  // mark opens it. On the page of a message, j and k follow [data-next] and [data-previous], unless the focus is in
  // the list. Others press what has their [data-shortcut].
  const rows = () => [...document.querySelectorAll("[data-row]")];
  const move = (by) => {
    const row = document.activeElement.closest("tr")?.querySelector("[data-row]");
    if (!row && document.querySelector("[data-message]")) {
      document.querySelector(by > 0 ? "[data-next]" : "[data-previous]")?.click();
      return;
    }
    const all = rows();
    if (all.length === 0) return;
    const at = all.indexOf(row);
    const next = at < 0 ? 0 : Math.min(Math.max(at + by, 0), all.length - 1);
    all[next].focus();
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.closest("input:not([type=checkbox]), select, textarea, [contenteditable], dialog")) return;
    if (event.key === "/") {
      const search = document.querySelector("[data-search]");
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
      } else document.querySelector("[data-back]")?.click();
    } else {
      const wanted = document.querySelector(`[data-shortcut="${CSS.escape(event.key)}"]`);
      if (!wanted) return;
      wanted.click();
    }
    event.preventDefault();
  });

  // data-keeps-open: a part that arrives has those <details> open that were open before.
  const opened = (target) => [...target.querySelectorAll("details[open][id]")].map((one) => one.id);
  let keptOpen = [];
  document.addEventListener("htmx:beforeSwap", (event) => {
    keptOpen = event.detail.target.matches("[data-keeps-open]") ? opened(event.detail.target) : [];
  });
  document.addEventListener("htmx:afterSwap", () => {
    for (const id of keptOpen) document.getElementById(id)?.setAttribute("open", "");
  });

  // [data-submit]: a choice that sends its form at once; in a field, one of what it suggests.
  document.addEventListener("change", (event) => {
    if (event.target.matches("select[data-submit]")) event.target.form.requestSubmit();
  });
  document.addEventListener("input", (event) => {
    const isChosen = (event.inputType ?? "insertReplacementText") === "insertReplacementText";
    if (isChosen && event.target.matches("input[data-submit]")) event.target.form.requestSubmit();
  });

  // [data-mark-all]: marks all rows of the page. [data-needs-script] is shown where this runs, by prepare().
  document.addEventListener("change", (event) => {
    if (!event.target.matches("[data-mark-all]")) return;
    for (const box of document.querySelectorAll("[data-key] input[type=checkbox]")) box.checked = event.target.checked;
  });

  // [data-live]: the part of a page that changes by itself. Marks stay, and htmx keeps the focus by ids; while a mouse
  // button is down the part waits, so that no click is lost; new [data-key] elements are counted.
  const isLive = (element) => element.matches?.("[data-live]");
  const marks = (root) => [...root.querySelectorAll("input[type=checkbox]:checked")].map((box) => `${box.name}=${box.value}`);
  const keys = (root) => [...root.querySelectorAll("[data-key]")].map((element) => element.dataset.key);
  let before = null;
  const held = new Map();  // by the part
  let isPressed = false;
  const restore = (root) => {
    const { marked, known, open, focused } = before;
    for (const box of root.querySelectorAll("input[type=checkbox]")) {
      if (marked.has(`${box.name}=${box.value}`)) box.checked = true;
    }
    for (const element of document.querySelectorAll("details[id]")) {
      if (open.has(element.id)) element.open = true;
    }
    // htmx cannot give the focus back to what is in a menu that it has closed
    if (focused && document.activeElement === document.body) document.getElementById(focused)?.focus();
    const fresh = keys(root).filter((key) => !known.has(key));
    for (const key of fresh) root.querySelector(`[data-key="${CSS.escape(key)}"]`).classList.add("fresh");
    if (fresh.length > 0 && root.querySelector("[data-announce]")) {
      announce(`${fresh.length} new ${fresh.length === 1 ? "message" : "messages"}`);
    }
    document.dispatchEvent(new CustomEvent("relay:live"));
    before = null;
  };
  document.addEventListener("htmx:sseBeforeMessage", (event) => {
    const root = event.target;
    if (!isLive(root)) return;
    if (isPressed) {
      event.preventDefault();
      held.set(root, event.detail.data);
      return;
    }
    before = {
      focused: document.activeElement?.id,
      marked: new Set(marks(root)),
      known: new Set(keys(root)),
      open: new Set([...document.querySelectorAll("details[id][open]")].map((element) => element.id)),
    };
  });
  document.addEventListener("htmx:sseMessage", (event) => {
    if (isLive(event.target) && before) restore(event.target);
  });
  document.addEventListener("pointerdown", () => { isPressed = true; });
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
  document.addEventListener("pointerup", release);
  document.addEventListener("pointercancel", release);

  // A browser keeps few connections to one host: a page that is not visible gives its own back.
  const streams = new Map();
  const showLive = (root, isConnected) => {
    const state = root.previousElementSibling;
    if (state?.matches("[data-live-state]")) state.hidden = isConnected;
    root.toggleAttribute("data-connected", isConnected);
  };
  document.addEventListener("htmx:sseOpen", (event) => {
    if (!isLive(event.target)) return;
    streams.set(event.target, event.detail.source);
    showLive(event.target, true);
  });
  document.addEventListener("htmx:sseError", (event) => {
    if (isLive(event.target)) showLive(event.target, false);
  });
  document.addEventListener("visibilitychange", () => {
    for (const root of document.querySelectorAll("[data-live]")) {
      if (document.hidden) streams.get(root)?.close();
      else if (streams.get(root)?.readyState === EventSource.CLOSED) {
        root.setAttribute("sse-connect", `${root.getAttribute("sse-connect").split("#")[0]}#${Date.now()}`);
        htmx.process(root);
      }
    }
  });

  // form data-busy="TEXT": what its button says while the relay answers.
  document.addEventListener("submit", (event) => {
    const text = event.target.dataset.busy;
    if (!text || event.defaultPrevented) return;
    const button = event.submitter ?? event.target.querySelector("button");
    setTimeout(() => {  // after the browser has read the form
      button.textContent = text;
      for (const one of event.target.querySelectorAll("button")) one.disabled = true;
    });
    announce(text);
  });

  // <time data-clock>: the time of the relay, each second.
  const showTime = () => {
    const now = new Date(relayNow());
    for (const element of document.querySelectorAll("[data-clock]")) {
      element.textContent = withSeconds.format(now);
      element.title = inUtc(now);
    }
  };
  window.addEventListener("pageshow", (event) => {
    if (event.persisted) location.reload();  // a page from the browser's history has old buttons
    // The browser has taken the focus away when it went to the row.
    else if (location.hash.startsWith("#row-")) setTimeout(() => document.getElementById(location.hash.slice(1))?.querySelector("[data-row]").focus());
  });

  prepare(document);
  nameTheme();
  showUnread();
  showTime();
  fillPane();
  setInterval(() => { countDown(); showTime(); }, 1000);
  document.addEventListener("htmx:load", (event) => prepare(event.detail.elt));
})();

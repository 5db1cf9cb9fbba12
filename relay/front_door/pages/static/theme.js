// The colours that the visitor has chosen, before anything is drawn; without a choice those of the system.
"use strict";

try {
  const chosen = localStorage.getItem("relay-theme");
  if (chosen === "dark" || chosen === "light") document.documentElement.dataset.theme = chosen;
} catch {}  // the browser stores nothing for this site

"use strict";
// Fetches this page again and puts its <main> in place of ours, if it differs: no flicker, and scrolling and focus stay.
const script = document.currentScript, seconds = Number(script.dataset.seconds);
let busy = false;

function reading() {
  const chosen = document.getSelection();
  return document.hidden || document.activeElement?.tagName === "SELECT" || (chosen && !chosen.isCollapsed);
}

// Only <main> is parsed: the answer's own style and script carry another nonce than our policy names, and the browser would complain.
function mainOf(text) {
  const start = text.indexOf("<main"), end = text.indexOf("</main>");
  if (start < 0 || end < 0) throw new Error("not a page of the operator");
  return new DOMParser().parseFromString(text.slice(start, end), "text/html").querySelector("main");
}

function place(main) {
  const old = document.querySelector("main"), fresh = document.importNode(main, true);
  if (old.innerHTML === fresh.innerHTML) return;
  const focus = document.activeElement?.getAttribute("href"), scrolled = [...old.querySelectorAll(".scroll")].map((part) => part.scrollLeft);
  old.replaceWith(fresh);
  fresh.querySelectorAll(".scroll").forEach((part, index) => { part.scrollLeft = scrolled[index] ?? 0; });
  if (focus) [...fresh.querySelectorAll("a")].find((link) => link.getAttribute("href") === focus)?.focus({ preventScroll: true });
}

async function refresh() {
  if (busy || reading()) return;
  busy = true;
  try {
    const answer = await fetch(location.href, { cache: "no-store", signal: AbortSignal.timeout(10000) });
    const main = mainOf(await answer.text());
    place(main);
    document.title = main.dataset.title;
    document.body.classList.remove("stale");
  } catch {
    document.body.classList.add("stale");
  }
  document.body.dataset.refreshed = String(Number(document.body.dataset.refreshed ?? 0) + 1);
  busy = false;
}

document.addEventListener("change", (event) => { if (event.target.id === "namespace") event.target.form.submit(); });
document.addEventListener("visibilitychange", refresh);
setInterval(refresh, 1000 * seconds);

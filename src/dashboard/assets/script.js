// Replaces the live part of a page by server-sent events. Without this script the page has a link
// that loads it again.
(() => {
  "use strict";
  const of = document.body.dataset.live;
  const part = document.getElementById("live");
  const fault = document.getElementById("fault");
  const toggle = document.getElementById("toggle");
  if (!of || !part || !window.EventSource) return;

  // A part that somebody reads with the keyboard, or selects text in, stays as it is.
  const isInUse = () => {
    const selection = window.getSelection();
    const isSelected = selection && !selection.isCollapsed && part.contains(selection.anchorNode);
    return isSelected || part.contains(document.activeElement);
  };

  const show = (text) => {
    fault.textContent = text;
    fault.hidden = !text;
  };

  let source = null;
  const open = () => {
    source = new EventSource(of);
    source.addEventListener("part", (event) => {
      show("");
      if (!isInUse()) part.innerHTML = event.data;
      part.dataset.updates = String(Number(part.dataset.updates || 0) + 1);
    });
    source.addEventListener("fault", (event) => show(event.data));
    source.onerror = () => show("The dashboard does not answer. It is tried again.");
  };
  const close = () => {
    if (source) source.close();
    source = null;
  };

  toggle.hidden = false;
  toggle.addEventListener("click", () => {
    const isLive = toggle.getAttribute("aria-pressed") !== "true";
    toggle.setAttribute("aria-pressed", String(isLive));
    if (isLive) open();
    else close();
  });
  // A page that nobody sees costs nothing.
  document.addEventListener("visibilitychange", () => {
    if (toggle.getAttribute("aria-pressed") !== "true") return;
    close();
    if (!document.hidden) open();
  });
  window.addEventListener("pagehide", close);
  open();
})();

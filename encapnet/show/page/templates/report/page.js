(function () {
  "use strict";
  var root = document.documentElement;

  var theme = document.getElementById("theme-button"), themes = ["auto", "light", "dark"];
  function currentTheme() { return root.dataset.theme || "auto"; }
  function labelTheme() { theme.textContent = "theme: " + currentTheme(); }
  theme.addEventListener("click", function () {
    var next = themes[(themes.indexOf(currentTheme()) + 1) % themes.length];
    if (next === "auto") delete root.dataset.theme; else root.dataset.theme = next;
    try { localStorage.setItem("encapnet-theme", next); } catch (unavailable) { /* holds for this page only */ }
    labelTheme();
  });
  labelTheme();
  theme.hidden = false;

  var code = document.getElementById("code-button");
  var folds = Array.from(document.querySelectorAll("details.code:not(.imports)"));
  function anyFolded() { return folds.some(function (fold) { return !fold.open; }); }
  function labelCode() { code.textContent = anyFolded() ? "show code" : "hide code"; }
  code.addEventListener("click", function () {
    var open = anyFolded();
    folds.forEach(function (fold) { fold.open = open; });
    labelCode();
  });
  folds.forEach(function (fold) { fold.addEventListener("toggle", labelCode); });
  labelCode();
  code.hidden = folds.length === 0;

  /* What scrolls sideways must be reachable by keyboard; what does not should be no extra stop. */
  function markScrollers() {
    document.querySelectorAll(".scroll, .highlight pre, .equation .formula").forEach(function (box) {
      if (box.scrollWidth > box.clientWidth + 1) box.tabIndex = 0; else box.removeAttribute("tabindex");
    });
  }
  addEventListener("resize", markScrollers);
  document.addEventListener("toggle", markScrollers, true);
  markScrollers();

  /* The contents list shows where the reader is: the last heading above the upper quarter of the window. */
  var links = Array.from(document.querySelectorAll(".contents.beside a"));
  var marks = links.map(function (link) { return document.getElementById(link.hash.slice(1)); });
  function follow() {
    var here = -1;
    marks.forEach(function (mark, i) { if (mark && mark.getBoundingClientRect().top < innerHeight / 4) here = i; });
    links.forEach(function (link, i) {
      if (i === here) link.setAttribute("aria-current", "location"); else link.removeAttribute("aria-current");
    });
  }
  if (links.length) {
    addEventListener("scroll", follow, { passive: true });
    follow();
  }
})();

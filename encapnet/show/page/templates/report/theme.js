/* Runs before the first paint, so that a chosen theme never flashes the other one. */
(function () {
  var choice = "auto";
  try { choice = localStorage.getItem("encapnet-theme") || "auto"; } catch (unavailable) { /* private mode: auto */ }
  if (choice === "light" || choice === "dark") document.documentElement.dataset.theme = choice;
})();

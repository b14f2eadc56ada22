/* Claims can be searched by word and by verdict. Without this script all of them are shown. */
(function () {
  "use strict";
  var table = document.querySelector("table.claims"),
    find = document.getElementById("find"),
    found = document.getElementById("found");
  if (!table) return;
  var rows = Array.from(table.querySelectorAll("tr[data-kind]")),
    chosen = "",
    buttons = [];

  function show() {
    var words = find.value.toLowerCase().split(/\s+/).filter(Boolean),
      count = 0;
    rows.forEach(function (row) {
      var text = row.textContent.toLowerCase();
      row.hidden =
        (!!chosen && row.dataset.kind !== chosen) ||
        !words.every(function (word) {
          return text.includes(word);
        });
      if (!row.hidden) count += 1;
    });
    Array.from(table.tBodies).forEach(function (body) {
      body.hidden = !body.querySelector("tr[data-kind]:not([hidden])");
    });
    found.textContent = count === rows.length ? "" : count + " of " + rows.length + " claims";
    buttons.forEach(function (button) {
      button.setAttribute("aria-pressed", String(button.dataset.kind === chosen));
    });
  }

  document.querySelectorAll(".counts li").forEach(function (item) {
    var button = document.createElement("button");
    button.type = "button";
    button.dataset.kind = item.dataset.kind;
    button.append.apply(button, Array.from(item.childNodes));
    button.addEventListener("click", function () {
      chosen = chosen === item.dataset.kind ? "" : item.dataset.kind;
      show();
      if (chosen) document.getElementById("claims").scrollIntoView();
    });
    item.append(button);
    buttons.push(button);
  });
  find.addEventListener("input", show);
  find.closest(".find").hidden = false;
  show();
})();

/* Looks for words in the passages that the page carries. Without this script the contents below
   still lead everywhere. */
(function () {
  "use strict";
  var carried = document.getElementById("passages"),
    find = document.getElementById("find"),
    told = document.getElementById("found"),
    list = document.getElementById("results");
  if (!carried || !find) return;
  var index = JSON.parse(carried.textContent),
    most = 20;
  var all = index.passages.map(function (one) {
    return {
      page: index.pages[one[0]],
      heading: one[1],
      anchor: one[2],
      text: one[3],
      names: one[4],
      title: index.pages[one[0]][1].toLowerCase(),
      low: (one[1] + " " + one[3] + " " + one[4]).toLowerCase(),
      lowHeading: one[1].toLowerCase(),
      lowNames: (" " + one[4] + " ").toLowerCase(),
    };
  });

  /* What a question is made of, beside what it is about. */
  var asking = (
    "a an and are as by can do does definition define defined derivation derive derived explain " +
    "for from has have how in is it mean means of on the to what when where which why with"
  ).split(" ");

  /* Words count where they begin: "one" is not found in "alone", but "losses" is where "loss" is. */
  function starts(word) {
    var stem = /^\p{L}{6,}$/u.test(word) ? word.replace(/(?:ings?|ed|es|s)$/, "") : word;
    return new RegExp("(?<![\\p{L}\\p{N}])" + stem.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"), "gu");
  }
  function count(text, start) {
    return (text.match(start) || []).length;
  }

  /* A name that is defined there counts most, then a heading, a title, and how often a word occurs.
     Returns how many of the words are there, and that sum. */
  function score(passage, words, begin) {
    var sum = 0,
      there = 0;
    for (var i = 0; i < words.length; i++) {
      var inText = count(passage.low, begin[i]),
        inTitle = count(passage.title, begin[i]);
      if (!inText && !inTitle) continue;
      there += 1;
      sum +=
        Math.min(inText, 4) +
        (inTitle ? 3 : 0) +
        (count(passage.lowHeading, begin[i]) ? 6 : 0) +
        (passage.lowNames.includes(" " + words[i] + " ") ? 12 : 0);
    }
    if (words.length > 1 && passage.low.includes(words.join(" "))) sum += 8;
    if (words.length > 1 && passage.lowHeading.includes(words.join(" "))) sum += 16;
    if (passage.page[0].startsWith("nn/")) sum += 6; // it explains what others measure
    return [there, sum];
  }

  function around(text, words) {
    var low = text.toLowerCase(),
      at = words
        .map(function (word) {
          return low.indexOf(word);
        })
        .filter(function (place) {
          return place >= 0;
        });
    var from = Math.max(0, (at.length ? Math.min.apply(null, at) : 0) - 60),
      cut = text.slice(from, from + 220);
    return (from ? "… " : "") + cut + (from + 220 < text.length ? " …" : "");
  }

  function marked(into, text, words) {
    var low = text.toLowerCase(),
      here = 0;
    while (here < text.length) {
      var next = -1,
        length = 0;
      words.forEach(function (word) {
        var place = low.indexOf(word, here);
        if (place >= 0 && (next < 0 || place < next)) {
          next = place;
          length = word.length;
        }
      });
      if (next < 0) break;
      into.append(text.slice(here, next));
      var mark = document.createElement("mark");
      mark.textContent = text.slice(next, next + length);
      into.append(mark);
      here = next + length;
    }
    into.append(text.slice(here));
  }

  function show() {
    var given = find.value
        .toLowerCase()
        .split(/[\s?]+/)
        .filter(Boolean),
      telling = given.filter(function (word) {
        return !asking.includes(word);
      }),
      words = telling.length ? telling : given;
    list.replaceChildren();
    if (!words.length) {
      told.textContent = "";
      return;
    }
    var begin = words.map(starts),
      hits = all
        .map(function (passage) {
          return [score(passage, words, begin), passage];
        })
        .filter(function (hit) {
          return hit[0][0];
        }),
      there = Math.max.apply(
        null,
        hits.map(function (hit) {
          return hit[0][0];
        }),
      );
    hits = hits.filter(function (hit) {
      return hit[0][0] === there;
    });
    hits.sort(function (a, b) {
      return b[0][1] - a[0][1];
    });
    hits.slice(0, most).forEach(function (hit) {
      var passage = hit[1],
        item = document.createElement("li"),
        link = document.createElement("a"),
        line = document.createElement("small");
      link.href = passage.page[0] + (passage.anchor ? "#" + passage.anchor : "");
      link.textContent = passage.page[1] + (passage.heading ? ": " + passage.heading : "");
      marked(line, around(passage.text || passage.names, words), words);
      item.append(link, line);
      list.append(item);
    });
    told.textContent =
      hits.length === 0
        ? "nothing found"
        : hits.length > most
          ? "the best " + most + " of " + hits.length + " places"
          : hits.length + (hits.length === 1 ? " place" : " places");
    if (hits.length && there < words.length)
      told.textContent += ", with " + there + " of the " + words.length + " words";
    try {
      history.replaceState(null, "", "#" + new URLSearchParams({ q: find.value }));
    } catch (unavailable) {
      /* the address stays */
    }
  }

  var asked = /^#q=/.test(location.hash) && new URLSearchParams(location.hash.slice(1)).get("q");
  find.closest(".find").hidden = false;
  if (asked) {
    find.value = asked;
    show();
  }
  find.addEventListener("input", show);
})();

(function () {
  "use strict";
  var root = document.documentElement, list = document.getElementById("papers");
  var articles = Array.from(list.children), chips = Array.from(document.querySelectorAll(".chip"));
  var text = document.getElementById("text"), field = document.getElementById("field");
  var order = document.getElementById("order"), shown = document.getElementById("shown");
  root.classList.add("scripted");

  var lines = [];
  articles.forEach(function (article) {
    var about = ["h2", ".meta", ".summary"].map(function (part) { return article.querySelector(part).textContent; });
    article.querySelectorAll(".claims > li").forEach(function (line) {
      lines.push({ line: line, article: article, words: (about.join(" ") + " " + line.textContent).toLowerCase() });
    });
  });

  function filter() {
    var wanted = text.value.trim().toLowerCase().split(/\s+/);
    var states = chips.filter(function (c) { return c.getAttribute("aria-pressed") === "true"; })
      .map(function (c) { return c.dataset.state; });
    var count = 0;
    articles.forEach(function (article) { article.hidden = true; });
    lines.forEach(function (entry) {
      var visible = (!field.value || entry.article.dataset.field === field.value) &&
        (!states.length || states.indexOf(entry.line.dataset.state) >= 0) &&
        wanted.every(function (word) { return entry.words.indexOf(word) >= 0; });
      entry.line.hidden = !visible;
      if (visible) { entry.article.hidden = false; count += 1; }
    });
    shown.textContent = count === lines.length ? count + " claims" : count + " of " + lines.length + " claims";
    document.getElementById("nothing").hidden = count > 0;
  }

  function sort() {
    var by = order.value;
    articles.map(function (article, place) {
      var key = by === "year" ? -article.dataset.year : by === "share" ? -article.dataset.share :
        by === "field" ? article.dataset.field : 0;
      return { article: article, key: key, place: place };
    }).sort(function (a, b) {
      return a.key < b.key ? -1 : a.key > b.key ? 1 : a.place - b.place;
    }).forEach(function (entry) { list.appendChild(entry.article); });
  }

  function everything() {
    text.value = ""; field.value = "";
    chips.forEach(function (c) { c.setAttribute("aria-pressed", "false"); });
    filter();
  }

  function follow() {
    var target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target) { return; }
    if (target.closest("[hidden]")) { everything(); }
    target.scrollIntoView();
  }

  chips.forEach(function (chip) {
    chip.addEventListener("click", function () {
      chip.setAttribute("aria-pressed", String(chip.getAttribute("aria-pressed") !== "true"));
      filter();
    });
  });
  text.addEventListener("input", filter);
  field.addEventListener("change", filter);
  order.addEventListener("change", sort);
  document.getElementById("all").addEventListener("click", everything);
  window.addEventListener("hashchange", follow);

  function height() {
    root.style.scrollPaddingTop = document.querySelector(".controls").offsetHeight + "px";
  }

  function setTheme(theme) {
    root.dataset.theme = theme;
    document.getElementById("theme").textContent = theme === "dark" ? "Light" : "Dark";
  }
  var dark = window.matchMedia("(prefers-color-scheme: dark)");
  dark.addEventListener("change", function () { setTheme(dark.matches ? "dark" : "light"); });
  document.getElementById("theme").addEventListener("click", function () {
    setTheme(root.dataset.theme === "dark" ? "light" : "dark");
  });
  setTheme(dark.matches ? "dark" : "light");
  height();
  window.addEventListener("resize", height);
  filter();  // a browser may have kept what was typed
  sort();
  follow();
})();

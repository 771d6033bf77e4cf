(function () {
  "use strict";
  var root = document.documentElement;
  var figures = JSON.parse(document.getElementById("figures").textContent);

  function colour(name) { return getComputedStyle(root).getPropertyValue(name).trim(); }

  function themed(layout) {
    var copy = JSON.parse(JSON.stringify(layout));
    copy.font = { family: getComputedStyle(document.body).fontFamily, size: 13, color: colour("--ink") };
    copy.hoverlabel = Object.assign({}, copy.hoverlabel, {
      bgcolor: colour("--card"), bordercolor: colour("--line"), font: { color: colour("--ink") }
    });
    copy.modebar = { bgcolor: "rgba(0,0,0,0)", color: colour("--soft"), activecolor: colour("--accent") };
    Object.keys(copy).forEach(function (key) {
      if (/^[xy]axis\d*$/.test(key)) {
        Object.assign(copy[key], {
          gridcolor: colour("--line"), linecolor: colour("--line"), zerolinecolor: colour("--line"), automargin: true,
          showgrid: copy[key].type !== "category"
        });
      }
    });
    return copy;
  }

  function draw() {
    Object.keys(figures).forEach(function (id) {
      // What is not shown has no width yet: it is drawn when it is chosen.
      if (document.getElementById(id).closest("[hidden]")) { return; }
      var figure = figures[id];
      // Where there is no room beside the legend, or no pointer to show them for, the buttons would lie over it.
      var buttons = window.innerWidth >= 1000 ? "hover" : false;
      var layout = themed(figure.layout);
      if (window.innerWidth < 600 && layout.height) {
        // The entries of a legend stand below each other there, and take the plot's room.
        layout.height += 20 * figure.data.filter(function (trace) { return trace.showlegend !== false; }).length;
      }
      // No button sends anything anywhere: what is on a page stays there.
      Plotly.react(id, figure.data, layout, {
        displaylogo: false, responsive: true, displayModeBar: buttons, showSendToCloud: false, plotlyServerURL: ""
      });
    });
  }

  function setTheme(theme) {
    root.dataset.theme = theme;
    document.getElementById("theme").textContent = theme === "dark" ? "Light" : "Dark";
    draw();
  }

  var dark = window.matchMedia("(prefers-color-scheme: dark)");
  dark.addEventListener("change", function () { setTheme(dark.matches ? "dark" : "light"); });
  document.getElementById("theme").addEventListener("click", function () {
    setTheme(root.dataset.theme === "dark" ? "light" : "dark");
  });

  document.querySelectorAll("select[data-shows]").forEach(function (select) {
    function show() {
      document.querySelectorAll('[data-group="' + select.dataset.shows + '"]').forEach(function (block) {
        block.hidden = block.id !== select.value;
      });
      draw();
    }
    select.addEventListener("change", show);
    // A browser may keep what was chosen before the page was read again.
    if (select.selectedIndex > 0) { show(); }
  });

  document.querySelectorAll(".scroll table").forEach(function (table) {
    var body = table.tBodies[0], headings = table.querySelectorAll("thead tr:last-child th");
    headings.forEach(function (heading, column) {
      heading.addEventListener("click", function () {
        var up = heading.getAttribute("aria-sort") !== "ascending";
        headings.forEach(function (h) { h.removeAttribute("aria-sort"); });
        heading.setAttribute("aria-sort", up ? "ascending" : "descending");
        Array.from(body.rows).map(function (row) {
          var cell = row.cells[column], raw = cell.dataset.value, value = raw === undefined ? cell.textContent : parseFloat(raw);
          return { row: row, value: value, empty: raw === "" };
        }).sort(function (a, b) {
          if (a.empty !== b.empty) { return a.empty ? 1 : -1; }
          var order = a.value < b.value ? -1 : a.value > b.value ? 1 : 0;
          return up ? order : -order;
        }).forEach(function (entry) { body.appendChild(entry.row); });
      });
    });
  });

  setTheme(dark.matches ? "dark" : "light");
})();

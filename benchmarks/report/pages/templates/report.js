"use strict";
// Everything on the page can be read without this: it sorts, switches, opens for printing and remembers the theme.
(() => {
  const root = document.documentElement;
  const THEMES = ["system", "light", "dark"];
  root.classList.add("js");

  function stored() {
    try {
      return localStorage.getItem("vae-edge-theme");
    } catch {
      return null; // A file opened from disk may have no storage.
    }
  }

  function show(theme) {
    if (theme === "system") delete root.dataset.theme;
    else root.dataset.theme = theme;
  }

  let theme = THEMES.includes(stored()) ? stored() : "system";
  show(theme); // Before the first paint.

  function themeButton() {
    const button = document.getElementById("theme");
    const label = () => { button.textContent = `Theme: ${theme}`; };
    label();
    button.addEventListener("click", () => {
      theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
      show(theme);
      label();
      try {
        localStorage.setItem("vae-edge-theme", theme);
      } catch { /* Nothing is remembered then. */ }
    });
  }

  function cellValue(row, column, kind) {
    // A bundle that did not run has one cell for all columns; it stays at the end either way.
    const cell = row.cells[column];
    if (!cell || cell.colSpan > 1) return null;
    if (kind === "text") return cell.textContent.trim();
    const data = cell.querySelector("data");
    return data ? Number(data.value) : null;
  }

  function sortable(table) {
    const headers = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
    const body = table.tBodies[0];
    headers.forEach((header, column) => {
      const button = header.querySelector("button");
      button.disabled = false;
      button.addEventListener("click", () => {
        const ascending = header.getAttribute("aria-sort") !== "ascending";
        headers.forEach((other) => other.removeAttribute("aria-sort"));
        header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
        const kind = header.dataset.sort;
        const rows = [...body.rows].map((row) => ({ row, value: cellValue(row, column, kind) }));
        rows.sort((a, b) => {
          if (a.value === null || b.value === null) return (a.value === null) - (b.value === null);
          const order = kind === "text" ? a.value.localeCompare(b.value, "en", { numeric: true }) : a.value - b.value;
          return ascending ? order : -order;
        });
        body.append(...rows.map((item) => item.row));
      });
    });
  }

  function picker() {
    const select = document.getElementById("tradeoff-axes");
    if (!select) return;
    select.addEventListener("change", () => {
      document.querySelectorAll("#tradeoff-charts [data-panel]").forEach((panel) => {
        panel.hidden = panel.dataset.panel !== select.value;
      });
    });
  }

  // Browsers that cannot open <details> by style need it done; those opened for printing are closed again after it.
  const opened = [];
  addEventListener("beforeprint", () => {
    document.querySelectorAll("details:not([open])").forEach((item) => {
      item.open = true;
      opened.push(item);
    });
  });
  addEventListener("afterprint", () => {
    opened.splice(0).forEach((item) => { item.open = false; });
  });

  document.addEventListener("DOMContentLoaded", () => {
    themeButton();
    document.querySelectorAll("table.overview").forEach(sortable);
    picker();
  });
})();

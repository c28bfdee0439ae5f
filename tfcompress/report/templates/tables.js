"use strict";
// Tables that are sorted by a click on a heading.
(() => {
  function keyOf(row, column) {
    const cell = row.cells[column];
    if ("value" in cell.dataset) return cell.dataset.value === "" ? null : Number(cell.dataset.value);
    return cell.textContent.trim();
  }

  function compare(a, b) {
    if (typeof a === "number" && typeof b === "number") return a - b;
    return String(a).localeCompare(String(b), "en", { numeric: true });
  }

  function sort(table, heading, direction) {
    const column = heading.cellIndex, body = table.tBodies[0];
    const sign = direction === "ascending" ? 1 : -1;
    const rows = [...body.rows].map((row) => ({ row, key: keyOf(row, column) }));
    rows.sort((a, b) => {
      // What is not known comes last either way.
      if (a.key === null || b.key === null) return (a.key === null) - (b.key === null);
      return sign * compare(a.key, b.key);
    });
    body.append(...rows.map(({ row }) => row));
    for (const other of table.tHead.rows[0].cells) {
      if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", other === heading ? direction : "none");
    }
  }

  function makeSortable(table) {
    table.tHead.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (!button) return;
      const heading = button.closest("th"), now = heading.getAttribute("aria-sort");
      const other = { ascending: "descending", descending: "ascending" };
      sort(table, heading, other[now] || button.dataset.first);
    });
  }

  document.querySelectorAll("table.sortable").forEach(makeSortable);
})();

"use strict";
// Sorts a table by a column when its head is pressed; the page reads the same without this.
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0];
  if (body.rows.length < 2) continue;
  [...table.tHead.rows[0].cells].forEach((head, index) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const rising = head.getAttribute("aria-sort") !== "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", rising ? "ascending" : "descending");
      const value = (row) => {
        const number = row.cells[index].querySelector("data");
        return number ? Number(number.value) : row.cells[index].textContent.trim();
      };
      const order = (a, b) =>
        typeof a === "number" && typeof b === "number" ? a - b : typeof a === "number" ? -1 : typeof b === "number" ? 1 : a.localeCompare(b, "en", { numeric: true });
      const rows = [...body.rows].sort((a, b) => order(value(a), value(b)));
      body.append(...(rising ? rows : rows.reverse()));
    });
  });
}

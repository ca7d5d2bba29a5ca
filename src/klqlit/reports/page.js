"use strict";
// The page can be read without this: it sorts and filters tables, shows a touched token's numbers, opens all for print.
document.documentElement.classList.add("js");

const value = cell => cell.dataset.value !== undefined ? cell.dataset.value : cell.textContent.trim();

function compare(one, other) {
  const numbers = [one, other].map(text => parseFloat(text.replace("−", "-")));
  const known = numbers.map(number => !Number.isNaN(number));
  if (known[0] && known[1]) return numbers[0] - numbers[1];
  // What is not a number comes last.
  if (known[0] !== known[1]) return known[0] ? -1 : 1;
  return one.localeCompare(other);
}

function sort(table, column, descending) {
  const body = table.tBodies[0];
  const rows = [...body.rows];
  rows.forEach((row, i) => { row.dataset.place = row.dataset.place ?? i; });
  rows.sort((one, other) => {
    if (column < 0) return one.dataset.place - other.dataset.place;
    const order = compare(value(one.cells[column]), value(other.cells[column]));
    return descending ? -order : order;
  });
  body.append(...rows);
  [...table.tHead.rows[0].cells].forEach((head, i) => {
    if (i === column) head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    else head.removeAttribute("aria-sort");
  });
}

for (const table of document.querySelectorAll("table.sortable")) {
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    head.tabIndex = 0;
    const act = () => sort(table, column, head.getAttribute("aria-sort") === "ascending");
    head.addEventListener("click", act);
    head.addEventListener("keydown", event => { if (event.key === "Enter") act(); });
  });
}

for (const select of document.querySelectorAll("select[data-sorts]")) {
  const table = document.getElementById(select.dataset.sorts);
  // The best scores first.
  select.addEventListener("change", () =>
    select.value === "" ? sort(table, -1, false) : sort(table, Number(select.value), Number(select.value) > 1));
}

for (const field of document.querySelectorAll("input[data-filters]")) {
  const rows = [...document.getElementById(field.dataset.filters).tBodies[0].rows];
  const count = document.querySelector(`[data-count="${field.dataset.filters}"]`);
  field.addEventListener("input", () => {
    const wanted = field.value.toLowerCase();
    for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
    const shown = rows.filter(row => !row.hidden).length;
    count.textContent = shown === rows.length ? `${shown} rows` : `${shown} of ${rows.length} rows`;
  });
}

for (const block of document.querySelectorAll(".tokens")) {
  const hint = block.querySelector(".hint");
  const show = event => {
    if (event.target.classList.contains("token")) hint.textContent = `“${event.target.textContent}” ${event.target.title}`;
  };
  block.addEventListener("click", show);
  block.addEventListener("mouseover", show);
}

let closed = [];
window.addEventListener("beforeprint", () => {
  closed = [...document.querySelectorAll("details:not([open]):not(.source)")];
  for (const details of closed) details.open = true;
});
window.addEventListener("afterprint", () => { for (const details of closed) details.open = false; });

// A field on pages of long tables: rows without its words are hidden, and tables that have no row left.
const MANY = 60;

function filterOf(rows) {
  const field = document.createElement("input");
  field.type = "search";
  field.className = "md-input md-input--stretch";
  field.placeholder = `Show only rows with these words (${rows.length} rows)`;
  field.setAttribute("aria-label", "Show only table rows with these words");
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of rows) row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
    for (const table of new Set(rows.map((row) => row.closest("table")))) {
      const left = [...table.tBodies[0].rows].some((row) => !row.hidden);
      (table.closest(".md-typeset__scrollwrap") ?? table).hidden = !left;
    }
  });
  return field;
}

document.addEventListener("DOMContentLoaded", () => {
  const rows = [...document.querySelectorAll("article table tbody tr")];
  if (rows.length > MANY) document.querySelector("article h1").after(filterOf(rows));
});

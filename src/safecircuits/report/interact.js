// What may be done with any page: sort and search its tables, filter its conclusions, read off the values of its figures.

// Tables. Cells that are numbers in words have the number beside them (data-order), which goes before their text.
for (const element of document.querySelectorAll("table.numbers")) {
  const many = element.tBodies[0].rows.length > 8;
  new DataTable(element, {
    paging: false, info: false, searching: many, order: [], autoWidth: false,
    language: { search: "Search", zeroRecords: "No row is like that." },
  });
}

// Conclusions, by what was found of them.
const conclusions = document.getElementById("conclusions-shown");
if (conclusions) {
  const buttons = [...conclusions.querySelectorAll("button")];
  for (const button of buttons) {
    button.addEventListener("click", () => {
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
      for (const item of document.querySelectorAll("#conclusions li[data-shows]")) {
        item.hidden = button.dataset.shows !== "" && item.dataset.shows !== button.dataset.shows;
      }
    });
  }
  conclusions.hidden = false;
}

// Values of figures: under the pointer or the finger; with the keyboard by the arrows, once a figure has the focus.
const told = document.createElement("div");
told.className = "told";
told.hidden = true;
told.setAttribute("role", "status");
document.body.append(told);
let marked = null;

function silent() {
  told.hidden = true;
  marked?.classList.remove("marked");
  marked = null;
}

function tell(shape) {
  silent();
  marked = shape;
  shape.classList.add("marked");
  told.textContent = shape.getAttribute("data-value");
  told.hidden = false;
  const at = shape.getBoundingClientRect(), own = told.getBoundingClientRect();
  const left = Math.min(Math.max(at.left + at.width / 2 - own.width / 2, 4), innerWidth - own.width - 4);
  const above = at.top - own.height - 8;
  told.style.left = `${left + scrollX}px`;
  told.style.top = `${(above > 0 ? above : at.bottom + 8) + scrollY}px`;
}

const valued = (target) => (target instanceof Element ? target.closest("[data-value]") : null);
for (const kind of ["pointerover", "pointerdown"]) {
  document.addEventListener(kind, (event) => {
    const shape = valued(event.target);
    if (shape) tell(shape);
    else if (marked) silent();
  });
}

for (const figure of document.querySelectorAll("svg.chart")) {
  const shapes = [...figure.querySelectorAll("[data-value]")];
  if (!shapes.length) continue;
  figure.setAttribute("tabindex", "0");
  figure.setAttribute("aria-label", `${figure.getAttribute("aria-label")} (arrow keys read its ${shapes.length} values)`);
  let place = -1;
  figure.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (event.key === "Escape") silent();
    if (!step) return;
    event.preventDefault();
    place = (place + step + shapes.length + (place < 0 && step < 0 ? 1 : 0)) % shapes.length;
    tell(shapes[place]);
  });
  figure.addEventListener("blur", silent);
}

// Units: a layer leads to its units, a unit to its prompts and tokens, a prompt to the units that it drives and its answers.
if (document.getElementById("units-data")) {
  const groups = JSON.parse(document.getElementById("units-data").textContent);
  const by = (id) => document.getElementById(id);
  const chooser = by("units-of"), layers = by("units-layers"), area = by("units-table"), detail = by("units-detail");
  const answers = document.getElementById("answers-data");
  const views = answers ? JSON.parse(answers.textContent) : { views: [], prompts: [] };
  const SITES = { mlp: "MLP", attn: "head" };
  const OWN = "of its largest (%)";
  let group = groups[0], layer = null, prompt = null, table = null;

  const make = (tag, text = "", kind = "") => {
    const element = document.createElement(tag);
    element.textContent = text;
    if (kind) element.className = kind;
    return element;
  };
  const press = (text, act, kind = "") => {
    const button = make("button", text, kind);
    button.type = "button";
    button.addEventListener("click", act);
    return button;
  };
  const name = (unit) => `${SITES[unit.site]} ${unit.layer}.${unit.unit}`;
  const token = (text) => text.replaceAll("\n", "⏎") || "∅";
  const said = (value) => (value === null ? "–" : String(value).replace("-", "−"));

  // Neurons and heads are measured in different units: each is held against its own largest value.
  function share(unit) {
    const most = Math.max(...unit.peaks.map((value) => Math.abs(value ?? 0)), 1e-9);
    return Math.round((100 * Math.abs(unit.peaks[prompt] ?? 0)) / most);
  }

  function strip(tokens, values) {
    const line = make("span", "", "tokens");
    const most = Math.max(...values.map((value) => Math.abs(value ?? 0)), 1e-9);
    tokens.forEach((text, place) => {
      const value = values[place], one = make("span", token(text));
      if (value !== null) {
        const hue = value < 0 ? "--blue" : "--vermillion";
        one.style.background = `color-mix(in srgb, var(${hue}) ${Math.round((70 * Math.abs(value)) / most)}%, transparent)`;
        one.setAttribute("data-value", `${token(text)} (token ${place}): ${said(value)}`);
      } else one.className = "absent";
      line.append(one);
    });
    return line;
  }

  function words(title, rows) {
    const line = make("p", `${title} `);
    if (!rows.length) line.append(make("span", "not known: this layer's units do not write straight into the residual stream", "absent"));
    for (const [text, value] of rows) {
      const one = make("code", token(text));
      one.setAttribute("data-value", `${token(text)}: ${said(value)} to its logit`);
      line.append(one, ` ${said(value)} `);
    }
    return line;
  }

  function asked(index) {
    const [id, set, text] = group.prompts[index];
    return text === null ? `${set} ${id} (text left out)` : text;
  }

  function showUnit(unit) {
    prompt = null;
    const heading = make("h3", name(unit));
    heading.tabIndex = -1;
    detail.replaceChildren(heading, words("Adds to", unit.adds), words("Takes from", unit.takes));
    const list = make("ol", "", "driven");
    unit.top.forEach((index, place) => {
      const item = make("li"), tokens = group.prompts[index][3];
      item.append(press(`${group.prompts[index][1]} ${group.prompts[index][0]}`, () => showPrompt(index)), ` peak ${said(unit.peaks[index])} `);
      const left = make("span", "text left out", "absent");
      item.append(tokens === null ? left : strip(tokens, unit.along[place]));
      list.append(item);
    });
    detail.append(make("p", "Prompts that drive it most, and its value at each token:"), list);
    heading.focus({ preventScroll: true });
    mark(unit);
  }

  function mark(unit) {
    for (const button of area.querySelectorAll("button")) button.setAttribute("aria-pressed", String(button.textContent === name(unit)));
  }

  function showPrompt(index) {
    prompt = index;
    const heading = make("h3", asked(index));
    heading.tabIndex = -1;
    detail.replaceChildren(heading, make("p", "The table has first the units for which this prompt is nearest to the one that drives them most."));
    const found = views.views.flatMap((view) => view.rows
      .filter((row) => views.prompts[row[0]][0] === group.prompts[index][0] && (views.prompts[row[0]][1] ?? group.prompts[index][2]) === group.prompts[index][2])
      .map((row) => [view, row]));
    if (found.length) {
      const line = make("p", "Its answers: ");
      for (const [view, row] of found.slice(0, 12)) {
        const link = make("a", `${view.label} (${row[2]})`);
        link.href = `#answers-${view.key}`;
        line.append(link, " ");
      }
      detail.append(line);
    }
    detail.append(press("the units as they were", () => { prompt = null; detail.replaceChildren(); show(); }));
    show();
    heading.focus({ preventScroll: true });
  }

  function show() {
    const units = group.units.filter((unit) => layer === null || unit.layer === layer);
    const heads = ["unit", "layer", "score", ...group.sets.map((set) => `mean peak, ${set}`), ...(prompt === null ? [] : ["peak on this prompt", OWN]), "adds to"];
    const element = make("table", "", "display compact units");
    table?.destroy();
    area.replaceChildren(element);
    const place = prompt === null ? -1 : heads.indexOf(OWN);
    table = new DataTable(element, {
      data: units.map((unit) => [
        group.units.indexOf(unit), unit.layer, unit.score ?? "", ...unit.means.map((value) => value ?? ""),
        ...(prompt === null ? [] : [unit.peaks[prompt] ?? "", share(unit)]), unit.adds.slice(0, 4).map(([text]) => token(text)).join(" "),
      ]),
      columns: heads.map((title, column) => ({
        title,
        ...(column === 0 ? { render: (index, kind) => (kind === "display" ? press(name(group.units[index]), () => showUnit(group.units[index])) : kind === "filter" ? name(group.units[index]) : index) } : {}),
        ...(column === heads.length - 1 ? { render: (data, kind) => (kind === "display" ? make("span", data) : data) } : {}),
      })),
      order: place < 0 ? [] : [[place, "desc"]],
      pageLength: 10, lengthMenu: [10, 25, { label: "all", value: -1 }], autoWidth: false,
      language: { search: "Search", lengthMenu: "_MENU_ a page", emptyTable: "No unit of this layer is among them." },
    });
  }

  function drawLayers() {
    const counts = new Map();
    for (const unit of group.units) counts.set(unit.layer, (counts.get(unit.layer) ?? 0) + 1);
    const buttons = [null, ...[...counts.keys()].sort((a, b) => a - b)].map((one) => {
      const button = press(one === null ? `all layers: ${group.units.length}` : `${one}: ${counts.get(one)}`, () => { layer = one; drawLayers(); show(); });
      button.setAttribute("aria-pressed", String(one === layer));
      button.setAttribute("aria-label", one === null ? `all layers, ${group.units.length} units` : `layer ${one}, ${counts.get(one)} units`);
      return button;
    });
    const focused = document.activeElement?.getAttribute("aria-label");
    layers.replaceChildren(...buttons);
    if (focused) buttons.find((button) => button.getAttribute("aria-label") === focused)?.focus();
  }

  function choose(index) {
    group = groups[index];
    layer = prompt = null;
    detail.replaceChildren();
    drawLayers();
    show();
  }

  function follow() {
    const found = location.hash.match(/^#unit-(mlp|attn)-(\d+)-(\d+)$/);
    const index = found ? groups.findIndex((one) => one.units.some((unit) => is(unit, found))) : -1;
    if (index < 0) return;
    chooser.value = String(index);
    choose(index);
    by("units").scrollIntoView();
    showUnit(group.units.find((unit) => is(unit, found)));
  }
  const is = (unit, [, site, at, number]) => unit.site === site && unit.layer === Number(at) && unit.unit === Number(number);

  groups.forEach((one, index) => chooser.add(new Option(one.label, String(index))));
  chooser.addEventListener("change", () => choose(Number(chooser.value)));
  by("units-choice").hidden = groups.length < 2;
  addEventListener("hashchange", follow);
  let length = null;
  addEventListener("beforeprint", () => { length = table.page.len(); table.page.len(-1).draw(); });
  addEventListener("afterprint", () => { if (length !== null) table.page.len(length).draw(); });
  choose(0);
  by("units-explorer").hidden = false;
  follow();
}

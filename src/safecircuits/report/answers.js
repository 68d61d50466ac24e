// The answers behind a count: which one is asked for by the address, "#answers-KEY"; everything is set as text.
if (document.getElementById("answers-data")) {
  const data = JSON.parse(document.getElementById("answers-data").textContent);
  const by = (id) => document.getElementById(id);
  const chooser = by("answers-of"), beside = by("answers-beside"), filter = by("answers-verdict");
  const only = by("answers-changed"), area = by("answers-table"), said = by("answers-said");
  const views = new Map(data.views.map((view) => [view.key, view]));
  const all = data.detectors.length;
  let table = null;

  const say = (view) => `${view.label}${view.set && !view.label.endsWith(view.set) ? ` (${view.set})` : ""}`;
  const option = (select, value, text) => select.add(new Option(text, value));
  const escaped = (text) => {
    const element = document.createElement("span");
    element.textContent = text;
    return element.innerHTML;
  };
  const counts = (verdict) => (verdict === "refuses" ? 1 : 0);

  // How many of the known detectors say otherwise than the verdict, where refusing is the question.
  function disagreement(row) {
    if (row[2] === "right" || row[2] === "wrong") return 0;
    const [, says] = data.texts[row[1]];
    let differing = 0;
    for (let bit = 0; bit < all; bit += 1) differing += ((says >> bit) & 1) !== counts(row[2]) ? 1 : 0;
    return differing;
  }

  function text(view, row) {
    const [words] = data.texts[row[1]];
    if (words === null) return '<span class="absent">left out</span>';
    const shown = `<span class="answer">${escaped(words) || "∅"}</span>`;
    // What answers a harmful prompt is read only by who asks for it.
    const fold = view.fold && row[2] !== "refuses";
    return fold ? `<details class="harmful"><summary>show the answer</summary>${shown}</details>` : shown;
  }

  function reason(row) {
    if (!row[3]) return "";
    return escaped(row[4] > 0 ? `${row[3]} (at ${row[4]})` : row[3]);
  }

  function who(row) {
    const [, says] = data.texts[row[1]];
    const names = data.detectors.filter((_, bit) => (says >> bit) & 1);
    if (names.length === all) return "all";
    const rest = data.detectors.filter((name) => !names.includes(name));
    return escaped(2 * names.length > all ? `all but ${rest.join(", ")}` : names.length ? names.join(", ") : "none");
  }

  function others(view) {
    const asked = new Set(view.rows.map((row) => data.prompts[row[0]][0]));
    return data.views.filter((one) => one.key !== view.key && one.rows.some((row) => asked.has(data.prompts[row[0]][0])));
  }

  function rows(view, other) {
    const theirs = new Map((other?.rows ?? []).map((row) => [data.prompts[row[0]][0], row]));
    return view.rows
      .map((row) => ({ row, their: theirs.get(data.prompts[row[0]][0]) }))
      .filter(({ row }) => !filter.value || row[2] === filter.value)
      .filter(({ row, their }) => !other || !only.checked || (their && their[2] !== row[2]));
  }

  function columns(view, other) {
    const judged = view.rows.some((row) => row[2] !== "right" && row[2] !== "wrong");
    const has = (place) => view.rows.some((row) => row[place] !== null && row[place] !== "");
    const kinds = view.rows.some((row) => data.prompts[row[0]][2]);
    return [
      ["prompt", ({ row }) => {
        const [id, asked] = data.prompts[row[0]];
        return `${asked === null ? '<span class="absent">left out</span>' : escaped(asked)} <code>${escaped(id)}</code>`;
      }, "words"],
      ["answer", ({ row }) => text(view, row), "words"],
      ["verdict", ({ row }) => escaped(row[2])],
      other && ["answer there", ({ their }) => (their ? text(other, their) : "–"), "words"],
      other && ["verdict there", ({ their }) => (their ? escaped(their[2]) : "–")],
      has(3) && ["reason", ({ row }) => reason(row)],
      kinds && ["category", ({ row }) => escaped(data.prompts[row[0]][2] ?? "")],
      has(5) && ["score", ({ row }) => row[5] ?? ""],
      has(6) && ["tokens", ({ row }) => row[6]],
      has(7) && ["cut", ({ row }) => (row[7] ? "cut" : "")],
      judged && ["refused by", ({ row }) => who(row)],
      judged && ["disagree", ({ row }) => disagreement(row)],
    ].filter(Boolean);
  }

  function show() {
    const view = views.get(chooser.value), other = views.get(beside.value);
    const shown = rows(view, other), heads = columns(view, other);
    table?.destroy();
    const element = document.createElement("table");
    element.className = "display compact";
    area.replaceChildren(element);
    const worst = heads.findIndex(([name]) => name === "disagree");
    table = new DataTable(element, {
      data: shown.map((one) => heads.map(([, cell]) => cell(one))),
      columns: heads.map(([title, , kind]) => ({ title, className: kind ?? "" })),
      order: worst < 0 ? [] : [[worst, "desc"]],
      pageLength: 10,
      lengthMenu: [10, 25, 100, { label: "all", value: -1 }],
      autoWidth: false,
      language: { search: "Search", lengthMenu: "_MENU_ a page", emptyTable: "No answer is like that." },
    });
    const refused = view.rows.filter((row) => row[2] === "refuses" || row[2] === "right").length;
    const word = view.rows.some((row) => row[2] === "right" || row[2] === "wrong") ? "right" : "refuse";
    const tally = {};
    for (const row of view.rows) tally[row[2]] = (tally[row[2]] ?? 0) + 1;
    const every = Object.entries(tally).map(([name, n]) => `${n} ${name}`).join(", ");
    said.textContent = `${refused} of ${view.rows.length} ${word} by ${view.detector}: ${every}. ${shown.length} shown.`;
  }

  function choose(key) {
    chooser.value = key;
    const view = views.get(key);
    const kept = beside.value;
    beside.length = 1;
    for (const one of others(view)) option(beside, one.key, say(one));
    beside.value = [...beside.options].some((one) => one.value === kept) ? kept : "";
    filter.length = 1;
    for (const verdict of new Set(view.rows.map((row) => row[2]))) option(filter, verdict, verdict);
    only.disabled = !beside.value;
    show();
  }

  function follow() {
    const key = location.hash.replace(/^#answers-?/, "");
    if (location.hash === "#answers") by("answers").open = true; // as the contents lead here
    if (!views.has(key)) return;
    by("answers").open = true;
    filter.value = "";
    choose(key);
    by("answers").scrollIntoView();
    by("answers-heading").focus({ preventScroll: true });
  }

  for (const view of data.views) option(chooser, view.key, say(view));
  chooser.addEventListener("change", () => { filter.value = ""; choose(chooser.value); });
  beside.addEventListener("change", () => { only.disabled = !beside.value; show(); });
  filter.addEventListener("change", show);
  only.addEventListener("change", show);
  addEventListener("hashchange", follow);
  let before = null;
  addEventListener("beforeprint", () => { before = table?.page.len(); table?.page.len(-1).draw(); });
  addEventListener("afterprint", () => { if (before !== null) table?.page.len(before).draw(); });
  choose(data.views[0].key);
  follow();
  by("answers-controls").hidden = false;
}

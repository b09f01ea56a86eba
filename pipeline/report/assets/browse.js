"use strict";
// Asks for rows and puts them on the page. Texts of strangers are set as textContent alone.
// What is asked stands in the page's address, so that back, forward, reload and a bookmark lead to it again.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const form = document.getElementById("asked"), list = document.getElementById("rows"), found = document.getElementById("found");
  let asked = new URLSearchParams(location.search), latest = 0, number = 0, ends = [];

  function element(name, text, kind) {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (kind) made.className = kind;
    return made;
  }

  const written = (value) => Array.isArray(value) ? value.join(", ") : typeof value === "number" && !Number.isInteger(value) ? String(Number(value.toPrecision(5))) : String(value);

  function line(row) {
    const item = element("li", undefined, "row"), facts = element("dl"), place = element("div", undefined, "pictures");
    if (row.width) {
      const image = element("img");
      image.alt = "Picture of row " + row.row;
      image.loading = "lazy";
      if (row.blurred) {
        const cover = element("button", undefined, "unsafe");
        cover.type = "button";
        cover.setAttribute("aria-label", "Show the picture of row " + row.row + ", which has a high unsafe score");
        cover.addEventListener("click", () => cover.classList.toggle("shown"));
        cover.append(image);
        place.append(cover);
      } else place.append(image);
      image.addEventListener("error", () => image.replaceWith(element("span", "no picture", "none")));
      image.src = "/image?row=" + row.row;
    } else place.append(element("span", "no picture", "none"));
    for (const name of new Set([...data.first, asked.get("sort") || "row", form.elements.column.value])) {
      if (row[name] === null || row[name] === undefined || row[name] === "") continue;
      const pair = element("div"), value = element("dd", written(row[name]), name === "url" ? "url" : name === "detail" ? "why" : "");
      value.dir = "auto";
      pair.append(element("dt", name), value);
      facts.append(pair);
    }
    const more = element("button", "Story");
    more.type = "button";
    more.addEventListener("click", () => story(row.row));
    place.append(more);
    item.append(place, facts);
    return item;
  }

  async function answered(path) {
    try {
      const answer = await fetch(path);
      return answer.ok ? { got: await answer.json() } : { fault: await answer.text() };
    } catch {
      return { fault: "no answer: shardmill browse has ended" };
    }
  }

  async function story(row) {
    const { got: told, fault } = await answered("/story?row=" + row);
    if (!told) {
      found.textContent = fault;
      return;
    }
    const box = document.getElementById("story");
    box.querySelector("dl").replaceChildren(...told.map(([step, text]) => {
      const pair = element("div"), value = element("dd", text);
      value.dir = "auto";
      pair.append(element("dt", step), value);
      return pair;
    }));
    box.showModal();
  }

  async function show() {
    const mine = ++latest, began = performance.now();
    const { got, fault } = await answered("/rows?" + asked);
    if (mine !== latest) return;
    if (!got) {
      found.textContent = fault;
      return;
    }
    number = got.page;
    found.textContent = got.total.toLocaleString("en-US") + " rows, in " + Math.round(performance.now() - began) + " ms";
    list.replaceChildren(...got.rows.map(line));
    ends = got.rows.length ? [got.rows[0].row, got.rows[got.rows.length - 1].row] : [];
    document.getElementById("place").textContent = "page " + (got.page + 1).toLocaleString("en-US") + " of " + Math.max(1, Math.ceil(got.total / data.page)).toLocaleString("en-US");
    document.getElementById("before").disabled = got.page === 0;
    document.getElementById("after").disabled = (got.page + 1) * data.page >= got.total;
  }

  function ask(next) {
    asked = next;
    history.pushState(null, "", "?" + asked);
    show();
  }

  function anew() {
    ask(new URLSearchParams([...new FormData(form)].filter(([, value]) => value !== "")));
  }

  // `way`: "after" the last row that is shown, or "before" the first one.
  function turn(way) {
    const next = new URLSearchParams(asked), page = number + (way === "after" ? 1 : -1), row = way === "after" ? ends[1] : ends[0];
    for (const name of ["after", "before"]) next.delete(name);
    next.set("page", page);
    if (row !== undefined && page > 0) next.set(way, row);
    ask(next);
    scrollTo(0, 0);
  }

  // Puts what the address asks into the form.
  function restore() {
    form.reset();
    for (const field of form.elements) {
      if (field.type === "checkbox") field.checked = asked.has(field.name);
      else if (field.name && asked.has(field.name)) field.value = asked.get(field.name);
    }
  }

  form.addEventListener("submit", (event) => { event.preventDefault(); anew(); });
  form.addEventListener("change", (event) => { if (event.target.matches("select, [type=checkbox]")) anew(); });
  document.getElementById("before").addEventListener("click", () => turn("before"));
  document.getElementById("after").addEventListener("click", () => turn("after"));
  addEventListener("popstate", () => { asked = new URLSearchParams(location.search); restore(); show(); });
  restore();
  show();
})();

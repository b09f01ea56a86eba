"use strict";
// Asks for rows and puts them on the page. Texts of strangers are set as textContent alone.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const form = document.getElementById("asked"), list = document.getElementById("rows"), found = document.getElementById("found");
  let number = 0, latest = 0, ends = [];

  function element(name, text, kind) {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (kind) made.className = kind;
    return made;
  }

  const written = (value) => typeof value === "number" && !Number.isInteger(value) ? String(Number(value.toPrecision(5))) : String(value);

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
    const sorted = form.elements.sort.value, asked = form.elements.column.value;
    for (const name of new Set([...data.first, sorted, asked])) {
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

  async function story(row) {
    const told = await (await fetch("/story?row=" + row)).json();
    const box = document.getElementById("story");
    box.querySelector("dl").replaceChildren(...told.map(([step, text]) => {
      const pair = element("div"), value = element("dd", text);
      value.dir = "auto";
      pair.append(element("dt", step), value);
      return pair;
    }));
    box.showModal();
  }

  // `turn`: "after" the last row that is shown, or "before" the first one.
  async function show(turn) {
    const mine = ++latest, asked = new URLSearchParams(new FormData(form)), row = { after: ends[1], before: ends[0] }[turn];
    asked.set("page", number);
    if (row !== undefined && number > 0) asked.set(turn, row);
    const began = performance.now();
    let answer;
    try {
      answer = await fetch("/rows?" + asked);
    } catch {
      if (mine === latest) found.textContent = "no answer: shardmill browse has ended";
      return;
    }
    if (mine !== latest) return;
    if (!answer.ok) {
      found.textContent = await answer.text();
      return;
    }
    const got = await answer.json();
    found.textContent = got.total.toLocaleString("en-US") + " rows, in " + Math.round(performance.now() - began) + " ms";
    list.replaceChildren(...got.rows.map(line));
    ends = got.rows.length ? [got.rows[0].row, got.rows[got.rows.length - 1].row] : [];
    document.getElementById("place").textContent = "page " + (got.page + 1) + " of " + Math.max(1, Math.ceil(got.total / data.page)).toLocaleString("en-US");
    document.getElementById("before").disabled = got.page === 0;
    document.getElementById("after").disabled = (got.page + 1) * data.page >= got.total;
  }

  form.addEventListener("submit", (event) => { event.preventDefault(); number = 0; show(); });
  form.addEventListener("change", (event) => { if (event.target.matches("select, [type=checkbox]")) { number = 0; show(); } });
  document.getElementById("before").addEventListener("click", () => { number -= 1; show("before"); scrollTo(0, 0); });
  document.getElementById("after").addEventListener("click", () => { number += 1; show("after"); scrollTo(0, 0); });
  show();
})();

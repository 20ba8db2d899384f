"use strict";
// Tables sort by a button in each heading; the original order comes back with a third press.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.querySelectorAll("thead th")], body = table.tBodies[0], first = [...body.rows];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const was = head.getAttribute("aria-sort");
      heads.forEach(other => other.removeAttribute("aria-sort"));
      if (was === "descending") return body.append(...first);
      const up = was !== "ascending";
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const key = row => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
      // What was not measured stands at the end, whichever way.
      const missing = row => key(row) === "nan" || key(row) === "\u2013";
      body.append(...[...first].sort((a, b) => {
        if (missing(a) || missing(b)) return missing(a) - missing(b);
        const [x, y] = [Number(key(a)), Number(key(b))];
        const order = Number.isNaN(x) || Number.isNaN(y) ? key(a).localeCompare(key(b), "en", {numeric: true}) : x - y;
        return up ? order : -order;
      }));
    });
  });
}
// One slider per plane moves all inits of a case; boxes switch outlines.
for (const look of document.querySelectorAll(".look")) {
  const tools = look.querySelector(".tools");
  if (!tools) continue;
  tools.hidden = false;
  for (const slider of tools.querySelectorAll("input[type=range]")) {
    const places = slider.dataset.places.split(" ");
    const show = () => {
      look.style.setProperty("--" + slider.dataset.plane, slider.value);
      const text = `${Number(slider.value) + 1} of ${places.length}, ${Math.round(places[slider.value])} mm`;
      slider.setAttribute("aria-valuetext", text);
      slider.nextElementSibling.textContent = text;
    };
    slider.addEventListener("input", show);
    show();
  }
  for (const box of tools.querySelectorAll("input[type=checkbox]"))
    box.addEventListener("change", () => look.classList.toggle("no-" + box.dataset.layer, !box.checked));
}
// A link to a run opens the lists that it is in.
const open = () => {
  const target = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!target) return;
  for (let place = target; place; place = place.parentElement) if (place.tagName === "DETAILS") place.open = true;
  target.scrollIntoView();
};
addEventListener("hashchange", open);
open();
// On a telephone every row is a card: long tables wait behind their headings.
if (matchMedia("(max-width: 52rem)").matches) document.querySelectorAll("details.long").forEach(d => { d.open = false; });
addEventListener("beforeprint", () => document.querySelectorAll("details:not(.runs, .made)").forEach(d => { d.open = true; }));

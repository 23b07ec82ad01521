"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const all = (s) => [...document.querySelectorAll(s)];
  const nodes = all(".graph .node"), edges = all(".graph .edge");
  const slider = document.getElementById("slider"), said = document.getElementById("said");
  const title = document.getElementById("detail-title"), lines = document.getElementById("detail-lines");
  const total = Object.keys(data.nodes).length;
  let held = null;

  const show = (item) => {
    if (!item) return;
    title.textContent = item.title;
    lines.replaceChildren(...item.lines.map((text) => {
      const li = document.createElement("li");
      li.textContent = text;
      return li;
    }));
  };
  const lit = (name) => {
    for (const e of edges) {
      const own = name !== null && (e.dataset.source === name || e.dataset.target === name);
      e.classList.toggle("lit", own);
      e.classList.toggle("dim", name !== null && !own);
    }
    for (const n of nodes) n.classList.toggle("on", name !== null && n.dataset.name === name);
  };
  const inside = new Set();
  const draw = (chosen) => {
    inside.clear();
    for (const n of nodes) {
      const known = data.nodes[n.dataset.name], member = known ? chosen(known) : true;
      n.classList.toggle("in", member);
      if (member) inside.add(n.dataset.name);
    }
    for (const e of edges) e.classList.toggle("off", !(inside.has(e.dataset.source) && inside.has(e.dataset.target)));
  };
  const at = (k) => {
    const [size, kept] = data.curve[k];
    draw((n) => n.rank < size);
    said.textContent = `${size} of ${total} parts keep ${(100 * kept).toFixed(0)} % of the margin`;
    slider.setAttribute("aria-valuetext", said.textContent);
    const point = document.querySelector(`.faith .point[data-size="${size}"]`), now = document.querySelector(".faith .now");
    if (point && now) for (const c of ["cx", "cy"]) now.setAttribute(c, point.getAttribute(c));
  };
  const near = (size) => data.curve.reduce((best, [s], k) => Math.abs(s - size) < Math.abs(data.curve[best][0] - size) ? k : best, 0);
  if (data.curve.length > 1 && Object.values(data.nodes).every((n) => n.rank !== null)) {
    const found = near(Number(slider.dataset.core));
    slider.value = found;
    at(found);
    slider.addEventListener("input", () => at(Number(slider.value)));
    document.getElementById("back").addEventListener("click", () => { slider.value = found; at(found); });
    for (const p of all(".faith .point")) p.addEventListener("click", () => {
      slider.value = near(Number(p.dataset.size));
      at(Number(slider.value));
    });
  } else {
    draw((n) => n.in);
  }
  for (const n of nodes) {
    const known = data.nodes[n.dataset.name];
    if (!known) continue;
    const name = n.dataset.name;
    const enter = () => { if (held === null) { show(known); lit(name); } };
    const leave = () => { if (held === null) lit(null); };
    const hold = () => { held = held === name ? null : name; show(known); lit(held); };
    n.addEventListener("pointerenter", enter);
    n.addEventListener("pointerleave", leave);
    n.addEventListener("focus", enter);
    n.addEventListener("blur", leave);
    n.addEventListener("click", hold);
    n.addEventListener("keydown", (e) => { if (e.key === "Enter" || e.key === " ") { e.preventDefault(); hold(); } });
  }
  document.addEventListener("keydown", (e) => { if (e.key === "Escape") { held = null; lit(null); } });
  edges.forEach((e) => e.addEventListener("pointerenter", () => { if (held === null) show(data.edges[Number(e.dataset.edge)]); }));
})();

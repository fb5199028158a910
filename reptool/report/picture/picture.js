"use strict";
const regions = JSON.parse(document.getElementById("data").textContent);
const told = document.getElementById("told");
const boxes = [...document.querySelectorAll(".box")];

function line(list, name, value) {
  if (value === "" || value === null || value === undefined) return;
  const term = document.createElement("dt"), text = document.createElement("dd");
  term.textContent = name;
  text.textContent = value;
  list.append(term, text);
}

function tell(title, lines, formulas) {
  told.replaceChildren();
  const head = document.createElement("h3"), list = document.createElement("dl");
  head.textContent = title;
  for (const [name, value] of lines) line(list, name, value);
  told.append(head, list);
  for (const formula of formulas) {
    const text = document.createElement("pre");
    text.textContent = formula;
    told.append(text);
  }
}

function into(view, box) {
  const outer = view.getBoundingClientRect(), inner = box.getBoundingClientRect();
  view.scrollTop += inner.top - outer.top - (outer.height - inner.height) / 2;
  view.scrollLeft += inner.left - outer.left - (outer.width - inner.width) / 2;
}

function choose(region, from) {
  for (const box of boxes) box.classList.toggle("chosen", box.dataset.region === String(region));
  for (const view of document.querySelectorAll(".view")) {
    const first = view.querySelector(`.box[data-region="${region}"]`);
    if (first && !(from && view.contains(from))) into(view, first);
  }
  const r = regions[region];
  tell(r.layer, [["is now", r.kind], ["made of", r.absorbed.join(", ")], ["rules", r.rules.join(", ")],
    ["multiplications", r.multiplications], ["price", r.price], ["error", r.error], ["after the cast", r.cast]], r.formulas);
}

function open(box) {
  if (box.dataset.region !== undefined) return choose(Number(box.dataset.region), box);
  for (const other of boxes) other.classList.toggle("chosen", other === box);
  tell(box.dataset.text.split(", left: ")[0], [["left as it is", box.dataset.refused || "nothing was looked for here"]], []);
}

for (const box of boxes) {
  box.addEventListener("click", () => open(box));
  box.addEventListener("keydown", event => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    open(box);
  });
}
for (const button of document.querySelectorAll(".regions button"))
  button.addEventListener("click", () => choose(Number(button.dataset.region)));

const search = document.getElementById("search"), count = document.getElementById("count");
search.addEventListener("input", () => {
  const wanted = search.value.trim().toLowerCase();
  let found = 0, first = null;
  for (const box of boxes) {
    const region = box.dataset.region === undefined ? null : regions[box.dataset.region];
    const text = box.dataset.text + " " + (region ? region.layer + " " + region.rules.join(" ") : "");
    const hit = text.toLowerCase().includes(wanted);
    box.classList.toggle("dim", wanted !== "" && !hit);
    if (wanted !== "" && hit) { found += 1; first = first || box; }
  }
  count.textContent = wanted === "" ? "" : `${found} found`;
  if (first) into(first.closest(".view"), first);
});

let scale = 1;
function resize(by) {
  scale = Math.min(2, Math.max(0.2, by));
  for (const picture of document.querySelectorAll("svg")) {
    const [width, height] = picture.dataset.size.split(" ").map(Number);
    picture.setAttribute("width", width * scale);
    picture.setAttribute("height", height * scale);
  }
}
document.getElementById("larger").addEventListener("click", () => resize(scale * 1.25));
document.getElementById("smaller").addEventListener("click", () => resize(scale / 1.25));
const views = [...document.querySelectorAll(".view")];
resize(Math.max(0.6, Math.min(...views.map(view => Math.min(1, view.clientWidth / view.firstElementChild.dataset.size.split(" ")[0])))));
for (const view of views) view.scrollLeft = (view.scrollWidth - view.clientWidth) / 2;

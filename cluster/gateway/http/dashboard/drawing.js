// Elements of the page. All text is set as text, never as markup: names come from outside.

const SVG = "http://www.w3.org/2000/svg";
const COLOURS = ["#2a6fdb", "#e69f00"];

function element(name, { className = "", text = "", title = "" } = {}, children = []) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (title) made.title = title;
  made.append(text, ...children);
  return made;
}

export function replace(parent, children) {
  parent.replaceChildren(...children);
}

export function tile(name, text) {
  return element("div", { className: "tile" }, [element("b", { text }), name]);
}

export function labelled(name, colour) {
  const box = element("i");
  box.style.background = colour;
  return [box, name];
}

// Lines over the last scrapes; a scrape without a figure leaves a gap.
export function chart(name, points, width, show) {
  const top = Math.max(...points.flat().filter((v) => v !== null), 0);
  const drawing = document.createElementNS(SVG, "svg");
  drawing.setAttribute("viewBox", `0 0 ${width} 100`);
  drawing.setAttribute("preserveAspectRatio", "none");
  points[0].forEach((_, number) => {
    const found = points
      .map((point, at) => [width - points.length + at, point[number]])
      .filter(([, v]) => v !== null)
      .map(([x, v]) => `${x},${98 - (top ? (95 * v) / top : 0)}`);
    const line = document.createElementNS(SVG, "polyline");
    line.setAttribute("points", found.join(" "));
    line.setAttribute("stroke", COLOURS[number]);
    drawing.append(line);
  });
  const caption = element("figcaption", {}, [name, element("span", { text: `up to ${show(top)}` })]);
  return element("figure", {}, [caption, drawing]);
}

// Rows of a table. A cell is a text, or { text, bad } or { bar: [[colour, part]], title, wide }.
export function rows(heads, found) {
  const head = element("tr", {}, heads.map((text) => element("th", { text })));
  return [head, ...found.map((cells) => element("tr", {}, cells.map(cell)))];
}

function cell(content) {
  if (typeof content === "string") return element("td", { text: content });
  const { text = "", title = "", bad = false, wide = false, bar = null } = content;
  const made = element("td", { text, title, className: bad ? "bad" : wide ? "wide" : "" });
  if (bar) made.append(stripes(bar));
  return made;
}

function stripes(parts) {
  return element("div", { className: "bar" }, parts.map(([colour, part]) => {
    const stripe = element("i");
    stripe.style.background = colour;
    stripe.style.width = `${100 * part}%`;
    return stripe;
  }));
}

// The phases of a request on the common time line of all that are shown, which ends now.
export function segments(request, span, colour) {
  const stay = request.attempts.at(-1);
  const begin = span - request.age_s + (stay ? stay.began_s : 0);
  return [["transparent", Math.max(0, begin) / span],
    ...request.phases.map(([name, seconds]) => [colour(name), seconds / span])];
}

/** The reading of the curves: a shell is chosen by pointing at the chart or with the slider below it. */
function readCurves(values) {
  const chart = document.getElementById("fsc");
  const slider = document.getElementById("fsc-shell");
  const where = document.getElementById("fsc-where");
  const [left, top, right, bottom] = chart.dataset.plot.split(" ").map(Number);
  const last = values.frequency[values.frequency.length - 1];
  const svg = (name, attributes) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    return chart.appendChild(element);
  };
  const rule = svg("line", { class: "reading", y1: top, y2: bottom });
  const dots = {};
  for (const key of Object.keys(values.curves)) dots[key] = svg("circle", { class: `dot ${key}`, r: 4 });

  function show(index) {
    const frequency = values.frequency[index];
    const x = left + ((right - left) * frequency) / last;
    rule.setAttribute("x1", x);
    rule.setAttribute("x2", x);
    for (const [key, curve] of Object.entries(values.curves)) {
      const value = curve[index];
      document.getElementById(`fsc-${key}`).textContent = value === null ? "–" : value.toFixed(3);
      dots[key].setAttribute("visibility", value === null ? "hidden" : "visible");
      if (value === null) continue;
      dots[key].setAttribute("cx", x);
      dots[key].setAttribute("cy", bottom - ((bottom - top) * (value - values.low)) / (1 - values.low));
    }
    const said = `${(1 / frequency).toFixed(2)} Å, shell ${index + 1}`;
    where.textContent = said;
    slider.value = index;
    slider.setAttribute("aria-valuetext", said);
  }

  slider.addEventListener("input", () => show(Number(slider.value)));
  chart.addEventListener("pointermove", (event) => {
    const box = chart.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * chart.viewBox.baseVal.width;
    const wanted = ((x - left) / (right - left)) * last;
    const step = values.frequency[0];
    show(Math.min(values.frequency.length - 1, Math.max(0, Math.round(wanted / step) - 1)));
  });
  show(Number(slider.value));
}

if (data.curves) readCurves(data.curves);

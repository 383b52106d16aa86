/** Three planes through two volumes of one grey scale; every plane has its slider. */
async function showSlices(slices) {
  const figure = document.getElementById("slices-figure");
  if (!canUnpack) return excuse(figure, "This browser is too old to unpack the slices; figures/slices.png has the central ones.");
  const volumes = {
    raw: await unpack(slices.raw),
    map: await unpack(slices.map),
  };
  const n = slices.raw.n;
  const byte = (value) => (255 * (value - slices.raw.low)) / (slices.raw.high - slices.raw.low);
  const black = byte(slices.black);
  const gain = 255 / (byte(slices.white) - black);
  // How far one goes in the bytes for a step right, a step up, and a step across the plane.
  const strides = { z: [1, n, n * n], y: [1, n * n, n], x: [n, n * n, 1] };

  function draw(axis, plane) {
    const [right, up, across] = strides[axis];
    for (const [name, bytes] of Object.entries(volumes)) {
      const canvas = figure.querySelector(`canvas[data-volume="${name}"][data-axis="${axis}"]`);
      const context = canvas.getContext("2d");
      const image = context.createImageData(n, n);
      for (let row = 0, at = 0; row < n; row++) {
        const start = plane * across + (n - 1 - row) * up;
        for (let column = 0; column < n; column++, at += 4) {
          const grey = (bytes[start + column * right] - black) * gain;
          image.data[at] = image.data[at + 1] = image.data[at + 2] = grey;
          image.data[at + 3] = 255;
        }
      }
      context.putImageData(image, 0, 0);
    }
  }

  for (const slider of figure.querySelectorAll("input[type=range]")) {
    const axis = slider.dataset.axis;
    const shown = document.getElementById(`slice-${axis}-where`);
    const move = () => {
      const plane = Number(slider.value);
      const place = slices.first + plane * slices.voxel;
      const said = `${axis} = ${place.toFixed(0).replace("-", "−")} Å`;
      shown.textContent = said;
      slider.setAttribute("aria-valuetext", said);
      draw(axis, plane);
    };
    slider.addEventListener("input", move);
    move();
  }
  figure.dataset.ready = "yes";
}

if (data.slices) showSlices(data.slices);

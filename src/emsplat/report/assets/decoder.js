/**
 * The decoder in the page: Gaussians whose masses and places follow the latents, and their density on a grid.
 * A row of its table: x, y, z of the centre; xx, xy, xz, yy, yz, zz of the covariance; log mass; K slopes of the log
 * mass; 3 K displacements. Lengths are in Å from the box centre.
 */
function openDecoder({ table, count, latents, edge, n }) {
  const STEEPEST = 8;
  const CUTOFF = 3; // standard deviations
  const width = 10 + 4 * latents;
  const rows = new Float32Array(Uint8Array.from(atob(table), (c) => c.charCodeAt(0)).buffer);
  const step = edge / n;
  const blur = (0.6 * step) ** 2; // the grid is coarse, so every Gaussian is widened by what a voxel cannot show
  const inverses = new Float32Array(6 * count); // of the covariances
  const reaches = new Float32Array(3 * count); // half edges of the box about the ellipsoid at the cutoff, in voxels
  const factors = new Float32Array(count); // density at the centre of a unit mass
  for (let j = 0; j < count; j++) {
    const r = j * width;
    const [xx, xy, xz, yy, yz, zz] = [rows[r + 3] + blur, rows[r + 4], rows[r + 5], rows[r + 6] + blur, rows[r + 7], rows[r + 8] + blur];
    const [a, b, c] = [yy * zz - yz * yz, xz * yz - xy * zz, xy * yz - xz * yy];
    const determinant = xx * a + xy * b + xz * c;
    inverses.set([a, b, c, xx * zz - xz * xz, xy * xz - xx * yz, xx * yy - xy * xy].map((v) => v / determinant), 6 * j);
    reaches.set([xx, yy, zz].map((v) => (CUTOFF * Math.sqrt(v)) / step), 3 * j);
    factors[j] = 1 / Math.sqrt((2 * Math.PI) ** 3 * determinant);
  }
  const grid = new Float32Array(n ** 3);

  /** The density at z, x fastest; the array is filled anew by the next call. */
  function density(z) {
    grid.fill(0);
    const middle = n / 2 - 0.5;
    for (let j = 0; j < count; j++) {
      const r = j * width;
      let slope = 0;
      let [x, y, w] = [rows[r], rows[r + 1], rows[r + 2]];
      for (let k = 0; k < latents; k++) {
        slope += rows[r + 10 + k] * z[k];
        const d = r + 10 + latents + 3 * k;
        x += rows[d] * z[k];
        y += rows[d + 1] * z[k];
        w += rows[d + 2] * z[k];
      }
      const peak = factors[j] * Math.exp(rows[r + 9] + Math.min(Math.max(slope, -STEEPEST), STEEPEST));
      x = x / step + middle;
      y = y / step + middle;
      w = w / step + middle;
      const [rx, ry, rz] = [reaches[3 * j], reaches[3 * j + 1], reaches[3 * j + 2]];
      const [x0, x1] = [Math.max(0, Math.ceil(x - rx)), Math.min(n - 1, Math.floor(x + rx))];
      const [y0, y1] = [Math.max(0, Math.ceil(y - ry)), Math.min(n - 1, Math.floor(y + ry))];
      const [z0, z1] = [Math.max(0, Math.ceil(w - rz)), Math.min(n - 1, Math.floor(w + rz))];
      const [a, b, c, d, e, f] = inverses.subarray(6 * j, 6 * j + 6).map((v) => v * step * step);
      for (let iz = z0; iz <= z1; iz++) {
        const dz = iz - w;
        for (let iy = y0; iy <= y1; iy++) {
          const dy = iy - y;
          const fixed = d * dy * dy + 2 * e * dy * dz + f * dz * dz;
          const mixed = 2 * (b * dy + c * dz);
          const row = n * (iy + n * iz);
          for (let ix = x0; ix <= x1; ix++) {
            const dx = ix - x;
            const q = dx * (a * dx + mixed) + fixed;
            if (q < CUTOFF * CUTOFF) grid[row + ix] += peak * Math.exp(-0.5 * q);
          }
        }
      }
    }
    return grid;
  }

  return { density, n };
}

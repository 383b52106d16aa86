// Blue to yellow in steps of equal lightness, told apart by every kind of colour vision.
const RAMP = [[0, 52, 110], [62, 82, 108], [108, 110, 116], [150, 141, 116], [197, 175, 103], [250, 222, 78]];

function rampColour(share) {
  const place = Math.min(Math.max(share, 0), 1) * (RAMP.length - 1);
  const i = Math.min(Math.floor(place), RAMP.length - 2);
  return RAMP[i].map((low, c) => (low + (place - i) * (RAMP[i + 1][c] - low)) / 255);
}

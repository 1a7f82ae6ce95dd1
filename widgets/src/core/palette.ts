/** Okabe and Ito's colours, readable with every common colour blindness. Pure. */

/** Fills of devices, cells, ops. Repeats beyond seven carry stripes, see `swatch`. */
export const FILLS = ["#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#0072B2", "#D55E00", "#F0E442"];
/** Lines that reach 3:1 on white, and on #212121. */
export const LINES = ["#0072B2", "#D55E00", "#009E73", "#CC79A7"];
export const DARK_LINES = ["#56B4E9", "#E69F00", "#009E73", "#CC79A7"];
/** One dash style a round of `LINES`, so that no two curves differ by colour only for long. */
export const DASHES: number[][] = [[], [7, 4], [2, 3], [9, 3, 2, 3]];
export const NEUTRAL = "#8a8f98";

export interface Swatch {
  fill: string;
  striped: boolean;
}

export function swatch(index: number): Swatch {
  return { fill: FILLS[index % FILLS.length], striped: index >= FILLS.length };
}

export function curveStyle(index: number, dark: boolean): { color: string; dash: number[] } {
  return { color: (dark ? DARK_LINES : LINES)[index % LINES.length], dash: DASHES[Math.floor(index / LINES.length) % DASHES.length] };
}

type Rgb = [number, number, number];

/** `#rgb`, `#rrggbb` or `rgb(r, g, b)`; anything else is mid grey. */
export function rgb(color: string): Rgb {
  const hex = /^#([0-9a-f]{3}|[0-9a-f]{6})\b/i.exec(color.trim());
  if (hex) {
    const text = hex[1].length === 3 ? [...hex[1]].map((c) => c + c).join("") : hex[1];
    return [0, 2, 4].map((i) => Number.parseInt(text.slice(i, i + 2), 16)) as Rgb;
  }
  const parts = color.match(/[\d.]+/g);
  return parts !== null && parts.length >= 3 ? (parts.slice(0, 3).map(Number) as Rgb) : [128, 128, 128];
}

/** `share` of `top` over `bottom`. */
export function mix(top: string, bottom: string, share: number): string {
  const [a, b] = [rgb(top), rgb(bottom)];
  return `rgb(${a.map((v, i) => Math.round(v * share + b[i] * (1 - share))).join(", ")})`;
}

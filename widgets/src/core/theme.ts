/** The colours of the page the widget stands in, as values a canvas can use. */

export interface Theme {
  background: string;
  raised: string;
  text: string;
  muted: string;
  border: string;
  edge: string;
  accent: string;
  font: string;
  dark: boolean;
}

/** Reads the variables that `common.css` sets, resolved to plain colours. */
export function readTheme(root: HTMLElement): Theme {
  const probe = document.createElement("span");
  root.append(probe);
  const resolve = (name: string): string => {
    probe.style.color = `var(${name})`;
    return getComputedStyle(probe).color;
  };
  const theme = {
    background: resolve("--nbf-background"),
    raised: resolve("--nbf-raised"),
    text: resolve("--nbf-text"),
    muted: resolve("--nbf-muted"),
    border: resolve("--nbf-border"),
    edge: resolve("--nbf-edge"),
    accent: resolve("--nbf-accent"),
    font: getComputedStyle(root).fontFamily,
    dark: false,
  };
  probe.remove();
  const [r, g, b] = (theme.background.match(/[\d.]+/g) ?? ["255", "255", "255"]).map(Number);
  return { ...theme, dark: 0.299 * r + 0.587 * g + 0.114 * b < 128 };
}

/** Calls `changed` after the page's theme may have changed. Returns what stops it. */
export function watchTheme(changed: () => void): () => void {
  // Style sheets of a new theme load after the attribute changes; two looks catch both.
  let late = 0;
  const soon = (): void => {
    changed();
    window.clearTimeout(late);
    late = window.setTimeout(changed, 300);
  };
  const observer = new MutationObserver(soon);
  const attributes = { attributes: true, attributeFilter: ["data-jp-theme-name", "data-jp-theme-light", "class", "data-theme"] };
  observer.observe(document.body, attributes);
  observer.observe(document.documentElement, attributes);
  const media = window.matchMedia("(prefers-color-scheme: dark)");
  media.addEventListener("change", soon);
  return () => {
    window.clearTimeout(late);
    observer.disconnect();
    media.removeEventListener("change", soon);
  };
}

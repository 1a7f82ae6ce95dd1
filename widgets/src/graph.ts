/** The graph view: scopes that open and close, coloured by device, with the reason of every placement. */
import { type Camera, attachGestures, centre, fit, heightOf, zoomAt } from "./core/camera.ts";
import { Colouring, MODES, MODE_LABELS, type Mode } from "./core/colours.ts";
import { details } from "./core/details.ts";
import type { Point } from "./core/layered.ts";
import { type Box, Layouts, type Scene } from "./core/layout.ts";
import { Mirror } from "./core/mirror.ts";
import { Cleanup, type Model, el } from "./core/model.ts";
import { measureItem, noteOf, paint, signAt } from "./core/paint.ts";
import { type GraphJson, unpackGraph } from "./core/schema.ts";
import { type Item, Tree, reveal, visible } from "./core/scopes.ts";
import { searchBox } from "./core/search.ts";
import { readTheme, watchTheme } from "./core/theme.ts";

interface Traits {
  /** gzip of the graph's JSON. */
  graph: DataView;
  expanded: string[];
  selected: string;
  color_by: string;
  /** Pixels; 0 fits the content. */
  height: number;
  label: string;
}
type GraphModel = Model<Traits, never, never>;

const EMPTY: GraphJson = { schema: "nbflow.graph.v1", nodes: [] };
/** Legend entries beyond this many are counted. */
const LEGEND = 14;
/** A view that fits its content is no lower, so that the details have room, and no higher than half a screen. */
const HEIGHTS = { least: 230, most: 480 };
/** Between the details and the stage's edge, border included. */
const PANEL_GAP = 9;

class GraphWidget {
  private tree = new Tree(EMPTY);
  private colouring = new Colouring(this.tree, "device");
  private layouts!: Layouts;
  private scene: Scene = { boxes: [], lines: [], width: 0, height: 0 };
  private camera: Camera = { x: 0, y: 0, scale: 1 };
  private expanded: Set<string>;
  private selected: Item | null = null;
  private hovered: Item | null = null;
  private found = new Set<Item>();
  /** The reader moved the camera: it is theirs until they fit again. */
  private moved = false;
  private theme;
  private frame = 0;
  /** The stage's height as we set it; another one is the reader's. */
  private height = 0;
  private width = 0;
  private generation = 0;
  private readonly cleanup = new Cleanup();
  private readonly canvas = el("canvas", { "aria-hidden": "true" });
  private readonly treeRoot = el("div", { class: "nbflow-tree", role: "tree", tabindex: 0, "aria-label": "Graph" });
  private readonly stage = el("div", { class: "nbflow-stage" }, this.canvas, this.treeRoot);
  private readonly panel = el("aside", { class: "nbflow-details", "aria-label": "Details", "aria-live": "polite", hidden: true });
  private readonly legend = el("ul", { class: "nbflow-legend", "aria-label": "Legend" });
  private readonly summary = el("span", { class: "nbflow-summary" });
  private readonly select = el("select", { class: "nbflow-input", "aria-label": "Colour by" });
  private readonly mirror = new Mirror(this.treeRoot);
  private readonly search;
  private readonly context: CanvasRenderingContext2D;

  constructor(
    private readonly model: GraphModel,
    private readonly root: HTMLElement,
  ) {
    root.className = "nbflow nbflow-graph";
    root.dataset.lmSuppressShortcuts = "true";
    this.context = this.canvas.getContext("2d") as CanvasRenderingContext2D;
    this.expanded = new Set(model.get("expanded"));
    this.search = searchBox(
      () => this.tree,
      (items) => this.showFound(items),
      (item) => this.goTo(item),
      () => this.treeRoot.focus(),
      this.cleanup,
    );
    this.build();
    this.theme = readTheme(root);
    this.wire();
    void this.load();
  }

  destroy(): void {
    this.generation++;
    cancelAnimationFrame(this.frame);
    this.cleanup.run();
  }

  private build(): void {
    for (const mode of MODES) this.select.append(el("option", { value: mode, text: MODE_LABELS[mode] }));
    const button = (text: string, label: string, action: () => void): HTMLButtonElement => {
      const node = el("button", { class: "nbflow-icon", type: "button", title: label, "aria-label": label, text });
      this.cleanup.listen(node, "click", action);
      return node;
    };
    const bar = el(
      "div",
      { class: "nbflow-bar", role: "toolbar", "aria-label": "Graph view" },
      this.summary,
      this.search.element,
      el("label", { class: "nbflow-field" }, el("span", { text: "Colour by" }), this.select),
      el(
        "span",
        { class: "nbflow-buttons" },
        button("−", "Zoom out (-)", () => this.zoom(1 / 1.3)),
        button("+", "Zoom in (+)", () => this.zoom(1.3)),
        button("⤢", "Show all (0)", () => this.fit()),
        button("⊟", "Close all scopes", () => this.setExpanded(new Set())),
      ),
    );
    this.setHeight(this.model.get("height") || HEIGHTS.least);
    this.stage.append(this.panel);
    this.root.append(bar, this.stage, this.legend);
  }

  private wire(): void {
    const { model, cleanup } = this;
    const on = (name: keyof Traits, handler: () => void): void => {
      model.on(`change:${name}`, handler);
      cleanup.add(() => model.off(`change:${name}`, handler));
    };
    on("graph", () => void this.load());
    on("expanded", () => this.setExpanded(new Set(model.get("expanded")), false));
    on("selected", () => this.choose(this.tree.items.get(model.get("selected")) ?? null, false));
    on("color_by", () => this.recolour());
    on("height", () => {
      this.setHeight(model.get("height") || HEIGHTS.least);
      this.suit();
      if (!this.moved) this.fit();
    });
    cleanup.listen(this.select, "change", () => {
      model.set("color_by", this.select.value);
      model.save_changes();
      this.recolour();
    });
    cleanup.listen(this.treeRoot, "keydown", (event) => this.key(event));
    cleanup.listen(this.panel, "keydown", (event) => {
      event.stopPropagation();
      if (event.key === "Escape") this.closeDetails();
    });
    cleanup.listen(this.canvas, "pointerdown", () => this.treeRoot.focus({ preventScroll: true }));
    cleanup.listen(this.canvas, "pointerleave", () => this.hover(null));
    cleanup.add(
      watchTheme(() => {
        this.theme = readTheme(this.root);
        this.draw();
      }),
    );
    const size = new ResizeObserver(() => {
      // The first call comes when the view enters the page: only then has it a theme.
      this.theme = readTheme(this.root);
      const { w, h } = this.view();
      // Where only the height changed, and by us, boxes stay under the reader's pointer.
      const ours = w === this.width && h === this.height;
      this.width = w;
      this.suit();
      if (!this.moved && !ours) this.fit();
      this.draw();
    });
    size.observe(this.stage);
    cleanup.add(() => size.disconnect());
    attachGestures(
      this.canvas,
      {
        camera: () => this.camera,
        move: (camera) => this.moveTo(camera),
        click: (x, y, twice) => this.click(x, y, twice),
        hover: (x, y) => this.hover(this.boxAt(x, y)),
        focused: () => this.root.contains(document.activeElement),
      },
      cleanup,
    );
  }

  private async load(): Promise<void> {
    const generation = ++this.generation;
    const graph = await unpackGraph(this.model.get("graph"));
    // A newer graph, or the end of the view, may have come while this one was unpacked.
    if (generation !== this.generation) return;
    this.tree = new Tree(graph);
    const mode = this.mode();
    this.colouring = new Colouring(this.tree, mode);
    // Boxes are measured with their devices: another colouring must not move them.
    const notes = new Colouring(this.tree, "device");
    this.layouts = new Layouts(this.tree, (item) => measureItem(this.context, this.theme.font, item, noteOf(item, this.tree, notes)));
    this.expanded = new Set([...this.expanded].filter((id) => this.tree.items.has(id)));
    this.selected = this.tree.items.get(this.model.get("selected")) ?? null;
    this.hovered = null;
    this.found.clear();
    this.showLegend();
    this.relayout();
    this.fit();
    this.showDetails();
    this.root.dataset.ready = "true";
  }

  private mode(): Mode {
    const asked = this.model.get("color_by") as Mode;
    return MODES.includes(asked) ? asked : "device";
  }

  private recolour(): void {
    this.colouring = new Colouring(this.tree, this.mode());
    this.showLegend();
    this.showMirror();
    this.showDetails();
    this.draw();
  }

  private relayout(): void {
    this.scene = this.layouts.scene(this.expanded);
    this.showMirror();
    this.suit(true);
    this.root.dataset.nodes = String(this.tree.nodes.length);
    this.root.dataset.visible = String(this.scene.boxes.length);
    this.root.dataset.expanded = [...this.expanded].join(" ");
    this.draw();
  }

  private showMirror(): void {
    this.mirror.update(this.tree, this.expanded, this.colouring);
    this.mirror.place(this.scene.boxes);
    this.mirror.select(this.selected);
  }

  private setHeight(pixels: number): void {
    this.height = pixels;
    this.stage.style.height = `${pixels}px`;
  }

  /** Makes room for the scene and the details. Shrinks only with the scene: selecting must not move what is below. */
  private suit(shrink = false): void {
    const { w } = this.view();
    if (w === 0 || this.model.get("height") > 0 || this.stage.style.height !== `${this.height}px`) return;
    const panel = this.panel.hidden ? 0 : this.panel.scrollHeight + 2 * PANEL_GAP;
    const scene = heightOf({ w: this.scene.width, h: this.scene.height }, w);
    const wanted = Math.min(HEIGHTS.most, Math.max(HEIGHTS.least, scene, panel));
    if (shrink ? wanted !== this.height : wanted > this.height) this.setHeight(wanted);
  }

  private showLegend(): void {
    const { categories } = this.colouring;
    this.select.value = this.mode();
    const entries = categories.slice(0, LEGEND).map(({ name, swatch, ops }) => {
      const chip = el("i", { class: swatch.striped ? "nbflow-chip nbflow-striped" : "nbflow-chip", style: `--fill:${swatch.fill}` });
      return el("li", {}, chip, name, el("small", { text: String(ops) }));
    });
    if (categories.length > LEGEND) entries.push(el("li", { text: `and ${categories.length - LEGEND} more` }));
    const crosses = [...this.tree.items.values()].some((item) => this.tree.level(item).edges.some((edge) => edge.crosses));
    if (crosses) entries.push(el("li", {}, el("i", { class: "nbflow-dash" }), "goes to another device"));
    const stale = this.tree.root.stale;
    if (stale > 0) entries.push(el("li", {}, el("i", { class: "nbflow-chip nbflow-hatched" }), `stale`, el("small", { text: String(stale) })));
    this.legend.replaceChildren(...entries);
    this.summary.textContent = this.model.get("label") || `${this.tree.nodes.length} ops`;
    this.treeRoot.setAttribute("aria-label", `Graph: ${this.summary.textContent}`);
  }

  // --- camera ---------------------------------------------------------------------------------

  private view(): { w: number; h: number } {
    return { w: this.stage.clientWidth, h: this.stage.clientHeight };
  }

  private moveTo(camera: Camera): void {
    this.camera = camera;
    this.moved = true;
    this.draw();
  }

  private zoom(factor: number): void {
    const { w, h } = this.view();
    this.moveTo(zoomAt(this.camera, w / 2, h / 2, factor));
  }

  private fit(): void {
    this.camera = fit({ w: this.scene.width, h: this.scene.height }, this.view());
    this.moved = false;
    this.draw();
  }

  private draw(): void {
    if (this.frame !== 0) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = 0;
      const view = this.view();
      if (view.w === 0) return;
      this.mirror.follow(this.camera);
      const ratio = window.devicePixelRatio || 1;
      const [width, height] = [Math.round(view.w * ratio), Math.round(view.h * ratio)];
      if (this.canvas.width !== width || this.canvas.height !== height) {
        this.canvas.width = width;
        this.canvas.height = height;
      }
      const { tree, scene, camera, colouring, theme, selected, hovered, found } = this;
      paint(this.context, view, ratio, { tree, scene, camera, colouring, theme, selected, hovered, found, links: this.links() });
    });
  }

  /** Straight from the selection to what it reads and what reads it, where no drawn line shows that already. */
  private links(): Point[][] {
    const { selected, tree } = this;
    if (selected === null) return [];
    const boxes = new Map(this.scene.boxes.map((box) => [box.item, box]));
    const drawn = new Set(this.scene.lines.map(({ edge }) => `${edge.from.id}\n${edge.to.id}`));
    const pairs = new Map<string, [Item, Item]>();
    const add = (from: Item, to: Item): void => {
      const key = `${from.id}\n${to.id}`;
      if (from !== to && !drawn.has(key)) pairs.set(key, [from, to]);
    };
    if (selected.kind === "op") {
      const shown = (i: number): Item => visible(tree.leaves[i], this.expanded);
      const self = visible(selected, this.expanded);
      for (const i of tree.inputs[selected.node]) add(shown(i), self);
      for (const i of tree.consumers[selected.node]) add(self, shown(i));
    } else if (selected.parent !== null) {
      for (const edge of tree.level(selected.parent).hidden) {
        if (edge.from === selected || edge.to === selected) add(edge.from, edge.to);
      }
    }
    return [...pairs.values()].flatMap(([from, to]) => {
      const [a, b] = [boxes.get(from), boxes.get(to)];
      return a === undefined || b === undefined ? [] : [between(a, b)];
    });
  }

  // --- what the reader does -------------------------------------------------------------------

  private boxAt(x: number, y: number): Box | null {
    for (let i = this.scene.boxes.length - 1; i >= 0; i--) {
      const box = this.scene.boxes[i];
      if (x >= box.x && x <= box.x + box.w && y >= box.y && y <= box.y + box.h) return box;
    }
    return null;
  }

  private hover(box: Box | null): void {
    const item = box?.item ?? null;
    if (item === this.hovered) return;
    this.hovered = item;
    this.canvas.style.cursor = item === null ? "grab" : "pointer";
    this.canvas.title = item === null || item.kind !== "op" ? (item?.id ?? "") : this.tree.nodes[item.node].name;
    this.draw();
  }

  private click(x: number, y: number, twice: boolean): void {
    // Again: between pointerdown and here JupyterLab gives the focus to the cell.
    this.treeRoot.focus({ preventScroll: true });
    const box = this.boxAt(x, y);
    if (box === null) {
      if (!twice) this.choose(null);
      return;
    }
    const sign = signAt(box);
    const onSign = box.item.kind !== "op" && Math.hypot(x - sign.x, y - sign.y) < 11;
    if (twice !== onSign) this.toggle(box.item);
    if (!twice) this.choose(box.item);
  }

  private choose(item: Item | null, save = true): void {
    this.selected = item;
    this.mirror.select(item);
    if (save) {
      this.model.set("selected", item?.id ?? "");
      this.model.save_changes();
    }
    this.showDetails();
    this.draw();
  }

  private showDetails(): void {
    const item = this.selected;
    this.panel.hidden = item === null;
    this.root.dataset.selected = item?.id ?? "";
    if (item === null) return;
    const actions = {
      select: (id: string): void => {
        const target = this.tree.items.get(id);
        if (target !== undefined) this.goTo(target);
      },
      toggle: (scope: Item): void => this.toggle(scope),
      close: (): void => this.closeDetails(),
    };
    const box = this.scene.boxes.find((candidate) => candidate.item === item);
    // The panel never covers what it is about: a second click must still reach the box.
    const middle = box === undefined ? 0 : (box.x + box.w / 2) * this.camera.scale + this.camera.x;
    this.panel.classList.toggle("nbflow-left", middle > this.view().w / 2);
    this.panel.replaceChildren(...details(this.tree, item, this.colouring, this.expanded.has(item.id), actions));
    this.panel.scrollTop = 0;
    this.suit();
  }

  private closeDetails(): void {
    this.choose(null);
    this.treeRoot.focus({ preventScroll: true });
  }

  private toggle(item: Item): void {
    if (item.kind === "op") return;
    const before = this.scene.boxes.find((box) => box.item === item);
    const expanded = new Set(this.expanded);
    if (expanded.has(item.id)) {
      for (const id of expanded) if (id === item.id || this.below(id, item)) expanded.delete(id);
    } else expanded.add(item.id);
    this.setExpanded(expanded);
    const after = this.scene.boxes.find((box) => box.item === item);
    // When the camera is the reader's, the box they clicked stays under their pointer.
    if (this.moved && before && after) {
      const { x, y, scale } = this.camera;
      this.moveTo({ x: x + (before.x - after.x) * scale, y: y + (before.y - after.y) * scale, scale });
    }
    this.showDetails();
  }

  private below(id: string, scope: Item): boolean {
    for (let at = this.tree.items.get(id)?.parent; at; at = at.parent) if (at === scope) return true;
    return false;
  }

  private setExpanded(expanded: Set<string>, save = true): void {
    this.expanded = expanded;
    if (save) {
      this.model.set("expanded", [...expanded]);
      this.model.save_changes();
    }
    this.relayout();
    if (!this.moved) this.fit();
  }

  /** Opens what hides `item`, selects it and shows it. */
  private goTo(item: Item): void {
    this.setExpanded(reveal(item, this.expanded));
    this.choose(item);
    const box = this.scene.boxes.find((candidate) => candidate.item === item);
    if (box === undefined) return;
    const scale = Math.max(this.camera.scale, 0.7);
    this.moveTo(centre(this.camera, box.x + box.w / 2, box.y + box.h / 2, this.view(), scale));
  }

  private showFound(items: Item[]): void {
    this.found = new Set(items.map((item) => visible(item, this.expanded)));
    this.draw();
  }

  private key(event: KeyboardEvent): void {
    // JupyterLab's command mode would run and delete cells with these keys.
    event.stopPropagation();
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const act = this.keys()[event.key];
    if (act === undefined) return;
    event.preventDefault();
    act();
  }

  private keys(): Record<string, () => void> {
    const item = this.selected;
    const open = item !== null && this.expanded.has(item.id);
    const step = (by: number): void => {
      const { order } = this.mirror;
      const at = item === null ? (by > 0 ? -1 : order.length) : order.indexOf(item);
      const next = order[Math.max(0, Math.min(order.length - 1, at + by))];
      if (next !== undefined) this.walkTo(next);
    };
    const toggle = (): void => {
      if (item !== null) this.toggle(item);
    };
    const right = (): void => (item !== null && item.kind !== "op" && !open ? toggle() : step(1));
    const left = (): void => {
      if (open) toggle();
      else if (item?.parent?.parent) this.walkTo(item.parent);
    };
    return {
      ArrowDown: () => step(1),
      ArrowUp: () => step(-1),
      ArrowRight: right,
      ArrowLeft: left,
      " ": toggle,
      Enter: () => (item?.kind === "op" ? this.panel.querySelector<HTMLElement>("button")?.focus() : toggle()),
      "+": () => this.zoom(1.3),
      "=": () => this.zoom(1.3),
      "-": () => this.zoom(1 / 1.3),
      "0": () => this.fit(),
      "/": () => this.search.input.focus(),
      Escape: () => (item === null ? this.treeRoot.blur() : this.choose(null)),
    };
  }

  private walkTo(item: Item): void {
    this.choose(item);
    const box = this.scene.boxes.find((candidate) => candidate.item === item);
    if (box === undefined) return;
    const { x, y, scale } = this.camera;
    const { w, h } = this.view();
    const [left, top] = [box.x * scale + x, box.y * scale + y];
    const hidden = left < 0 || top < 0 || left + box.w * scale > w || top + box.h * scale > h;
    if (hidden) this.moveTo(centre(this.camera, box.x + box.w / 2, box.y + box.h / 2, { w, h }));
  }
}

function between(a: Box, b: Box): Point[] {
  const side = b.x + b.w / 2 >= a.x + a.w / 2 ? 1 : -1;
  return [
    { x: a.x + a.w / 2 + (side * a.w) / 2, y: a.y + a.h / 2 },
    { x: b.x + b.w / 2 - (side * b.w) / 2, y: b.y + b.h / 2 },
  ];
}

function render({ model, el: root }: { model: GraphModel; el: HTMLElement }): () => void {
  const widget = new GraphWidget(model, root);
  return () => widget.destroy();
}

export default { render };

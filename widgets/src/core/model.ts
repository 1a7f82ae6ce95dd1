/** What the widgets use of anywidget, with the types of their own traits and messages. */

export interface Model<Traits, Out, In> {
  get<K extends keyof Traits & string>(name: K): Traits[K];
  set<K extends keyof Traits & string>(name: K, value: Traits[K]): void;
  save_changes(): void;
  send(message: Out): void;
  on(event: `change:${keyof Traits & string}`, callback: () => void): void;
  on(event: "msg:custom", callback: (message: In, buffers: DataView[]) => void): void;
  off(event: string, callback: (...args: never[]) => void): void;
}

/** Undoes everything a view set up, last first. */
export class Cleanup {
  private readonly undo: (() => void)[] = [];

  add(undo: () => void): void {
    this.undo.push(undo);
  }

  listen<K extends keyof HTMLElementEventMap>(
    target: HTMLElement,
    type: K,
    handler: (event: HTMLElementEventMap[K]) => void,
    options?: AddEventListenerOptions,
  ): void {
    target.addEventListener(type, handler, options);
    this.add(() => target.removeEventListener(type, handler, options));
  }

  run(): void {
    for (const undo of this.undo.reverse()) undo();
    this.undo.length = 0;
  }
}

type Props = Record<string, string | number | boolean>;

/** An element with attributes (`text` sets its text) and children. Text never becomes markup. */
export function el<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  props: Props = {},
  ...children: (Node | string)[]
): HTMLElementTagNameMap[K] {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (name === "text") node.textContent = String(value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false) node.setAttribute(name, String(value));
  }
  node.append(...children);
  return node;
}

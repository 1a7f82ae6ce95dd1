// Mounts anywidgets from the saved widget state, on a model that has no kernel behind it.
const stateElement = document.querySelector('script[type="application/vnd.jupyter.widget-state+json"]');
const saved = stateElement ? JSON.parse(stateElement.textContent).state : {};
const models = new Map();
const modules = new Map();

function bytes(base64) {
  const raw = atob(base64);
  const out = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) out[i] = raw.charCodeAt(i);
  return new DataView(out.buffer);
}

function stateOf(entry) {
  const state = structuredClone(entry.state);
  for (const buffer of entry.buffers ?? []) {
    let target = state;
    for (const key of buffer.path.slice(0, -1)) target = target[key];
    target[buffer.path.at(-1)] = bytes(buffer.data);
  }
  return state;
}

// What anywidget's front-end module calls a model: traits and events; messages go nowhere.
function makeModel(state) {
  const listeners = new Map();
  const emit = (name, ...rest) => { for (const f of [...(listeners.get(name) ?? [])]) f(...rest); };
  return {
    get: (key) => state[key],
    set: (key, value) => {
      state[key] = value;
      emit(`change:${key}`, value);
      emit("change");
    },
    save_changes: () => {},
    send: () => {},
    on: (name, f) => { listeners.set(name, [...(listeners.get(name) ?? []), f]); },
    off: (name, f) => {
      if (name == null) listeners.clear();
      else listeners.set(name, f ? (listeners.get(name) ?? []).filter((g) => g !== f) : []);
    },
    widget_manager: { get_model: async (id) => (await mountable(id))?.model },
  };
}

async function moduleOf(code) {
  if (!modules.has(code)) {
    const url = URL.createObjectURL(new Blob([code], { type: "text/javascript" }));
    modules.set(code, import(url));
  }
  const made = (await modules.get(code)).default;
  return typeof made === "function" ? await made() : made;
}

async function open(id) {
  const entry = saved[id];
  if (!entry || !entry.state._esm) return null;
  const state = stateOf(entry);
  if (state._css) {
    const style = document.createElement("style");
    style.textContent = state._css;
    document.head.append(style);
  }
  const widget = await moduleOf(state._esm);
  const model = makeModel(state);
  await widget.initialize?.({ model, signal: new AbortController().signal });
  return { model, widget };
}

// Two outputs may show one model.
function mountable(id) {
  if (!models.has(id)) models.set(id, open(id));
  return models.get(id);
}

for (const view of document.querySelectorAll(".nbflow-view")) {
  const still = view.querySelector(".nbflow-still");
  try {
    const id = JSON.parse(view.querySelector("script").textContent).model_id;
    const found = await mountable(id);
    if (!found) continue;
    const el = document.createElement("div");
    view.append(el);
    await found.widget.render?.({ model: found.model, el, signal: new AbortController().signal, experimental: {} });
    still.hidden = true;
    view.dataset.mounted = "true";
  } catch (error) {
    console.warn("nbflow: a widget could not be mounted; its picture stays", error);
  }
}

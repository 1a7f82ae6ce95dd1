// Bundles src/*.ts into nbflow_widgets/static (one ES module and one style sheet a widget), or the tests into build/.
import { readdirSync } from "node:fs";
import * as esbuild from "esbuild";

const WIDGETS = ["graph", "curves", "cluster"];

/** @type {esbuild.BuildOptions} */
const widgets = {
  entryPoints: WIDGETS.flatMap((name) => [`src/${name}.ts`, `src/${name}.css`]),
  outdir: "nbflow_widgets/static",
  bundle: true,
  minify: true,
  format: "esm",
  target: "es2022",
  // Names in non-Latin scripts and our arrows stay as they are: the files are UTF-8.
  charset: "utf8",
  legalComments: "inline",
  logLevel: "info",
};

/** @type {esbuild.BuildOptions} */
const tests = {
  entryPoints: readdirSync("test").filter((name) => name.endsWith(".test.ts")).map((name) => `test/${name}`),
  outdir: "build/test",
  outExtension: { ".js": ".mjs" },
  bundle: true,
  platform: "node",
  format: "esm",
  target: "node20",
  sourcemap: "inline",
  logLevel: "warning",
};

if (process.argv.includes("--tests")) {
  await esbuild.build(tests);
} else if (process.argv.includes("--watch")) {
  await (await esbuild.context(widgets)).watch();
} else {
  await esbuild.build(widgets);
}

// Builds player.js: one ES module with a stable name that needs nothing else,
// for pages of others. It is built first; the pages' build leaves it alone.
import { defineConfig } from "vite";

export default defineConfig({
  publicDir: false,
  build: {
    target: "es2022",
    outDir: "dist",
    emptyOutDir: true,
    modulePreload: false,
    lib: { entry: "src/player.ts", formats: ["es"], fileName: () => "player.js" },
    // The default keeps the whitespace of an ES library.
    minify: "oxc",
    rolldownOptions: { output: { codeSplitting: false, minify: true } },
  },
});

// Builds the pages. They load player.js by its address, as everybody else
// does, so that there is one copy of the player. Addresses are relative, so
// that a proxy may serve the gateway below a path.
import { defineConfig, type Plugin } from "vite";

const gateway = "http://127.0.0.1:8080";

/** Lets `npm run dev` serve the player from its source under its public name. */
const playerFromSource: Plugin = {
  name: "fanlight-player-from-source",
  apply: "serve",
  configureServer(server) {
    server.middlewares.use((req: { url?: string }, _res: unknown, next: () => void) => {
      if (req.url === "/player.js") req.url = "/src/player.ts";
      next();
    });
  },
};

export default defineConfig({
  base: "./",
  plugins: [playerFromSource],
  build: {
    target: "es2022",
    outDir: "dist",
    emptyOutDir: false,
    modulePreload: false,
    assetsInlineLimit: 0,
    rolldownOptions: {
      input: { wall: "index.html", stats: "stats.html" },
      // What both pages use is named by what it is, not by the module that comes first.
      output: { chunkFileNames: "assets/shared-[hash].js", assetFileNames: "assets/pages-[hash][extname]" },
    },
  },
  server: {
    proxy: {
      "/v1": { target: gateway, ws: true },
      "/stats": {
        target: gateway,
        bypass: (req) => (req.headers.accept?.includes("text/html") ? "/stats.html" : undefined),
      },
    },
  },
});

import { defineConfig } from "vitest/config";

// Vitest's reporter shows failures with Map.groupBy, which Node 20 lacks.
const groups = Map as unknown as { groupBy?: typeof groupBy };
groups.groupBy ??= groupBy;

function groupBy<K, V>(items: Iterable<V>, keyOf: (item: V, index: number) => K): Map<K, V[]> {
  const grouped = new Map<K, V[]>();
  let index = 0;
  for (const item of items) {
    const key = keyOf(item, index++);
    const group = grouped.get(key);
    if (group) group.push(item);
    else grouped.set(key, [item]);
  }
  return grouped;
}

export default defineConfig({
  test: { include: ["test/**/*.test.ts"], environment: "node", restoreMocks: true },
});

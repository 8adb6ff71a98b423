import { Connection, type ConnectionOptions, type Token } from "./connection.ts";

/**
 * The connections of a page: one for each gateway and token. A connection is
 * forgotten when its last member has left.
 */
export class Pool {
  readonly #byGateway = new Map<string, Map<Token, Connection>>();
  readonly #make: (options: ConnectionOptions) => Connection;

  constructor(make: (options: ConnectionOptions) => Connection = (options) => new Connection(options)) {
    this.#make = make;
  }

  /** How many there are. */
  get size(): number {
    let size = 0;
    for (const connections of this.#byGateway.values()) size += connections.size;
    return size;
  }

  /** Returns the connection, for the caller to join. */
  get(gateway: URL, token: Token): Connection {
    let connections = this.#byGateway.get(gateway.href);
    if (!connections) {
      connections = new Map();
      this.#byGateway.set(gateway.href, connections);
    }
    const existing = connections.get(token);
    if (existing) return existing;
    const made = this.#make({ gateway, token, onUnused: () => this.#forget(gateway.href, token) });
    connections.set(token, made);
    return made;
  }

  /** Lets every connection that waits for its next attempt make it now. */
  retryNow(): void {
    for (const connections of this.#byGateway.values()) {
      for (const connection of connections.values()) connection.retryNow();
    }
  }

  #forget(gateway: string, token: Token): void {
    const connections = this.#byGateway.get(gateway);
    connections?.delete(token);
    if (connections?.size === 0) this.#byGateway.delete(gateway);
  }
}

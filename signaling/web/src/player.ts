// The module that pages embed:
//
//   <script type="module" src="https://gateway.example/player.js"></script>
//   <fanlight-player camera="lobby" muted></fanlight-player>

import { FanlightPlayer } from "./element.ts";

// A page may load the module from two gateways; the first one defines the element.
if (!customElements.get("fanlight-player")) customElements.define("fanlight-player", FanlightPlayer);

export { FanlightPlayer };

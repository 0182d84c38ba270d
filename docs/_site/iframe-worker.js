// Makes the search work on pages that are opened from disk, where a browser starts no web worker: the worker's script
// runs in a hidden frame instead. The theme's script knows this by the name IFrameWorker.
if (location.protocol === "file:") {
  window.IFrameWorker = window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.append(frame);
      this.inside = frame.contentWindow;
      const load = (address) =>
        new Promise((done, failed) => {
          const script = this.inside.document.createElement("script");
          script.src = new URL(address, location);
          script.onload = done;
          script.onerror = failed;
          this.inside.document.head.append(script);
        });
      this.inside.importScripts = async (...addresses) => {
        for (const address of addresses) await load(address);
      };
      this.inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      this.ready = load(url);
    }

    async postMessage(data) {
      await this.ready;
      this.inside.dispatchEvent(new MessageEvent("message", { data }));
    }
  };
}

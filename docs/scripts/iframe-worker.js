/* The search runs in a worker, and browsers start none from the disk: there a hidden frame runs its script instead. */
if (location.protocol === "file:") window.Worker = class {
  constructor(url) {
    this.frame = document.createElement("iframe");
    this.frame.hidden = true;
    document.documentElement.append(this.frame);
    const inner = this.frame.contentWindow, script = inner.document.createElement("script");
    inner.postMessage = data => setTimeout(() => this.onmessage?.({data}));
    this.ready = new Promise(loaded => { script.onload = loaded; });
    script.onerror = event => this.onerror?.(event);
    script.src = new URL(url, location);
    inner.document.head.append(script);
  }
  postMessage(data) {
    this.ready.then(() => this.frame.contentWindow?.onmessage?.({data}));
  }
  terminate() {
    this.frame.remove();
  }
};

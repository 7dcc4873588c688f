"use strict";
// The page of docs/explorer.md and the explorer in its frame: the frame tells its height, and is told the theme.
{
  const frame = () => document.getElementById("explorer-page");
  const tell = () => frame()?.contentWindow?.postMessage({ theme: document.body.dataset.theme }, "*");
  window.addEventListener("message", ({ source, data }) => {
    if (source !== frame()?.contentWindow || !(data?.height > 0)) return;
    frame().style.height = `${data.height}px`;
    tell();
  });
  new MutationObserver(tell).observe(document.body, { attributeFilter: ["data-theme"] });
}

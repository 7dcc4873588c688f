"use strict";
// Connects docs/explorer.md with the explorer in its frame: the frame sends its height, this page sends its theme.
{
  const frame = () => document.getElementById("explorer-page");
  const sendTheme = () => frame()?.contentWindow?.postMessage({ theme: document.body.dataset.theme }, "*");
  window.addEventListener("message", ({ source, data }) => {
    if (source !== frame()?.contentWindow || !(data?.height > 0)) return;
    frame().style.height = `${data.height}px`;
    sendTheme();
  });
  new MutationObserver(sendTheme).observe(document.body, { attributeFilter: ["data-theme"] });
}

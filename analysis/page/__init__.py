"""The HTML of the report: one self-contained document, for screens of any size and theme, and for paper."""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Iterable


def document(title: str, head: str, sections: Iterable[str], refresh: int | None = None) -> str:
    """Return a page of HTML.

    Args:
        title: plain text of the window's title, the study's question.
        head: HTML of the page's header.
        sections: HTML of its sections, in order.
        refresh: seconds after which a browser reloads the page, at least 1; None: never.
    """
    meta = REFRESH.format(seconds=refresh) if refresh is not None else ""
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    parts = {"style": STYLE, "script": SCRIPT, "digest": digest, "head": head, "sections": "\n".join(sections)}
    return TEMPLATE.format(title=html.escape(title), refresh=meta, **parts)


REFRESH = '<meta http-equiv="refresh" content="{seconds}">\n'
TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'">
{refresh}<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header>
{head}
</header>
<main>
{sections}
</main>
<p id="tip" hidden></p>
<script>{script}</script>
</body>
</html>
"""
"""The policy lets a browser fetch nothing, and run no script but ours whatever the names in a study hold."""
SCRIPT = """
const tip = document.getElementById("tip");
function tell(event) {
  const point = event.target.closest(".point");
  tip.hidden = !point;
  if (!point) return;
  tip.textContent = point.getAttribute("aria-label");
  const at = point.getBoundingClientRect();
  tip.style.left = Math.max(4, Math.min(at.right, innerWidth - tip.offsetWidth - 4)) + "px";
  tip.style.top = Math.max(4, at.top - tip.offsetHeight) + "px";
}
for (const kind of ["pointerover", "pointerdown"]) document.addEventListener(kind, tell);
addEventListener("scroll", () => { tip.hidden = true; }, true);
"""
"""Shows the value of a point (see ``analysis.drawing.hover``) while the pointer is on it, or after a tap."""

STYLE = """
:root { color-scheme: light dark; --ground: #fff; --ink: #1f2328; --soft: #59636e; --line: #d8dee4; --shade: #f6f8fa;
  --edge: #0003;  --accent: #0072b2; --warn: #8a3600; --warnground: #fff1e5; }
@media (prefers-color-scheme: dark) { :root { --ground: #14171b; --ink: #e6e8eb; --soft: #9aa4af; --line: #363c44;
  --shade: #1c2026; --edge: #fff3; --accent: #66b8ea; --warn: #ffb98a; --warnground: #33231a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 70rem; background: var(--ground); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .4rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .7rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
p { margin: .4rem 0; max-width: 50rem; }
a { color: var(--accent); }
.basis { color: var(--soft); }
#tip { position: fixed; margin: 0; padding: .2rem .5rem; border-radius: 4px; background: var(--ink);
  color: var(--ground); font-size: .84rem; pointer-events: none; }
.headline { font-size: 1.2rem; line-height: 1.4; margin: 1.1rem 0 .8rem; padding-left: .9rem;
  border-left: 4px solid var(--accent); }
.partial { background: var(--warnground); color: var(--warn); padding: .6rem .9rem; border-radius: 6px;
  margin-top: 1rem; }
.partial a { color: inherit; }
figure { margin: 0; }
figcaption, .note { color: var(--soft); font-size: .86rem; line-height: 1.45; max-width: 54rem; margin: .6rem 0 0; }
.note::before { content: "Note: "; font-weight: 600; }
.unmeasured .note::before { content: none; }
.scroll { overflow-x: auto; max-width: 100%;
  background: linear-gradient(to left, var(--ground) 40%, transparent) right / 3rem 100% no-repeat local,
    linear-gradient(to left, var(--edge), transparent) right / 1.6rem 100% no-repeat scroll; }
.scroll + .scroll { margin-top: 1.2rem; }
table { border-collapse: collapse; font-size: .84rem; font-variant-numeric: tabular-nums; margin: .2rem 0; }
th, td { padding: .3rem .5rem; text-align: right; white-space: nowrap; }
th { white-space: normal; border-bottom: 1.5px solid var(--ink); border-top: 1.5px solid var(--ink); font-weight: 600;
  vertical-align: bottom; }
td { border-bottom: 1px solid var(--line); }
tbody tr:last-child td { border-bottom: 1.5px solid var(--ink); }
tbody tr:hover { background: var(--shade); }
.l { text-align: left; }
td.wide { white-space: normal; overflow-wrap: break-word; min-width: 16rem; }
svg { display: block; height: auto; max-width: 100%; color: var(--ink); }
div.phone { display: none; }
svg text { font-family: inherit !important; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.2rem; margin: 0; font-size: .92rem; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 40rem) {
  body { padding: 1.2rem .9rem 3rem; }
  .headline { font-size: 1.08rem; }
  .scroll { margin-right: -.9rem; max-width: calc(100% + .9rem); }
  th, td { padding: .3rem; }
  .narrow { white-space: normal; min-width: 9.5rem; }
  .l.narrow { min-width: 6.2rem; }
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: .5rem; }
}
@media screen and (max-width: 40rem) {
  div.wide { display: none; }
  div.phone { display: block; margin-top: 0; }
}
@media print {
  :root { --ground: #fff; --ink: #000; --soft: #333; --line: #bbb; --accent: #000; --warn: #000; --warnground: #fff; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  .scroll { overflow: visible; background: none; }
  figure, tr { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  table { font-size: 6.8pt; }
  th, td { padding: .16rem .26rem; }
  td { white-space: normal; }
  #files { display: none; }
}
"""

"""The page's style sheet: light and dark by the reader's setting, one column when narrow."""

from collections.abc import Iterable
from html import escape

NUM_COLOURS = 6

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fcfcfb; --card: #ffffff; --ink: #1c1b19; --soft: #5c5b57; --line: #dddcd6;
  --grid: #ebeae5; --bad: #b3261e; --good: #14713d; --warn: #8a5a00;
  --c0: #2a78d6; --c1: #eb6834; --c2: #1baf7a; --c3: #4a3aa7; --c4: #e87ba4; --c5: #b08800;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #181817; --card: #20201f; --ink: #ecebe6; --soft: #aaa9a2; --line: #3b3b38;
    --grid: #2d2d2b; --bad: #ff8a80; --good: #6fd49a; --warn: #ffca6a;
    --c0: #3987e5; --c1: #d95926; --c2: #199e70; --c3: #9085e9; --c4: #d55181; --c5: #c98500;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 1.5rem clamp(0.75rem, 3vw, 2.5rem) 4rem; max-width: 84rem;
  background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif;
}
h1 { font-size: 1.5rem; margin: 0 0 0.25rem; }
h2 { font-size: 1.15rem; margin: 2.25rem 0 0.25rem; }
h3 { font-size: 1rem; margin: 1.25rem 0 0.4rem; }
p { margin: 0.25rem 0 0.75rem; max-width: 60rem; }
.soft, figcaption { color: var(--soft); }
ul.facts { list-style: none; padding: 0; margin: 0.5rem 0 0; font-size: 0.9rem; }
ul.facts { color: var(--soft); columns: 34rem 2; }
ul.facts li { break-inside: avoid; }
ul.notes li { overflow-wrap: anywhere; }
.bad { color: var(--bad); font-weight: 600; }
.tiles {
  display: grid; gap: 0.75rem; margin: 1.25rem 0;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 13rem), 1fr));
}
.tile, figure { background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
.tile { padding: 0.7rem 0.9rem; }
.tile b { display: block; font-size: 1.5rem; line-height: 1.25; }
.tile span { display: block; font-size: 0.88rem; color: var(--soft); }
.tile span:first-of-type { color: var(--ink); }
.panels {
  display: grid; gap: 0.75rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, max(19rem, 30%)), 1fr));
}
figure { margin: 0; padding: 0.7rem 0.8rem 0.5rem; min-width: 0; }
figcaption { font-size: 0.88rem; margin-bottom: 0.35rem; }
figcaption b { color: var(--ink); }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--soft); font-size: 11px; }
svg text.value { fill: var(--ink); }
svg .grid { stroke: var(--grid); stroke-width: 1; }
svg .floor { stroke: var(--ink); stroke-width: 1.5; stroke-dasharray: 4 3; }
svg .dashed { stroke-dasharray: 5 4; }
.legend { display: flex; flex-wrap: wrap; gap: 0.25rem 1.1rem; margin: 0.4rem 0 0.6rem; }
.legend span::before {
  content: ""; display: inline-block; width: 0.8em; height: 0.8em; margin-right: 0.4em;
  border-radius: 2px; background: var(--colour); vertical-align: -0.05em;
}
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.88rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.22rem 0.7rem; text-align: right; white-space: nowrap; }
th { color: var(--soft); font-weight: 600; border-bottom: 1px solid var(--line); }
th { white-space: normal; vertical-align: bottom; }
td { border-bottom: 1px solid var(--grid); }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
th:first-child, td:first-child { position: sticky; left: 0; background: var(--paper); }
details { margin-top: 1rem; }
summary { cursor: pointer; font-weight: 600; }
""" + "".join(
    f".f{n} {{ fill: var(--c{n}); }} .s{n} {{ stroke: var(--c{n}); fill: none; }}\n"
    for n in range(NUM_COLOURS)
)


def legend(names: Iterable[str]) -> str:
    """Name the colours in their order."""
    spans = "".join(
        f'<span style="--colour: var(--c{index % NUM_COLOURS})">{escape(name)}</span>'
        for index, name in enumerate(names)
    )
    return f"<div class='legend'>{spans}</div>"

"""The style sheet of the HTML report: light and dark, for a phone and for a desk."""

from __future__ import annotations

STYLE = """
:root {
  color-scheme: light dark;
  --page: #faf9f6; --card: #ffffff; --ink: #1d2125; --soft: #586069; --line: #dcdcd6;
  --accent: #1f5fbf; --band: #9dbdea; --right: #17733a; --right-ground: #e3f3e7;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14171a; --card: #1d2226; --ink: #e9ebed; --soft: #a3abb3; --line: #363d43;
    --accent: #7fb0f5; --band: #345787; --right: #6fd08f; --right-ground: #18372380;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 2rem 1rem 3rem; max-width: 62rem; background: var(--page); color: var(--ink);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
}
h1 { margin: 0 0 .5rem; font-size: 1.8rem; line-height: 1.2; }
h2 { margin: 2.8rem 0 .4rem; font-size: 1.3rem; }
h3 { margin: 2rem 0 .6rem; font-size: 1.05rem; }
h4 { margin: 0; font-size: 1rem; }
h1, h2, h3, h4, td, th, li, p { overflow-wrap: anywhere; unicode-bidi: isolate; }
p { margin: .3rem 0; max-width: 46rem; }
.soft, small, figcaption span { color: var(--soft); font-weight: 400; }
.scroll { overflow-x: auto; }
table { width: 100%; margin-top: .8rem; border-collapse: collapse; background: var(--card); }
table, .example, .chart { border: 1px solid var(--line); border-radius: .6rem; }
th, td { padding: .55rem .8rem; border-top: 1px solid var(--line); text-align: left; vertical-align: top; }
thead th { border-top: 0; font-weight: 600; }
tbody th { font-weight: 400; white-space: nowrap; }
td { font-variant-numeric: tabular-nums; }
td b { font-size: 1.1rem; }
.bar { display: block; width: 100%; max-width: 16rem; height: .55rem; margin-top: .3rem; }
.track { fill: var(--line); } .reach, .stroke { fill: var(--accent); } .band { fill: var(--band); }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)); gap: 1rem; }
.chart { margin: .8rem 0 0; padding: .8rem; background: var(--card); }
.chart svg { display: block; width: 100%; height: auto; }
figcaption { margin-bottom: .4rem; font-weight: 600; } figcaption span { display: block; font-size: .9rem; }
.grid { stroke: var(--line); } .tick { fill: var(--soft); font-size: 13px; }
.line { fill: none; stroke: var(--accent); stroke-width: 2; stroke-linejoin: round; }
.dot { fill: var(--accent); }
.example { margin: 0 0 1rem; padding: 1rem; background: var(--card); }
ol { margin: .7rem 0 0; padding: 0; list-style: none; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.6rem, 1fr)); gap: .8rem; }
.photo { display: block; width: 100%; aspect-ratio: 1; object-fit: cover; border-radius: .4rem; }
.missing {
  display: flex; flex-direction: column; justify-content: center; padding: .6rem; overflow: hidden;
  border: 1px dashed var(--soft); font-size: .85rem; text-align: center; overflow-wrap: anywhere;
}
.match .place { display: block; margin-top: .3rem; font-size: .88rem; color: var(--soft); }
.tag { display: block; } .tag, .verdict b { color: var(--right); font-weight: 600; }
.captions .tag { display: inline; margin-left: .8rem; }
.pictures .right .photo { outline: .25rem solid var(--right); outline-offset: .12rem; }
.by-picture { display: grid; grid-template-columns: minmax(7rem, 11rem) 1fr; gap: 1.1rem; }
.captions li { padding: .4rem .6rem; border-left: .25rem solid var(--line); margin-top: .35rem; }
.captions .right { border-color: var(--right); background: var(--right-ground); }
footer { margin-top: 3rem; color: var(--soft); font-size: .88rem; }
@media (max-width: 34rem) {
  .by-picture { grid-template-columns: 1fr; }
  .by-picture > .photo { max-width: 11rem; }
  th, td { padding: .5rem; }
  .pictures { grid-template-columns: repeat(3, 1fr); }
}
"""

"""The HTML report as one string: what was evaluated, its numbers, how training went, examples."""

from __future__ import annotations

from collections.abc import Sequence

from vsrn import __version__
from vsrn.evaluation.charts import History, interval_bar, line_chart, training_curves
from vsrn.evaluation.evaluate import DIRECTIONS, Evaluation, Example, Match
from vsrn.evaluation.style import STYLE
from vsrn.evaluation.thumbnails import Thumbnails
from vsrn.evaluation.wording import (
    DIRECTION_WORDS,
    count_words,
    escaped,
    interval_words,
    median_words,
    metric_words,
    model_words,
    reranking_words,
)
from vsrn.metrics import RECALL_AT, DirectionMetrics

# Whatever might slip through the escaping: the browser loads nothing and runs nothing.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
TITLE = "How well captions and pictures find each other"
LEGEND = (
    "Recall@K is the share of queries, in percent, whose true match is among the first K results."
    " Brackets and bands are 95% bootstrap intervals over images."
)


def report_page(evaluations: Sequence[Evaluation], thumbnails: Thumbnails, history: History) -> str:
    """The whole page. Everything that comes from data is escaped; pictures come through `thumbnails`."""
    body = [f"<header><h1>{TITLE}</h1><p>{LEGEND}</p></header>"]
    if len(evaluations) > 1:
        body.append(_comparison(evaluations))
    body += [_results(evaluation) for evaluation in evaluations]
    body.append(_training(history))
    body += [_examples(evaluation, thumbnails) for evaluation in evaluations]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>{escaped(', '.join(map(model_words, evaluations)))}: Recall@K</title>"
        f"<style>{STYLE}</style></head>\n<body><main>\n"
        f"{chr(10).join(part for part in body if part)}\n"
        f"</main><footer>Made by vsrn {__version__}.</footer></body></html>\n"
    )


def _comparison(evaluations: Sequence[Evaluation]) -> str:
    """One row a model: the numbers that a reader compares first."""
    rows = []
    for evaluation in evaluations:
        cells = "".join(_recall_cell(evaluation, direction, RECALL_AT[0]) for direction in DIRECTIONS)
        name = f'<th scope="row">{escaped(model_words(evaluation))}</th>'
        rows.append(f"<tr>{name}{_rsum_cell(evaluation)}{cells}</tr>")
    heads = ["Model", "Sum of recalls", *(f"R@1, {DIRECTION_WORDS[direction]}" for direction in DIRECTIONS)]
    return f'<section id="comparison"><h2>Side by side</h2>{_table(heads, rows)}</section>'


def _results(evaluation: Evaluation) -> str:
    """The table of one evaluation: a row a metric, a column a direction, so that it fits a phone."""
    directions = [(direction, getattr(evaluation.metrics, direction)) for direction in DIRECTIONS]
    rows = [
        f'<tr><th scope="row">R@{k}</th>'
        f"{''.join(_recall_cell(evaluation, direction, k) for direction in DIRECTIONS)}</tr>"
        for k in RECALL_AT
    ]
    rows.append(_plain_row("Average recall", [f"{metrics.average_recall:.1f}" for _, metrics in directions]))
    rows.append(_plain_row("Median rank", [median_words(metrics.median_rank) for _, metrics in directions]))
    rows.append(_plain_row("Mean rank", [f"{metrics.mean_rank:,.1f}" for _, metrics in directions]))
    heads = ["", *(DIRECTION_WORDS[direction].capitalize() for direction in DIRECTIONS)]
    rsum = metric_words(evaluation.metrics.rsum, interval_words(evaluation, "rsum"))
    ensemble = " (an ensemble: the mean of their similarities)" if len(evaluation.models) > 1 else ""
    reranking = reranking_words(evaluation)
    return (
        f'<section class="results"><h2>{escaped(model_words(evaluation))}</h2>'
        f"<p>On {escaped(evaluation.data)}, split {escaped(evaluation.split)}:"
        f" {count_words(evaluation)}{ensemble}.</p>"
        f'<p>The six recalls sum to <b class="rsum">{rsum}</b> of 600.</p>'
        f"{f'<p>{escaped(reranking)}</p>' if reranking else ''}{_table(heads, rows)}</section>"
    )


def _recall_cell(evaluation: Evaluation, direction: str, k: int) -> str:
    metrics: DirectionMetrics = getattr(evaluation.metrics, direction)
    value: float = getattr(metrics, f"recall_at_{k}")
    return _bar_cell(evaluation, f"{direction}.recall_at_{k}", value, 100.0)


def _rsum_cell(evaluation: Evaluation) -> str:
    return _bar_cell(evaluation, "rsum", evaluation.metrics.rsum, 600.0)


def _bar_cell(evaluation: Evaluation, name: str, value: float, full: float) -> str:
    bar = interval_bar(value, evaluation.intervals.get(name), full)
    return f'<td><b>{value:.1f}</b> <span class="soft">{interval_words(evaluation, name)}</span>{bar}</td>'


def _plain_row(name: str, values: Sequence[str]) -> str:
    return f'<tr><th scope="row">{name}</th>{"".join(f"<td>{value}</td>" for value in values)}</tr>'


def _table(heads: Sequence[str], rows: Sequence[str]) -> str:
    head = "".join(f'<th scope="col">{name}</th>' if name else "<td></td>" for name in heads)
    body = "".join(rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _training(history: History) -> str:
    charts = [line_chart(curve) for curve in training_curves(history)]
    if not charts:
        return ""
    return f'<section id="training"><h2>Training</h2><div class="charts">{"".join(charts)}</div></section>'


def _examples(evaluation: Evaluation, thumbnails: Thumbnails) -> str:
    """Both kinds of query, each under its own heading."""
    parts = []
    for direction, title, show in (
        ("text_to_image", "A caption looks for its picture", _caption_query),
        ("image_to_text", "A picture looks for its captions", _picture_query),
    ):
        examples = [example for example in evaluation.examples if example.direction == direction]
        shown = [show(example, thumbnails) for example in examples]
        if shown:
            parts.append(f"<h3>{title}</h3>{''.join(shown)}")
    if not parts:
        return ""
    return (
        f'<section class="examples"><h2>Examples: {escaped(model_words(evaluation))}</h2>'
        f'<p class="soft">The best matches first, each with its similarity.</p>{"".join(parts)}</section>'
    )


def _caption_query(example: Example, thumbnails: Thumbnails) -> str:
    matches = []
    for place, match in enumerate(example.matches, start=1):
        right = ", the right picture" if match.correct else ""
        picture = thumbnails.element(match.text, f"Match {place}{right}")
        matches.append(f"<li{_match_class(match)}>{picture}{_place_line(place, match, 'right picture')}</li>")
    return (
        f'<article class="example"><h4>“{escaped(example.query)}”</h4>'
        f'{_verdict(example, "The right picture")}<ol class="pictures">{"".join(matches)}</ol></article>'
    )


def _picture_query(example: Example, thumbnails: Thumbnails) -> str:
    matches = [
        f"<li{_match_class(match)}>{escaped(match.text)}{_place_line(place, match, 'right caption')}</li>"
        for place, match in enumerate(example.matches, start=1)
    ]
    return (
        f'<article class="example by-picture">{thumbnails.element(example.query, "Query")}'
        f"<div><h4>{escaped(example.query)}</h4>{_verdict(example, 'Its first right caption')}"
        f'<ol class="captions">{"".join(matches)}</ol></div></article>'
    )


def _match_class(match: Match) -> str:
    return f' class="match{" right" if match.correct else ""}"'


def _place_line(place: int, match: Match, right: str) -> str:
    mark = f'<span class="tag">✓ {right}</span>' if match.correct else ""
    return f'<span class="place">{place} · {match.similarity:.2f}{mark}</span>'


def _verdict(example: Example, right: str) -> str:
    """Where the true match came, in words; `rank` counts from 0."""
    found = "<b>✓ Found.</b> " if example.rank == 0 else ""
    shown = "" if any(match.correct for match in example.matches) else ", so it is not among these"
    return f'<p class="verdict soft">{found}{right} is at place {example.rank + 1:,}{shown}.</p>'

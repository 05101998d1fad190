"""The report: its numbers are the evaluation's, and what is in the data cannot make the page do a thing."""

from __future__ import annotations

import base64
import dataclasses
import io
import re
import unicodedata
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from vsrn.errors import DataError
from vsrn.evaluation.evaluate import Evaluation, Example, Match
from vsrn.evaluation.report import write_html_report
from vsrn.evaluation.tables import DIRECTION_WORDS, evaluation_table
from vsrn.metrics import DirectionMetrics, Interval, Ranks, RetrievalMetrics

VOID = {"meta", "img", "rect", "line", "circle", "polyline"}
HOSTILE = "\"'><img src=http://evil/x onerror=alert(1)><script>alert(2)</script></style><!-- &amp; "


@dataclass
class Element:
    """A parsed element: its name, attributes, children in order, and all text below it."""

    tag: str
    attributes: dict[str, str]
    children: list[Element] = field(default_factory=list)
    text: str = ""

    def all(self, tag: str, css_class: str = "") -> list[Element]:
        """Every element below with this name, and this class where one is given."""
        found = []
        for child in self.children:
            if child.tag == tag and (not css_class or css_class in child.attributes.get("class", "").split()):
                found.append(child)
            found += child.all(tag, css_class)
        return found


class Page(HTMLParser):
    """Builds the tree, and fails on an element that is not closed where it should be."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open = [Element("", {})]
        self.feed(page)
        self.close()
        assert len(self.open) == 1, f"not closed: {self.open[-1].tag}"
        self.root = self.open[0]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"an attribute twice in {tag}"
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in VOID
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert tag == self.open.pop().tag

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element.text += data


def evaluation_of(seed: int = 0, **changes: object) -> Evaluation:
    """An evaluation with numbers nobody chose."""
    generator = np.random.default_rng(seed)

    def direction() -> DirectionMetrics:
        at_1, at_5, at_10 = np.sort(generator.uniform(0, 100, size=3)).tolist()
        return DirectionMetrics(at_1, at_5, at_10, median_rank=float(generator.integers(1, 99)), mean_rank=1234.56)

    metrics = RetrievalMetrics(direction(), direction())
    intervals = {
        f"{name}.recall_at_{k}": Interval(max(recall - 2.25, 0), min(recall + 3.125, 100))
        for name in DIRECTION_WORDS
        for k, recall in zip((1, 5, 10), getattr(metrics, name).recalls, strict=True)
    }
    intervals["rsum"] = Interval(metrics.rsum - 10, metrics.rsum + 10)
    ranks = Ranks(np.zeros(1000, int), np.zeros(5000, int))
    evaluation = Evaluation(["runs/toy"], "data/toy", "val", 1000, 5000, 1, metrics, intervals, ranks)
    return dataclasses.replace(evaluation, **changes)  # type: ignore[arg-type]


def expected_rows(evaluation: Evaluation) -> dict[str, list[list[float]]]:
    """Per row of the HTML table, per direction, the numbers it must show."""
    directions = {name: getattr(evaluation.metrics, name) for name in DIRECTION_WORDS}
    rows = {
        f"R@{k}": [
            [
                getattr(metrics, f"recall_at_{k}"),
                *dataclasses.astuple(evaluation.intervals[f"{name}.recall_at_{k}"]),
            ]
            for name, metrics in directions.items()
        ]
        for k in (1, 5, 10)
    }
    rows["Average recall"] = [[sum(metrics.recalls) / 3] for metrics in directions.values()]
    rows["Median rank"] = [[metrics.median_rank] for metrics in directions.values()]
    rows["Mean rank"] = [[metrics.mean_rank] for metrics in directions.values()]
    return rows


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"\d+(?:\.\d+)?", text.replace(",", ""))]


def report(tmp_path: Path, evaluations: Evaluation | list[Evaluation], **options: object) -> Element:
    path = tmp_path / "report.html"
    write_html_report(path, evaluations, **options)  # type: ignore[arg-type]
    assert list(tmp_path.glob(".*")) == []
    return Page(path.read_text(encoding="utf-8")).root


def examples_for(*image_ids: str, caption: str = "two dogs") -> list[Example]:
    """Each image once as a match, the first one right, and once as a query."""
    matches = [Match(image_id, 0.5, correct=place == 0) for place, image_id in enumerate(image_ids)]
    captions = [Match(caption, 0.25, correct=False), Match("the right words", 0.125, correct=True)]
    return [
        Example("text_to_image", caption, 0, matches),
        *(Example("image_to_text", image_id, 1, captions) for image_id in image_ids),
    ]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with one red photo, and a blue one outside it."""
    folder = tmp_path / "photos"
    (folder / "beach").mkdir(parents=True)
    Image.new("RGB", (600, 300), "red").save(folder / "beach" / "red.jpg", comment=b"taken at home")
    Image.new("RGB", (90, 90), "blue").save(tmp_path / "secret.jpg")
    return folder


def pictures(root: Element) -> list[Image.Image]:
    """The pictures that the page holds, decoded."""
    sources = [image.attributes["src"].split(",", 1) for image in root.all("img")]
    assert all(kind == "data:image/jpeg;base64" for kind, _ in sources)
    return [Image.open(io.BytesIO(base64.b64decode(data))) for _, data in sources]


@pytest.mark.parametrize("seed", range(5))
def test_the_table_holds_the_numbers_of_the_evaluation(tmp_path: Path, seed: int) -> None:
    evaluation = evaluation_of(seed)
    root = report(tmp_path, evaluation)
    (table,) = root.all("table")
    assert [head.text for head in table.all("thead")[0].all("th")] == ["Image to text", "Text to image"]
    rows = {row.all("th")[0].text: row.all("td") for row in table.all("tbody")[0].all("tr")}
    expected = expected_rows(evaluation)
    assert list(rows) == list(expected)
    for name, cells in rows.items():
        for cell, values in zip(cells, expected[name], strict=True):
            assert numbers(cell.text) == pytest.approx(values, abs=0.051), name
    rsum = numbers(root.all("b", "rsum")[0].text)
    assert rsum == pytest.approx(
        [evaluation.metrics.rsum, *dataclasses.astuple(evaluation.intervals["rsum"])], abs=0.051
    )
    assert "On data/toy, split val: 1,000 images, 5,000 captions." in root.text


def test_several_evaluations_are_compared_and_then_shown_one_by_one(tmp_path: Path) -> None:
    both = [evaluation_of(1), evaluation_of(2, models=["runs/a", "runs/b"], num_images=5000, num_folds=5)]
    root = report(tmp_path, both)
    comparison, *tables = root.all("table")
    shown = [[cell.text for cell in row.children] for row in comparison.all("tbody")[0].all("tr")]
    assert [name for name, *_ in shown] == ["runs/toy", "runs/a + runs/b"]
    for evaluation, (_, rsum, *recalls) in zip(both, shown, strict=True):
        ours = [getattr(evaluation.metrics, direction).recall_at_1 for direction in DIRECTION_WORDS]
        assert numbers(rsum)[0] == pytest.approx(evaluation.metrics.rsum, abs=0.051)
        assert [numbers(recall)[0] for recall in recalls] == pytest.approx(ours, abs=0.051)
    assert len(tables) == 2
    assert "mean of 5 folds of 1,000 images (an ensemble: the mean of their similarities)" in root.text


def test_an_evaluation_without_intervals_shows_bare_numbers(tmp_path: Path) -> None:
    evaluation = evaluation_of(3, intervals={})
    cells = report(tmp_path, evaluation).all("tbody")[0].all("tr")[0].all("td")
    ours = [getattr(evaluation.metrics, direction).recall_at_1 for direction in DIRECTION_WORDS]
    assert [numbers(cell.text) for cell in cells] == [pytest.approx([recall], abs=0.051) for recall in ours]


def test_the_right_matches_are_marked_in_words(tmp_path: Path, photos: Path) -> None:
    evaluation = evaluation_of(examples=examples_for("beach/red.jpg", "beach/gone.jpg"))
    root = report(tmp_path, evaluation, photos=photos)
    right, wrong = root.all("ol", "pictures")[0].all("li")
    assert "✓ right picture" in right.text
    assert right.all("img")[0].attributes["alt"] == "Match 1, the right picture: beach/red.jpg"
    assert "right" not in wrong.text
    wrong_caption, right_caption = root.all("ol", "captions")[0].all("li")
    assert "✓ right caption" in right_caption.text
    assert "right" not in wrong_caption.text
    assert "✓ Found. The right picture is at place 1." in root.text
    assert "Its first right caption is at place 2." in root.text


def test_a_true_match_that_is_not_shown_is_said_to_be_further_down(tmp_path: Path) -> None:
    example = Example("text_to_image", "two dogs", 1499, [Match("a.jpg", 0.5, correct=False)])
    root = report(tmp_path, evaluation_of(examples=[example]))
    assert "The right picture is at place 1,500, so it is not among these." in root.text


def test_photos_are_inlined_small_and_without_what_the_camera_wrote(tmp_path: Path, photos: Path) -> None:
    root = report(tmp_path, evaluation_of(examples=examples_for("beach/red.jpg")), photos=photos)
    match, query = pictures(root)
    for picture in (match, query):
        assert picture.size == (256, 128)
        red, green, blue = picture.convert("RGB").resize((1, 1)).getpixel((0, 0))  # type: ignore[misc]
        assert (red > 240, green < 15, blue < 15) == (True, True, True)
        assert "comment" not in picture.info


@pytest.mark.parametrize(("known", "on_disk"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_photo_is_found_in_any_unicode_form(
    tmp_path: Path, known: Literal["NFC", "NFD"], on_disk: Literal["NFC", "NFD"]
) -> None:
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (300, 200)).save(tmp_path / "photos" / unicodedata.normalize(on_disk, "été.png"))
    examples = examples_for(unicodedata.normalize(known, "été.png"))
    assert len(pictures(report(tmp_path, evaluation_of(examples=examples), photos=tmp_path / "photos"))) == 2


def test_a_linked_photo_folder_is_as_good_as_a_real_one(tmp_path: Path, photos: Path) -> None:
    (tmp_path / "link").symlink_to(photos)
    root = report(tmp_path, evaluation_of(examples=examples_for("beach/red.jpg")), photos=tmp_path / "link")
    assert len(pictures(root)) == 2


@pytest.mark.parametrize(
    "image_id",
    ["../secret.jpg", "beach/../../secret.jpg", "{tmp}/secret.jpg", "link.jpg", "out/secret.jpg", "circle"],
)
def test_an_id_cannot_lead_out_of_the_photo_folder(tmp_path: Path, photos: Path, image_id: str) -> None:
    (photos / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (photos / "out").symlink_to(tmp_path)
    (photos / "circle").symlink_to(photos / "circle")
    image_id = image_id.format(tmp=tmp_path)
    root = report(tmp_path, evaluation_of(examples=examples_for(image_id)), photos=photos)
    assert pictures(root) == []
    assert [element.text for element in root.all("div", "missing")] == [f"{image_id}photo not available"] * 2


@pytest.mark.parametrize("image_id", ["gone.jpg", "", "beach", "damaged.jpg", "a\0b.jpg", "x" * 5000, "\udcff.jpg"])
def test_a_photo_that_cannot_be_read_becomes_a_labelled_placeholder(
    tmp_path: Path, photos: Path, image_id: str
) -> None:
    (photos / "damaged.jpg").write_bytes((photos / "beach" / "red.jpg").read_bytes()[:200])
    root = report(tmp_path, evaluation_of(examples=examples_for(image_id)), photos=photos)
    assert pictures(root) == []
    seen = image_id.replace("\0", "\ufffd").replace("\udcff", "\ufffd")
    first, second = root.all("div", "missing")
    assert first.attributes["aria-label"] == f"Match 1, the right picture: {seen}"
    assert second.attributes["aria-label"] == f"Query: {seen}"


def test_photos_are_found_by_published_ids_and_those_that_are_not_are_counted(tmp_path: Path) -> None:
    folder = tmp_path / "val2014"
    folder.mkdir()
    for name in ("COCO_val2014_000000391895.jpg", "1001.jpg", "mapped.jpg", "7.jpg"):
        Image.new("RGB", (40, 30), "red").save(folder / name)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "id_mapping.json").write_text('{"7": "val2014/mapped.jpg", "8": "nowhere.jpg"}')
    examples = examples_for("391895", "1001", "7", "8", "12")
    evaluation = dataclasses.replace(evaluation_of(0), data=str(tmp_path / "data" / "precomp"), examples=examples)
    assert write_html_report(tmp_path / "report.html", evaluation, photos=folder) == ["8", "12"]
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8")).root
    assert len(page.all("img")) == 6
    assert "2 of these photos were not found or could not be read, such as 8." in page.text
    # A row's number is no name of a file.
    numbered = dataclasses.replace(evaluation, has_ids=False, examples=examples_for("1001"))
    assert write_html_report(tmp_path / "report.html", numbered, photos=folder) == ["1001"]


def test_without_a_photo_folder_ids_stand_in_for_photos(tmp_path: Path) -> None:
    root = report(tmp_path, evaluation_of(examples=examples_for("beach/red.jpg")))
    assert [element.text for element in root.all("div", "missing")] == ["beach/red.jpg"] * 2


def test_hostile_text_stays_text(tmp_path: Path, photos: Path) -> None:
    evaluation = evaluation_of(
        models=[HOSTILE], data=HOSTILE, split=HOSTILE, examples=examples_for(HOSTILE, caption=HOSTILE)
    )
    harmless = evaluation_of(examples=examples_for("gone.jpg"))
    root = report(tmp_path, [evaluation, evaluation], photos=photos)
    assert root.text.count(HOSTILE.strip()) > 10
    expected = report(tmp_path, [harmless, harmless], photos=photos)
    assert shape(root) == shape(expected)


def shape(element: Element) -> list[object]:
    """Names of the elements and of their attributes, all the way down."""
    return [element.tag, sorted(element.attributes), [shape(child) for child in element.children]]


def test_the_page_loads_nothing_and_runs_nothing(tmp_path: Path, photos: Path) -> None:
    history = [{"step": 1, "matching_loss": 3.0}, {"step": 2, "validation": {"rsum": 10.0}}]
    evaluation = evaluation_of(examples=examples_for("beach/red.jpg"))
    root = report(tmp_path, evaluation, photos=photos, history=history)
    for tag in ("script", "link", "iframe", "object", "a", "form"):
        assert root.all(tag) == []
    for image in root.all("img"):
        assert set(image.attributes) == {"class", "src", "alt"}
        assert image.attributes["src"].startswith("data:image/jpeg;base64,")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|url\(|@import|<[^>]+\son\w+=", text)
    policy = next(meta.attributes["content"] for meta in root.all("meta") if "http-equiv" in meta.attributes)
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_the_training_curve_shows_the_rows_of_the_run(tmp_path: Path) -> None:
    history: list[dict[str, Any]] = [
        {"step": step, "matching_loss": 100.0 - step, "generation_loss": 50.0} for step in range(1, 101)
    ]
    rsums = {25: 100.0, 50: 390.0, 75: 310.0}
    history += [{"step": step, "validation": {"rsum": rsum}} for step, rsum in rsums.items()]
    root = report(tmp_path, evaluation_of(), history=history)
    captions = [figure.all("figcaption")[0].text for figure in root.all("figure", "chart")]
    assert captions == [
        "Sum of recalls on validationbest 390.0 at step 50",
        "Matching losslast 0.0 at step 100",
        "Generation losslast 50.0 at step 100",
    ]


def test_without_a_history_there_is_no_training_section(tmp_path: Path) -> None:
    assert not any(
        section.attributes.get("id") == "training" for section in report(tmp_path, evaluation_of()).all("section")
    )


def test_a_report_that_cannot_be_written_is_one_error_and_no_file(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(DataError, match=r"report .*taken cannot be written: Is a directory; name another file"):
        write_html_report(tmp_path / "taken", evaluation_of())
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_a_photo_folder_that_is_not_there_is_named_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no folder .*gone; name the folder"):
        write_html_report(tmp_path / "report.html", evaluation_of(), photos=tmp_path / "gone")
    assert list(tmp_path.iterdir()) == []


def printed(evaluation: Evaluation, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(evaluation_table(evaluation))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("seed", range(5))
def test_the_terminal_table_holds_the_numbers_of_the_evaluation(seed: int) -> None:
    evaluation = evaluation_of(seed)
    lines = printed(evaluation, 140).splitlines()
    for direction, words in (("image_to_text", "image to text"), ("text_to_image", "text to image")):
        metrics: DirectionMetrics = getattr(evaluation.metrics, direction)
        expected = [
            number
            for k, recall in zip((1, 5, 10), metrics.recalls, strict=True)
            for number in (recall, *dataclasses.astuple(evaluation.intervals[f"{direction}.recall_at_{k}"]))
        ] + [sum(metrics.recalls) / 3, metrics.median_rank, metrics.mean_rank]
        (line,) = (line for line in lines if words in line)
        assert numbers(line.replace(words, "")) == pytest.approx(expected, abs=0.051)
    rsum = [evaluation.metrics.rsum, *dataclasses.astuple(evaluation.intervals["rsum"])]
    assert numbers(lines[-1]) == pytest.approx([*rsum, 600, 1000, 5000], abs=0.051)


def test_the_terminal_table_fits_80_columns_without_cutting_a_number() -> None:
    perfect = DirectionMetrics(100.0, 100.0, 100.0, median_rank=1.0, mean_rank=1234.5)
    intervals = {
        f"{direction}.recall_at_{k}": Interval(99.4, 100.0) for direction in DIRECTION_WORDS for k in (1, 5, 10)
    }
    text = printed(evaluation_of(metrics=RetrievalMetrics(perfect, perfect), intervals=intervals), 80)
    assert text.count("[99.4–100]") == 6
    assert text.count("1,234.5") == 2
    assert "…" not in text


def test_the_terminal_table_prints_names_as_they_are() -> None:
    assert "[bold]runs/[red]x[/] on data/toy" in printed(evaluation_of(models=["[bold]runs/[red]x[/]"]), 140)

"""Pictures: colours where the particles are. Pages: everything is there, nothing is taken for markup."""

import base64
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from tomoray.checkpoint import Card
from tomoray.report import colours_of, draw_picks, training_page, write_report
from tomoray.scoring import score_picks
from tomoray.tomogram import CZII_PARTICLES, Picks, Tomogram

VOXEL = 10.0
SHAPE = (30, 100, 100)


def make_tomogram(name: str = "TS_1", voxels=None) -> Tomogram:
    noise = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32) if voxels is None else voxels
    return Tomogram(name, noise, (VOXEL,) * 3)


def test_a_training_has_a_page(tmp_path) -> None:
    """What it reached, its thresholds, and where its picker is."""
    card = Card(CZII_PARTICLES, 10.0, "dark", network={"name": "vnet"}, method="supervised")
    card = card.with_thresholds({"ribosome": 0.35}, {"f1": {"value": 0.8125, "runs": ["a", "b"]}, "expected": {"ribosome": 0.75}})
    where = training_page(str(tmp_path / "run"), "train x & y", card, {"picker": "s3://b/picker"})
    text = (tmp_path / "run" / "report.html").read_text()
    assert where == str(tmp_path / "run" / "report.html")
    for part in ("0.812", "2 validation tomograms", "0.35", "0.75", "vnet", "s3://b/picker", "train x &amp; y"):
        assert part in text


def one(name: str, z_vox: float, y_vox: float, x_vox: float) -> Picks:
    return Picks("TS_1", np.array([[z_vox, y_vox, x_vox]]) * VOXEL, np.array([name]))


def coloured(path, name: str) -> np.ndarray:
    """Return `(n, 2)` where the colour of a class is, (down, right) as a share of the picture's width."""
    image = imread(path)[..., :3]
    return np.argwhere(np.abs(image - to_rgb(colours_of(CZII_PARTICLES)[name])).max(axis=-1) < 0.08) / image.shape[1]


def in_volume(places: np.ndarray) -> np.ndarray:
    """Return those in the picture of the slice: a square below the titles, as wide as the whole; below it lies the legend."""
    return places[places[:, 0] < 1.08]


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.cells, self.images, self.text = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "img":
            self.images.append(dict(attrs)["src"])

    def handle_data(self, data):
        if self.get_starttag_text() and self.tags[-1] in ("td", "th") and data.strip():
            self.cells.append(data)
        self.text += data


@pytest.mark.parametrize(("y", "x"), [(20, 20), (20, 80), (80, 50)])
def test_a_pick_is_a_circle_of_its_colour_in_its_place(tmp_path, y, x):
    draw_picks(tmp_path / "p.png", make_tomogram(), one("ribosome", 15, y, x), slices=1)
    places = in_volume(coloured(tmp_path / "p.png", "ribosome"))
    assert len(places) > 100
    top = 0.12  # share that the titles take
    assert (places.max(axis=0) + places.min(axis=0)) / 2 == pytest.approx([y / 100 + top, x / 100], abs=0.03)
    assert np.ptp(places, axis=0) == pytest.approx([0.3, 0.3], abs=0.03)  # 2 x 150 angstrom of 1000
    assert len(in_volume(coloured(tmp_path / "p.png", "thyroglobulin"))) == 0


def test_circles_shrink_with_the_distance_from_the_slab_and_vanish(tmp_path):
    widths = []
    for z in (15, 25, 29):  # the slab is 13 to 18; at 25 the sphere of 15 voxels is 7 away from it: sqrt(15² - 7²) = 13.27
        draw_picks(tmp_path / f"{z}.png", make_tomogram(), one("ribosome", z, 50, 50), slices=[15])
        widths.append(np.ptp(in_volume(coloured(tmp_path / f"{z}.png", "ribosome"))[:, 1]))
    assert widths == pytest.approx([0.300, 0.265, 0.204], abs=0.02)
    draw_picks(tmp_path / "far.png", make_tomogram(), one("apo-ferritin", 25, 50, 50), slices=[15])  # 70 angstrom away, radius 60
    assert len(in_volume(coloured(tmp_path / "far.png", "apo-ferritin"))) == 0
    assert len(coloured(tmp_path / "far.png", "apo-ferritin")) > 0  # still counted in the legend


def test_truth_is_dashed_beside_the_pick(tmp_path):
    pick, truth = one("ribosome", 15, 30, 30), one("thyroglobulin", 15, 70, 70)
    draw_picks(tmp_path / "p.png", make_tomogram(), pick, truth, slices=1)
    solid, dashed = (in_volume(coloured(tmp_path / "p.png", name)) for name in ("ribosome", "thyroglobulin"))
    assert 50 < len(dashed) < 0.75 * len(solid)
    assert dashed[:, 1].mean() > 0.6 > 0.4 > solid[:, 1].mean()


def test_only_the_slabs_that_are_shown_are_read(tmp_path):
    class Watched:
        shape, dtype, boxes = (200, 40, 50), np.dtype("float32"), []

        def __getitem__(self, box):
            self.boxes.append(box[0])
            return np.zeros(self.shape, dtype=np.float32)[box]

    voxels = Watched()
    draw_picks(tmp_path / "p.png", make_tomogram(voxels=voxels), Picks("TS_1", [], []), slices=4)
    assert [(box.start, box.stop) for box in voxels.boxes] == [(23, 28), (73, 78), (123, 128), (173, 178)]
    assert [p.name for p in tmp_path.iterdir()] == ["p.png"]  # nothing half-written stays behind


def test_odd_volumes_and_names_are_drawn(tmp_path):
    voxels = np.full((3, 20, 60), np.nan, dtype=np.float32)
    voxels[:, :10] = np.inf
    draw_picks(tmp_path / "p.png", make_tomogram("cost $5 or $6_a^{", voxels), Picks("TS_1", [], []), slices=2)
    image = imread(tmp_path / "p.png")
    assert image.shape[1] > image.shape[0] > 200


def test_a_class_without_radius_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no radius for class 'ribosom'; known are apo-ferritin.*: add it"):
        draw_picks(tmp_path / "p.png", make_tomogram(), one("ribosom", 1, 1, 1))
    assert not list(tmp_path.iterdir())


def test_report_holds_table_pictures_failures_and_files(tmp_path):
    truth = [one("ribosome", 15, 30, 30)]
    draw_picks(tmp_path / "p.png", make_tomogram(), truth[0], slices=1)
    write_report(
        tmp_path / "report.html",
        "Picking",
        facts={"job": "pick.toml"},
        scores=score_picks(truth, truth),
        tomograms=[
            {"name": "TS_1", "counts": {"ribosome": 3}, "wall_s": 2.0},
            {"name": "TS_2", "counts": {"ribosome": 4, "apo-ferritin": 5}, "wall_s": 4.0},
            {"name": "TS_3", "reason": "the file ends early"},
        ],
        pictures={"TS_1": tmp_path / "p.png"},
        files={"picks as STAR": "out/star"},
    )
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert [base64.b64decode(src.partition("base64,")[2]) for src in page.images] == [(tmp_path / "p.png").read_bytes()]
    assert "2 of 3 tomograms picked, 1 failed; 12 picks; 3.0 seconds per tomogram (median)." in page.text
    assert "No intervals: one tomogram" in page.text
    text = "|".join(page.cells)
    assert "TS_3|the file ends early" in text
    assert "ribosome|1|1|1.000|1.000|1.000|1.000|1.000" in text
    assert "all|7|5|6.0" in text
    assert "picks as STAR|out/star" in text
    assert not {"script", "link"} & set(page.tags)  # complete in itself


def test_report_of_next_to_nothing_has_no_empty_sections(tmp_path):
    write_report(tmp_path / "report.html", "Empty")
    page = Page((tmp_path / "report.html").read_text())
    assert "h2" not in page.tags
    assert "table" not in page.tags


def test_report_takes_no_name_for_markup(tmp_path):
    nasty = "<script>alert('{title}')</script>&amp;\"'"
    draw_picks(tmp_path / "p.png", make_tomogram(), Picks("TS_1", [], []), slices=1)
    write_report(
        tmp_path / "report.html",
        nasty,
        facts={nasty: nasty},
        tomograms=[{"name": nasty, "counts": {nasty: 1}}, {"name": nasty, "reason": nasty}],
        pictures={nasty: tmp_path / "p.png"},
        files={nasty: nasty},
    )
    page = Page((tmp_path / "report.html").read_text())
    assert "script" not in page.tags
    assert page.text.count(nasty) == 11

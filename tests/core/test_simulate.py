"""Simulated tomograms: the truth is where the density is, and every knob does what its description says."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tomoray.config import ConfigError
from tomoray.formats import open_tomogram
from tomoray.formats.czii import picks_folder, read_czii_csv, read_czii_picks, tomogram_uri
from tomoray.formats.mrc import write_mrc
from tomoray.simulate import CZII_PER_UM3, Scene, place, simulate_tomogram, write_dataset
from tomoray.simulate.density import draw
from tomoray.simulate.layout import BILAYER_ANGSTROM, GOLD_RADIUS_ANGSTROM, Layout
from tomoray.simulate.optics import BACKGROUND_SD, UNIT
from tomoray.simulate.scene import DEFAULT_NOISE
from tomoray.simulate.shapes import BUILT_IN, Blobs, Map, built_in, load_map
from tomoray.tomogram import CZII_PARTICLES, Particle, Picks, Tomogram, check_picks_fit

RADII = {p.name: p.radius_angstrom for p in CZII_PARTICLES}
SMALL = Scene(shape_zyx=(48, 64, 96), crowding=12.0)
PLAIN = {"noise": 0.0, "tilt_deg": 90.0, "ctf": False, "resolution_angstrom": 0.0, "membranes_per_um3": 0.0, "gold_per_um3": 0.0}
EMPTY = {"crowding": 0.0, "membranes_per_um3": 0.0, "gold_per_um3": 0.0}


def volume(scene: Scene, seed: int = 0) -> np.ndarray:
    return simulate_tomogram(scene, seed=seed, name="TS")[0].read()


def one_particle(name: str, position_zyx: tuple[float, float, float], rotation: np.ndarray | None = None) -> Layout:
    picks = Picks("TS", np.array([position_zyx]), np.array([name]))
    return Layout(picks, (np.eye(3) if rotation is None else rotation)[None], (), np.empty((0, 3)))


def centroid(density: np.ndarray) -> np.ndarray:
    grids = np.meshgrid(*(np.arange(n) for n in density.shape), indexing="ij")
    return np.array([(grid * density).sum() / density.sum() for grid in grids])


def turn(seed: int) -> np.ndarray:
    q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((3, 3)))
    return q * np.linalg.det(q)


# What the volume is


def test_a_tomogram_is_float32_with_its_voxel_size_and_its_truth_inside():
    tomogram, picks = simulate_tomogram(SMALL, seed=1, name="TS_1")
    assert tomogram.shape == SMALL.shape_zyx
    assert tomogram.read().dtype == np.float32
    assert np.isfinite(tomogram.read()).all()
    assert tomogram.voxel_size_angstrom == 10.012
    assert len(picks) > 3
    assert picks.run == tomogram.name == "TS_1"
    check_picks_fit(picks, tomogram)


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not():
    first, again, other = (simulate_tomogram(SMALL, seed=seed, name="TS") for seed in (5, 5, 6))
    np.testing.assert_array_equal(first[0].read(), again[0].read())
    np.testing.assert_array_equal(first[1].positions_zyx, again[1].positions_zyx)
    assert not np.array_equal(first[0].read(), other[0].read())


def test_noise_optics_and_domain_shift_leave_the_particles_where_they_are():
    truth = simulate_tomogram(SMALL, seed=2, name="TS")[1]
    for scene in (replace(SMALL, noise=3.0), replace(SMALL, domain_shift=1.0), replace(SMALL, ctf=False)):
        np.testing.assert_array_equal(simulate_tomogram(scene, seed=2, name="TS")[1].positions_zyx, truth.positions_zyx)
    np.testing.assert_array_equal(place(SMALL, seed=2, name="TS").picks.positions_zyx, truth.positions_zyx)


def test_bright_is_the_negative_of_dark():
    np.testing.assert_array_equal(volume(replace(SMALL, contrast="bright")), -volume(SMALL))


# Where the particles are


@pytest.mark.parametrize("position", [(200.0, 250.0, 300.0), (203.3, 251.7, 307.9)])
@pytest.mark.parametrize("name", ["apo-ferritin", "virus-like-particle", "thyroglobulin"])
def test_the_centroid_of_a_particle_is_the_truth_also_between_voxels(name, position):
    scene = Scene(shape_zyx=(40, 48, 64), **PLAIN)
    density = draw(scene, one_particle(name, position, turn(1)))
    np.testing.assert_allclose(centroid(density) + 0.5, np.array(position) / scene.voxel_angstrom, atol=0.01)


def test_the_centroid_survives_imaging_without_wedge():
    """Catches a transform that moves the volume by a voxel."""
    scene = Scene(shape_zyx=(40, 40, 40), **{**PLAIN, "per_um3": dict.fromkeys(RADII, 0.0) | {"apo-ferritin": 1e4}, "resolution_angstrom": 30.0})

    def is_alone_and_whole(seed: int) -> bool:  # else cut off, or wrapped around by the transform
        at = place(scene, seed=seed, name="TS").picks.positions_zyx
        return len(at) == 1 and bool(((at > 120) & (at < 280)).all())

    seed = next(s for s in range(300) if is_alone_and_whole(s))
    tomogram, picks = simulate_tomogram(scene, seed=seed, name="TS")
    found = centroid(-tomogram.read()) + 0.5
    np.testing.assert_allclose(found, picks.positions_zyx[0] / scene.voxel_angstrom, atol=0.1)


def test_particles_are_darkest_where_the_truth_says():
    solid = (Particle("ribosome", 150.0),)
    tomogram, picks = simulate_tomogram(Scene(shape_zyx=(64, 128, 128), particles=solid, crowding=6.0, tilt_deg=90.0), seed=3, name="TS")
    values, at = tomogram.read(), (picks.positions_zyx / tomogram.voxel_size_angstrom).astype(int)
    around = [values[max(z - 4, 0) : z + 5, max(y - 4, 0) : y + 5, max(x - 4, 0) : x + 5].mean() for z, y, x in at]
    assert len(around) > 3
    assert max(around) < values.mean() - values.std()


def test_particles_touch_nothing_and_stay_in_the_ice():
    scene = Scene(shape_zyx=(64, 128, 160), crowding=6.0, membranes_per_um3=1500.0, gold_per_um3=1500.0, ice=0.8)
    layouts = [place(scene, seed=seed, name="TS") for seed in range(20)]
    assert sum(len(layout.vesicles) for layout in layouts) > 10  # else there is nothing to avoid; a single tomogram may have none
    assert sum(len(layout.gold_zyx) for layout in layouts) > 10
    assert sum(len(layout.picks) for layout in layouts) > 100
    for layout in layouts:
        positions, radii = layout.picks.positions_zyx, np.array([RADII[name] for name in layout.picks.names])
        margin = 0.1 * 64 * scene.voxel_angstrom
        assert (positions[:, 0] - radii >= margin).all()
        assert (positions[:, 0] + radii <= 64 * scene.voxel_angstrom - margin).all()
        apart = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
        np.fill_diagonal(apart, np.inf)
        assert (apart >= radii[:, None] + radii[None]).all()
        to_gold = np.linalg.norm(positions[:, None] - layout.gold_zyx[None], axis=-1)
        assert (to_gold >= radii[:, None] + GOLD_RADIUS_ANGSTROM).all()
        assert all((np.abs(vesicle.distance(positions)) >= radii + BILAYER_ANGSTROM).all() for vesicle in layout.vesicles)


def test_numbers_follow_the_concentrations_and_the_crowding():
    scene = Scene(shape_zyx=(184, 630, 630), membranes_per_um3=0.0, gold_per_um3=0.0)
    mean = {name: np.mean([np.count_nonzero(place(scene, seed=s, name="TS").picks.names == name) for s in range(8)]) for name in RADII}
    expected = {name: CZII_PER_UM3[name] * 0.0733 for name in RADII}  # cubic micrometres
    assert expected["ribosome"] == pytest.approx(47, rel=0.01)
    for name, number in expected.items():
        assert abs(mean[name] - number) < 4 * np.sqrt(number / 8)
    twice = len(place(replace(scene, crowding=2.0), seed=0, name="TS").picks)
    assert abs(twice - 2 * sum(expected.values())) < 4 * np.sqrt(2 * sum(expected.values()))


def test_rotations_are_proper_and_uniform():
    rotations = place(Scene(shape_zyx=(184, 630, 630), crowding=3.0), seed=0, name="TS").rotations
    np.testing.assert_allclose(rotations @ rotations.transpose(0, 2, 1), np.broadcast_to(np.eye(3), rotations.shape), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(rotations), 1.0, atol=1e-12)
    n = len(rotations)
    assert np.abs(rotations.mean(axis=0)).max() < 4 * np.sqrt(1 / 3 / n)  # every entry has mean 0 and variance 1/3
    assert np.trace(rotations, axis1=1, axis2=2).mean() == pytest.approx(0, abs=4 / np.sqrt(n))  # angles uniform in [0, pi] would give 1


# What the particles are


def test_built_in_shapes_fit_their_radii_and_weigh_what_the_complexes_weigh():
    """Masses follow from size and contrast, at 0.42 kDa per cubic nanometre, the mean density of protein at 10 angstrom."""
    kda = {"apo-ferritin": 480, "beta-amylase": 224, "beta-galactosidase": 465, "ribosome": 3300, "thyroglobulin": 660, "virus-like-particle": 2600}
    for name, mass in kda.items():
        box = built_in(name).draw(np.eye(3), np.full(3, 24.5), 50, 10.0)
        contrast = 1.5 if name == "ribosome" else 1.0
        assert (box**2).sum() / box.sum() == pytest.approx(contrast, rel=0.01)
        assert 0.42 * box.sum() / contrast == pytest.approx(mass, rel=0.35)
        away = 10.0 * np.linalg.norm(np.indices(box.shape) - 24.5, axis=0)
        assert box[away <= RADII[name] + 10].sum() > 0.9 * box.sum()


def test_shells_are_hollow_and_the_ribosome_is_not():
    centre = {name: built_in(name).draw(np.eye(3), np.full(3, 24.0), 49, 10.0)[24, 24, 24] for name in BUILT_IN}
    assert centre["virus-like-particle"] < 0.01
    assert centre["apo-ferritin"] < 0.3
    assert centre["ribosome"] > 0.8


def test_a_drawn_map_is_the_map_itself_turned_and_centred(tmp_path):
    blobs = Blobs(np.array([(-30.0, 10.0, 0.0), (20.0, -25.0, 15.0), (0.0, 0.0, -40.0)]), 14.0)
    density = 7.0 * blobs.draw(np.eye(3), np.full(3, 11.5), 24, 10.0)
    write_mrc(tmp_path / "map.mrc", Tomogram("map", density, (10.0, 10.0, 10.0)))
    shape = load_map(str(tmp_path / "map.mrc"), 10.012)
    assert isinstance(shape, Map)
    for seed, centre in enumerate(([15.5, 15.5, 15.5], [15.2, 16.1, 14.9])):
        exact = blobs.draw(turn(seed), np.array(centre), 32, 10.012) / blobs.mean_density()
        np.testing.assert_allclose(shape.draw(turn(seed), np.array(centre), 32, 10.012), exact, atol=0.04)  # 1.5 % of the peak


def test_maps_replace_built_in_shapes(shared_data: Path):
    scene = replace(SMALL, maps={"ribosome": str(shared_data / "templates_10A" / "4v4r.mrc")}, **PLAIN)
    drawn = draw(scene, one_particle("ribosome", (240.0, 320.0, 480.0), turn(2)))
    assert (drawn**2).sum() / drawn.sum() == pytest.approx(1.5, rel=0.1)
    assert np.abs(centroid(drawn) + 0.5 - np.array([240.0, 320.0, 480.0]) / scene.voxel_angstrom).max() < 4  # its mass is not in the box's centre
    assert not np.array_equal(drawn, draw(replace(scene, maps={}), one_particle("ribosome", (240.0, 320.0, 480.0), turn(2))))


def test_a_symmetric_map_is_drawn_where_the_truth_is(shared_data: Path):
    shape = load_map(str(shared_data / "templates_10A" / "6pxm.mrc"), 10.012)  # its centre of mass lies 0.14 voxels from the box's centre
    box = shape.draw(turn(3), np.array([17.3, 18.0, 17.8]), 36, 10.012)
    assert np.linalg.norm(centroid(box) - [17.3, 18.0, 17.8]) < 0.3


# How it is seen


def test_noise_has_the_standard_deviation_it_is_defined_by():
    for noise in (DEFAULT_NOISE, 1.0):
        values = volume(Scene(noise=noise, **EMPTY))
        assert values.std() / UNIT == pytest.approx(noise, rel=0.05)
    assert volume(Scene(**EMPTY)).std() == pytest.approx(BACKGROUND_SD, rel=0.05)
    assert not volume(Scene(noise=0.0, **EMPTY)).any()


def test_noise_adds_to_the_same_signal():
    clean, noisy = (volume(replace(SMALL, noise=noise)) for noise in (0.0, 0.5))
    only_noise = volume(replace(SMALL, noise=0.5, **EMPTY))
    np.testing.assert_allclose(noisy - clean, only_noise, atol=1e-3 * UNIT)
    ratios = [clean.var() / (volume(replace(SMALL, noise=noise)) - clean).var() for noise in (0.1, 0.2, 0.4)]
    np.testing.assert_allclose(np.array(ratios[:-1]) / ratios[1:], 4.0, rtol=0.01)


def test_the_wedge_is_empty_for_signal_and_noise():
    scene = Scene(shape_zyx=(64, 64, 96), crowding=4.0)
    power = np.abs(np.fft.fftn(volume(scene).astype(np.float64))) ** 2
    kz, ky, kx = np.meshgrid(*(np.fft.fftfreq(n) for n in scene.shape_zyx), indexing="ij")
    missing = np.abs(kz) > np.abs(kx) * np.tan(np.deg2rad(60))
    seen = (np.abs(kz) < np.abs(kx) * np.tan(np.deg2rad(60))) & (kx**2 + ky**2 + kz**2 < 0.09)
    assert missing.mean() == pytest.approx(1 / 3, abs=0.1)
    assert power[missing].mean() < 1e-8 * power[seen].mean()
    assert np.median(power[seen]) > 1e-4 * power[seen].mean()


def test_noise_is_stationary_and_differs_between_tomograms_in_colour():
    """Catches a half spectrum whose two self-mirrored planes are weighted wrongly: columns of the volume would then differ."""
    noise = [volume(Scene(shape_zyx=(32, 128, 128), tilt_deg=90.0, **EMPTY), seed) for seed in range(4)]
    spectrum = np.mean([np.abs(np.fft.rfft(n.astype(np.float64), axis=2)) ** 2 for n in noise], axis=(0, 1, 2))
    assert 0.6 < spectrum[1] / spectrum[2] < 1.8
    assert 0.8 < spectrum[-1] / spectrum[-2] < 1.25
    neighbours = [np.corrcoef(n[:, :, :-3].ravel(), n[:, :, 3:].ravel())[0, 1] for n in noise]
    assert np.std(neighbours) > 0.01


def test_domain_shift_makes_noise_redder_but_not_stronger_and_blurs_and_widens_the_wedge():
    """Colour and blur are looked at without the CTF, since more defocus changes the spectrum of both noise and signal by itself."""
    shifts = [replace(SMALL, domain_shift=shift) for shift in (0.0, 0.5, 1.0)]
    k = np.meshgrid(*(np.fft.fftfreq(n) for n in SMALL.shape_zyx), indexing="ij")
    length = np.linalg.norm(k, axis=0)

    def share(values: np.ndarray, chosen: np.ndarray) -> float:
        power = np.abs(np.fft.fftn(values.astype(np.float64))) ** 2
        return float(power[chosen].sum() / power[length > 0].sum())

    noise = [volume(replace(scene, **EMPTY)) for scene in shifts]
    red = [share(volume(replace(scene, ctf=False, resolution_angstrom=0.0, **EMPTY)), (length > 0) & (length < 0.1)) for scene in shifts]
    assert 1.1 * red[0] < red[1] < red[2] / 1.1
    np.testing.assert_allclose([n.std() / (1 + scene.domain_shift) for n, scene in zip(noise, shifts, strict=True)], UNIT * SMALL.noise, rtol=0.1)
    fine = [share(volume(replace(scene, noise=0.0, ctf=False)), length > 0.2) for scene in shifts]
    assert fine[0] > 1.1 * fine[1] > 1.2 * fine[2]
    lost = (np.abs(k[0]) > np.abs(k[2]) * np.tan(np.deg2rad(48))) & (np.abs(k[0]) < np.abs(k[2]) * np.tan(np.deg2rad(60)))
    assert share(noise[0], lost) > 0.01
    assert share(noise[2], lost) < 1e-8


# What is refused


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"shape_zyx": (63, 256, 256)}, "even"),
        ({"shape_zyx": (20, 256, 256)}, "must fit"),
        ({"noise": -1.0}, "noise"),
        ({"noise": float("nan")}, "noise"),
        ({"tilt_deg": 100.0}, "tilt_deg"),
        ({"domain_shift": 2.0}, "domain_shift"),
        ({"contrast": "grey"}, "contrast"),
        ({"particles": (Particle("proteasome", 80.0),)}, "proteasome"),
        ({"particles": CZII_PARTICLES[:1] * 2}, "once"),
        ({"maps": {"ribosom": "x.mrc"}}, "ribosom "),
        ({"per_um3": {**CZII_PER_UM3, "ribosome": -1.0}}, "ribosome"),
    ],
)
def test_impossible_scenes_are_refused_with_what_to_do(settings, words):
    with pytest.raises(ConfigError, match=words) as error:
        Scene(**settings)
    assert ": " in str(error.value)
    assert "; " in str(error.value)


def test_a_class_without_any_shape_is_refused():
    scene = Scene(particles=(Particle("proteasome", 80.0),), per_um3={"proteasome": 100.0})
    with pytest.raises(ConfigError, match=r"proteasome.*give an MRC map"):
        simulate_tomogram(scene, seed=0, name="TS")


def test_a_map_without_protein_is_refused(tmp_path):
    write_mrc(tmp_path / "dark.mrc", Tomogram("dark", -np.ones((8, 8, 8), np.float32), (10.0, 10.0, 10.0)))
    with pytest.raises(ConfigError, match="bright"):
        load_map(str(tmp_path / "dark.mrc"), 10.0)


# Data sets


def test_a_data_set_has_the_czii_layout_and_all_truth(tmp_path):
    done: list[str] = []
    names = write_dataset(tmp_path, SMALL, runs=3, seed=7, labelled=2, formats=("zarr", "mrc"), workers=2, on_done=done.append)
    assert names == ["TS_0001", "TS_0002", "TS_0003"] == sorted(done)
    truth = {picks.run: picks for picks in read_czii_csv(str(tmp_path / "truth.csv"))}
    for i, name in enumerate(names):
        expected, picks = simulate_tomogram(SMALL, seed=(7, i), name=name)
        for ending in ("zarr", "mrc"):
            there = open_tomogram(tomogram_uri(str(tmp_path), name).replace("zarr", ending))
            np.testing.assert_array_equal(there.read(), expected.read())
            assert there.voxel_size_angstrom == pytest.approx(10.012, rel=1e-6)
        np.testing.assert_allclose(truth[name].positions_zyx, picks.positions_zyx, atol=1e-6)
        assert truth[name].names.tolist() == picks.names.tolist()
    picks = read_czii_picks(picks_folder(str(tmp_path), "TS_0001"), "TS_0001")
    for particle in RADII:
        np.testing.assert_allclose(picks.of(particle).positions_zyx, truth["TS_0001"].of(particle).positions_zyx)
    assert not Path(picks_folder(str(tmp_path), "TS_0003")).exists()


def test_a_rerun_makes_only_what_is_missing_and_the_number_of_runs_changes_nothing(tmp_path):
    scene = replace(SMALL, shape_zyx=(48, 48, 48))
    write_dataset(tmp_path / "two", scene, runs=2, seed=1)
    files = sorted(path for path in (tmp_path / "two" / "static").rglob("*") if path.is_file())
    written = [path.stat().st_mtime_ns for path in files]
    lost = Path(picks_folder(str(tmp_path / "two"), "TS_0002")) / "ribosome.json"
    lost.unlink()
    write_dataset(tmp_path / "two", scene, runs=3, seed=1)
    kept = [path.stat().st_mtime_ns == time for path, time in zip(files, written, strict=True) if "TS_0001" in path.parts]
    assert kept
    assert all(kept)
    assert lost.exists()
    write_dataset(tmp_path / "three", scene, runs=3, seed=1)
    for name in ("TS_0001", "TS_0002", "TS_0003"):
        two, three = (open_tomogram(tomogram_uri(str(tmp_path / folder), name)).read() for folder in ("two", "three"))
        np.testing.assert_array_equal(two, three)
    write_dataset(tmp_path / "three", scene, runs=1, seed=1)  # asks for less than is there: the truth of all of it stays
    with (tmp_path / "three" / "truth.csv").open() as truth, (tmp_path / "two" / "truth.csv").open() as other:
        assert list(csv.reader(truth)) == list(csv.reader(other))


def test_a_folder_with_another_scene_is_refused(tmp_path):
    write_dataset(tmp_path, replace(SMALL, shape_zyx=(48, 48, 48)), runs=1, seed=1)
    with pytest.raises(ConfigError, match=r"noise 0\.3 -> 0\.2.*another folder"):
        write_dataset(tmp_path, replace(SMALL, shape_zyx=(48, 48, 48), noise=0.2), runs=1, seed=1)


@pytest.mark.parametrize("settings", [{"runs": 0}, {"runs": 2, "labelled": 3}, {"runs": 1, "formats": ("tiff",)}, {"runs": 1, "workers": 0}])
def test_impossible_data_sets_are_refused_before_anything_is_written(tmp_path, settings):
    with pytest.raises(ConfigError, match=r"; .*(correct|give)"):
        write_dataset(tmp_path / "set", SMALL, **{"seed": 0, **settings})
    assert not (tmp_path / "set").exists()

"""Job files as text: what is refused and how it is said, what a value spells, and what is written is read back."""

import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, PositiveInt, ValidationError

from tomoray.config import ConfigError, Settings, dump_settings, parse_assignments, parse_value, read_settings, read_settings_text


class Row(Settings):
    name: str
    size: float = 1.0
    inner: dict[str, int] = Field(default_factory=dict)


class Table(Settings):
    depth: PositiveInt = 3
    label: str = "x"
    rows: tuple[Row, ...] = ()


class Sheet(Settings):
    title: str = "title"
    count: PositiveInt = 1
    share: float | None = None
    on: bool = False
    sizes: tuple[int, ...] = (1, 2)
    free: dict[str, str] = Field(default_factory=dict)
    table: Table = Table()
    rows: tuple[Row, ...] = ()


def read(text: str, overrides=None) -> Sheet:
    return read_settings_text(Sheet, text, "jobs/sheet.toml", overrides)


def test_files_and_defaults_are_read(tmp_path: Path) -> None:
    path = tmp_path / "sheet.toml"
    path.write_text('title = "größer"\nsizes = [4]\n[table]\ndepth = 7\n[[rows]]\nname = "a"\n[[rows]]\nname = "b"\n', encoding="utf-8")
    sheet = read_settings(Sheet, path)
    assert (sheet.title, sheet.sizes, sheet.table.depth, sheet.table.label) == ("größer", (4,), 7, "x")
    assert [row.name for row in sheet.rows] == ["a", "b"]
    assert read_settings(Sheet) == Sheet()
    assert read_settings(Sheet, None, {"count": 2}).count == 2


def test_files_that_are_missing_or_no_toml_say_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere.toml: there is no such job file; see the folder jobs/"):
        read_settings(Sheet, tmp_path / "nowhere.toml")
    with pytest.raises(ConfigError, match=r"^jobs/sheet.toml: not a TOML file \(.*line 2.*\); correct it there"):
        read("count = 1\ncount 2")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"bytes.toml: not a TOML file"):
        read_settings(Sheet, tmp_path / "bytes.toml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cuont = 3", "unknown key 'cuont'; did you mean 'count'?"),
        ("[table]\ndepht = 3", "unknown key 'table.depht'; did you mean 'depth'?"),
        ('[[rows]]\nname = "a"\n[[rows]]\nname = "b"\nsiez = 3', "unknown key 'rows.1.siez'; did you mean 'size'?"),
        ("wavelength = 3", "unknown key 'wavelength'; known here: count, free, on, rows, share, sizes, table, title"),
        ("count = 0", "count = 0: Input should be greater than 0"),
        ('count = "many"', 'count = "many": Input should be a valid integer'),
        ("title = 3", "title = 3: Input should be a valid string"),
        ("table = 3", "table = 3: Input should be"),
        ("sizes = 4", "sizes = 4: Input should be"),
        ("share = nan", "share = NaN: Input should be a finite number"),
        ("share = inf", "share = Infinity: Input should be a finite number"),
        ("[[rows]]\nsize = 3.0", "rows.0.name = "),
        ("title = 2024-05-01", 'title = "2024-05-01": Input should be a valid string'),
    ],
)
def test_what_is_wrong_is_named(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        read(text)
    assert str(error.value).startswith(f"jobs/sheet.toml: {message}")


def test_all_faults_are_listed_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        read("cuont = 3\ncount = -1\ntitle = 7\n[table]\ndepth = 0")
    parts = str(error.value).removeprefix("jobs/sheet.toml: ").split("; ")
    assert sorted(part.split(" =")[0].split("'")[0].strip() for part in parts) == ["count", "did you mean", "table.depth", "title", "unknown key"]


def test_dotted_overrides_replace_single_values() -> None:
    sheet = read('count = 5\n[table]\nlabel = "kept"', {"table.depth": 9, "count": 6, "free.new": "y", "share": 0.5})
    assert (sheet.count, sheet.share, sheet.free) == (6, 0.5, {"new": "y"})
    assert sheet.table == Table(depth=9, label="kept")
    for override in ({"table": {"depth": 2}}, {"table.depth": 2}):
        assert read("", override).table == Table(depth=2)


@pytest.mark.parametrize(("text", "key", "parent"), [("count = 5", "count.deep", "count"), ('[[rows]]\nname = "a"', "rows.0.name", "rows")])
def test_overrides_below_a_value_are_refused(text: str, key: str, parent: str) -> None:
    with pytest.raises(ConfigError, match=rf"{key}: '{parent}' is a value, not a table; give the key as it stands"):
        read(text, {key: "x"})


def test_unknown_overrides_are_refused_like_unknown_keys() -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'table\.depht'; did you mean 'depth'"):
        read("", {"table.depht": 3})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("-1e-3", -1e-3),
        ("true", True),
        ("True", "True"),
        ("[1, 2]", [1, 2]),
        ('["a", "b"]', ["a", "b"]),
        ('{ribosome = 0.3, "a b" = 1}', {"ribosome": 0.3, "a b": 1}),
        ('"quoted"', "quoted"),
        ("plain words", "plain words"),
        ("s3://bucket/key", "s3://bucket/key"),
        ("007", "007"),
        ("", ""),
        ("a=b", "a=b"),
    ],
)
def test_values_are_toml_where_they_can_be(text: str, value) -> None:
    assert parse_value(text) == value
    assert type(parse_value(text)) is type(value)


def test_assignments_are_split_at_the_first_equals_sign() -> None:
    assert parse_assignments(["a.b=1", " c = x=y", "d="]) == {"a.b": 1, "c": "x=y", "d": ""}
    for word in ("nothing", "=3", ""):
        with pytest.raises(ConfigError, match=r"it must read key=value, with dots for tables"):
            parse_assignments([word])


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Sheet().count = 3  # type: ignore[misc]


words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x7f"), max_size=12)
rows = st.lists(
    st.builds(Row, name=words, size=st.floats(-1e300, 1e300), inner=st.dictionaries(words, st.integers(0, 9), max_size=2)), max_size=3
).map(tuple)
sheets = st.builds(
    Sheet,
    title=words,
    count=st.integers(1, 2**60),
    share=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    on=st.booleans(),
    sizes=st.lists(st.integers(-(2**60), 2**60), max_size=3).map(tuple),
    free=st.dictionaries(words, words, max_size=3),
    table=st.builds(Table, depth=st.integers(1, 9), label=words, rows=rows),
    rows=rows,
)


@settings(max_examples=150, deadline=None)
@given(sheet=sheets)
def test_what_is_written_is_read_back(sheet: Sheet) -> None:
    """Planted: bare keys for names with dots and spaces; values after tables; tables of rows without their prefix."""
    text = dump_settings(sheet)
    tomllib.loads(text)
    assert read(text) == sheet
    assert dump_settings(read(text)) == text

import json
import math
import platform

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from admm_lip import records
from admm_lip.records import (
    RunFolderError,
    create_run,
    default_run_path,
    machine_stamp,
    open_run,
    read_arrays,
    read_json,
    read_rows,
    read_yaml,
    write_arrays,
    write_json,
    write_rows,
    write_yaml,
)


def test_a_new_run_holds_its_settings_and_nothing_else(tmp_path):
    run = create_run(tmp_path / "a" / "b", {"bound": 1.0, "model": {"hidden": (3, 4)}})
    assert [p.name for p in run.path.iterdir()] == ["config.yaml"]
    assert read_yaml(run.config) == {"bound": 1.0, "model": {"hidden": [3, 4]}}
    assert open_run(run.path) == run


def test_an_empty_folder_may_be_used(tmp_path):
    (tmp_path / "run").mkdir()
    assert create_run(tmp_path / "run", {}).config.is_file()


def test_an_earlier_run_is_not_touched_unless_told(tmp_path):
    run = create_run(tmp_path / "run", {"seed": 0})
    run.summary.write_text("{}")
    with pytest.raises(RunFolderError, match=r"already holds a run; continue it with --resume"):
        create_run(tmp_path / "run", {"seed": 1})
    assert read_yaml(run.config) == {"seed": 0}
    create_run(tmp_path / "run", {"seed": 1}, overwrite=True)
    assert read_yaml(run.config) == {"seed": 1}
    assert not run.summary.exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_other_peoples_folders_are_never_replaced(tmp_path, overwrite):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunFolderError, match=r"exists and is not a run; it is left as it is"):
        create_run(tmp_path, {}, overwrite=overwrite)
    (tmp_path / "config.yaml").write_text("of something else")
    with pytest.raises(RunFolderError, match=r"already holds a run|no run wrote \(thesis.tex\)"):
        create_run(tmp_path, {}, overwrite=overwrite)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    assert (tmp_path / "config.yaml").read_text() == "of something else"


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match=r"run_dir: cannot write .*file/run .*--run-dir"):
        create_run(tmp_path / "file" / "run", {})


def test_an_unused_folder_is_taken_back_and_a_used_one_kept(tmp_path):
    unused = create_run(tmp_path / "a", {})
    unused.remove_if_unused()
    assert not unused.path.exists()
    used = create_run(tmp_path / "b", {})
    used.checkpoint.write_bytes(b"x")
    used.remove_if_unused()
    assert used.checkpoint.exists()
    assert used.config.exists()


@pytest.mark.parametrize(
    ("make", "message"), [(False, r"does not exist"), (True, r"is not a run folder: it has no con")]
)
def test_opening_what_is_no_run(tmp_path, make, message):
    if make:
        (tmp_path / "run").mkdir()
    with pytest.raises(RunFolderError, match=message):
        open_run(tmp_path / "run")


def test_default_paths_do_not_collide(tmp_path):
    first = default_run_path(tmp_path, "csv:some/where/yacht.csv", "compare")
    assert first.name.startswith("csv-yacht-compare-2")
    seen = set()
    for _ in range(3):
        path = default_run_path(tmp_path, "digits")
        assert path not in seen
        seen.add(path)
        create_run(path, {})


numbers = st.none() | st.booleans() | st.integers() | st.floats() | st.text()


@given(st.dictionaries(st.text(), st.lists(numbers) | numbers))
def test_json_is_strict_and_keeps_what_json_can_say(tmp_path_factory, record):
    path = tmp_path_factory.mktemp("json") / "r.json"
    write_json(path, record)
    json.loads(path.read_text(), parse_constant=pytest.fail)

    def clean(value):
        if isinstance(value, list):
            return [clean(v) for v in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    assert read_json(path) == {k: clean(v) for k, v in record.items()}


def test_rows_and_arrays_come_back(tmp_path):
    rows = [{"step": np.int64(3), "loss": np.float32(0.5), "lip": math.inf}, {"step": 4}]
    write_rows(tmp_path / "m.jsonl", rows)
    assert read_rows(tmp_path / "m.jsonl") == [{"step": 3, "loss": 0.5, "lip": None}, {"step": 4}]
    write_arrays(tmp_path / "a.npz", {"x": np.arange(3)})
    assert read_arrays(tmp_path / "a.npz")["x"].tolist() == [0, 1, 2]
    assert {p.name for p in tmp_path.iterdir()} == {"m.jsonl", "a.npz"}


def test_pickled_arrays_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.array([{}], dtype=object))
    with pytest.raises(RunFolderError, match=r"a\.npz: cannot be read"):
        read_arrays(tmp_path / "a.npz")


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "s.json"
    write_json(path, {"a": 1})

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(records.Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_json(path, {"a": 2})
    assert read_json(path) == {"a": 1}


@pytest.mark.parametrize(
    ("read", "content", "message"),
    [
        (read_json, '{"a": ', r"truncated or damaged"),
        (read_rows, '{"a": 1}\n{"b"', r"truncated or damaged"),
        (read_yaml, "a: [", r"truncated or damaged"),
        (read_yaml, "!!python/object/apply:os.system ['true']", r"truncated or damaged"),
        (read_yaml, "just words", r"expected settings"),
        (read_json, None, r"there is no such file; the run did not finish"),
    ],
)
def test_damaged_records_are_named(tmp_path, read, content, message):
    path = tmp_path / "record"
    if content is not None:
        path.write_text(content)
    with pytest.raises(RunFolderError, match=rf"record: {message}"):
        read(path)


def test_settings_survive_a_round_trip(tmp_path):
    write_yaml(tmp_path / "c.yaml", {"b": 1, "a": (1, 2), "path": tmp_path})
    text = (tmp_path / "c.yaml").read_text()
    assert list(read_yaml(tmp_path / "c.yaml")) == ["b", "a", "path"]
    assert "python" not in text


def test_the_stamp_names_versions_but_not_the_machine():
    stamp = machine_stamp(threads=2)
    assert stamp["threads"] == 2
    assert {"python", "torch", "numpy", "scipy", "admm-lip"} <= set(stamp["versions"])
    assert platform.node() not in json.dumps(stamp) or not platform.node()

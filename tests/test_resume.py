"""Work folders and atomic writes: nothing is lost, nothing is half-written under its final name."""

import pytest

from realign_pipes.resume import atomic_path, fingerprint, open_work


def test_work_of_the_same_description_is_found_again(tmp_path):
    folder = open_work(tmp_path / "work", {"steps": 3, "alpha": 0.5})
    (folder / "done").write_text("1")
    assert (open_work(tmp_path / "work", {"alpha": 0.5, "steps": 3}) / "done").exists()
    assert not (open_work(tmp_path / "work", {"alpha": 0.5, "steps": 4}) / "done").exists()


def test_a_folder_that_is_no_work_is_not_emptied(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis").write_text("1")
    with pytest.raises(FileExistsError, match="mine is needed as a work folder, but holds something else"):
        open_work(tmp_path / "mine", {"steps": 3})
    assert (tmp_path / "mine" / "thesis").exists()


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_failing_write_keeps_what_was_there(tmp_path, kind):
    target = tmp_path / "target"

    def write(content, fail):
        with atomic_path(target) as temporary:
            if kind == "folder":
                temporary.mkdir()
                (temporary / "file").write_text(content)
            else:
                temporary.write_text(content)
            if fail:
                raise OSError(28, "No space left on device")

    def read():
        return (target / "file" if kind == "folder" else target).read_text()

    write("old", fail=False)
    with pytest.raises(OSError, match="No space"):
        write("new", fail=True)
    assert read() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    write("new", fail=False)
    assert read() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_fingerprint_is_of_the_content():
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})

import pytest

from infer_core.user_cache import cache_folder, write_whole


def test_the_folder_follows_the_environment_and_else_the_home(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cache_folder("tiles") == tmp_path / "cache" / "infer-core" / "tiles"

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder("kit") == tmp_path / ".cache" / "infer-core" / "kit"


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "new" / "file.json"

    write_whole(path, "first")
    write_whole(path, "second")

    assert path.read_text() == "second"
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_behind(tmp_path):
    path = tmp_path / "file.json"
    write_whole(path, "old")

    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "half \ud800")

    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]

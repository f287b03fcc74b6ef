"""Which files are learnt from, and which are held out."""

from pathlib import Path

from benchmarks.train_nano.corpus import (
    MAX_BYTES,
    Document,
    documents,
    is_held_out,
    read_documents,
    standard_library,
    write_documents,
    write_text,
)


def test_tables_packages_empty_and_undecodable_files_are_skipped(tmp_path: Path) -> None:
    for name, content in {
        "b/kept.py": b"x = 1\n",
        "a.py": "é = 1\n".encode(),
        "pydoc_data/topics.py": b"#" * (MAX_BYTES + 1),
        "table.py": b"#" * (MAX_BYTES + 1),
        "empty.py": b" \n",
        "latin.py": b"\xe9 = 1\n",
        "notes.txt": b"no Python\n",
        "site-packages/foreign.py": b"x = 1\n",
        "encodings/cp1252.py": b"x = 1\n",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    assert [document.path for document in documents(tmp_path)] == [
        "a.py",
        "b/kept.py",
        "pydoc_data/topics.py",
    ]


def test_two_files_in_a_hundred_are_held_out_by_their_path_alone() -> None:
    paths = [f"package/module_{index}.py" for index in range(5000)]
    held_out = [path for path in paths if is_held_out(path)]
    assert 60 < len(held_out) < 140
    assert is_held_out("sched.py")
    assert not is_held_out("asyncio/tasks.py")


def test_the_standard_library_is_there() -> None:
    assert (standard_library() / "sched.py").is_file()


def test_documents_are_read_as_they_were_written(tmp_path: Path) -> None:
    written = [Document("a.py", "'''é\n\u2028'''\n"), Document("b.py", "x\n")]
    write_documents(tmp_path / "some.jsonl", written)
    assert list(read_documents(tmp_path / "some.jsonl")) == written


def test_documents_become_one_text(tmp_path: Path) -> None:
    write_text(tmp_path / "some.txt", [Document("a.py", "x = 1\n"), Document("b.py", "é = 2")])
    assert (tmp_path / "some.txt").read_text("utf-8") == "x = 1\n\n\né = 2"

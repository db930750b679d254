"""How much of a journal a server has."""

from __future__ import annotations

from pathlib import Path

from cnn_jobs.tracking.delivery import Cursor, CursorFile


def test_cursor_with_a_flipped_bit_counts_no_unsent_record_as_sent(tmp_path: Path) -> None:
    file, path, cursor = CursorFile(tmp_path), tmp_path / "shipped.json", Cursor("run", 120, 7)
    file.save("http://server", cursor)
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        assert file.load("http://server") in (cursor, Cursor())
        assert file.highest() in (120, 0)
    path.write_bytes(content)
    assert (file.load("http://server"), file.highest()) == (cursor, 120)
    assert file.load("http://other") == Cursor()

"""`bench slots` at sizes that say nothing about speed."""

import pytest

from nested_jax.run import bench_slots, main


@pytest.mark.slow
def test_a_table_and_a_picture(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bench_slots, "SIZES", {"slots": (32, 64), "width": (4, 8), "levels": (1, 2)})
    main.main(["bench", "slots", "--tokens=2", "--rounds=1", f"--output={tmp_path}"])
    rows = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    rows = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    stored = {row[0]: row for row in rows if "KiB" in row}
    assert stored["slots"][3:] == ["32 64", "16 32", "1.00"]  # (64 + 64) floats and two scales a slot: 32.5
    assert stored["levels"][-1] == "1.00"
    assert [row[1] for row in rows if row[:1] == ["slots"]] == ["all", "best 16", "search", "all"]
    assert (tmp_path / "slots.png").stat().st_size > 10_000
    assert (tmp_path / "slots.md").read_text().count("µs per token") == 5


def test_options_out_of_range_are_named():
    with pytest.raises(ValueError, match="--rounds takes a whole number of at least 1; got 0"):
        bench_slots.main(["--rounds=0"])

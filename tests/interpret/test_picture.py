"""The drawn picture, and photographs of any size and mode."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cnn_jobs.errors import DataError
from cnn_jobs.interpret.picture import draw_picture, open_picture


def test_regions_of_the_drawn_picture_cover_it() -> None:
    picture = draw_picture()
    assert picture.pixels.shape == (224, 224, 3)
    assert picture.pixels.dtype == np.uint8
    assert set(picture.regions) == {
        "blue sky", "vertical stripes", "horizontal stripes", "diagonal stripes", "yellow grass"
    }  # fmt: skip
    assert (sum(mask.astype(int) for mask in picture.regions.values()) == 1).all()
    assert np.array_equal(picture.pixels, draw_picture().pixels)


def test_each_region_has_the_colour_or_stripes_of_its_name() -> None:
    picture = draw_picture()
    red, green, blue = (
        {name: float(picture.pixels[mask][:, channel].mean()) for name, mask in picture.regions.items()}
        for channel in range(3)
    )
    assert blue["blue sky"] > green["blue sky"] > red["blue sky"]
    assert red["yellow grass"] > green["yellow grass"] > 1.5 * blue["yellow grass"]
    grey = picture.pixels.astype(float).mean(axis=2)
    changes = {"x": np.abs(np.diff(grey, axis=1))[:-1], "y": np.abs(np.diff(grey, axis=0))[:, :-1]}
    inner = {name: mask[:-1, :-1] & mask[1:, 1:] for name, mask in picture.regions.items()}

    def change(name: str, along: str) -> float:
        return float(changes[along][inner[name]].mean())

    assert change("vertical stripes", "x") > 10 * change("vertical stripes", "y")
    assert change("horizontal stripes", "y") > 10 * change("horizontal stripes", "x")
    assert change("diagonal stripes", "x") == pytest.approx(change("diagonal stripes", "y"), rel=0.05)


@pytest.mark.parametrize(
    ("size", "mode"), [((300, 200), "RGB"), ((100, 180), "L"), ((224, 224), "RGBA"), ((50, 50), "P")]
)
def test_photograph_of_any_size_becomes_a_square(tmp_path: Path, size: tuple[int, int], mode: str) -> None:
    Image.new(mode, size, 0).save(tmp_path / "photo.png")
    picture = open_picture(tmp_path / "photo.png")
    assert picture.pixels.shape == (224, 224, 3)
    assert picture.name == "photo.png"
    assert len(picture.regions) == 9
    assert (sum(mask.astype(int) for mask in picture.regions.values()) == 1).all()
    assert picture.regions["top left"][0, 0]
    assert picture.regions["bottom right"][-1, -1]


def test_photograph_is_cropped_to_its_centre(tmp_path: Path) -> None:
    wide = np.zeros((224, 448, 3), np.uint8)
    wide[:, 112:336] = (10, 200, 30)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    assert (open_picture(tmp_path / "wide.png").pixels == (10, 200, 30)).all()


def test_unreadable_pictures_are_rejected_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("not a picture")
    whole = tmp_path / "whole.jpg"
    Image.effect_noise((64, 64), 50).save(whole)
    (tmp_path / "cut.jpg").write_bytes(whole.read_bytes()[:200])
    Image.effect_noise((300, 300), 50).save(tmp_path / "broken.png")
    broken = bytearray((tmp_path / "broken.png").read_bytes())
    second = broken.index(b"IDAT", broken.index(b"IDAT") + 4)
    broken[second : second + 4] = b"iDA!"
    (tmp_path / "broken.png").write_bytes(bytes(broken))
    for name, words in (
        ("broken.png", "not a readable picture"),
        ("none.png", "no such file"),
        ("text.png", "not a readable picture"),
        ("cut.jpg", "not a readable picture"),
    ):
        with pytest.raises(DataError, match=words) as caught:
            open_picture(tmp_path / name)
        assert "\n" not in str(caught.value)
        assert "--image" in str(caught.value)

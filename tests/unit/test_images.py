from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kit.data import load, read_data
from kit.errors import InputError, SettingsError
from kit.images import ImageLayout, decode_image, image_layout, list_data, read_images
from kit.project import Project
from kit.settings import DataSettings, InputSettings
from kit.signature import Signature
from kit.tensors import TensorSpec

COLOUR = ImageLayout("image", (3, 2, 4))
GREY = ImageLayout("image", (1, 2, 4))
CLASSED = ImageLayout("image", (3, 2, 4), label="tier")
PIXELS = np.arange(24, dtype=np.uint8).reshape(2, 4, 3) * 10


def encoded(image: Image.Image, kind: str = "PNG", **more: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **more)
    return content.getvalue()


def decoded(content: bytes, layout: ImageLayout = COLOUR) -> np.ndarray:
    return decode_image(content, name="katze/ä.png", layout=layout)


def folder_of(tmp_path: Path, *, n_each: int = 2, kind: str = "png") -> Path:
    for index, name in enumerate(("hündin", "_katze")):
        (tmp_path / "bilder" / name).mkdir(parents=True)
        for number in range(n_each):
            image = Image.fromarray(np.full((2, 4, 3), 100 * index + number, dtype=np.uint8))
            image.save(tmp_path / "bilder" / name / f"{number:03d}.{kind}")
    return tmp_path / "bilder"


def signature(*shape: int, dtype: str = "float32", columns: tuple[str, ...] = ("image",)) -> Signature:
    return Signature("", (TensorSpec("image", dtype, (-1, *shape), columns),), ())


def test_a_folder_of_classes_is_a_table(tmp_path: Path) -> None:
    folder = str(folder_of(tmp_path))
    table = read_images(folder, list_data(folder), layout=CLASSED)
    assert table.column_names == ["image", "tier", "file"]
    assert table.column("tier").to_pylist() == ["_katze", "_katze", "hündin", "hündin"]
    assert table.column("file").to_pylist()[::3] == ["_katze/000.png", "hündin/001.png"]
    assert table.column("image").to_pylist()[1] == [101] * 24


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP", "TIFF"])
def test_pixels_come_channel_first_and_exact(kind: str) -> None:
    more = {"lossless": True} if kind == "WEBP" else {}
    found = decoded(encoded(Image.fromarray(PIXELS), kind, **more))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, PIXELS.transpose(2, 0, 1))


def test_a_jpeg_comes_close() -> None:
    flat = np.full((2, 4, 3), 120, dtype=np.uint8)
    found = decoded(encoded(Image.fromarray(flat), "JPEG", quality=95))
    assert np.abs(found.astype(int) - 120).max() <= 2


def test_an_image_of_another_size_is_named_with_both_sizes() -> None:
    content = encoded(Image.new("RGB", (8, 6)))
    with pytest.raises(InputError, match=r"ä\.png is 8 x 6 pixels, and the input is 4 x 2") as caught:
        decoded(content)
    assert "resize" in str(caught.value.hint)
    scaled = decoded(
        encoded(Image.new("RGB", (8, 6), (7, 8, 9))), ImageLayout("image", (3, 2, 4), resize=True)
    )
    np.testing.assert_array_equal(scaled[:, 0, 0], [7, 8, 9])
    assert scaled.shape == (3, 2, 4)


def test_the_orientation_a_camera_noted_is_applied() -> None:
    upright = Image.fromarray(PIXELS)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned a quarter clockwise
    content = encoded(upright.transpose(Image.Transpose.ROTATE_90), exif=exif)
    np.testing.assert_array_equal(decoded(content), PIXELS.transpose(2, 0, 1))


def test_colour_becomes_grey_and_grey_becomes_colour_where_the_input_says_so() -> None:
    luma = decoded(encoded(Image.new("RGB", (4, 2), (255, 0, 0))), GREY)
    assert luma.shape == (1, 2, 4)
    assert set(luma.reshape(-1)) == {76}  # ITU-R 601: 0.299 * 255
    assert decoded(encoded(Image.new("L", (4, 2), 9))).tolist() == [[[9] * 4] * 2] * 3
    assert set(decoded(encoded(Image.new("1", (4, 2), 1)), GREY).reshape(-1)) == {255}


def test_a_bitmap_of_any_width_is_one_of_8_bits() -> None:
    for width in (4, 16, 40, 54):  # rows of 16, 64, 160, 216 bytes
        layout = ImageLayout("image", (3, 2, width))
        for mode, colour in (("RGB", (1, 2, 3)), ("RGBA", (1, 2, 3, 255))):
            found = decoded(encoded(Image.new(mode, (width, 2), colour), "BMP"), layout)
            assert found[:, 0, 0].tolist() == [1, 2, 3]


def test_a_phones_two_pictures_give_the_first() -> None:
    pictures = [Image.new("RGB", (4, 2), (value,) * 3) for value in (9, 200)]
    content = encoded(pictures[0], "MPO", save_all=True, append_images=pictures[1:])
    assert decoded(content)[:, 0, 0].tolist() == [9, 9, 9]


def test_print_colours_become_rgb_and_others_are_refused() -> None:
    assert decoded(encoded(Image.new("CMYK", (4, 2), (0, 255, 0, 0)), "TIFF"))[:, 0, 0].tolist() == [
        255,
        0,
        255,
    ]
    with pytest.raises(InputError, match="has the colour mode LAB"):
        decoded(encoded(Image.new("LAB", (4, 2)), "TIFF"))


def test_a_palette_gives_its_colours() -> None:
    image = Image.new("RGB", (4, 2), (10, 20, 30)).quantize(4)
    assert decoded(encoded(image))[:, 0, 0].tolist() == [10, 20, 30]


def test_a_transparent_image_is_refused_unless_the_input_has_four_channels() -> None:
    clear = encoded(Image.new("RGBA", (4, 2), (1, 2, 3, 128)))
    for layout in (COLOUR, GREY):
        with pytest.raises(InputError, match=r"ä\.png is transparent in places"):
            decoded(clear, layout)
    assert decoded(clear, ImageLayout("image", (4, 2, 4)))[:, 0, 0].tolist() == [1, 2, 3, 128]
    opaque = encoded(Image.new("RGBA", (4, 2), (1, 2, 3, 255)))
    assert decoded(opaque)[:, 0, 0].tolist() == [1, 2, 3]
    marked = encoded(Image.new("RGB", (4, 2), (1, 2, 3)), transparency=(1, 2, 3))
    with pytest.raises(InputError, match="is transparent in places"):
        decoded(marked)


def test_sixteen_bits_are_refused_and_not_cut_off() -> None:
    wide = encoded(Image.fromarray(np.full((2, 4), 60000, dtype=np.uint16)))
    with pytest.raises(InputError, match="holds values of more than 8 bits"):
        decoded(wide, GREY)
    for content in (
        wide_png(),
        encoded(Image.new("F", (4, 2)), "TIFF"),
        encoded(Image.new("I", (4, 2)), "TIFF"),
    ):
        with pytest.raises(InputError, match="holds values of more than 8 bits"):
            decoded(content)


def wide_png() -> bytes:
    """A colour PNG of 16 bits, which Pillow reads but does not write."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = (b"\0" + struct.pack(">12H", *range(12))) * 2
    header = struct.pack(">IIBBBBB", 4, 2, 16, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_several_pictures_in_one_file_are_refused(kind: str) -> None:
    frames = [Image.new("RGB", (4, 2), (value, 0, 0)) for value in (0, 100, 200)]
    content = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    with pytest.raises(InputError, match=r"ä\.png holds 3 pictures"):
        decoded(content)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "WEBP", "TIFF"])
def test_a_cut_off_image_is_named(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    content = encoded(Image.fromarray(noise), kind)
    for size in (len(content) // 2, 20, 3):
        with pytest.raises(InputError, match=r"katze/ä\.png cannot be read as an image"):
            decoded(content[:size], ImageLayout("image", (3, 64, 64)))


def test_no_flipped_byte_brings_anything_but_an_image_or_its_name() -> None:
    content = bytearray(encoded(Image.fromarray(PIXELS)))
    outcomes = set()
    for place in range(len(content)):
        flipped = content.copy()
        flipped[place] ^= 0xFF
        try:
            shape = decoded(bytes(flipped)).shape
        except InputError as error:
            outcomes.add("ä.png" in error.message)
        else:
            outcomes.add(shape == (3, 2, 4))
    assert outcomes == {True}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("limit", [1500, 700])  # over once: Pillow warns; over twice: it refuses
def test_an_image_with_too_many_pixels_is_refused(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(InputError, match="more pixels than are opened safely"):
        decoded(encoded(Image.new("L", (40, 40))), ImageLayout("image", (1, 40, 40)))


def test_other_files_that_are_called_png_are_refused(tmp_path: Path) -> None:
    for content in (
        b"GIF89a",
        b"<svg/>",
        encoded(Image.new("L", (4, 2)), "GIF"),
        encoded(Image.new("L", (4, 2)), "PPM"),
    ):
        with pytest.raises(InputError, match="cannot be read as an image"):
            decoded(content, GREY)


def test_an_image_outside_the_classes_is_named(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    for place, message in (("x.PNG", r"x\.PNG lies in no folder"), ("a/b/x.png", "lies 2 folders deep")):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 2)).save(folder / place)
        with pytest.raises(InputError, match=message):
            read_images(str(folder), list_data(str(folder)), layout=CLASSED)
        (folder / place).unlink()


def test_without_a_label_images_lie_anywhere(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, n_each=1)
    Image.new("RGB", (4, 2)).save(folder / "x.PNG")
    table = read_data(str(folder), signature(3, 2, 4), settings=settings())
    assert table.column_names == ["image", "file"]
    assert table.column("file").to_pylist() == ["_katze/000.png", "hündin/000.png", "x.PNG"]
    one = read_data(str(folder / "x.PNG"), signature(3, 2, 4), settings=settings())
    assert one.column("file").to_pylist() == ["x.PNG"]


def test_an_empty_image_among_many_is_skipped_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = folder_of(tmp_path)
    (folder / "hündin" / "leer.png").touch()
    with caplog.at_level("WARNING", logger="kit"):
        assert read_images(str(folder), list_data(str(folder)), layout=CLASSED).num_rows == 4
    assert caplog.messages == ["skipped 1 images without a byte: hündin/leer.png"]


def test_the_first_bad_image_is_the_one_named(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, n_each=20)
    for number in ("012", "005", "019"):
        (folder / "hündin" / f"{number}.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"hündin/005\.png"):
        read_images(str(folder), list_data(str(folder)), layout=CLASSED)


@pytest.mark.parametrize(
    "wrong, message",
    [
        (signature(24), "feeds one input of shape"),
        (signature(1, 2, 2, columns=("a", "b", "c", "d")), "feeds one input of shape"),
        (signature(3, 2, 4, dtype="string"), "feeds one input of shape"),
        (signature(2, 2, 4), "has 2 channels; an image has 1"),
        (signature(3, 2, 4, columns=("file",)), "cannot be called 'file'"),
    ],
)
def test_inputs_that_are_no_image_are_refused(wrong: Signature, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        image_layout(wrong)


def settings(images: str = "exact") -> DataSettings:
    spec = InputSettings(name="image", shape=(3, 2, 4))
    return DataSettings.model_validate(
        {"path": "bilder", "label": "tier", "inputs": [spec], "images": images}
    )


def test_tables_and_images_in_one_folder_are_not_guessed_between(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    (folder / "a.csv").write_text("image,tier\n1,2\n")
    with pytest.raises(InputError, match=r"holds tables \(a\.csv\) and images"):
        read_data(str(folder), signature(3, 2, 4), settings=settings())
    assert read_data(str(folder), signature(1), settings=settings()).num_rows == 1


def test_a_project_learns_from_a_folder_of_images(tmp_path: Path) -> None:
    folder_of(tmp_path, n_each=25, kind="PNG")
    (tmp_path / "kit.toml").write_text(
        '[project]\nname = "tiere"\n[data]\npath = "bilder"\nlabel = "tier"\n[[data.inputs]]\n'
        'name = "image"\nshape = [3, 2, 4]\nminimum = 0\nmaximum = 255\n[model]\nfactory = "model:build"\n'
    )
    split = load(Project.open(tmp_path))
    assert split.classes == ("_katze", "hündin")
    assert split.train.tensors["image"].shape == (36, 3, 2, 4)
    assert split.train.tensors["image"].dtype == np.float32
    assert (split.n_rows, split.n_files) == (50, 50)
    first = split.test.rows[0]
    assert split.test.tensors["image"][0].tolist() == [[[100 + first] * 4] * 2] * 3


@pytest.mark.parametrize("bounds", ["", "minimum = 0", "maximum = 255"])
def test_pixels_without_a_range_are_refused_with_the_lines_to_add(tmp_path: Path, bounds: str) -> None:
    folder_of(tmp_path, n_each=1)
    (tmp_path / "kit.toml").write_text(
        '[project]\nname = "tiere"\n[data]\npath = "bilder"\nlabel = "tier"\n[[data.inputs]]\n'
        f'name = "image"\nshape = [3, 2, 4]\n{bounds}\n[model]\nfactory = "model:build"\n'
    )
    with pytest.raises(SettingsError, match="input 'image' reads pixels, which go from 0 to 255") as caught:
        load(Project.open(tmp_path))
    assert "add minimum = 0 and maximum = 255 to the input 'image'" in str(caught.value.hint)


def test_a_pixel_out_of_bounds_names_its_image(tmp_path: Path) -> None:
    folder_of(tmp_path, n_each=25)
    (tmp_path / "kit.toml").write_text(
        '[project]\nname = "tiere"\n[data]\npath = "bilder"\nlabel = "tier"\n[[data.inputs]]\n'
        'name = "image"\nshape = [3, 2, 4]\nminimum = 0\nmaximum = 1\n[model]\nfactory = "model:build"\n'
    )
    with pytest.raises(InputError, match=r"_katze/000\.png: input 'image', row 0: 100\.0 is above"):
        load(Project.open(tmp_path))

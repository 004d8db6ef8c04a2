"""Folders of images: one row per image, its pixels as a list of values, its folder as its class.

Pillow reads them, from disk or from S3. An image that would have to be guessed at (16 bits, several
frames, see-through parts, another size) is refused with its name. What a pixel may be for a model is
the signature's business.
"""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from kit.errors import InputError, MissingDependencyError, SettingsError, install_line
from kit.signature import Signature
from kit.tables import FORMATS, TableFile, list_files, open_file_system, storage_error

if TYPE_CHECKING:
    import pyarrow as pa

_log = logging.getLogger("kit")

#: File suffix, in either case, to the format it means.
IMAGE_FORMATS = dict.fromkeys((".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"), "image")
#: The column that names each image.
FILE_COLUMN = "file"
_DECODERS = ("PNG", "JPEG", "BMP", "DIB", "WEBP", "TIFF")
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_READABLE = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"}
_WIDE = re.compile(";16[BLN]$")  # not BMP's BGR;16, which is 16 bits for all three
_MAX_PIXELS = 89_478_485  # Pillow's own limit, where a program has switched it off
#: How many images are decoded at a time.
READERS = 4  # Pillow decodes outside the interpreter's lock; each may hold one large image


@dataclass(frozen=True)
class ImageLayout:
    """How an image becomes a row.

    Attributes:
        column: Column of the pixels.
        shape: Channels (1 grey, 3 RGB, 4 RGBA), height, width.
        resize: Whether an image of another size is scaled (bilinear, the aspect ratio gives way)
            or refused.
        label: Column of the folder's name; None where there are no classes.
    """

    column: str
    shape: tuple[int, int, int]
    resize: bool = False
    label: str | None = None


def image_layout(signature: Signature, *, label: str | None = None, resize: bool = False) -> ImageLayout:
    """Find the input that images feed.

    Args:
        signature: Of the model.
        label: Column for the folders' names.
        resize: Whether images of another size are scaled.

    Raises:
        SettingsError: The inputs are not one of shape [channels, height, width] in one column.
    """
    specs = signature.inputs
    spec = specs[0]
    if len(specs) != 1 or not takes_images(signature):
        listed = ", ".join(f"{each.name} {list(each.row_shape)} of {each.dtype}" for each in specs)
        raise SettingsError(
            f"a folder of images feeds one input of shape [channels, height, width], but [[data.inputs]] "
            f"names {listed}",
            hint='declare one input such as name = "image", shape = [3, 64, 64]',
        )
    channels, height, width = spec.row_shape
    if channels not in _MODES:
        raise SettingsError(
            f"input {spec.name!r} has {channels} channels; an image has 1 (grey), 3 (RGB) or 4 (RGBA)",
            hint="write the shape as [channels, height, width]",
        )
    column = spec.columns[0]
    if FILE_COLUMN in (column, label):
        raise SettingsError(
            f"a column cannot be called {FILE_COLUMN!r} here; it names each image", hint="choose another name"
        )
    return ImageLayout(column, (channels, height, width), resize, label)


def check_pixel_range(signature: Signature) -> None:
    """Refuse to learn from pixels whose range the signature does not hold, so that every reader holds to it.

    Args:
        signature: Of a project whose data is a folder of images.

    Raises:
        SettingsError: The input of the pixels leaves its minimum or its maximum open.
    """
    for spec in signature.inputs:
        if takes_images(signature) and spec.dtype != "uint8" and None in (spec.minimum, spec.maximum):
            raise SettingsError(
                f"input {spec.name!r} reads pixels, which go from 0 to 255 and are not scaled, but has no "
                f"{'minimum' if spec.minimum is None else 'maximum'}",
                hint=f"add minimum = 0 and maximum = 255 to the input {spec.name!r} under [[data.inputs]]",
            )


def takes_images(signature: Signature) -> bool:
    """Say whether a model's inputs could be pixels: one input of three dimensions in one column."""
    specs = signature.inputs
    fits = len(specs) == 1 and len(specs[0].row_shape) == 3 and len(specs[0].columns) == 1
    return fits and specs[0].dtype not in ("string", "bool")


def list_data(uri: str) -> tuple[TableFile, ...]:
    """List a data set's files, sorted by name: its tables or, where there are none, its images.

    Raises:
        InputError: Nothing is there, or neither tables nor images.
        UnavailableError: S3 does not answer or refuses.
    """
    files = list_files(uri, formats={**FORMATS, **IMAGE_FORMATS})
    tables = tuple(file for file in files if file.format != "image")
    return tables or files


def has_both(uri: str) -> bool:
    """Say whether a place holds tables and images, so that which of them is meant is not clear."""
    files = list_files(uri, formats={**FORMATS, **IMAGE_FORMATS})
    return len({file.format == "image" for file in files}) == 2


def read_images(uri: str, files: Sequence[TableFile], *, layout: ImageLayout) -> pa.Table:
    """Read images into a table.

    Args:
        uri: The folder, or an image, on disk or on S3.
        files: Which of its images.
        layout: How they become rows.

    Returns:
        One row per image in the order of ``files``: the pixels (a list of uint8, channel first, then
        rows from the top), the label where there is one, and ``file``. Files of no bytes are
        left out with a warning.

    Raises:
        InputError: An image is damaged, of another size or kind, or in no class's folder; the
            message names it.
        MissingDependencyError: Pillow is not installed.
        UnavailableError: S3 does not answer or refuses.
    """
    import pyarrow as pa

    require_pillow()
    empty = [file.name for file in files if not file.size_bytes]
    files = [file for file in files if file.size_bytes]
    if empty:
        _log.warning("skipped %d images without a byte: %s", len(empty), _some(empty))
    if not files:
        raise InputError(f"{uri} holds no image that is not empty", hint="name a folder with images in it")
    labels = [label_of(file, layout) for file in files] if layout.label is not None else []
    system, _ = open_file_system(uri)
    pixels = np.empty((len(files), int(np.prod(layout.shape))), dtype=np.uint8)

    def read(index: int) -> None:
        file = files[index]
        try:
            with system.open_input_stream(file.path) as stream:
                content = stream.read()
        except OSError as error:
            raise storage_error(f"{uri} ({file.name})", error) from error
        pixels[index] = decode_image(content, name=file.name, layout=layout).reshape(-1)

    with ThreadPoolExecutor(READERS) as pool:
        for _ in pool.map(read, range(len(files))):  # in order, so the first bad file is the one named
            pass
    columns: dict[str, Any] = {
        layout.column: pa.FixedSizeListArray.from_arrays(pa.array(pixels.reshape(-1)), pixels.shape[1])
    }
    if layout.label is not None:
        columns[layout.label] = labels
    columns[FILE_COLUMN] = [file.name for file in files]
    return pa.table(columns)


def decode_image(content: bytes, *, name: str, layout: ImageLayout) -> np.ndarray:
    """Turn an image file's bytes into pixels.

    The orientation its camera noted is applied. Colour becomes grey by ITU-R 601 luma where the
    layout has one channel; grey is repeated where it has three.

    Args:
        content: A PNG, JPEG, BMP, WebP or TIFF file.
        name: Of the file, for messages.
        layout: Shape, and whether it is scaled to it.

    Returns:
        uint8, shape (channels, height, width), 0 to 255.

    Raises:
        InputError: The image is damaged, too large to open safely, or not of the layout's kind.
    """
    from PIL import Image, ImageOps

    try:
        opened = Image.open(io.BytesIO(content), formats=_DECODERS)
        _check_kind(opened, name=name)
        image = ImageOps.exif_transpose(opened)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(name) from error
    except InputError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged bytes
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(
            f"{name} cannot be read as an image: {said}",
            hint="replace or remove the file",
        ) from error
    channels, height, width = layout.shape
    if image.size != (width, height) and not layout.resize:
        raise InputError(
            f"{name} is {image.width} x {image.height} pixels, and the input is {width} x {height}",
            hint='scale it, or set images = "resize" under [data]',
        )
    image = _to_mode(image, channels=channels, name=name)
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    array = np.asarray(image, dtype=np.uint8).reshape(height, width, channels)
    return np.ascontiguousarray(array.transpose(2, 0, 1))


def _check_kind(image: Any, *, name: str) -> None:
    """Refuse what is not one picture of 8 bits, before its pixels are decoded."""
    from PIL import Image

    limit = Image.MAX_IMAGE_PIXELS or _MAX_PIXELS  # at twice as many, Pillow itself refuses
    if image.width * image.height > limit:
        raise _too_large(name)
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # a phone's JPEG; its first picture is the photograph
        raise InputError(f"{name} holds {frames} pictures; one is expected", hint="save each as its own file")
    # Pillow reads colour of 16 bits as 8 without a word; the raw mode it decodes from tells.
    raw_modes = (tile[3] if isinstance(tile[3], str) else (tile[3] or ("",))[0] for tile in image.tile)
    if image.mode[0] in "IF" or any(_WIDE.search(str(raw)) for raw in raw_modes):
        raise InputError(
            f"{name} holds values of more than 8 bits; 8 bits per channel are expected",
            hint="convert it to 8 bits",
        )
    if image.mode not in _READABLE:
        raise InputError(f"{name} has the colour mode {image.mode}", hint="convert it to grey or RGB")


def _to_mode(image: Any, *, channels: int, name: str) -> Any:
    """Convert to grey, RGB or RGBA, and refuse to lose what shows through."""
    if image.mode in ("P", "PA") or (image.mode in ("1", "L", "RGB") and "transparency" in image.info):
        image = image.convert("RGBA" if "transparency" in image.info or image.mode == "PA" else "RGB")
    if channels < 4 and image.mode in ("RGBA", "LA") and image.getchannel("A").getextrema()[0] < 255:
        raise InputError(
            f"{name} is transparent in places, and the input has {channels} channels",
            hint="lay it over a background, or declare 4 channels",
        )
    return image if image.mode == _MODES[channels] else image.convert(_MODES[channels])


def label_of(file: TableFile, layout: ImageLayout) -> str:
    """Give an image's class: the name of the folder it lies in.

    Raises:
        InputError: It lies in no folder, or several deep.
    """
    folders = file.name.split("/")[:-1]
    if len(folders) != 1:
        where = "in no folder" if not folders else f"{len(folders)} folders deep"
        raise InputError(
            f"{file.name} lies {where}; each image lies in a folder named after its class",
            hint="name the folder that holds one folder per class under [data] path",
        )
    return folders[0]


def _too_large(name: str) -> InputError:
    return InputError(
        f"{name} has more pixels than are opened safely", hint="scale it down before it is read"
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def require_pillow() -> None:
    """Refuse to go on without Pillow.

    Raises:
        MissingDependencyError: It is not installed.
    """
    try:
        import PIL  # noqa: F401 - only whether it is there
    except ImportError as error:
        raise MissingDependencyError(
            "folders of images need Pillow, which is not installed", hint=install_line("cluster")
        ) from error

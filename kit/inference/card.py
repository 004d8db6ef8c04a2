"""A served version as clients may know it, and an HTTP answer: two values that all rooms share."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from kit.inference.body import write_json

if TYPE_CHECKING:
    from kit.signature import Signature

JSON_HEADERS = ((b"content-type", b"application/json"),)


class Reply(NamedTuple):
    """An HTTP answer.

    Attributes:
        status: The status.
        body: The body, whole.
        headers: All headers but ``content-length``, which is ``len(body)``; names in lower case.
    """

    status: int
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = JSON_HEADERS


@dataclass(frozen=True)
class Card:
    """What clients may know about one served version of a model.

    Attributes:
        name: The model's name.
        number: The version's number in the registry, which clients see as its version.
        digest: The version's digest.
        engine: The engine that runs it.
        signature: Its inputs and outputs.
    """

    name: str
    number: int
    digest: str
    engine: str
    signature: Signature

    @property
    def version(self) -> str:
        """The version as the protocol writes it."""
        return str(self.number)

    @cached_property
    def head(self) -> bytes:
        """The first members of every JSON answer, as an object that is not closed yet."""
        return write_json({"model_name": self.name, "model_version": self.version})[:-1]

"""Ask an endpoint about the rows of a table: the client side of the Open Inference Protocol.

Learns from the endpoint which columns the model reads, so it needs no model. It knows nothing of Ray and
works with any endpoint whose metadata names the columns.
"""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

from kit.errors import (
    InputError,
    KitError,
    MissingDependencyError,
    NotFoundError,
    SettingsError,
    UnavailableError,
    install_line,
)
from kit.settings import QuerySettings
from kit.signature import Signature
from kit.tensors import DTYPES, Tensors, TensorSpec
from kit.wire import decode_tensor, dtype_of, encode_tensor

if TYPE_CHECKING:
    import ssl

    import httpx

    from kit.project import Project

#: Rows of one request.
REQUEST_ROWS = 256

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_HOST = re.compile(r"[0-9a-z_-]{1,63}(\.[0-9a-z_-]{1,63})*\.?|[0-9a-f.]*:[0-9a-f:.]*")


@dataclass(frozen=True)
class QueryResult:
    """Show what an endpoint answered.

    Attributes:
        columns: Headings: ``row``, ``label``, ``probability``; or ``row``, ``value``.
        rows: One entry per row of the table: its number from 0, and the answer; a label is the class's
            name, its probability the highest one.
        latency_ms: Median time of one request of at most ``REQUEST_ROWS`` rows, in ms.
        model: The model's name.
        version: The version's number, as the endpoint writes it.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    latency_ms: float
    model: str
    version: str


def query(project: Project, settings: QuerySettings) -> QueryResult:
    """Ask an endpoint about the first rows of a table.

    Args:
        project: Where the key of its own endpoint and the records lie.
        settings: Whom to ask, and about what.

    Raises:
        InputError: The table does not fit the model, the endpoint refuses the key or the request, or
            ``ca_file`` holds no certificates.
        NotFoundError: The endpoint does not serve the model, or the key file does not exist.
        SettingsError: The URL is malformed.
        UnavailableError: Nothing answers there, not in time, or not in the protocol.
    """
    from kit.tables import read_table, to_tensors

    key = _read_key(project, settings)
    with connect(
        settings.url, key=key, timeout_s=settings.timeout_s, trust=_trusted(settings.ca_file)
    ) as client:
        metadata = _ask(client, "GET", _path(settings.model))
        signature = _signature(settings.url, metadata)
        needed = list(signature.columns) or None
        table = read_table(settings.input, columns=needed, strings=signature.string_columns)
        table = table.slice(0, settings.rows)
        tensors = to_tensors(table, signature)
        n_rows = table.num_rows
        if n_rows == 0:
            raise InputError(f"{settings.input} has no rows")
        parts: list[Tensors] = []
        times_ms: list[float] = []
        for start in range(0, n_rows, REQUEST_ROWS):
            began_s = time.perf_counter()
            parts.append(infer(client, settings.model, _slice(tensors, start)))
            times_ms.append((time.perf_counter() - began_s) * 1000)
    answers = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    columns, rows = _rows(settings.url, signature, answers)
    version = str(metadata["versions"][0])
    result = QueryResult(columns, rows, round(statistics.median(times_ms), 3), settings.model, version)
    project.write_record(
        "query", f"{settings.model}-{time.time_ns()}", {"url": settings.url, **asdict(result)}
    )
    return result


def _trusted(ca_file: str | None) -> ssl.SSLContext | None:
    """Read the certificates an endpoint's own is checked against.

    Raises:
        InputError: The file cannot be read or holds none.
    """
    if ca_file is None:
        return None
    import ssl

    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise InputError(
            f"ca_file {ca_file} cannot be used: {error.strerror or error}",
            hint="give a file of certificates in PEM, such as the endpoint's tls_cert",
        ) from error


def connect(
    url: str, *, key: str | None, timeout_s: float, trust: ssl.SSLContext | None = None
) -> httpx.Client:
    """Make a client of an endpoint, to be used as a context manager; it asks nothing yet.

    Args:
        url: Where the endpoint listens.
        key: The endpoint's key; None when it asks for none.
        timeout_s: Longest wait for each answer.
        trust: What an https endpoint's certificate is checked against; None takes this machine's.

    Raises:
        MissingDependencyError: A package that asking needs is not installed.
        SettingsError: The URL is malformed.
    """
    parsed = _parse(url)
    import httpx

    return httpx.Client(
        base_url=parsed,
        timeout=timeout_s,
        headers={"authorization": f"Bearer {key}"} if key else {},
        verify=True if trust is None else trust,
        trust_env=parsed.host not in _LOOPBACK,  # a proxy has no business on this machine
    )


def _parse(url: str) -> httpx.URL:
    """Read a URL as the client does, so that both mean the same host by it."""
    try:
        import httpx
        import orjson  # noqa: F401  # used further down; said here so that the hint comes first
    except ImportError as error:
        raise MissingDependencyError(
            f"asking an endpoint needs {error.name}, which is not installed",
            hint=install_line("cluster"),
        ) from error
    hint = "write --url http://HOST:PORT"
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise SettingsError(f"{url!r} is not an address: {error}", hint=hint) from error
    if parsed.userinfo:  # not shown: it may hold a password
        raise SettingsError(f"the address of {parsed.host} holds a name or password", hint=hint)
    if not _HOST.fullmatch(parsed.raw_host.decode("ascii")):
        raise SettingsError(f"{url!r} is not an address: {parsed.host!r} is no host", hint=hint)
    if parsed.port is not None and not 0 < parsed.port < 1 << 16:
        raise SettingsError(f"{url!r} is not an address: there is no port {parsed.port}", hint=hint)
    return parsed


def infer(client: httpx.Client, model: str, tensors: Mapping[str, np.ndarray]) -> Tensors:
    """Send one inference request.

    Args:
        client: From ``connect``.
        model: Name of the served model.
        tensors: One array per input of the model, shape (n_rows, ...), in the model's dtypes.

    Returns:
        Every output by name, shape (n_rows, ...); null in an output is NaN.

    Raises:
        InputError: The endpoint refuses the key or the tensors.
        NotFoundError: It does not serve the model.
        UnavailableError: Nothing answers there, not in time, or not in the protocol.
    """
    import orjson

    inputs = [encode_tensor(_spec(name, array), array) for name, array in tensors.items()]
    body = orjson.dumps({"inputs": inputs}, option=orjson.OPT_SERIALIZE_NUMPY)
    answer = _ask(client, "POST", f"{_path(model)}/infer", body=body)
    try:
        outputs: Tensors = {}
        for value in answer["outputs"]:
            shape = (-1, *value["shape"][1:])
            spec = TensorSpec(value["name"], dtype_of(value["datatype"]), shape)
            outputs[spec.name] = decode_tensor(spec, value, kind="output")
        return outputs
    except (KeyError, TypeError, IndexError, InputError) as error:
        raise _foreign(str(client.base_url)) from error


def _ask(client: httpx.Client, method: str, path: str, *, body: bytes | None = None) -> dict[str, Any]:
    """Send one request and give the answer's JSON object, or the error it stands for."""
    import httpx
    import orjson

    url = str(client.base_url).rstrip("/")
    try:
        response = client.request(method, path, content=body, headers={"content-type": "application/json"})
    except httpx.TimeoutException as error:
        raise UnavailableError(
            f"{url} did not answer within {client.timeout.read:g} s", hint="wait longer: --timeout-s SECONDS"
        ) from error
    except httpx.HTTPError as error:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            raise UnavailableError(
                f"the certificate of {url} is not trusted here: {error}",
                hint="name the file of certificates it is checked against: --ca-file FILE",
            ) from error
        raise UnavailableError(
            f"nothing answers at {url}: {error}", hint="start it: kit serve MODEL"
        ) from error
    try:
        value = orjson.loads(response.content)
    except orjson.JSONDecodeError:
        value = None
    if response.status_code != 200:
        raise _refusal(url, response.status_code, value)
    if not isinstance(value, dict):
        raise _foreign(url)
    return value


def _refusal(url: str, status: int, value: object) -> KitError:
    said = str(value["error"])[:500] if isinstance(value, dict) and "error" in value else f"status {status}"
    if status == 401:
        return InputError(
            f"{url} asks for its key, and this one is missing or wrong",
            hint="name the file that holds it: --api-key FILE (kit serve writes it to <state>/serve/key)",
        )
    kinds: dict[int, type[KitError]] = {400: InputError, 403: InputError, 404: NotFoundError, 413: InputError}
    return kinds.get(status, UnavailableError)(f"{url} refuses the request: {said}")


def _foreign(url: str) -> UnavailableError:
    return UnavailableError(
        f"{url.rstrip('/')} does not answer in the Open Inference Protocol as kit serve does",
        hint="check the address: --url",
    )


def _path(model: str) -> str:
    return f"/v2/models/{quote(model, safe='')}"


def _read_key(project: Project, settings: QuerySettings) -> str | None:
    """Read the key to show; the project's own is shown to this machine alone, never to another host."""
    if settings.api_key:
        path = Path(settings.api_key).expanduser()
    else:
        path = project.state / "serve" / "key"
        # Without the file, the endpoint has no key or is of another project: its answer will tell.
        if _parse(settings.url).host not in _LOOPBACK or not path.exists():
            return None
    try:
        key = path.read_text(encoding="ascii").strip()
    except FileNotFoundError as error:
        raise NotFoundError(f"the key file {path} does not exist", hint="use --api-key FILE") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the key file {path} cannot be read: {error}") from error
    if not key.isprintable() or not key or " " in key:
        raise InputError(f"the key file {path} does not hold one key", hint="use --api-key FILE")
    return key


def _signature(url: str, metadata: Mapping[str, Any]) -> Signature:
    """Rebuild the model's signature from what the endpoint says about it."""
    try:
        facts = metadata["parameters"]
        inputs = tuple(_metadata_spec(value) for value in metadata["inputs"])
        outputs = tuple(
            _metadata_spec(value, classes=tuple(facts["classes"]) if value["name"] == "label" else ())
            for value in metadata["outputs"]
        )
        if not metadata["versions"]:
            raise _foreign(url)
        return Signature(str(facts["task"]), inputs, outputs)
    except (KeyError, TypeError, ValueError, InputError) as error:
        raise _foreign(url) from error


def _metadata_spec(value: Mapping[str, Any], *, classes: tuple[int | str, ...] = ()) -> TensorSpec:
    facts = value.get("parameters", {})
    return TensorSpec(
        name=str(value["name"]),
        dtype=dtype_of(value["datatype"]),
        shape=tuple(int(size) for size in value["shape"]),
        columns=tuple(facts.get("columns", ())),
        nullable=bool(facts.get("nullable", False)),
        minimum=facts.get("minimum"),
        maximum=facts.get("maximum"),
        classes=classes,
    )


def _spec(name: str, array: np.ndarray) -> TensorSpec:
    dtype = next((known for known, numpy_dtype in DTYPES.items() if numpy_dtype == array.dtype), None)
    if dtype is None:
        raise InputError(f"input {name!r} has dtype {array.dtype}", hint=f"use one of {', '.join(DTYPES)}")
    return TensorSpec(name, dtype, (-1, *array.shape[1:]))


def _slice(tensors: Tensors, start: int) -> Tensors:
    return {name: array[start : start + REQUEST_ROWS] for name, array in tensors.items()}


def _rows(
    url: str, signature: Signature, answers: Tensors
) -> tuple[tuple[str, ...], tuple[tuple[Any, ...], ...]]:
    try:
        if signature.task == "regression":
            values = [float(value) for value in answers["value"]]
            return ("row", "value"), tuple(enumerate(values))
        names = signature.class_names(answers["label"])
        highest = [float(value) for value in answers["probabilities"].max(axis=1)]
    except (KeyError, IndexError) as error:
        raise _foreign(url) from error
    return ("row", "label", "probability"), tuple(zip(range(len(names)), names, highest, strict=True))

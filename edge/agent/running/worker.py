"""The process that holds a model: ``python -m edge.agent.running.worker``, started by the supervisor.

It verifies its slot, loads it, answers one request after the other and counts what it sees. Whatever a model
does to the process it runs in, it does it here. It decides nothing about slots and opens no network.

A slot is verified in a child that ends before anything is loaded: what checks signatures would otherwise lie
in memory as long as the model does.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import resource
import signal
import socket
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.agent.running.frames import BrokenChannelError, Channel
from edge.agent.telemetry.counts import Counts
from kit import golden
from kit.errors import KitError, ModelError, VerificationError
from kit.files import read_json
from kit.inference.body import read_json as read_body
from kit.inference.body import write_json
from kit.inference.card import Card, Reply
from kit.inference.errors import DeadlineError, NotFiniteError
from kit.inference.failures import encode_error
from kit.inference.finite import float_outputs, only_finite
from kit.inference.metadata import describe_model
from kit.inference.request import InferRequest, timeout_s_of
from kit.inference.rest import encode_answer, parse_infer
from kit.runner import Runner
from kit.tensors import Tensors

if TYPE_CHECKING:
    from edge.agent.device import Device
    from kit.bundle import Bundle

#: What a bundle's model file is, as the protocol names it.
_PLATFORMS = {
    ".tflite": "tensorflow_tflite",
    ".onnx": "onnx_onnxv1",
    ".xml": "openvino_ir",
    ".bin": "onnx_onnxv1",
}
_KILLED_FIRST = "500"


class Worker:
    """A loaded slot that answers.

    Args:
        runner: The slot's.
        digest: The slot.
        max_samples: Requests of one window that are kept whole.
    """

    def __init__(self, runner: Runner, *, digest: str, max_samples: int) -> None:
        manifest, signature = runner.manifest, runner.signature
        self._runner = runner
        self.card = Card(
            name=str(manifest["name"]),
            number=int(manifest["release"]),
            digest=digest,
            engine=runner.engine.name,
            signature=signature,
        )
        self._platform = _PLATFORMS[Path(manifest["model"]).suffix]
        self._checked = only_finite(self._answered, outputs=float_outputs(signature))
        profile = runner.folder / "profile.json"
        read = read_json(profile) if profile.is_file() else {}
        self._counts = Counts(read, signature=signature, max_samples=max_samples)
        self._ready_to_count = False

    def warm_up(self) -> None:
        """Answer one golden row, so that the first caller does not wait for what is done once.

        Raises:
            KitError: It cannot.
        """
        inputs = golden.read_tensors(self._runner.folder / "golden" / "inputs.npz")
        self._runner.run({name: array[:1] for name, array in inputs.items()})

    def hello(self) -> dict[str, Any]:
        """Say what was loaded."""
        card, requirements = self.card, self._runner.manifest.get("requirements", {})
        return {
            "op": "ready",
            "name": card.name,
            "version": card.version,
            "digest": card.digest,
            "engine": card.engine,
            "engine_version": self._runner.engine.version,
            "needed_mb": requirements.get("memory_mb"),
        }

    def answer(self, header: Mapping[str, Any], body: bytes) -> tuple[str, Reply]:
        """Answer one frame.

        Returns:
            How it ended in one word (``ok``, ``nan``, ``model`` or ``refused``), and the answer.
        """
        op = header["op"]
        if op == "infer":
            return self._infer(header, body)
        if op == "rows":
            return self._rows(header, body)
        if op == "model":
            return "ok", describe_model(self.card, platform=self._platform)
        if op == "window":
            return "ok", Reply(200, write_json(self._counts.take()))
        raise BrokenChannelError(f"nobody asks for {op!r}")

    def rest(self) -> None:
        """Do what can wait until nobody waits for an answer."""
        if self._ready_to_count:
            self._ready_to_count = False
            self._counts.count()

    def _infer(self, header: Mapping[str, Any], body: bytes) -> tuple[str, Reply]:
        try:
            raw = parse_infer(body, read=read_body, header_length=header.get("header_length"))
            request = raw.decode(self.card.signature)
            answers = self._checked(request.inputs)
            allowed_s = timeout_s_of(raw.parameters)
            if allowed_s is not None and time.monotonic() - header["began_s"] > allowed_s:
                raise DeadlineError("the answer comes too late", hint="allow more time, or ask again later")
            reply = encode_answer(request, self.card, answers, write=write_json)
        except NotFiniteError as error:
            return "nan", encode_error(error)
        except ModelError as error:
            return "model", encode_error(error)
        except KitError as error:
            return "refused", encode_error(error)
        self._count(request, answers)
        return "ok", reply

    def _rows(self, header: Mapping[str, Any], body: bytes) -> tuple[str, Reply]:
        """Answer the rows of a file, as JSON Lines."""
        from edge.agent import rows  # only where a folder is watched

        signature = self.card.signature
        try:
            table = rows.parse_rows(body, path=Path(header["name"]), signature=signature)
            inputs = signature.from_rows(table)
            answers = self._checked(inputs) if table else {}
            lines = rows.answer_lines(answers, signature=signature) if table else iter(())
            text = "".join(f"{line}\n" for line in lines)
        except NotFiniteError as error:
            return "nan", encode_error(error)
        except ModelError as error:
            return "model", encode_error(error)
        except KitError as error:
            return "refused", encode_error(error)
        if table:
            self._ready_to_count = self._counts.add(inputs, answers) or self._ready_to_count
        return "ok", Reply(200, text.encode())

    def _answered(self, inputs: Tensors) -> Tensors:
        try:
            return self._runner.run_validated(inputs)
        except Exception as error:  # an engine is foreign code, and these rows passed the signature
            raise ModelError(f"the model fails on these rows ({type(error).__name__})") from error

    def _count(self, request: InferRequest, answers: Tensors) -> None:
        self._ready_to_count = self._counts.add(request.inputs, answers) or self._ready_to_count


def main(arguments: list[str] | None = None) -> int:
    """Be the process: verify, load, answer until the supervisor goes.

    Args:
        arguments: One JSON object: ``device``, ``digest``, ``socket`` (the number of an open one),
            ``threads``, ``timeout_s``, ``max_body_bytes``, ``max_samples``.
    """
    (given,) = sys.argv[1:] if arguments is None else arguments
    asked = json.loads(given)
    for number in (signal.SIGINT, signal.SIGTERM):  # whoever stops the agent stops this process through it
        signal.signal(number, signal.SIG_IGN)
    _be_killed_first()
    channel = Channel(socket.socket(fileno=asked["socket"]), max_body_bytes=asked["max_body_bytes"])
    device, digest = Path(asked["device"]), asked["digest"]
    try:
        refusal = verify_apart(device, digest)
        if refusal:
            channel.send({"op": "refused", "kind": "VerificationError", "message": refusal})
            return 1
        try:
            runner = Runner.open(device / "slots" / digest, threads=asked["threads"])
            worker = Worker(runner, digest=digest, max_samples=asked["max_samples"])
            worker.warm_up()
        except KitError as error:
            said = f"{error.message}; {error.hint}" if error.hint else error.message
            channel.send({"op": "refused", "kind": type(error).__name__, "message": said[:2000]})
            return 1
        gc.collect()
        gc.freeze()  # what is here now stays; it need not be looked through again
        channel.send(worker.hello())
        _serve(channel, worker, timeout_s=asked["timeout_s"])
    except BrokenChannelError:  # the agent is gone, and takes this process along
        return 0
    return 0


def verify_apart(device: Path, digest: str) -> str:
    """Verify a slot in a child that ends at once; call it before there are threads.

    Returns:
        Why it cannot be believed; empty when it can.
    """
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        said = "what verifies it broke"
        try:
            os.close(read)
            from edge.agent.admission import require_runs  # not kept in memory beyond this child
            from edge.agent.device import Device

            require_runs(_opened(Device(device), digest).manifest)
            said = ""
        except KitError as error:
            said = error.message
        except BaseException:  # this child ends here, whatever happened
            traceback.print_exc()
        finally:
            with contextlib.suppress(OSError):
                os.write(write, said.encode()[:4000])
            os._exit(1 if said else 0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        said = pipe.read().decode(errors="replace")
    _, status = os.waitpid(child, 0)
    return said or ("" if status == 0 else f"what verifies it ended with status {status}")


def _opened(device: Device, digest: str) -> Bundle:
    """Verify a slot; one whose key was revoked runs as long as the device has no other."""
    try:
        return device.open_slot(digest)
    except VerificationError:
        with contextlib.suppress(KitError):
            good = device.good_slot()
            if good.bundle.digest == digest:
                return good.bundle
        raise


def _serve(channel: Channel, worker: Worker, *, timeout_s: float) -> None:
    set_timer = signal.setitimer
    longest_s = 1.0 + 1.5 * timeout_s  # the supervisor has lost patience long before
    while True:
        header, body = channel.receive()
        # Should the agent die, nobody is left to stop a hanging model but the system's own timer.
        set_timer(signal.ITIMER_REAL, longest_s)
        began_s = time.monotonic()
        try:
            outcome, reply = worker.answer(header, body)
        except BrokenChannelError:
            raise
        except Exception as error:  # the outer edge: callers see no internals, the agent's log does
            traceback.print_exc()
            outcome, reply = "internal", encode_error(error)
        said = {
            "status": reply.status,
            "headers": [[name.decode(), value.decode()] for name, value in reply.headers],
            "outcome": outcome,
            "seconds": time.monotonic() - began_s,
        }
        channel.send(said, reply.body)
        worker.rest()
        set_timer(signal.ITIMER_REAL, 0.0)


def _be_killed_first() -> None:
    """Ask the system to kill this process rather than the agent, and to write no core file."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_KILLED_FIRST)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    sys.exit(main())

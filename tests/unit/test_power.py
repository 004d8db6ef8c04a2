"""Rules of the power meters: what counts as one, what it adds up, and what is said where there is none."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kit.errors import UnavailableError
from kit.power import find_meter, measure_energy


def write(folder: Path, **entries: object) -> Path:
    """Write files as sysfs shows them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in entries.items():
        (folder / name).write_text(f"{value}\n")
    return folder


def processor(root: Path, number: int = 0, *, name: str = "package-0", energy_uj: int = 0) -> Path:
    folder = root / "class" / "powercap" / f"intel-rapl:{number}"
    return write(folder, name=name, energy_uj=energy_uj, max_energy_range_uj=1_000_000)


def test_a_machine_without_a_meter_says_so(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="no RAPL counter and no power monitor"):
        find_meter(tmp_path, on_cpu=True)


def test_processors_are_added_up_and_their_inner_zones_are_not(tmp_path: Path) -> None:
    zones = [processor(tmp_path), processor(tmp_path, 1, name="package-1", energy_uj=500)]
    platform = processor(tmp_path, 2, name="psys")
    meter = find_meter(tmp_path, on_cpu=True)
    for folder in (*zones, platform):
        write(folder, energy_uj=250_500)
    assert meter.joules() == pytest.approx(0.5005)
    assert meter.source == "RAPL, the whole processor"


def test_a_counter_that_starts_again_is_followed(tmp_path: Path) -> None:
    folder = processor(tmp_path, energy_uj=900_000)
    meter = find_meter(tmp_path, on_cpu=True)
    write(folder, energy_uj=100_000)
    assert meter.joules() == pytest.approx(0.2)
    write(folder, energy_uj=150_000)
    assert meter.joules() == pytest.approx(0.25)


def test_the_processors_counter_says_nothing_of_a_gpu(tmp_path: Path) -> None:
    processor(tmp_path)
    with pytest.raises(UnavailableError, match="no power monitor that includes the GPU"):
        find_meter(tmp_path, on_cpu=False)


@contextlib.contextmanager
def nobody() -> Iterator[None]:
    """Be an ordinary user; root may read everything."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


def test_a_counter_this_user_may_not_read_is_no_meter() -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are closed to others
        root = Path(folder)
        root.chmod(0o755)
        (processor(root) / "energy_uj").chmod(0)
        with nobody(), pytest.raises(UnavailableError, match="root alone may read"):
            find_meter(root, on_cpu=True)


def test_a_counter_that_holds_no_number_is_no_meter(tmp_path: Path) -> None:
    write(processor(tmp_path), energy_uj="off")
    with pytest.raises(UnavailableError, match=r"cannot be read: .*'off"):
        find_meter(tmp_path, on_cpu=True)


def jetson(root: Path, labels: tuple[str, ...]) -> Path:
    folder = write(root / "class" / "hwmon" / "hwmon3", name="ina3221")
    for number, label in enumerate(labels, start=1):
        volts, amperes = {f"in{number}_input": 5000}, {f"curr{number}_input": 1000 * number}
        write(folder, **{f"in{number}_label": label}, **volts, **amperes)
    return folder


@pytest.mark.parametrize("labels, watts", [(("VDD_IN", "VDD_CPU", "VDD_SOC"), 5.0), (("A", "B"), 15.0)])
def test_a_board_is_measured_at_the_rail_that_feeds_all_or_at_every_rail(
    tmp_path: Path, labels: tuple[str, ...], watts: float
) -> None:
    jetson(tmp_path, labels)
    meter = find_meter(tmp_path, on_cpu=False)
    energy = measure_energy(meter, lambda: None, for_s=0.01)
    assert energy.joules / energy.seconds == pytest.approx(watts, rel=0.2)
    assert labels[0] in meter.source


def test_a_monitor_of_power_is_read_in_microwatts(tmp_path: Path) -> None:
    write(tmp_path / "class" / "hwmon" / "hwmon0", name="power_meter", power1_average=7_000_000)
    energy = measure_energy(find_meter(tmp_path, on_cpu=True), lambda: None, for_s=0.01)
    assert energy.joules / energy.seconds == pytest.approx(7, rel=0.2)


def test_a_battery_and_a_graphics_card_are_no_meter(tmp_path: Path) -> None:
    for number, name in enumerate(("BAT0", "amdgpu")):
        write(tmp_path / "class" / "hwmon" / f"hwmon{number}", name=name, power1_input=9_000_000)
    with pytest.raises(UnavailableError):
        find_meter(tmp_path, on_cpu=True)


def test_work_is_done_at_least_once_and_counted(tmp_path: Path) -> None:
    folder = processor(tmp_path)
    done = []

    def work() -> None:
        done.append(time.perf_counter())
        write(folder, energy_uj=1000 * len(done))

    energy = measure_energy(find_meter(tmp_path, on_cpu=True), work, for_s=0)
    assert (energy.n_calls, len(done)) == (1, 1)
    assert energy.joules == pytest.approx(1e-3)


def test_a_meter_that_goes_away_is_an_error_in_one_sentence(tmp_path: Path) -> None:
    folder = processor(tmp_path)
    meter = find_meter(tmp_path, on_cpu=True)
    (folder / "energy_uj").unlink()
    with pytest.raises(UnavailableError, match="the power meter cannot be read"):
        measure_energy(meter, lambda: None, for_s=0)

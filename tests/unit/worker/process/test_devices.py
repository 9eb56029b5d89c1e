"""worker.process.devices: one process, one device."""

import subprocess
import sys

import pytest

from worker.process.devices import Device, DeviceError, pin


@pytest.mark.parametrize(
    ("device", "visible", "shown", "pinned"),
    [
        ("cpu", None, "", Device("cpu", "cpu")),
        ("cpu", "0,1", "", Device("cpu", "cpu")),
        ("cuda", None, "0", Device("cuda:0", "cuda:0")),
        ("cuda:2", None, "2", Device("cuda:2", "cuda:0")),
        ("cuda:1", "4,7", "7", Device("cuda:1", "cuda:0")),
        ("cuda:1", "GPU-aa,GPU-bb", "GPU-bb", Device("cuda:1", "cuda:0")),
    ],
)
def test_the_process_sees_its_device_and_no_other(
    device: str, visible: str | None, shown: str, pinned: Device
) -> None:
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert pin(device, environ) == pinned
    assert environ["CUDA_VISIBLE_DEVICES"] == shown


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "CPU", "", "cuda:-1", "cuda:9999"])
def test_a_name_that_is_not_a_device_is_refused(device: str) -> None:
    with pytest.raises(DeviceError, match="give cpu, cuda or cuda:N"):
        pin(device, {})


@pytest.mark.parametrize("visible", ["", "3", " , "])
def test_a_number_beyond_the_visible_gpus_is_refused(visible: str) -> None:
    with pytest.raises(DeviceError, match=r"shows \d GPUs"):
        pin("cuda:1", {"CUDA_VISIBLE_DEVICES": visible})


def test_pinning_does_not_import_torch() -> None:
    program = (
        "import sys; from worker.process import devices; "
        "devices.pin('cuda:0', {}); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)

from __future__ import annotations

import pytest

from kit.errors import InputError
from serve.ingress import check_port


@pytest.mark.parametrize("host", ["a..b", "a" * 70, "a\0b", "-", "192.0.2.1"])
def test_a_host_nobody_can_listen_on_is_refused_in_one_sentence(host: str) -> None:
    with pytest.raises(InputError) as caught:
        check_port(host, port=8000)
    assert repr(host) in caught.value.message
    assert caught.value.hint
